#include "csrc/model/mixers/softmax.h"

#include <algorithm>
#include <cmath>

#include "csrc/model/entropy_bound.h"
#include "csrc/model/layers.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

using torch::Tensor;

SoftmaxMixer::SoftmaxMixer(const MixerBuilder& builder)
    : Mixer(builder, builder.config.attention.bias != "none", builder.config.attention.bias == "all") {}

void SoftmaxMixer::register_rest(const MixerBuilder& b) {
  const AttentionConfig& c = config_.attention;
  const int64_t D = config_.head_size(), H = config_.num_attention_heads;
  if (c.qk_norm) {
    q_norm = b.block.register_parameter("q_norm", torch::ones({D}));
    k_norm = b.block.register_parameter("k_norm", torch::ones({D}));
  }
  if (c.temperature == "head") log_temperature = b.block.register_parameter("log_temperature", torch::zeros({H}));
  if (c.temperature == "row")
    log_temperature =
        b.block.register_parameter("log_temperature", torch::zeros({H * config_.max_position_embeddings}));
}

std::vector<MixerWeight> SoftmaxMixer::others() {
  return {{"self_attn.q_norm.weight", &q_norm},
          {"self_attn.k_norm.weight", &k_norm},
          {"self_attn.log_temperature", &log_temperature, /*wide=*/true}};
}

Tensor SoftmaxMixer::normed_heads(const Tensor& qkv) const {
  const int64_t N = qkv.size(0), H = config_.num_attention_heads, G = config_.num_key_value_heads,
                D = config_.head_size();
  const auto parts = qkv.split_with_sizes({H * D, G * D, G * D}, 1);
  const auto norm = [&](const Tensor& x, const Tensor& weight) {
    return std::get<1>(add_rms_norm(x.reshape({-1, D}), {}, weight, config_.rms_norm_eps)).view({N, -1});
  };
  return torch::cat({norm(parts[0], q_norm), norm(parts[1], k_norm), parts[2]}, 1);
}

Tensor SoftmaxMixer::attend(const Tensor& q, const Tensor& k, const Tensor& v, const MixerPass& pass) const {
  const AttentionConfig& c = config_.attention;
  const Packing* packing = pass.packing;
  AttentionRecord* record = pass.record;
  ops::EntropyAttentionOptions options;
  if (window() > 0) options.window = window();
  if (c.softcap > 0) options.softcap = c.softcap;
  if (log_temperature.defined()) {
    const Tensor log = log_temperature.view({config_.num_attention_heads, -1});  // [H, 1 or context]
    const Tensor of_rows =
        packing && log.size(1) > 1 ? log.index_select(1, packing->position) : log.slice(1, 0, q.size(2));
    options.temperature = (log.size(1) > 1 ? of_rows : log.squeeze(1)).exp();
  }
  options.return_entropy = record != nullptr;
  // Operands of products are in bfloat16 where model.compute is that and they are float32.
  const auto operand = [&](const Tensor& x) {
    return config_.compute == "bfloat16" && x.scalar_type() == torch::kFloat32 ? x.to(torch::kBFloat16) : x;
  };
  const Tensor q_in = operand(q), k_in = operand(k), v_in = operand(v);
  const ops::EntropyAttention attention = packing ? packed_attention(q_in, k_in, v_in, options, *packing)
                                                  : ops::entropy_attention(q_in, k_in, v_in, options);
  if (record != nullptr) {
    record->entropy.push_back(attention.entropy);
    record->max_logit.push_back(attention.max_logit);
    if (record->with_bound)
      record->bound.push_back(packing ? packed_entropy_bound(q, k, options, *packing) : entropy_bound(q, k, options));
    record->layer.push_back(layer_);
    record->window.push_back(window());
  }
  return attention.out;
}

Tensor SoftmaxMixer::forward(const Tensor& x, const Origin& origin, const MixerPass& pass) const {
  Tensor projected = model::linear(x, qkv, origin);
  if (q_norm.defined()) projected = normed_heads(projected);
  const auto [q, k, v] =
      rotary_split(projected, pass.cosine, pass.sine, config_.num_attention_heads, config_.num_key_value_heads);
  const Tensor heads = attend(q, k, v, pass);
  return model::linear(token_rows(heads), o, pass.keeps_inputs ? Origin() : token_rows_origin(heads));
}

int64_t SoftmaxMixer::qk_clip(const std::vector<double>& max_logit) {
  const int64_t D = config_.head_size(), G = config_.num_key_value_heads, H = config_.num_attention_heads,
                group = H / G;
  int64_t clipped = 0;
  const auto share = [&](int64_t h) {
    return std::min(1.0, config_.attention.qk_clip / std::max(max_logit[h], 1e-30));
  };
  const auto scale_rows = [&](int64_t head, double factor) {
    for (const Tensor& x : {qkv.weight, qkv.bias})
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
  return clipped;
}

}  // namespace isentrope::model
