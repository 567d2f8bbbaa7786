#include "csrc/model/bfloat16_linear.h"

#include <c10/util/BFloat16.h>

#include <algorithm>

#include "csrc/ops/bfloat16_product.h"

namespace isentrope::model {
namespace {

// Columns of a product: four vectors of AVX-512, sums enough to hide the multiplier's latency where there is one row.
constexpr int64_t kPanel = 64;
// Rows of a product: a panel of weight stays in the second-level cache while they go by.
constexpr int64_t kRows = 64;

void round_rows(int64_t rows, int64_t K, int64_t depth, const float* x, uint16_t* to) {
  for (int64_t i = 0; i < rows; ++i, x += K, to += depth) {
    for (int64_t k = 0; k < K; ++k) to[k] = c10::BFloat16(x[k]).x;
    if (K < depth) to[K] = 0;
  }
}

}  // namespace

bool takes_bfloat16_weights() { return ops::has_bfloat16_products(); }
void end_bfloat16_step() { ops::end_bfloat16_products(); }

Bfloat16Weight::Bfloat16Weight(int64_t N, int64_t K, const uint16_t* weight)
    : N_(N), K_(K), depth_((K + 1) / 2 * 2), packed_((N + kPanel - 1) / kPanel * kPanel * depth_) {
  uint16_t* to = packed_.data();
  for (int64_t first = 0; first < N; first += kPanel)
    for (int64_t k = 0; k < depth_; k += 2)
      for (int64_t n = first; n < first + kPanel; ++n, to += 2)
        for (int64_t i = 0; i < 2; ++i) to[i] = n < N && k + i < K ? weight[n * K + k + i] : 0;
}

void Bfloat16Weight::multiply(int64_t rows, const float* x, float* y, bool add, std::vector<uint16_t>& operands,
                              std::vector<float>& staging) const {
  operands.resize(std::max<size_t>(operands.size(), rows * depth_));
  round_rows(rows, K_, depth_, x, operands.data());
  for (int64_t n = 0; n < N_; n += kPanel) {
    const uint16_t* panel = packed_.data() + n * depth_;
    const int64_t columns = std::min(kPanel, N_ - n);
    for (int64_t m = 0; m < rows; m += kRows) {
      const int64_t count = std::min(kRows, rows - m);
      const uint16_t* a = operands.data() + m * depth_;
      float* to = y + m * N_ + n;
      if (columns == kPanel) {
        ops::bfloat16_product(count, kPanel, depth_, a, depth_, panel, kPanel, to, N_, add);
        continue;
      }
      staging.resize(kRows * kPanel);
      ops::bfloat16_product(count, kPanel, depth_, a, depth_, panel, kPanel, staging.data(), kPanel, false);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < columns; ++c) {
          const float sum = staging[i * kPanel + c];
          to[i * N_ + c] = add ? to[i * N_ + c] + sum : sum;
        }
    }
  }
}

}  // namespace isentrope::model
