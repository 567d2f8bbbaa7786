#include "csrc/model/mixers/softmax.h"

#include <algorithm>
#include <cmath>

#include "csrc/model/attention_losses.h"
#include "csrc/model/entropy_bound.h"
#include "csrc/model/layers.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

using torch::Tensor;

SoftmaxMixer::SoftmaxMixer(const MixerBuilder& builder, const SoftmaxOptions& options)
    : Mixer(builder, builder.config.attention.bias != "none", builder.config.attention.bias == "all"), r_(options) {}

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
  if (r_.weighed_norm()) o_norm = b.block.register_parameter("o_norm", torch::ones({D}));
}

std::vector<MixerWeight> SoftmaxMixer::others() {
  return {{"self_attn.q_norm.weight", &q_norm},
          {"self_attn.k_norm.weight", &k_norm},
          {"self_attn.log_temperature", &log_temperature, /*wide=*/true},
          {"self_attn.o_norm.weight", &o_norm, /*wide=*/true}};
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

ops::EntropyAttention SoftmaxMixer::attend(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const MixerPass& pass) const {
  const Packing* packing = pass.packing;
  AttentionRecord* record = pass.record;
  ops::EntropyAttentionOptions options;
  if (window() > 0) options.window = window();
  if (r_.softcap > 0) options.softcap = r_.softcap;
  if (log_temperature.defined()) {
    const Tensor log = log_temperature.view({config_.num_attention_heads, -1});  // [H, 1 or context]
    const Tensor of_rows =
        packing && log.size(1) > 1 ? log.index_select(1, packing->position) : log.slice(1, 0, q.size(2));
    options.temperature = (log.size(1) > 1 ? of_rows : log.squeeze(1)).exp();
  }
  options.return_entropy = record != nullptr;
  options.causal = config_.causal;
  if (pass.lengths.defined()) options.key_lengths = pass.lengths;
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
  return attention;
}

SoftmaxMixer::Projected SoftmaxMixer::parts(const Tensor& projected) const {
  if (shape.parts.size() == 3) return {projected, {}, {}};
  std::vector<int64_t> widths{0};
  for (size_t i = 0; i < shape.parts.size(); ++i)
    i < 3 ? void(widths[0] += shape.parts[i].second) : widths.push_back(shape.parts[i].second);
  const auto found = projected.split_with_sizes(widths, 1);
  return {found[0], r_.value_gate ? found[1] : Tensor(), r_.output_gate ? found.back() : Tensor()};
}

Tensor SoftmaxMixer::finished(const Tensor& out, const Tensor& lse, const Tensor& position, const Tensor& gate) const {
  const int64_t N = out.size(0), H = config_.num_attention_heads, D = config_.head_size();
  const auto wide = [](const Tensor& x) { return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32); };
  Tensor y = wide(out);
  if (r_.scaled()) {
    Tensor log = lse;  // of f, [N, H]
    if (r_.denominator == "max_one") log = lse.clamp_max(0);
    if (r_.denominator == "detached") log = lse - lse.detach();
    if (r_.denominator == "count") {
      const Tensor seen = window() > 0 ? (position + 1).clamp_max(window()) : position + 1;
      log = lse - seen.to(lse.scalar_type()).log().unsqueeze(1);
    }
    y = y * log.exp().unsqueeze(2);
  }
  if (r_.norm == "layer") y = y - y.mean(-1, true);
  if (r_.weighed_norm())
    y = std::get<1>(add_rms_norm(y.reshape({N * H, D}), {}, o_norm, config_.rms_norm_eps)).view({N, H, D});
  if (r_.norm == "l2") y = y / y.norm(2, -1, true).clamp_min(1e-12);
  if (gate.defined()) y = y * wide(gate).sigmoid().unsqueeze(2);
  return y.reshape({N, H * D});
}

Tensor SoftmaxMixer::forward(const Tensor& x, const Origin& origin, const MixerPass& pass) const {
  auto [projected, value_gate, output_gate] = parts(model::linear(x, qkv, origin));
  if (q_norm.defined()) projected = normed_heads(projected);
  const auto [q, k, v] =
      rotary_split(projected, pass.cosine, pass.sine, config_.num_attention_heads, config_.num_key_value_heads);
  if (r_.plain()) {
    const Tensor heads = attend(q, k, v, pass).out;
    if (pass.record != nullptr && (pass.record->with_maps || pass.record->teacher != nullptr))
      tell_map(q, k, token_rows(heads), pass);
    return model::linear(token_rows(heads), o, pass.keeps_inputs ? Origin() : token_rows_origin(heads));
  }
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3), N = B * T;
  Tensor written = v;
  if (value_gate.defined()) written = v * value_gate.sigmoid().view({B, T, -1}).transpose(1, 2).unsqueeze(3);
  const ops::EntropyAttention attention = attend(q, k, written, pass);
  Tensor position;
  if (r_.denominator == "count")
    position = pass.packing ? pass.packing->position
                            : torch::arange(T, torch::dtype(torch::kLong).device(x.device())).repeat({B});
  const Tensor mixed = finished(attention.out.transpose(1, 2).reshape({N, H, D}),
                                attention.lse.transpose(1, 2).reshape({N, H}), position, output_gate);
  return model::linear(mixed, o);
}

void SoftmaxMixer::tell_map(const Tensor& q, const Tensor& k, const Tensor& out, const MixerPass& pass) const {
  if (config_.mixer_of(layer_) != "softmax") return;
  AttentionRecord& record = *pass.record;
  const int64_t N = out.size(0), B = pass.packing ? pass.packing->rows : q.size(0);
  const auto rows = [&](const Tensor& x) {
    return padded(x.transpose(1, 2).reshape({N, x.size(1), x.size(3)}), B, pass.packing);
  };
  const Tensor log = full_attention(rows(q), rows(k), window(), r_.softcap);
  if (record.with_maps) record.maps.push_back({layer_, log.detach().exp(), out.detach()});
  if (!record.with_losses || record.teacher == nullptr) return;
  std::vector<Tensor> losses(kLosses);
  compare_with_teacher(losses, record.teacher->at(layer_), log, out, B, pass.packing);
  record.losses.push_back(losses_of_rows(losses, B, N, pass.packing));
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
