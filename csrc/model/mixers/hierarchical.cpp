#include "csrc/model/mixers/hierarchical.h"

#include <cmath>

namespace isentrope::model {

using torch::Tensor;

namespace {

// Of each row the largest logit among its own family, the only ones that are not means: [B, H, T].
Tensor largest_of_family(const Tensor& q, const Tensor& k, int64_t branching, const Tensor& lengths) {
  const torch::NoGradGuard no_grad;
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3), G = k.size(1);
  const int64_t F = (T + branching - 1) / branching, more = F * branching - T;
  const auto families = [&](const Tensor& x) {  // [B, heads, F, b, D]
    return at::constant_pad_nd(x, {0, 0, 0, more}).to(torch::kFloat32).unflatten(2, {F, branching});
  };
  const Tensor keys = families(k).repeat_interleave(H / G, 1);
  const Tensor place = torch::arange(F * branching, torch::dtype(torch::kLong).device(q.device()));
  const Tensor there = lengths.defined() ? place < lengths.unsqueeze(1) : (place < T).unsqueeze(0).expand({B, -1});
  const Tensor logits = at::matmul(families(q), keys.mT()) / std::sqrt(static_cast<double>(D));
  return logits.masked_fill(there.view({B, 1, F, 1, branching}).logical_not(), -INFINITY)
      .amax(-1)
      .flatten(2)
      .slice(2, 0, T);
}

}  // namespace

ops::EntropyAttention HierarchicalMixer::attend(const Tensor& q, const Tensor& k, const Tensor& v,
                                                const MixerPass& pass) const {
  TORCH_CHECK(pass.packing == nullptr,
              "decoder: rows hold several sequences, and a layer of kind hierarchical has one tree a "
              "row; leave packing out");
  AttentionRecord* record = pass.record;
  const auto operand = [&](const Tensor& x) {
    return config_.compute == "bfloat16" && x.scalar_type() == torch::kFloat32 ? x.to(torch::kBFloat16) : x;
  };
  ops::HierarchicalAttentionOptions options{.branching = config_.hierarchical.branching,
                                            .return_entropy = record != nullptr};
  if (pass.lengths.defined()) options.key_lengths = pass.lengths;
  const auto found = ops::hierarchical_attention(operand(q), operand(k), operand(v), options);
  if (record != nullptr) {
    record->entropy.push_back(found.entropy);
    record->max_logit.push_back(largest_of_family(q, k, config_.hierarchical.branching, pass.lengths));
    record->layer.push_back(layer_);
    record->window.push_back(0);
  }
  return {found.out, {}, found.entropy, {}};
}

}  // namespace isentrope::model
