#include "csrc/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/model/entropy_bound.h"
#include "csrc/model/layers.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

// normal(0, std²) by Box and Muller from the stream (seed, initialisation, index), computed in double.
Tensor normal(at::IntArrayRef sizes, double std, uint64_t seed, uint64_t index) {
  Tensor out = torch::empty(sizes, torch::kFloat32);
  data::Stream stream(seed, data::Purpose::initialisation, index);
  float* to = out.data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); i += 2) {
    const double radius = std * std::sqrt(-2 * std::log(stream.uniform()));
    const double angle = 2 * std::numbers::pi * stream.uniform();
    to[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < out.numel()) to[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return out;
}

}  // namespace

// ---- configuration ---------------------------------------------------------------------------------------------------

bool SigmaConfig::any() const {
  return std::any_of(layers.begin(), layers.end(), [](const auto& x) { return x != "none"; });
}

bool SigmaConfig::takes(const std::string& layer) const {
  static const std::map<std::string, std::string> groups{{"q", "attention"}, {"k", "attention"}, {"v", "attention"},
                                                         {"o", "attention"}, {"gate", "mlp"},    {"up", "mlp"},
                                                         {"down", "mlp"},    {"head", "head"}};
  return std::any_of(layers.begin(), layers.end(),
                     [&](const std::string& x) { return x == layer || x == "all" || x == groups.at(layer); });
}

std::string SigmaConfig::problem() const {
  if (any() && std::find(layers.begin(), layers.end(), "none") != layers.end())
    return "layers: none stands beside other names; write one or the other";
  if (fused_qkv == "one" && (takes("q") != takes("k") || takes("k") != takes("v")))
    return "layers: fused_qkv is one, and q, k, v are not all named; name all three or write fused_qkv: separate";
  return "";
}

std::string DecoderConfig::problem() const {
  if (head_dim && *head_dim % 8 != 0)
    return "head_dim: " + std::to_string(*head_dim) + " is not a multiple of 8; take " +
           std::to_string((*head_dim + 7) / 8 * 8);
  const int64_t H = num_attention_heads, G = num_key_value_heads;
  if (!head_dim && (hidden_size % (8 * H) != 0 || head_size() > 256))
    return "hidden_size: " + std::to_string(hidden_size) + " does not give " + std::to_string(H) +
           " heads a size that is a multiple of 8 up to 256; a multiple of " + std::to_string(8 * H) +
           " does, or head_dim gives the size";
  if (H % G != 0)
    return "num_key_value_heads: " + std::to_string(G) + " does not divide num_attention_heads (" + std::to_string(H) +
           ")";
  if (attention.qk_clip > 0 && attention.qk_norm)
    return "attention.qk_clip: scales weights that attention.qk_norm scales back; use one of the two";
  if (attention.qk_clip > 0 && (sigma_reparam.takes("q") || sigma_reparam.takes("k")))
    return "attention.qk_clip: scales rows of q and k, whose norm sigma_reparam holds at gamma; use one of the two "
           "there";
  const auto& names = sigma_reparam.layers;
  if (tie_word_embeddings && std::find(names.begin(), names.end(), "head") != names.end())
    return "sigma_reparam.layers: the head is the embedding (tie_word_embeddings), which is no linear layer; leave "
           "head out";
  return sigma_reparam.problem().empty() ? "" : "sigma_reparam." + sigma_reparam.problem();
}

// ---- the model -------------------------------------------------------------------------------------------------------

Projection DecoderImpl::projection(torch::nn::Module& owner, const std::string& path, const std::string& name,
                                   Tensor weight, const std::vector<SigmaPart>& runs) const {
  Projection p{.name = path + name,
               .weight = owner.register_parameter(name, weight),
               .parts = {},
               .gamma = {},
               .u = {},
               .through = config_.sigma_reparam.sigma_grad == "through"};
  for (const SigmaPart& run : runs)
    if (config_.sigma_reparam.takes(run.name == "qkv" ? "q" : run.name))
      p.parts.push_back({path + run.name, run.first, run.rows});
  if (p.parts.empty()) return p;
  const auto P = static_cast<int64_t>(p.parts.size());
  p.gamma = owner.register_parameter(name + "_gamma", torch::ones({P}));
  p.u = owner.register_buffer(name + "_u", torch::empty({P, weight.size(1)}));
  return p;
}

DecoderImpl::DecoderImpl(const DecoderConfig& config, uint64_t seed) : config_(config) {
  if (const std::string problem = config.problem(); !problem.empty()) throw std::invalid_argument("model." + problem);
  if (config.vocabulary < 1) throw std::invalid_argument("model: vocabulary is 0; it is set from the tokenizer");
  const int64_t C = config.hidden_size, M = config.intermediate_size, V = config.vocabulary, D = config.head_size();
  const double fan_in = 1 / std::sqrt(static_cast<double>(C)), mlp_fan_in = 1 / std::sqrt(static_cast<double>(M));
  uint64_t index = 0;
  auto drawn = [&](at::IntArrayRef sizes, double std) {
    return normal(sizes, config.initializer_range.value_or(std), seed, index++);
  };
  embedding_ = register_parameter("embedding", drawn({V, C}, 0.02));
  const int64_t HD = config.num_attention_heads * D, GD = config.num_key_value_heads * D;
  const bool normed = config.norm != "none", after = config.norm == "post";
  std::vector<SigmaPart> qkv{{"q", 0, HD}, {"k", HD, GD}, {"v", HD + GD, GD}};
  if (config.sigma_reparam.fused_qkv == "one") qkv = {{"qkv", 0, HD + 2 * GD}};
  auto blocks = register_module("layers", std::make_shared<torch::nn::Module>());
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    auto block = blocks->register_module(std::to_string(i), std::make_shared<torch::nn::Module>());
    const std::string path = "layers." + std::to_string(i) + ".";
    const auto norm = [&](const char* name, bool wanted) {
      return wanted ? block->register_parameter(name, torch::ones({C})) : Tensor();
    };
    layers_.push_back({
        .input_norm = norm("input_norm", normed && !(after && i == 0)),
        .qkv = projection(*block, path, "qkv", drawn({HD + 2 * GD, C}, fan_in), qkv),
        .o = projection(*block, path, "o", drawn({C, HD}, 0.5 / std::sqrt(static_cast<double>(HD))), {{"o", 0, C}}),
        .post_norm = norm("post_norm", normed),
        .gate_up = projection(*block, path, "gate_up", drawn({2 * M, C}, fan_in), {{"gate", 0, M}, {"up", M, M}}),
        .down = projection(*block, path, "down", drawn({C, M}, 0.5 * mlp_fan_in), {{"down", 0, C}}),
        .q_norm = {},
        .k_norm = {},
        .log_temperature = {},
    });
    LayerWeights& layer = layers_.back();
    if (config.attention.qk_norm) {
      layer.q_norm = block->register_parameter("q_norm", torch::ones({D}));
      layer.k_norm = block->register_parameter("k_norm", torch::ones({D}));
    }
    if (config.attention.temperature == "head")
      layer.log_temperature = block->register_parameter("log_temperature", torch::zeros({config.num_attention_heads}));
    if (config.attention.temperature == "row")
      layer.log_temperature = block->register_parameter(
          "log_temperature", torch::zeros({config.num_attention_heads * config.max_position_embeddings}));
  }
  if (normed) final_norm_ = register_parameter("final_norm", torch::ones({C}));
  head_ = config.tie_word_embeddings
              ? Projection{.name = "head", .weight = embedding_, .parts = {}, .gamma = {}, .u = {}}
              : projection(*this, "", "head", drawn({V, C}, 0.02), {{"head", 0, V}});
  for (const Projection& p : sigma_projections())
    p.u.copy_(normal(p.u.sizes(), 1, seed, index++));  // last: no weight depends on these draws
  start_sigma(config.sigma_reparam.gamma_init == "sigma");
  const Tensor exponent = torch::arange(0, D, 2, torch::kFloat64) / static_cast<double>(D);
  const Tensor angle = torch::outer(torch::arange(config.max_position_embeddings, torch::kFloat64),
                                    torch::pow(config.rope_theta, -exponent));
  cosine_ = angle.cos();
  sine_ = angle.sin();
}

// qkv [N, (H + 2G)·D] with every query and key head through its norm.
Tensor DecoderImpl::normed_heads(const Tensor& qkv, const LayerWeights& layer) const {
  const int64_t N = qkv.size(0), H = config_.num_attention_heads, G = config_.num_key_value_heads,
                D = config_.head_size();
  const auto parts = qkv.split_with_sizes({H * D, G * D, G * D}, 1);
  const auto norm = [&](const Tensor& x, const Tensor& weight) {
    return std::get<1>(add_rms_norm(x.reshape({-1, D}), {}, weight, config_.rms_norm_eps)).view({N, -1});
  };
  return torch::cat({norm(parts[0], layer.q_norm), norm(parts[1], layer.k_norm), parts[2]}, 1);
}

// q [B, H, T, D], k, v [B, G, T, D] → [B, H, T, D]
Tensor DecoderImpl::attend(const Tensor& q, const Tensor& k, const Tensor& v, const LayerWeights& layer,
                           AttentionRecord* record) const {
  const AttentionConfig& c = config_.attention;
  ops::EntropyAttentionOptions options;
  if (c.window > 0) options.window = c.window;
  if (c.softcap > 0) options.softcap = c.softcap;
  if (layer.log_temperature.defined()) {
    const Tensor log = layer.log_temperature.view({config_.num_attention_heads, -1});  // [H, 1 or context]
    options.temperature = (log.size(1) > 1 ? log.slice(1, 0, q.size(2)) : log.squeeze(1)).exp();
  }
  options.return_entropy = record != nullptr;
  const ops::EntropyAttention attention = ops::entropy_attention(q, k, v, options);
  if (record != nullptr) {
    record->entropy.push_back(attention.entropy);
    record->max_logit.push_back(attention.max_logit);
    if (record->with_bound) record->bound.push_back(entropy_bound(q, k, options));
    record->window = c.window;
  }
  return attention.out;
}

Tensor DecoderImpl::hidden(const Tensor& tokens, AttentionRecord* record) {
  TORCH_CHECK(tokens.dim() == 2 && tokens.scalar_type() == torch::kInt64 && tokens.size(1) > 0, "decoder: tokens are ",
              tokens.sizes(), " ", tokens.scalar_type(), ", wanted [B, T] int64 with T ≥ 1");
  const int64_t B = tokens.size(0), T = tokens.size(1), C = config_.hidden_size;
  TORCH_CHECK(T <= config_.max_position_embeddings, "decoder: sequences of ", T,
              " tokens, but model.max_position_embeddings is ", config_.max_position_embeddings,
              "; shorten them or raise model.max_position_embeddings");
  if (tokens.is_cpu() && B > 0)
    TORCH_CHECK(tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < config_.vocabulary,
                "decoder: a token lies outside 0 … ", config_.vocabulary - 1, ", the vocabulary of the model");
  const Tensor cosine = cosine_.slice(0, 0, T).to(embedding_.options());
  const Tensor sine = sine_.slice(0, 0, T).to(embedding_.options());
  const bool after = config_.norm == "post";
  Tensor x = torch::embedding(embedding_, tokens).view({B * T, C}), delta, normed;
  for (const LayerWeights& layer : layers_) {
    std::tie(x, normed) = residual(x, delta, layer.input_norm, config_.rms_norm_eps, after);
    Tensor qkv = model::linear(normed, layer.qkv);
    if (layer.q_norm.defined()) qkv = normed_heads(qkv, layer);
    const auto [q, k, v] = rotary_split(qkv, cosine, sine, config_.num_attention_heads, config_.num_key_value_heads);
    delta =
        model::linear(attend(q, k, v, layer, record).transpose(1, 2).reshape({B * T, q.size(1) * q.size(3)}), layer.o);
    std::tie(x, normed) = residual(x, delta, layer.post_norm, config_.rms_norm_eps, after);
    delta = model::linear(swiglu(model::linear(normed, layer.gate_up)), layer.down);
  }
  return std::get<1>(residual(x, delta, final_norm_, config_.rms_norm_eps, after)).view({B, T, C});
}

Tensor DecoderImpl::forward(const Tensor& tokens, AttentionRecord* record) {
  const Tensor x = hidden(tokens, record);
  return model::linear(x.view({-1, config_.hidden_size}), head_).view({x.size(0), x.size(1), config_.vocabulary});
}

ops::TokenEntropy DecoderImpl::token_entropy(const Tensor& tokens, const Tensor& target, double temperature,
                                             AttentionRecord* record) {
  if (!config_.fused_head) return ops::token_entropy(forward(tokens, record), target, temperature);
  Tensor x = hidden(tokens, record);
  // z = γ/σ · (W h) = W (γ/σ · h). One copy of the factor a row: its gradient is summed by rows, in an order that does not depend
  // on the number of threads, as that of all of x at once would.
  if (!head_.parts.empty()) x = x * norm_scale(head_).expand({x.size(0), x.size(1), 1});
  return ops::linear_token_entropy(x, head_.weight, target, {.temperature = temperature});
}

int64_t DecoderImpl::qk_clip(const std::vector<std::vector<double>>& max_logit) {
  const torch::NoGradGuard no_grad;
  const int64_t D = config_.head_size(), H = config_.num_attention_heads, G = config_.num_key_value_heads,
                group = H / G;
  int64_t clipped = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const auto share = [&](int64_t h) {
      return std::min(1.0, config_.attention.qk_clip / std::max(max_logit[l][h], 1e-30));
    };
    const auto scale_rows = [&](int64_t head, double factor) {
      layers_[l].qkv.weight.slice(0, head * D, (head + 1) * D).mul_(factor);
    };
    for (int64_t g = 0; g < G; ++g) {
      double least = 1;
      for (int64_t h = g * group; h < (g + 1) * group; ++h) least = std::min(least, share(h));
      if (least == 1) continue;
      scale_rows(H + g, std::sqrt(least));
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        scale_rows(h, share(h) / std::sqrt(least));
        clipped += share(h) < 1;
      }
    }
  }
  return clipped;
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::named(Tensor weight_of(const Projection&)) const {
  const int64_t D = config_.head_size(), H = config_.num_attention_heads, G = config_.num_key_value_heads,
                M = config_.intermediate_size;
  std::vector<std::pair<std::string, Tensor>> weights{{"model.embed_tokens.weight", embedding_}};
  const auto add = [&](const std::string& name, const Tensor& weight) {
    if (weight.defined()) weights.emplace_back(name, weight);
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerWeights& layer = layers_[i];
    const auto qkv = weight_of(layer.qkv).split_with_sizes({H * D, G * D, G * D}, 0);
    const auto gate_up = weight_of(layer.gate_up).split_with_sizes({M, M}, 0);
    const std::string at = "model.layers." + std::to_string(i) + ".";
    add(at + "input_layernorm.weight", layer.input_norm);
    add(at + "self_attn.q_proj.weight", qkv[0]);
    add(at + "self_attn.k_proj.weight", qkv[1]);
    add(at + "self_attn.v_proj.weight", qkv[2]);
    add(at + "self_attn.o_proj.weight", weight_of(layer.o));
    add(at + "post_attention_layernorm.weight", layer.post_norm);
    add(at + "mlp.gate_proj.weight", gate_up[0]);
    add(at + "mlp.up_proj.weight", gate_up[1]);
    add(at + "mlp.down_proj.weight", weight_of(layer.down));
    add(at + "self_attn.q_norm.weight", layer.q_norm);
    add(at + "self_attn.k_norm.weight", layer.k_norm);
    add(at + "self_attn.log_temperature", layer.log_temperature);
  }
  add("model.norm.weight", final_norm_);
  if (!config_.tie_word_embeddings) add("lm_head.weight", weight_of(head_));
  return weights;
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::named_weights() const {
  return named([](const Projection& p) { return p.weight; });
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::folded_weights() const { return named(folded); }

// ---- learned spectral norms ------------------------------------------------------------------------------------------

std::vector<Projection> DecoderImpl::sigma_projections() const {
  std::vector<Projection> found;
  const auto add = [&](const Projection& p) {
    if (!p.parts.empty()) found.push_back(p);
  };
  for (const LayerWeights& layer : layers_)
    for (const Projection* p : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) add(*p);
  add(head_);
  return found;
}

std::vector<SigmaLayer> DecoderImpl::sigma_layers() const {
  std::vector<SigmaLayer> layers;
  for (const Projection& p : sigma_projections())
    for (size_t i = 0; i < p.parts.size(); ++i)
      layers.push_back({p.parts[i].name, weight_of(p, i).detach(), p.gamma.detach()[i], p.u[i]});
  return layers;
}

namespace {

// Power steps of all layers in one call; returns σ of each.
Tensor follow(const std::vector<SigmaLayer>& layers, int64_t steps_max, double tolerance) {
  std::vector<Tensor> weights, us;
  for (const SigmaLayer& layer : layers) weights.push_back(layer.weight), us.push_back(layer.u);
  return ops::power_step(weights, us, steps_max, tolerance).sigmas;
}

}  // namespace

std::vector<double> DecoderImpl::power_step() {
  const torch::NoGradGuard no_grad;
  const auto layers = sigma_layers();
  if (layers.empty()) return {};
  const SigmaConfig& c = config_.sigma_reparam;
  const Tensor sigmas = follow(layers, c.steps_max, c.tolerance).to(torch::kCPU, torch::kFloat64);
  return {sigmas.const_data_ptr<double>(), sigmas.const_data_ptr<double>() + sigmas.numel()};
}

void DecoderImpl::start_sigma(bool gamma_is_sigma) {
  const torch::NoGradGuard no_grad;
  const auto layers = sigma_layers();
  if (layers.empty()) return;
  for (const SigmaLayer& layer : layers) layer.u.div_(layer.u.norm());
  // Not by LAPACK, whose bits depend on the number of threads. Of a random matrix, whose largest singular values lie close
  // together, σ is within 1e-4 of the true one when a step changes it by less than 1e-6, some hundred steps from a random u.
  constexpr int64_t kStartSteps = 1000;
  constexpr double kStartTolerance = 1e-6;
  follow(layers, kStartSteps, kStartTolerance);
  for (const Projection& p : sigma_projections())
    gamma_is_sigma ? Tensor(p.gamma).copy_(spectral_norms(p)) : Tensor(p.gamma).fill_(1);
}

std::map<std::string, Tensor> DecoderImpl::sigma_state() const {
  std::map<std::string, Tensor> state;
  for (const Projection& p : sigma_projections()) {
    const std::string name = "sigma/" + p.name;
    state.insert({{name, p.weight.detach()}, {name + "_gamma", p.gamma.detach()}, {name + "_u", p.u}});
  }
  return state;
}

bool DecoderImpl::restore_sigma(const std::map<std::string, Tensor>& state) {
  const torch::NoGradGuard no_grad;
  const auto own = sigma_state();
  for (const auto& [name, tensor] : own)
    if (const auto found = state.find(name); found == state.end() || found->second.sizes() != tensor.sizes())
      return false;
  for (const auto& [name, tensor] : own) tensor.copy_(state.at(name));
  return true;
}

}  // namespace isentrope::model
