#include "csrc/model/mixers/natsl.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "csrc/model/layers.h"
#include "csrc/model/mixers/natsl_options.h"
#include "csrc/model/mixers/state_record.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

using torch::Tensor;

namespace {

Tensor in_sums(const Tensor& x) { return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32); }

Tensor of_length_one(const Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); }

}  // namespace

NatslMixer::NatslMixer(const MixerBuilder& b) : RecurrenceMixer(b, natsl_options(b.config)) {
  const int64_t H = config_.num_attention_heads, D = config_.head_size();
  for (const auto& [name, weight] : {std::pair("q_norm", &q_norm), std::pair("k_norm", &k_norm),
                                     std::pair("soft_norm", &soft_norm), std::pair("linear_norm", &linear_norm)})
    *weight = b.block.register_parameter(name, torch::ones({D}));
  blend = b.block.register_parameter("blend", b.normal({2, D}, 1 / std::sqrt(static_cast<double>(D))));
  route_bias = b.block.register_parameter("route_bias", torch::zeros({2 * H}));
  counts_ = b.block.register_buffer("route_counts", torch::zeros({H, 2}, torch::kFloat64));
}

std::vector<MixerWeight> NatslMixer::others() {
  std::vector<MixerWeight> weights = RecurrenceMixer::others();
  weights.insert(weights.end(), {{"self_attn.q_norm.weight", &q_norm},
                                 {"self_attn.k_norm.weight", &k_norm},
                                 {"self_attn.soft_norm.weight", &soft_norm},
                                 {"self_attn.linear_norm.weight", &linear_norm},
                                 {"self_attn.blend.weight", &blend, /*wide=*/true},
                                 {"self_attn.route_proj.bias", &route_bias, /*wide=*/true}});
  return weights;
}

void NatslMixer::take(const Tensor& seen) {
  const bool some = seen.select(1, 1).gt(0).all().item<bool>();  // chunks have ended
  share_ = some ? (seen.select(1, 0) / seen.select(1, 1)).to(torch::kCPU) : Tensor();
}

std::vector<Tensor> NatslMixer::parts(const Tensor& projected) const {
  std::vector<int64_t> widths{options().channels()};
  for (size_t i = 3; i < shape.parts.size(); ++i) widths.push_back(shape.parts[i].second);
  return projected.split_with_sizes(widths, 1);
}

Tensor NatslMixer::strength(const Tensor& b) const { return in_sums(b).sigmoid() * options().beta; }

Tensor NatslMixer::chosen(const Tensor& mean) const {
  const Tensor logits = (in_sums(mean) + route_bias).unflatten(-1, {config_.num_attention_heads, 2});
  return logits.select(-1, 0).ge(logits.select(-1, 1));
}

Tensor NatslMixer::normed(const Tensor& x, const Tensor& weight) const {
  return std::get<1>(add_rms_norm(x.reshape({-1, x.size(2)}), {}, weight, eps())).view(x.sizes());
}

NatslMixer::Route NatslMixer::routed(const Tensor& route, int64_t T, const Packing* packing) const {
  const int64_t N = route.size(0), H = config_.num_attention_heads, chunk = config_.natsl.chunk;
  const int64_t S = packing ? packing->ends.numel() - 1 : N / std::max<int64_t>(T, 1);
  const int64_t longest = packing ? packing->longest : T, chunks = (longest + chunk - 1) / chunk;
  Tensor rows, lengths;  // [S, chunks · chunk, 2H], 0 behind the last token
  if (packing) {
    const Tensor first = packing->ends.slice(0, 0, -1);
    lengths = packing->ends.slice(0, 1) - first;
    const Tensor place = torch::arange(chunks * chunk, first.options()).expand({S, -1});
    const Tensor index = (first.unsqueeze(1) + place).masked_fill(place >= lengths.unsqueeze(1), N);
    rows = at::embedding(torch::cat({route, torch::zeros_like(route.slice(0, 0, 1))}), index);
  } else {
    lengths = torch::full({S}, T, torch::dtype(torch::kLong).device(route.device()));
    rows = at::constant_pad_nd(route.view({S, T, 2 * H}), {0, 0, 0, chunks * chunk - T});
  }
  const Tensor mean = in_sums(rows).view({S, chunks, chunk, 2 * H}).mean(2);
  const Tensor z = (mean + route_bias).view({S, chunks, H, 2}).softmax(-1);
  const Tensor hard = chosen(mean.detach());  // [S, chunks, H]
  const auto straight_through = [&](const Tensor& taken, int64_t which) {
    const Tensor soft = z.select(3, which);
    return (taken.to(z.scalar_type()) + (soft - soft.detach())).transpose(1, 2);
  };
  if (torch::GradMode::is_enabled()) {
    const torch::NoGradGuard no_grad;
    const Tensor ended = (torch::arange(1, chunks + 1, lengths.options()) * chunk <= lengths.unsqueeze(1)).unsqueeze(2);
    const auto tokens = [&](const Tensor& x) { return x.sum(at::IntArrayRef({0, 1})).to(torch::kFloat64) * chunk; };
    Tensor counts = counts_;
    counts.add_(torch::stack({tokens(hard.logical_and(ended)), tokens(ended.expand_as(hard))}, 1));
  }
  return {hard.transpose(1, 2), straight_through(hard, 0), straight_through(hard.logical_not(), 1)};
}

Tensor NatslMixer::joined(const Tensor& q, const Tensor& soft, const Tensor& lin, const Tensor& g) const {
  const Tensor w = torch::matmul(in_sums(q), in_sums(blend).t()).softmax(-1).to(lin.scalar_type());  // [N, H, 2]
  const Tensor both =
      w.slice(2, 0, 1) * normed(soft.to(lin.scalar_type()), soft_norm) + w.slice(2, 1, 2) * normed(lin, linear_norm);
  return finished(both, {}, g, {});
}

Tensor NatslMixer::forward(const Tensor& x, const Origin& origin, const MixerPass& pass) const {
  const RecurrenceOptions& r = options();
  const Packing* packing = pass.packing;
  const int64_t N = x.size(0), T = packing ? N : pass.cosine.size(0), B = N / std::max<int64_t>(T, 1), H = r.queries,
                D = r.D, chunk = config_.natsl.chunk;
  const auto of = parts(model::linear(x, qkv, origin));  // channels, g, b, decay, route
  const auto heads = convolved(of[0], T, packing, nullptr).view({N, 3, H, D}).unbind(1);
  const Tensor &q = heads[0], &k = heads[1], &v = heads[2];
  const Route route = routed(of[4], T, packing);
  const int64_t chunks = route.chosen.size(2);

  // The delta rule; packed, the op has as many columns of a gate as the whole row has chunks.
  const auto laid = [&](const Tensor& y) {
    if (packing) return y;
    return y.dim() == 3 ? y.view({B, T, H, D}).transpose(1, 2) : y.view({B, T, H}).transpose(1, 2);
  };
  const Tensor unit_q = laid(of_length_one(q) * r.scale), unit_k = laid(of_length_one(k)), laid_v = laid(v),
               beta = laid(strength(of[2])), decay = laid(log_decay(of[3]));
  ops::GatedDeltaRuleOptions rule{.write = route.lin, .state = {}, .key_lengths = {}, .cu_seqlens = {}, .chunk = chunk};
  if (packing) {
    rule.write = at::constant_pad_nd(route.lin, {0, (N + chunk - 1) / chunk - chunks}, 1);
    rule.cu_seqlens = packing->ends;
  }
  const ops::LinearAttention linear = ops::gated_delta_rule(unit_q, unit_k, laid_v, beta, decay, rule);
  const Tensor lin = packing ? linear.out : linear.out.transpose(1, 2).reshape({N, H, D});

  // Softmax attention: the own chunk, and those before that are its own.
  ops::EntropyAttentionOptions attention;
  attention.block_size = chunk;
  const Tensor own = torch::eye(chunks, route.chosen.options());
  const Tensor before = torch::ones({chunks, chunks}, route.chosen.options()).tril(-1);
  attention.block_mask = own.logical_or(before.logical_and(route.chosen.unsqueeze(2)));
  attention.gates = torch::where(own, torch::ones({}, route.soft.options()), route.soft.unsqueeze(2));
  attention.return_entropy = pass.record != nullptr;
  // Operands of products are in bfloat16 where model.compute is that and they are float32.
  const auto operand = [&](const Tensor& y) {
    return config_.compute == "bfloat16" && y.scalar_type() == torch::kFloat32 ? y.to(torch::kBFloat16) : y;
  };
  const auto by_head = [&](const Tensor& y) { return operand(packing ? y.transpose(0, 1).unsqueeze(0) : laid(y)); };
  const Tensor soft_q = by_head(normed(q, q_norm)), soft_k = by_head(normed(k, k_norm)), soft_v = by_head(v);
  const ops::EntropyAttention soft = packing ? packed_attention(soft_q, soft_k, soft_v, attention, *packing)
                                             : ops::entropy_attention(soft_q, soft_k, soft_v, attention);
  if (AttentionRecord* record = pass.record) {
    record->entropy.push_back(soft.entropy);
    record->max_logit.push_back(soft.max_logit);
    if (record->with_bound) record->bound.push_back(torch::zeros_like(soft.entropy));  // none is known
    record->layer.push_back(layer_);
    record->window.push_back(shape.sight);
    if (record->with_states)
      tell_states(*record, layer_, packing, linear.state, D, [&](const Tensor& lengths) {
        rule.key_lengths = lengths;
        return ops::gated_delta_rule(unit_q, unit_k, laid_v, beta, decay, rule).state;
      });
  }
  return model::linear(joined(q, soft.out.transpose(1, 2).reshape({N, H, D}), lin, of[1]), o);
}

}  // namespace isentrope::model
