#include "csrc/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/model/layers.h"
#include "csrc/model/linear.h"
#include "csrc/ops/ops.h"

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

std::string DecoderConfig::problem() const {
  if (width % (8 * heads) != 0 || head_size() > 256)
    return "width: " + std::to_string(width) + " does not give " + std::to_string(heads) +
           " heads a size that is a multiple of 8 up to 256; a multiple of " + std::to_string(8 * heads) + " does";
  if (heads % kv_heads != 0)
    return "kv_heads: " + std::to_string(kv_heads) + " does not divide heads (" + std::to_string(heads) + ")";
  if (attention.qk_clip > 0 && attention.qk_norm)
    return "attention.qk_clip: scales weights that attention.qk_norm scales back; use one of the two";
  return "";
}

DecoderImpl::DecoderImpl(const DecoderConfig& config, uint64_t seed) : config_(config) {
  if (const std::string problem = config.problem(); !problem.empty())
    throw std::invalid_argument("model." + problem);
  if (config.vocabulary < 1)
    throw std::invalid_argument("model: vocabulary is 0; it is set from the tokenizer");
  const int64_t C = config.width, M = config.mlp, V = config.vocabulary, D = config.head_size();
  const double fan_in = 1 / std::sqrt(static_cast<double>(C)),
               mlp_fan_in = 1 / std::sqrt(static_cast<double>(M));
  uint64_t index = 0;
  auto drawn = [&](at::IntArrayRef sizes, double std) { return normal(sizes, std, seed, index++); };
  embedding_ = register_parameter("embedding", drawn({V, C}, 0.02));
  auto blocks = register_module("layers", std::make_shared<torch::nn::Module>());
  for (int64_t i = 0; i < config.layers; ++i) {
    auto block = blocks->register_module(std::to_string(i), std::make_shared<torch::nn::Module>());
    layers_.push_back({
        .input_norm = block->register_parameter("input_norm", torch::ones({C})),
        .qkv = block->register_parameter("qkv", drawn({(config.heads + 2 * config.kv_heads) * D, C}, fan_in)),
        .o = block->register_parameter("o", drawn({C, C}, 0.5 * fan_in)),
        .post_norm = block->register_parameter("post_norm", torch::ones({C})),
        .gate_up = block->register_parameter("gate_up", drawn({2 * M, C}, fan_in)),
        .down = block->register_parameter("down", drawn({C, M}, 0.5 * mlp_fan_in)),
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
      layer.log_temperature = block->register_parameter("log_temperature", torch::zeros({config.heads}));
    if (config.attention.temperature == "row")
      layer.log_temperature = block->register_parameter("log_temperature", torch::zeros({config.heads * config.context}));
  }
  final_norm_ = register_parameter("final_norm", torch::ones({C}));
  head_ = config.tied_head ? embedding_ : register_parameter("head", drawn({V, C}, 0.02));
  const Tensor exponent = torch::arange(0, D, 2, torch::kFloat64) / static_cast<double>(D);
  const Tensor angle =
      torch::outer(torch::arange(config.context, torch::kFloat64), torch::pow(config.rope_base, -exponent));
  cosine_ = angle.cos();
  sine_ = angle.sin();
}

// qkv [N, (H + 2G)·D] with every query and key head through its norm.
Tensor DecoderImpl::normed_heads(const Tensor& qkv, const LayerWeights& layer) const {
  const int64_t N = qkv.size(0), H = config_.heads, G = config_.kv_heads, D = config_.head_size();
  const auto parts = qkv.split_with_sizes({H * D, G * D, G * D}, 1);
  const auto norm = [&](const Tensor& x, const Tensor& weight) {
    return std::get<1>(add_rms_norm(x.reshape({-1, D}), {}, weight, config_.norm_eps)).view({N, -1});
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
    const Tensor log = layer.log_temperature.view({config_.heads, -1});  // [H, 1 or context]
    options.temperature = (log.size(1) > 1 ? log.slice(1, 0, q.size(2)) : log.squeeze(1)).exp();
  }
  options.return_entropy = record != nullptr;
  const ops::EntropyAttention attention = ops::entropy_attention(q, k, v, options);
  if (record != nullptr) {
    record->entropy.push_back(attention.entropy);
    record->max_logit.push_back(attention.max_logit);
    record->window = c.window;
  }
  return attention.out;
}

Tensor DecoderImpl::hidden(const Tensor& tokens, AttentionRecord* record) {
  TORCH_CHECK(tokens.dim() == 2 && tokens.scalar_type() == torch::kInt64 && tokens.size(1) > 0,
              "decoder: tokens are ", tokens.sizes(), " ", tokens.scalar_type(),
              ", wanted [B, T] int64 with T ≥ 1");
  const int64_t B = tokens.size(0), T = tokens.size(1), C = config_.width;
  TORCH_CHECK(T <= config_.context, "decoder: sequences of ", T, " tokens, but model.context is ",
              config_.context, "; shorten them or raise model.context");
  if (tokens.is_cpu() && B > 0)
    TORCH_CHECK(tokens.min().item<int64_t>() >= 0 && tokens.max().item<int64_t>() < config_.vocabulary,
                "decoder: a token lies outside 0 … ", config_.vocabulary - 1,
                ", the vocabulary of the model");
  const Tensor cosine = cosine_.slice(0, 0, T).to(embedding_.options());
  const Tensor sine = sine_.slice(0, 0, T).to(embedding_.options());
  Tensor x = torch::embedding(embedding_, tokens).view({B * T, C}), delta, normed;
  for (const LayerWeights& layer : layers_) {
    std::tie(x, normed) = add_rms_norm(x, delta, layer.input_norm, config_.norm_eps);
    Tensor qkv = model::linear(normed, layer.qkv);
    if (layer.q_norm.defined()) qkv = normed_heads(qkv, layer);
    const auto [q, k, v] = rotary_split(qkv, cosine, sine, config_.heads, config_.kv_heads);
    delta = model::linear(attend(q, k, v, layer, record).transpose(1, 2).reshape({B * T, C}), layer.o);
    std::tie(x, normed) = add_rms_norm(x, delta, layer.post_norm, config_.norm_eps);
    delta = model::linear(swiglu(model::linear(normed, layer.gate_up)), layer.down);
  }
  return std::get<1>(add_rms_norm(x, delta, final_norm_, config_.norm_eps)).view({B, T, C});
}

Tensor DecoderImpl::forward(const Tensor& tokens, AttentionRecord* record) {
  const Tensor x = hidden(tokens, record);
  return model::linear(x.view({-1, config_.width}), head_).view({x.size(0), x.size(1), config_.vocabulary});
}

int64_t DecoderImpl::qk_clip(const std::vector<std::vector<double>>& max_logit) {
  const torch::NoGradGuard no_grad;
  const int64_t D = config_.head_size(), H = config_.heads, G = config_.kv_heads, group = H / G;
  int64_t clipped = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const auto share = [&](int64_t h) { return std::min(1.0, config_.attention.qk_clip / std::max(max_logit[l][h], 1e-30)); };
    const auto scale_rows = [&](int64_t head, double factor) { layers_[l].qkv.slice(0, head * D, (head + 1) * D).mul_(factor); };
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

std::vector<std::pair<std::string, Tensor>> DecoderImpl::named_weights() const {
  const int64_t D = config_.head_size(), H = config_.heads, G = config_.kv_heads, M = config_.mlp;
  std::vector<std::pair<std::string, Tensor>> weights{{"model.embed_tokens.weight", embedding_}};
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerWeights& layer = layers_[i];
    const auto qkv = layer.qkv.split_with_sizes({H * D, G * D, G * D}, 0);
    const auto gate_up = layer.gate_up.split_with_sizes({M, M}, 0);
    const std::pair<const char*, Tensor> parts[] = {
        {"input_layernorm", layer.input_norm}, {"self_attn.q_proj", qkv[0]},
        {"self_attn.k_proj", qkv[1]},          {"self_attn.v_proj", qkv[2]},
        {"self_attn.o_proj", layer.o},         {"post_attention_layernorm", layer.post_norm},
        {"mlp.gate_proj", gate_up[0]},         {"mlp.up_proj", gate_up[1]},
        {"mlp.down_proj", layer.down}};
    const std::string at = "model.layers." + std::to_string(i) + ".";
    for (const auto& [name, weight] : parts) weights.emplace_back(at + name + ".weight", weight);
    if (layer.q_norm.defined()) {
      weights.emplace_back(at + "self_attn.q_norm.weight", layer.q_norm);
      weights.emplace_back(at + "self_attn.k_norm.weight", layer.k_norm);
    }
    if (layer.log_temperature.defined()) weights.emplace_back(at + "self_attn.log_temperature", layer.log_temperature);
  }
  weights.emplace_back("model.norm.weight", final_norm_);
  if (!config_.tied_head) weights.emplace_back("lm_head.weight", head_);
  return weights;
}

}  // namespace isentrope::model
