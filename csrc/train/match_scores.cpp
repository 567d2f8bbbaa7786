#include "csrc/train/match_scores.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace isentrope::train {
namespace {

using torch::Tensor;

Tensor to_unit(const Tensor& x) { return x / x.norm(2, -1, true).clamp_min(kLeastLength); }

// [B, T] bool: true where no padding is.
Tensor real(const Tensor& x, const Tensor& lengths) {
  return torch::arange(x.size(1), lengths.options()) < lengths.unsqueeze(1);
}

Tensor pooled(const Tensor& x, const Tensor& lengths) {
  return x.masked_fill(real(x, lengths).logical_not().unsqueeze(-1), 0).sum(1) / lengths.unsqueeze(1).to(x.dtype());
}

Tensor one_way(const Tensor& s, const Tensor& matches) {
  const Tensor count = matches.sum(1), some = count > 0;
  const Tensor each = s.log_softmax(1).masked_fill(matches.logical_not(), 0).sum(1) / count.clamp_min(1).to(s.dtype());
  return -each.masked_fill(some.logical_not(), 0).sum() / some.sum().clamp_min(1).to(s.dtype());
}

}  // namespace

Tensor match_scores(const data::ContrastiveConfig& config, const Tensor& a, const Tensor& a_lengths, const Tensor& b,
                    const Tensor& b_lengths) {
  if (config.score == "mean") return to_unit(pooled(a, a_lengths)).matmul(to_unit(pooled(b, b_lengths)).t());
  const int64_t N = b.size(0), S = b.size(1), D = b.size(2);
  const bool soft = config.score == "soft";
  const Tensor padding = real(b, b_lengths).logical_not(), unit_a = to_unit(a), unit_b = to_unit(b).reshape({N * S, D}),
               flat = b.reshape({N * S, D});
  const Tensor host = a_lengths.to(torch::kCPU);
  std::vector<Tensor> rows;
  for (int64_t q = 0; q < a.size(0); ++q) {  // [n, N, S] at a time
    const int64_t n = host.const_data_ptr<int64_t>()[q];
    const Tensor cosine = unit_a[q].slice(0, 0, n).matmul(unit_b.t()).view({n, N, S});
    if (soft) {
      const Tensor raw = a[q].slice(0, 0, n).matmul(flat.t()).view({n, N, S}) / config.attention;
      const Tensor weight = raw.masked_fill(padding, -std::numeric_limits<double>::infinity()).softmax(-1);
      rows.push_back((weight * cosine).sum({0, 2}));
    } else {
      rows.push_back(cosine.masked_fill(padding, -2).amax(-1).sum(0));
    }
  }
  return torch::stack(rows);
}

Tensor contrastive_loss(const data::ContrastiveConfig& config, const Tensor& s, const Tensor& matches) {
  const Tensor scaled = s / config.temperature, loss = one_way(scaled, matches);
  return config.symmetric ? loss + one_way(scaled.t(), matches.t()) : loss;
}

}  // namespace isentrope::train
