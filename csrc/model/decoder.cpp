#include "csrc/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/model/bfloat16_training.h"
#include "csrc/model/entropy_bound.h"
#include "csrc/model/layers.h"
#include "csrc/model/recompute.h"

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

// Whether products keep their inputs for the backward pass: to make those of all blocks again (csrc/model/origin.h) takes 2 % of a step of
// a small model, and so few bytes are no concern.
bool keeps_inputs(const DecoderConfig& config, const Tensor& x) {
  constexpr int64_t kFew = int64_t{16} << 20;
  const int64_t of_token =
      2 * config.hidden_size + config.num_attention_heads * config.head_size() + config.intermediate_size;
  return x.size(0) * config.num_hidden_layers * of_token * x.element_size() <= kFew;
}

}  // namespace

// ---- configuration ---------------------------------------------------------------------------------------------------

int64_t AttentionConfig::window_of(int64_t layer) const {
  if (layer_types.empty()) return window;
  return layer_types[static_cast<size_t>(layer) % layer_types.size()] == "sliding_attention" ? window : 0;
}

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
  const auto& types = attention.layer_types;
  if (static_cast<int64_t>(types.size()) > num_hidden_layers)
    return "attention.layer_types: " + std::to_string(types.size()) + " types, and num_hidden_layers is " +
           std::to_string(num_hidden_layers);
  if (attention.window == 0 && std::find(types.begin(), types.end(), "sliding_attention") != types.end())
    return "attention.layer_types: sliding_attention takes a window, and attention.window is 0";
  if (positions_made_for > max_position_embeddings && attention.temperature == "row")
    return "max_position_embeddings: attention.temperature row has weights for " + std::to_string(positions_made_for) +
           " positions; leave it at that";
  if (positions_made_for > 0 && positions_made_for < max_position_embeddings)
    return "max_position_embeddings: " + std::to_string(max_position_embeddings) + ", and the model was made for " +
           std::to_string(positions_made_for) + "; write at most that";
  if (attention.qk_clip > 0 && attention.qk_norm)
    return "attention.qk_clip: scales weights that attention.qk_norm scales back; use one of the two";
  if (attention.qk_clip > 0 && (sigma_reparam.takes("q") || sigma_reparam.takes("k")))
    return "attention.qk_clip: scales rows of q and k, whose norm sigma_reparam holds at gamma; use one of the two "
           "there";
  if (lora && sigma_reparam.any())
    return "lora: the layers of sigma_reparam learn the norm of weights that an adapter leaves as they are; use one of "
           "the two";
  if (lora && attention.qk_clip > 0)
    return "attention.qk_clip: scales weights of q and k, which lora leaves as they are; use one of the two";
  const auto& names = sigma_reparam.layers;
  if (tie_word_embeddings && std::find(names.begin(), names.end(), "head") != names.end())
    return "sigma_reparam.layers: the head is the embedding (tie_word_embeddings), which is no linear layer; leave "
           "head out";
  return sigma_reparam.problem().empty() ? "" : "sigma_reparam." + sigma_reparam.problem();
}

// ---- the model -------------------------------------------------------------------------------------------------------

std::shared_ptr<Bfloat16Copy> DecoderImpl::bfloat16_copy() const {
  return config_.compute == "bfloat16" ? std::make_shared<Bfloat16Copy>() : nullptr;
}

Projection DecoderImpl::projection(torch::nn::Module& owner, const std::string& path, const std::string& name,
                                   Tensor weight, bool bias, const std::vector<SigmaPart>& runs) const {
  Projection p{.name = path + name,
               .weight = owner.register_parameter(name, weight),
               .bias = bias ? owner.register_parameter(name + "_bias", torch::zeros({weight.size(0)})) : Tensor(),
               .parts = {},
               .gamma = {},
               .u = {},
               .through = config_.sigma_reparam.sigma_grad == "through",
               .bfloat16 = bfloat16_copy()};
  for (const SigmaPart& run : runs)
    if (config_.sigma_reparam.takes(run.name == "qkv" ? "q" : run.name))
      p.parts.push_back({path + run.name, run.first, run.rows});
  add_lora_term(p, owner, name, runs);
  if (p.parts.empty()) return p;
  const auto P = static_cast<int64_t>(p.parts.size());
  p.gamma = owner.register_parameter(name + "_gamma", torch::ones({P}));
  p.u = owner.register_buffer(name + "_u", torch::empty({P, weight.size(1)}));
  return p;
}

DecoderImpl::DecoderImpl(const DecoderConfig& config, std::optional<uint64_t> seed) : config_(config) {
  if (const std::string problem = config.problem(); !problem.empty()) throw std::invalid_argument("model." + problem);
  if (config.vocabulary < 1) throw std::invalid_argument("model: vocabulary is 0; it is set from the tokenizer");
  if (config.tokens > config.vocabulary)
    throw std::invalid_argument("model: " + std::to_string(config.tokens) + " tokens, and the embedding has " +
                                std::to_string(config.vocabulary) + " rows; take the tokenizer of the model");
  const int64_t C = config.hidden_size, M = config.intermediate_size, V = config.vocabulary, D = config.head_size();
  const double fan_in = 1 / std::sqrt(static_cast<double>(C)), mlp_fan_in = 1 / std::sqrt(static_cast<double>(M));
  uint64_t index = 0;
  auto drawn = [&](at::IntArrayRef sizes, double std) {
    if (!seed) return torch::zeros(sizes);
    return normal(sizes, config.initializer_range.value_or(std), *seed, index++);
  };
  embedding_ = register_parameter("embedding", drawn({V, C}, 0.02));
  const int64_t HD = config.num_attention_heads * D, GD = config.num_key_value_heads * D;
  const bool normed = config.norm != "none", after = config.norm == "post";
  const bool all = config.attention.bias == "all", qkv_bias = all || config.attention.bias == "qkv",
             inner = config.mlp_bias;
  std::vector<SigmaPart> qkv{{"q", 0, HD}, {"k", HD, GD}, {"v", HD + GD, GD}};
  if (config.sigma_reparam.any() && config.sigma_reparam.fused_qkv == "one") qkv = {{"qkv", 0, HD + 2 * GD}};
  auto blocks = register_module("layers", std::make_shared<torch::nn::Module>());
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    auto block = blocks->register_module(std::to_string(i), std::make_shared<torch::nn::Module>());
    const std::string path = "layers." + std::to_string(i) + ".";
    const auto norm = [&](const char* name, bool wanted) {
      return wanted ? block->register_parameter(name, torch::ones({C})) : Tensor();
    };
    layers_.push_back({
        .input_norm = norm("input_norm", normed && !(after && i == 0)),
        .qkv = projection(*block, path, "qkv", drawn({HD + 2 * GD, C}, fan_in), qkv_bias, qkv),
        .o =
            projection(*block, path, "o", drawn({C, HD}, 0.5 / std::sqrt(static_cast<double>(HD))), all, {{"o", 0, C}}),
        .post_norm = norm("post_norm", normed),
        .gate_up =
            projection(*block, path, "gate_up", drawn({2 * M, C}, fan_in), inner, {{"gate", 0, M}, {"up", M, M}}),
        .down = projection(*block, path, "down", drawn({C, M}, 0.5 * mlp_fan_in), inner, {{"down", 0, C}}),
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
  head_ = config.tie_word_embeddings ? Projection{.name = "head",
                                                  .weight = embedding_,
                                                  .bias = {},
                                                  .parts = {},
                                                  .gamma = {},
                                                  .u = {},
                                                  .bfloat16 = bfloat16_copy()}
                                     : projection(*this, "", "head", drawn({V, C}, 0.02), false, {{"head", 0, V}});
  if (config.lora)
    for (auto& parameter : named_parameters())
      parameter.value().requires_grad_(parameter.key().ends_with("_lora_a") || parameter.key().ends_with("_lora_b"));
  for (const Projection& p : sigma_projections())
    p.u.copy_(normal(p.u.sizes(), 1, seed.value_or(0), index++));  // last: no weight depends on these draws
  if (seed) start_sigma(config.sigma_reparam.gamma_init == "sigma");
  const int64_t positions = config.max_position_embeddings;
  const Tensor frequencies = inverse_frequencies(config.rope_scaling, config.rope_theta, D, positions);
  const Tensor angle = torch::outer(torch::arange(positions, torch::kFloat64), frequencies);
  const double factor = rope_attention_factor(config.rope_scaling);
  cosine_ = angle.cos() * factor;
  sine_ = angle.sin() * factor;
}

Tensor DecoderImpl::operand(const Tensor& x) const {
  return config_.compute == "bfloat16" && x.scalar_type() == torch::kFloat32 ? x.to(torch::kBFloat16) : x;
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
Tensor DecoderImpl::attend(const Tensor& q, const Tensor& k, const Tensor& v, size_t layer, AttentionRecord* record,
                           const Packing* packing) const {
  const AttentionConfig& c = config_.attention;
  const int64_t window = c.window_of(static_cast<int64_t>(layer));
  ops::EntropyAttentionOptions options;
  if (window > 0) options.window = window;
  if (c.softcap > 0) options.softcap = c.softcap;
  if (const Tensor& log_temperature = layers_[layer].log_temperature; log_temperature.defined()) {
    const Tensor log = log_temperature.view({config_.num_attention_heads, -1});  // [H, 1 or context]
    const Tensor of_rows =
        packing && log.size(1) > 1 ? log.index_select(1, packing->position) : log.slice(1, 0, q.size(2));
    options.temperature = (log.size(1) > 1 ? of_rows : log.squeeze(1)).exp();
  }
  options.return_entropy = record != nullptr;
  const Tensor q_in = operand(q), k_in = operand(k), v_in = operand(v);
  const ops::EntropyAttention attention = packing ? packed_attention(q_in, k_in, v_in, options, *packing)
                                                  : ops::entropy_attention(q_in, k_in, v_in, options);
  if (record != nullptr) {
    record->entropy.push_back(attention.entropy);
    record->max_logit.push_back(attention.max_logit);
    if (record->with_bound)
      record->bound.push_back(packing ? packed_entropy_bound(q, k, options, *packing) : entropy_bound(q, k, options));
    record->window.push_back(window);
  }
  return attention.out;
}

std::pair<Tensor, Tensor> DecoderImpl::block(const Tensor& x_in, const Tensor& delta, size_t index,
                                             const Tensor& cosine, const Tensor& sine, const Packing* packing,
                                             AttentionRecord* record) const {
  const double eps = config_.rms_norm_eps;
  const bool after = config_.norm == "post";
  const LayerWeights& layer = layers_[index];
  const auto again = [keeps = keeps_inputs(config_, x_in)](const Origin& made) { return keeps ? Origin() : made; };
  const Residual outer = residual(x_in, delta, layer.input_norm, eps, after);
  Tensor qkv = model::linear(outer.branch, layer.qkv, again(outer.origin));
  if (layer.q_norm.defined()) qkv = normed_heads(qkv, layer);
  const auto [q, k, v] = rotary_split(qkv, cosine, sine, config_.num_attention_heads, config_.num_key_value_heads);
  const Tensor heads = attend(q, k, v, index, record, packing);
  const Tensor attended = model::linear(token_rows(heads), layer.o, again(token_rows_origin(heads)));
  const Residual inner = residual(outer.x, attended, layer.post_norm, eps, after);
  const Tensor gate_up = model::linear(inner.branch, layer.gate_up, again(inner.origin));
  return {inner.x, model::linear(swiglu(gate_up), layer.down, again(swiglu_origin(gate_up)))};
}

std::pair<Tensor, Tensor> DecoderImpl::recomputed_block(const Tensor& x, const Tensor& delta, size_t index,
                                                        const Tensor& cosine, const Tensor& sine,
                                                        const std::shared_ptr<const Packing>& packing,
                                                        AttentionRecord* record) const {
  const bool records = record != nullptr, with_bound = records && record->with_bound;
  const auto run = [=, this](const Tensors& inputs) -> Tensors {
    AttentionRecord own{
        .entropy = {}, .max_logit = {}, .window = {}, .position = {}, .with_bound = with_bound, .bound = {}};
    const auto [sum, out] = block(inputs[0], inputs[1], index, cosine, sine, packing.get(), records ? &own : nullptr);
    Tensors outputs{sum, out};
    if (records) outputs.insert(outputs.end(), {own.entropy[0], own.max_logit[0]});
    if (with_bound) outputs.push_back(own.bound[0]);
    return outputs;
  };
  const LayerWeights& layer = layers_[index];
  Tensors parameters;
  for (const Tensor& one : {layer.input_norm, layer.post_norm, layer.q_norm, layer.k_norm, layer.log_temperature})
    if (one.defined()) parameters.push_back(one);
  for (const Projection* p : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
    parameters.push_back(p->weight);
    for (const Tensor& one : {p->bias, p->gamma, p->lora_a, p->lora_b})
      if (one.defined()) parameters.push_back(one);
  }
  const Tensors outputs = recomputed(run, {x, delta}, parameters);
  if (records) {
    record->entropy.push_back(outputs[2]);
    record->max_logit.push_back(outputs[3].detach());
    if (with_bound) record->bound.push_back(outputs[4].detach());
    record->window.push_back(config_.attention.window_of(static_cast<int64_t>(index)));
  }
  return {outputs[0], outputs[1]};
}

Tensor DecoderImpl::hidden(const Tensor& tokens, AttentionRecord* record, const Tensor& position,
                           std::optional<int64_t> inner) {
  TORCH_CHECK(tokens.dim() == 2 && tokens.scalar_type() == torch::kInt64 && tokens.size(1) > 0, "decoder: tokens are ",
              tokens.sizes(), " ", tokens.scalar_type(), ", wanted [B, T] int64 with T ≥ 1");
  const int64_t B = tokens.size(0), T = tokens.size(1), C = config_.hidden_size;
  TORCH_CHECK(T <= config_.max_position_embeddings, "decoder: sequences of ", T,
              " tokens, but model.max_position_embeddings is ", config_.max_position_embeddings,
              "; shorten them or raise model.max_position_embeddings");
  if (tokens.is_cpu() && B > 0)
    TORCH_CHECK(tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < config_.token_count(),
                "decoder: a token lies outside 0 … ", config_.token_count() - 1, ", the vocabulary of the model");
  std::shared_ptr<const Packing> packing;  // its B · T tokens go through the blocks as one row
  if (position.defined()) packing = std::make_shared<const Packing>(position);
  if (record != nullptr) record->position = position;
  const auto of_rows = [&](const Tensor& table) {
    return (packing ? table.index_select(0, packing->position.to(torch::kCPU)) : table.slice(0, 0, T))
        .to(embedding_.options());
  };
  const Tensor cosine = of_rows(cosine_), sine = of_rows(sine_);
  Tensor x = torch::embedding(embedding_, tokens).view({B * T, C}), delta;
  const auto pass = [&](size_t first, size_t last) {
    for (size_t layer = first; layer < last; ++layer)
      std::tie(x, delta) = config_.recompute == "blocks"
                               ? recomputed_block(x, delta, layer, cosine, sine, packing, record)
                               : block(x, delta, layer, cosine, sine, packing.get(), record);
  };
  if (inner && *inner + 1 < config_.num_hidden_layers) {
    pass(0, *inner + 1);
    const Tensor stream = (x + delta).view({B, T, C});
    if (record != nullptr) {
      const torch::NoGradGuard no_grad;
      pass(*inner + 1, layers_.size());
    }
    return stream;
  }
  pass(0, layers_.size());
  return residual(x, delta, final_norm_, config_.rms_norm_eps, config_.norm == "post").branch.view({B, T, C});
}

Tensor DecoderImpl::forward(const Tensor& tokens, AttentionRecord* record, const Tensor& position) {
  return logits_of(hidden(tokens, record, position));
}

Tensor DecoderImpl::logits_of(const Tensor& x) {
  const Tensor logits =
      model::linear(x.view({-1, config_.hidden_size}), head_).view({x.size(0), x.size(1), config_.vocabulary});
  return config_.token_count() < config_.vocabulary ? logits.slice(2, 0, config_.token_count()) : logits;
}

ops::TokenEntropy DecoderImpl::token_entropy(const Tensor& tokens, const Tensor& target, double temperature,
                                             AttentionRecord* record, const Tensor& position,
                                             const std::optional<ops::Keep>& keep, bool moments,
                                             std::optional<int64_t> inner) {
  Tensor x = hidden(tokens, record, position, inner);
  if (!config_.fused_head)
    return ops::token_entropy(logits_of(x), target, temperature, /*ignore_index=*/-100, moments,
                              /*inplace_backward=*/false, keep);
  // z = γ/σ · (W h) = W (γ/σ · h). One copy of the factor a row: its gradient is summed by rows, in an order that does not depend
  // on the number of threads, as that of all of x at once would.
  if (!head_.parts.empty()) x = x * norm_scale(head_).expand({x.size(0), x.size(1), 1});
  const Tensor head =
      config_.token_count() < config_.vocabulary ? head_.weight.slice(0, 0, config_.token_count()) : head_.weight;
  return ops::linear_token_entropy(operand(x), operand(head), target,
                                   {.temperature = temperature, .moments = moments, .keep = keep});
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
      for (const Tensor& x : {layers_[l].qkv.weight, layers_[l].qkv.bias})
        if (x.defined()) x.slice(0, head * D, (head + 1) * D).mul_(factor);
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
    const auto add_biases = [&](const Tensor& joined, const std::vector<int64_t>& rows,
                                const std::vector<const char*>& names) {
      if (!joined.defined()) return;
      const auto parts = joined.split_with_sizes(rows, 0);
      for (size_t k = 0; k < names.size(); ++k) add(at + names[k] + ".bias", parts[k]);
    };
    add(at + "input_layernorm.weight", layer.input_norm);
    add(at + "self_attn.q_proj.weight", qkv[0]);
    add(at + "self_attn.k_proj.weight", qkv[1]);
    add(at + "self_attn.v_proj.weight", qkv[2]);
    add(at + "self_attn.o_proj.weight", weight_of(layer.o));
    add(at + "post_attention_layernorm.weight", layer.post_norm);
    add(at + "mlp.gate_proj.weight", gate_up[0]);
    add(at + "mlp.up_proj.weight", gate_up[1]);
    add(at + "mlp.down_proj.weight", weight_of(layer.down));
    add_biases(layer.qkv.bias, {H * D, G * D, G * D}, {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
    add_biases(layer.o.bias, {config_.hidden_size}, {"self_attn.o_proj"});
    add_biases(layer.gate_up.bias, {M, M}, {"mlp.gate_proj", "mlp.up_proj"});
    add_biases(layer.down.bias, {config_.hidden_size}, {"mlp.down_proj"});
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

}  // namespace isentrope::model
