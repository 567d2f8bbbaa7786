#include "csrc/model/entropy_bound.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace isentrope::model {

using at::Tensor;

// Queries at a time: keeps their logits [B, H, kQueries, T] in the cache for the sizes that a CPU trains.
constexpr int64_t kQueries = 64;

Tensor entropy_bound(const Tensor& q, const Tensor& k, const ops::EntropyAttentionOptions& options) {
  const at::NoGradGuard no_grad;
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3), G = k.size(1);
  const double scale = options.scale.value_or(1 / std::sqrt(static_cast<double>(D)));
  const Tensor key = at::arange(T, q.options().dtype(at::kLong)),
               keys_t = k.unsqueeze(2).transpose(-1, -2);  // [B, G, 1, D, T]
  std::vector<Tensor> blocks;
  for (int64_t first = 0; first < T; first += kQueries) {
    const int64_t last = std::min(first + kQueries, T);  // causal: no query of the block sees a later key
    const Tensor queries = q.slice(2, first, last).reshape({B, G, H / G, last - first, D});
    Tensor s =
        at::matmul(queries, keys_t.narrow(-1, 0, last)).to(at::kFloat).mul_(scale).view({B, H, last - first, last});
    if (options.softcap) s = at::tanh(s / *options.softcap) * *options.softcap;
    if (options.temperature) {
      const Tensor& t = *options.temperature;
      s = s / (t.dim() == 1 ? t.view({H, 1, 1}) : t.slice(-1, first, last).unsqueeze(-1));
    }
    const Tensor query = key.slice(0, first, last).unsqueeze(1), seen_by = key.slice(0, 0, last).unsqueeze(0);
    Tensor sees = seen_by <= query;
    if (options.window) sees = sees & (seen_by > query - *options.window);
    const Tensor n = sees.sum(-1, /*keepdim=*/true).to(at::kDouble);  // [queries, 1]
    const Tensor masked = s.masked_fill(sees.logical_not(), 0);
    const Tensor centred = (s - masked.sum(-1, true) / n.to(at::kFloat)).masked_fill(sees.logical_not(), 0);
    const Tensor r = at::linalg_vector_norm(centred, 2, {-1}, true).to(at::kDouble);
    const Tensor others = (n - 1).clamp_min(1), beta = at::exp(-r * (n / others).sqrt());
    const Tensor bound = at::log1p(others * beta) + r * (n * others).sqrt() * beta / (1 + others * beta);
    const Tensor promises = (n > 1) & (beta > 0);  // β is 0 where r overflows, and ∞ · 0 no number
    blocks.push_back(at::where(promises, bound, at::zeros_like(bound)).squeeze(-1).to(at::kFloat));
  }
  return at::cat(blocks, 2);
}

}  // namespace isentrope::model
