#include "csrc/model/packing.h"

#include <ATen/ATen.h>

#include <vector>

#include "csrc/model/entropy_bound.h"

namespace isentrope::model {
namespace {

// [B · T, H] → [B, H, T]
Tensor by_row(const Tensor& x, const Packing& packing) {
  return x.defined() ? x.view({packing.rows, -1, x.size(1)}).transpose(1, 2) : x;
}

}  // namespace

Packing::Packing(const Tensor& of) : position(of.reshape({-1})), rows(of.size(0)) {
  TORCH_CHECK(
      of.dim() == 2 && of.scalar_type() == at::kLong && (of.size(1) == 0 || (of.select(1, 0) == 0).all().item<bool>()),
      "decoder: positions of packed rows are ", of.sizes(), " ", of.scalar_type(),
      ", wanted [B, T] int64 that begin with 0 in every row");
  ends = at::cat({(position == 0).nonzero().flatten(), at::full({1}, position.numel(), position.options())});
  longest = position.numel() > 0 ? position.max().item<int64_t>() + 1 : 0;
}

ops::EntropyAttention packed_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       ops::EntropyAttentionOptions options, const Packing& packing) {
  options.cu_seqlens = packing.ends;
  options.max_seqlen = packing.longest;
  const auto tokens_first = [](const Tensor& x) { return x.squeeze(0).transpose(0, 1); };  // [B · T, heads, D]
  ops::EntropyAttention attention = ops::entropy_attention(tokens_first(q), tokens_first(k), tokens_first(v), options);
  attention.out = attention.out.transpose(0, 1).unsqueeze(0);
  attention.lse = attention.lse.t().unsqueeze(0);
  attention.entropy = by_row(attention.entropy, packing);
  attention.max_logit = by_row(attention.max_logit, packing);
  return attention;
}

Tensor packed_entropy_bound(const Tensor& q, const Tensor& k, const ops::EntropyAttentionOptions& options,
                            const Packing& packing) {
  const Tensor ends = packing.ends.to(at::kCPU);
  const int64_t* end = ends.const_data_ptr<int64_t>();
  std::vector<Tensor> bounds;  // [1, H, length]
  for (int64_t i = 0; i + 1 < ends.numel(); ++i) {
    ops::EntropyAttentionOptions of = options;
    if (of.temperature && of.temperature->dim() == 2) of.temperature = of.temperature->slice(1, end[i], end[i + 1]);
    bounds.push_back(entropy_bound(q.slice(2, end[i], end[i + 1]), k.slice(2, end[i], end[i + 1]), of));
  }
  return by_row(at::cat(bounds, 2).squeeze(0).t(), packing);
}

}  // namespace isentrope::model
