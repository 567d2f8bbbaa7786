#include "csrc/model/mixers/routed.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "csrc/model/layers.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

using torch::Tensor;

namespace {

Tensor unit(const Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); }

// [B · T, heads, D] → [B, heads, T, D]
Tensor laid_by_head(const Tensor& x, int64_t B) { return x.view({B, -1, x.size(1), x.size(2)}).transpose(1, 2); }

}  // namespace

RoutedMixer::RoutedMixer(const MixerBuilder& b) : Mixer(b, /*bias=*/false, /*output_bias=*/false) {
  const int64_t heads = routed_heads(), C = config_.routed.clusters, D = config_.head_size();
  centroids = b.block.register_buffer("centroids", unit(b.normal({heads * C, D}, 1)).view({heads, C, D}));
  sums_ = b.block.register_buffer("centroid_sums", torch::zeros({heads, C, D + 1}, torch::kFloat64));
}

void RoutedMixer::take(const Tensor& seen) {
  const int64_t D = config_.head_size();
  const double decay = config_.routed.decay;
  const Tensor count = seen.slice(-1, D), mean = unit(seen.slice(-1, 0, D));
  const Tensor moved = unit(decay * centroids.to(torch::kFloat64) + (1 - decay) * mean);
  centroids.copy_(torch::where(count > 0, moved, centroids.to(torch::kFloat64)));
}

Tensor RoutedMixer::nearest(const Tensor& q) const {
  const torch::NoGradGuard no_grad;
  const Tensor heads = q.detach().transpose(0, 1).to(centroids.scalar_type());
  return torch::matmul(heads, centroids.transpose(1, 2)).argmax(-1);
}

void RoutedMixer::count(const Tensor& q, const Tensor& nearest) const {
  if (!torch::GradMode::is_enabled()) return;
  const torch::NoGradGuard no_grad;
  const int64_t heads = nearest.size(0), C = config_.routed.clusters, D = q.size(2);
  const Tensor place = nearest + torch::arange(heads, nearest.options()).unsqueeze(1) * C;
  const Tensor units = unit(q.detach().transpose(0, 1).to(torch::kFloat64)).reshape({-1, D});
  const Tensor rows = torch::cat({units, torch::ones_like(units.slice(1, 0, 1))}, 1);
  // The gradient of an embedding: a sum in one order.
  Tensor sums = sums_;
  sums.add_(at::embedding_dense_backward(rows, place.flatten(), heads * C, /*padding_idx=*/-1, false).view_as(sums_));
}

RoutedMixer::Attended RoutedMixer::local(const Tensor& q, const Tensor& k, const Tensor& v,
                                         const MixerPass& pass) const {
  const Tensor joined = torch::cat({q, k, v}, 1).flatten(1);
  const auto [turned_q, turned_k, laid_v] = rotary_split(joined, pass.cosine, pass.sine, q.size(1), q.size(1));
  ops::EntropyAttentionOptions options;
  options.window = config_.routed.local_window;
  options.return_entropy = pass.record != nullptr;
  const ops::EntropyAttention found = pass.packing
                                          ? packed_attention(turned_q, turned_k, laid_v, options, *pass.packing)
                                          : ops::entropy_attention(turned_q, turned_k, laid_v, options);
  return {found.out.transpose(1, 2).reshape({q.size(0), q.size(1), q.size(2)}), found.entropy, found.max_logit};
}

RoutedMixer::Attended RoutedMixer::by_argmax(const Tensor& q, const Tensor& k, const Tensor& v, const MixerPass& pass,
                                             int64_t B) const {
  const int64_t N = q.size(0), heads = q.size(1), D = q.size(2), C = config_.routed.clusters, T = N / B;
  const Tensor cluster = nearest(q);  // [heads, N]
  count(q, cluster);
  // Tokens of a head, a sequence and a cluster stand together, in the order of their positions, and attend as a packed sequence.
  const auto integers = cluster.options();
  const Tensor sequence =
      pass.packing ? pass.packing->position.eq(0).cumsum(0) - 1 : torch::arange(N, integers).div(T, "floor");
  const int64_t sequences = pass.packing ? pass.packing->ends.numel() - 1 : B;
  const Tensor head = torch::arange(heads, integers).unsqueeze(1);
  const Tensor key = ((head * sequences + sequence) * C + cluster).flatten();
  const Tensor order = key.argsort(/*stable=*/true), place = torch::empty_like(order);
  place.index_copy_(0, order, torch::arange(order.numel(), integers));
  const Tensor counts = torch::bincount(key, {}, heads * sequences * C);
  ops::EntropyAttentionOptions options;
  options.cu_seqlens = torch::cat({torch::zeros({1}, integers), counts.cumsum(0)});
  options.window = config_.routed.window;
  options.return_entropy = pass.record != nullptr;
  const auto gathered = [&](const Tensor& x) {
    return at::embedding(x.transpose(0, 1).reshape({heads * N, D}), order).unsqueeze(1);
  };
  const ops::EntropyAttention found = ops::entropy_attention(gathered(q), gathered(k), gathered(v), options);
  const Tensor out = at::embedding(found.out.reshape({heads * N, D}), place).view({heads, N, D}).transpose(0, 1);
  const auto statistic = [&](const Tensor& x) {  // [heads · N, 1] → [B, heads, T]
    return x.defined() ? x.reshape({-1}).index_select(0, place).view({heads, B, T}).transpose(0, 1) : x;
  };
  return {out, statistic(found.entropy), statistic(found.max_logit)};
}

RoutedMixer::Attended RoutedMixer::balanced(const Tensor& q, const Tensor& k, const Tensor& v, const MixerPass& pass,
                                            int64_t B) const {
  TORCH_CHECK(
      pass.packing == nullptr,
      "decoder: routed.assign is balanced, whose clusters take tokens of whole rows, and these rows hold several "
      "sequences; take argmax, or do not pack them");
  const int64_t heads = q.size(1), D = q.size(2), T = q.size(0) / B, w = std::min(config_.routed.window, T);
  count(q, nearest(q));
  Tensor index;  // [B, heads, C, w]
  {
    const torch::NoGradGuard no_grad;
    const Tensor near = torch::matmul(centroids, unit(laid_by_head(q.detach(), B).to(centroids.scalar_type())).mT());
    index = std::get<0>(std::get<1>(near.topk(w, -1)).sort(-1));
  }
  ops::GatheredAttentionOptions options;
  options.return_entropy = pass.record != nullptr;
  const ops::EntropyAttention found =
      ops::gathered_attention(laid_by_head(q, B), laid_by_head(k, B), laid_by_head(v, B), index, options);
  const Tensor out = ops::scatter_mean(found.out, index, T).transpose(1, 2).reshape({B * T, heads, D});
  if (pass.record == nullptr) return {out, {}, {}};
  const Tensor most = torch::zeros({B, heads, T}, found.max_logit.options())
                          .scatter_reduce(2, index.flatten(2), found.max_logit.detach().flatten(2), "amax",
                                          /*include_self=*/false);
  return {out, ops::scatter_mean(found.entropy, index, T), most};
}

Tensor RoutedMixer::forward(const Tensor& x, const Origin& origin, const MixerPass& pass) const {
  const int64_t H = config_.num_attention_heads, D = config_.head_size(), N = x.size(0), near = local_heads();
  const int64_t B = pass.packing ? pass.packing->rows : N / std::max<int64_t>(pass.cosine.size(0), 1);
  // Operands of products are in bfloat16 where model.compute is that and they are float32.
  Tensor projected = model::linear(x, qkv, origin);
  if (config_.compute == "bfloat16" && projected.scalar_type() == torch::kFloat32)
    projected = projected.to(torch::kBFloat16);
  const auto parts = projected.view({N, 3, H, D}).unbind(1);
  const auto heads = [&](size_t part, int64_t first, int64_t count) {
    return parts[part].slice(1, first, first + count);
  };
  const Attended a = local(heads(0, 0, near), heads(1, 0, near), heads(2, 0, near), pass);
  const int64_t far = H - near;
  const auto route = config_.routed.assign == "argmax" ? &RoutedMixer::by_argmax : &RoutedMixer::balanced;
  const Attended b = (this->*route)(heads(0, near, far), heads(1, near, far), heads(2, near, far), pass, B);
  if (AttentionRecord* record = pass.record) {
    record->entropy.push_back(torch::cat({a.entropy, b.entropy}, 1));
    record->max_logit.push_back(torch::cat({a.max_logit, b.max_logit}, 1));
    if (record->with_bound) record->bound.push_back(torch::zeros_like(record->entropy.back()));  // none is known
    record->layer.push_back(layer_);
    record->window.push_back(shape.sight);
  }
  return model::linear(torch::cat({a.out, b.out}, 1).reshape({N, H * D}), o);
}

}  // namespace isentrope::model
