#include "csrc/methods/optimal_token_baseline.h"

#include <ATen/Dispatch.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "csrc/methods/estimator.h"
#include "csrc/ops/result_memory.h"

namespace isentrope::methods {
namespace {

// Positions that are taken together, so that what is summed over a group stays in the nearest cache.
constexpr int64_t kTile = 512;

bool all_true(const bool* mask, int64_t n) { return n == 0 || std::memchr(mask, false, n) == nullptr; }

// Behind the last true of n.
int64_t end_of(const bool* mask, int64_t n) {
  uint64_t eight;
  while (n >= 8 && (std::memcpy(&eight, mask + n - 8, 8), eight == 0)) n -= 8;
  while (n > 0 && !mask[n - 1]) --n;
  return n;
}

// x becomes total + its running sums; returns the last. Four at a time, of which one addition waits for those before.
double running_sums(double* x, int64_t n, double total) {
  int64_t t = 0;
  for (; t + 4 <= n; t += 4) {
    const double two = x[t] + x[t + 1], three = two + x[t + 2], four = three + x[t + 3];
    x[t] += total, x[t + 1] = total + two, x[t + 2] = total + three, x[t + 3] = total += four;
  }
  for (; t < n; ++t) x[t] = total += x[t];
  return total;
}

// A tile of positions of a group on the way to its baseline.
struct Tile {
  double weighted[kTile], weight[kTile];  // Σ s W, Σ W
  int32_t count[kTile];                   // completions that count
  double W[kTile];                        // of one completion

  void clear() {
    std::fill_n(weighted, kTile, 0.0);
    std::fill_n(weight, kTile, 0.0);
    std::fill_n(count, kTile, 0);
  }
  // Adds n positions of a completion of reward s: its chances, Σ p² and mask; W before them is total. Returns W behind them.
  template <class T>
  double add(double s, const T* chance, const T* sum_p2, const bool* mask, int64_t n, double total) {
    for (int64_t t = 0; t < n; ++t) {
      const double w = 1.0 - 2.0 * static_cast<double>(chance[t]) + static_cast<double>(sum_p2[t]);
      W[t] = w > 0 ? w : 0;
    }
    const bool all = all_true(mask, n);
    if (!all)
      for (int64_t t = 0; t < n; ++t) W[t] = mask[t] ? W[t] : 0;
    total = running_sums(W, n, total);
    if (!all)
      for (int64_t t = 0; t < n; ++t) W[t] = mask[t] ? W[t] : 0;
    for (int64_t t = 0; t < n; ++t) {
      weighted[t] += s * W[t];
      weight[t] += W[t];
    }
    if (all)
      for (int64_t t = 0; t < n; ++t) ++count[t];
    else
      for (int64_t t = 0; t < n; ++t) count[t] += mask[t];
    return total;
  }
  // The baseline takes the place of weighted.
  void finish(bool alone_zero) {
    const int32_t least = alone_zero ? 2 : 1;
    for (int64_t t = 0; t < kTile; ++t) weighted[t] /= weight[t] + 1e-8;
    for (int64_t t = 0; t < kTile; ++t) weighted[t] = count[t] < least ? 0 : weighted[t];
  }
};

// exp of each row [T] up to its end; what stands behind is any number.
Tensor chances(const Tensor& logprob, const std::vector<int64_t>& end) {
  constexpr int64_t kLong = 8192;  // a call of torch costs as much as some 2000 exponentials
  Tensor out = ops::result_like(logprob);
  if (logprob.size(1) < kLong) return torch::exp_out(out, logprob);
  for (size_t b = 0; b < end.size(); ++b) {
    const auto row = static_cast<int64_t>(b);
    Tensor chance = out[row].narrow(0, 0, end[b]);
    torch::exp_out(chance, logprob[row].narrow(0, 0, end[b]));
  }
  return out;
}

}  // namespace

Tensor optimal_token_baseline(const Tensor& reward, const Tensor& logprob, const Tensor& sum_p2, const Tensor& mask,
                              const Tensor& group, bool alone_zero) {
  constexpr const char* kOp = "method_optimal_token_baseline";
  check_rows(kOp, "logprob", logprob);
  check_floating(kOp, "logprob", logprob);
  check_like(kOp, "sum_p2", sum_p2, "logprob", logprob);
  check_like(kOp, "mask", mask, "logprob", logprob);
  ops::check_dtype(kOp, "sum_p2", sum_p2, {logprob.scalar_type()});
  const Rewarded r = rewarded(kOp, reward, group);
  const int64_t B = logprob.size(0), T = logprob.size(1);
  OP_CHECK(kOp, reward.numel() == B, "reward has ", reward.numel(), " elements; wanted ", B, ", one a row of logprob");
  refusing([&] { check(std::string("isentrope::") + kOp, r); });
  const Tensor ell = host(logprob), squares = host(sum_p2), counts = host_mask(mask);
  const bool* m = counts.const_data_ptr<bool>();
  std::vector<int64_t> end(B);  // of each row, behind its last token that counts
  for (int64_t b = 0; b < B; ++b) end[b] = end_of(m + b * T, T);
  const Tensor out = chances(ell, end);  // first, and then advantages
  AT_DISPATCH_FLOATING_TYPES(ell.scalar_type(), kOp, [&] {
    const scalar_t* p2 = squares.const_data_ptr<scalar_t>();
    scalar_t* a = out.mutable_data_ptr<scalar_t>();
    const auto tile = std::make_unique<Tile>();
    std::vector<double> W;  // of each completion of a group, before the tile
    for (size_t g = 0; g + 1 < r.groups.size(); ++g) {
      const int64_t first = r.groups[g], last = r.groups[g + 1];
      const bool single = last - first < 2;
      const bool same = !single && equal(std::span(r.reward).subspan(first, last - first));
      W.assign(last - first, 0);
      for (int64_t begin = 0; begin < T; begin += kTile) {
        const auto width = [&](int64_t b) { return std::clamp<int64_t>(end[b] - begin, 0, kTile); };
        tile->clear();
        if (!single && !same) {
          for (int64_t b = first, at = b * T + begin; b < last; ++b, at += T)
            W[b - first] = tile->add(r.reward[b], a + at, p2 + at, m + at, width(b), W[b - first]);
          tile->finish(alone_zero);
        }
        for (int64_t b = first, at = b * T + begin; b < last; ++b, at += T) {
          const double s = same ? 0 : r.reward[b];
          const int64_t n = width(b);
          for (int64_t t = 0; t < n; ++t) a[at + t] = static_cast<scalar_t>(s - tile->weighted[t]);
          if (!all_true(m + at, n))
            for (int64_t t = 0; t < n; ++t) a[at + t] = m[at + t] ? a[at + t] : 0;
          std::fill(a + at + n, a + at + std::min(kTile, T - begin), scalar_t(0));
        }
      }
    }
  });
  return out.to(logprob.device());
}

namespace {

Tensor optimal_token_baseline_meta(const Tensor&, const Tensor& logprob, const Tensor&, const Tensor&, const Tensor&,
                                   bool) {
  return torch::empty_symint(logprob.sym_sizes(), logprob.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_optimal_token_baseline(Tensor reward, Tensor logprob, Tensor sum_p2, Tensor mask, Tensor group, "
         "bool alone_zero=True) -> Tensor",
         optimal_token_baseline, optimal_token_baseline_meta);
}

}  // namespace isentrope::methods
