#include "csrc/model/bfloat16_linear.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "csrc/ops/bfloat16_product.h"

namespace isentrope::model {
namespace {

// Rows of a product: a panel of weight stays in the second-level cache while they go by. A multiple of the rows (6) that
// bfloat16_product holds in registers and of those (16) of AMX.
constexpr int64_t kRowsOfA = 48;
// Rows of B that are summed at a time: 192 KiB of a panel, which leaves room for the rows beside it in a second-level cache of 512.
constexpr int64_t kDepth = 1536;

}  // namespace

bool takes_bfloat16_weights() { return ops::has_bfloat16_products(); }
void end_bfloat16_step() { ops::end_bfloat16_products(); }

Bfloat16Panels::Bfloat16Panels(int64_t K, int64_t N)
    : N_(N), depth_((K + 1) / 2 * 2), packed_(at::empty({panels() * kPairPanel * depth_}, at::kBFloat16)) {}

void Bfloat16Panels::multiply(int64_t rows, const uint16_t* a, int64_t lda, float* y, int64_t ldy, bool add,
                              std::vector<float>& staging) const {
  for (int64_t m = 0; m < rows; m += kRowsOfA, a += kRowsOfA * lda, y += kRowsOfA * ldy) {
    const int64_t count = std::min(kRowsOfA, rows - m);
    for (int64_t i = 0; i < panels(); ++i) {
      const int64_t columns = std::min(kPairPanel, N_ - i * kPairPanel);
      const bool whole = columns == kPairPanel;
      if (!whole) staging.resize(kRowsOfA * kPairPanel);
      float* const to = whole ? y + i * kPairPanel : staging.data();
      const int64_t ld = whole ? ldy : kPairPanel;
      for (int64_t k = 0; k < depth_; k += kDepth)
        ops::bfloat16_product(count, kPairPanel, std::min(kDepth, depth_ - k), a + k, lda, panel(i) + k * kPairPanel,
                              kPairPanel, to, ld, (add && whole) || k > 0);
      if (whole) continue;
      for (int64_t r = 0; r < count; ++r)
        for (int64_t c = 0; c < columns; ++c) {
          float& sum = y[r * ldy + i * kPairPanel + c];
          sum = add ? sum + to[r * kPairPanel + c] : to[r * kPairPanel + c];
        }
    }
  }
}

Bfloat16Weight::Bfloat16Weight(int64_t N, int64_t K, const uint16_t* weight) : K_(K), panels_(K, N) {
  for (int64_t i = 0; i < panels_.panels(); ++i)
    bfloat16_kernels().pack_columns(std::min(kPairPanel, N - i * kPairPanel), K, weight + i * kPairPanel * K, K,
                                    panels_.panel(i));
}

void Bfloat16Weight::multiply(int64_t rows, const float* x, float* y, bool add, std::vector<uint16_t>& operands,
                              std::vector<float>& staging) const {
  const int64_t depth = panels_.depth();
  operands.resize(std::max<size_t>(operands.size(), rows * depth));
  bfloat16_kernels().round(rows, K_, depth, x, nullptr, operands.data());
  panels_.multiply(rows, operands.data(), depth, y, panels_.columns(), add, staging);
}

}  // namespace isentrope::model
