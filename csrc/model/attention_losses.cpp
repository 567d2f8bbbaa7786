#include "csrc/model/attention_losses.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

namespace isentrope::model {

namespace {

// Of packed rows the place of each token in [S · L], and with N for none the token of each place.
Tensor places_of(const Packing& packing) {
  const Tensor sequence = packing.position.eq(0).cumsum(0) - 1;
  return sequence * packing.longest + packing.position;
}

}  // namespace

Tensor padded(const Tensor& x, int64_t B, const Packing* packing) {
  std::vector<int64_t> sizes = x.sizes().vec();
  if (packing == nullptr) {
    sizes[0] /= B;
    sizes.insert(sizes.begin(), B);
    return x.reshape(sizes);
  }
  const int64_t S = packing->ends.numel() - 1, L = packing->longest, N = x.size(0);
  const Tensor token = at::full({S * L}, N, packing->position.options())
                           .index_copy(0, places_of(*packing), at::arange(N, packing->position.options()));
  const Tensor flat = x.reshape({N, -1});
  sizes[0] = L;
  sizes.insert(sizes.begin(), S);
  return at::embedding(at::cat({flat, at::zeros_like(flat.slice(0, 0, 1))}), token).view(sizes);
}

Tensor unpadded(const Tensor& x, int64_t N, const Packing* packing) {
  std::vector<int64_t> sizes = x.sizes().slice(1).vec();
  sizes[0] = N;
  if (packing == nullptr) return x.reshape(sizes);
  return at::embedding(x.reshape({x.size(0) * x.size(1), -1}), places_of(*packing)).view(sizes);
}

Tensor full_attention(const Tensor& q, const Tensor& k, int64_t window, double softcap) {
  const int64_t L = q.size(1), H = q.size(2), D = q.size(3);
  const auto wide = [](const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); };
  const Tensor keys = wide(k).transpose(1, 2).repeat_interleave(H / k.size(2), 1);
  Tensor logits = at::matmul(wide(q).transpose(1, 2), keys.mT()) / std::sqrt(static_cast<double>(D));
  if (softcap > 0) logits = softcap * (logits / softcap).tanh();
  const Tensor place = at::arange(L, q.options().dtype(at::kLong)), back = place.unsqueeze(1) - place;
  const Tensor hidden = window > 0 ? back.lt(0).logical_or(back.ge(window)) : back.lt(0);
  return logits.masked_fill(hidden, -std::numeric_limits<double>::infinity()).log_softmax(-1);
}

Tensor in_cells(const Tensor& weights, int64_t M) {
  const int64_t L = weights.size(2);
  const Tensor place = at::arange(L, weights.options().dtype(at::kLong));
  const Tensor cell = (place * M).div(place.unsqueeze(1) + 1, "floor").clamp_max(M - 1);  // [L, L]
  return at::zeros({weights.size(0), weights.size(1), L, M}, weights.options())
      .scatter_add(3, cell.expand_as(weights), weights);
}

Tensor divergence(const Tensor& a, const Tensor& log_b) {
  return (at::special_xlogy(a, a) - a * log_b.masked_fill(a.eq(0), 0)).sum(-1);
}

Tensor losses_of_rows(const std::vector<Tensor>& losses, int64_t B, int64_t N, const Packing* packing) {
  Tensor some;
  for (const Tensor& one : losses)
    if (one.defined()) some = one;
  std::vector<Tensor> all;
  for (const Tensor& one : losses)
    all.push_back(one.defined() ? one.mean(1) : at::zeros({some.size(0), some.size(2)}, some.options()));
  return unpadded(at::stack(all, 2), N, packing).view({B, N / B, -1});
}

void compare_with_teacher(std::vector<Tensor>& losses, const AttentionMap& teacher, const Tensor& log_weights,
                          const Tensor& out, int64_t B, const Packing* packing) {
  TORCH_CHECK(teacher.weights.sizes() == log_weights.sizes() && teacher.out.sizes() == out.sizes(), "decoder: layer ",
              teacher.layer, " of the teacher has attention ", teacher.weights.sizes(), " and results ",
              teacher.out.sizes(), "; wanted ", log_weights.sizes(), " and ", out.sizes(), ", as the student's");
  const Tensor A = teacher.weights.to(log_weights.scalar_type());
  losses[kAttentionKl] = divergence(A, log_weights);
  losses[kAttentionSquare] = (A - log_weights.exp()).square().sum(-1);
  // Of all heads together, the same for each.
  const Tensor wide = out.scalar_type() == at::kDouble ? out : out.to(at::kFloat);
  const Tensor off = padded((wide - teacher.out.to(wide.scalar_type())).square().mean(1), B, packing);  // [S, L]
  losses[kContextSquare] = off.unsqueeze(1).expand({off.size(0), A.size(1), off.size(1)});
}

}  // namespace isentrope::model
