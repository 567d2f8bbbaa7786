// Operands of the products of bfloat16 (csrc/ops/bfloat16_product.h) from rows of float. Pointers and sizes only, compiled once an
// instruction set like csrc/model/cpu_kernels.h; threads and memory are their callers'. uint16_t: the bits of bfloat16.
#pragma once
#include <cstdint>

namespace isentrope::model {

// Columns of a panel of B: four vectors of AVX-512, sums enough to hide the multiplier's latency.
inline constexpr int64_t kPairPanel = 64;

struct Bfloat16Kernels {
  // to [rows, depth] = x [rows, K], row i times scale[i] (null: 1), rounded to nearest even; 0 beyond K.
  void (*round)(int64_t rows, int64_t K, int64_t depth, const float* x, const float* scale, uint16_t* to);
  // One panel, to [⌈K/2⌉, kPairPanel, 2]: B = xᵀ of x, `count` rows of K elements ld apart; 0 beyond the last.
  void (*pack_columns)(int64_t count, int64_t K, const uint16_t* x, int64_t ld, uint16_t* to);
  // One panel, to [⌈rows/2⌉, kPairPanel, 2]: B = x [rows, width], rows ld apart; 0 beyond the last.
  void (*pack_rows)(int64_t rows, int64_t width, const uint16_t* x, int64_t ld, uint16_t* to);
  // to [columns, ldt] = the transpose of x [rows, ld].
  void (*transpose)(int64_t rows, int64_t columns, const uint16_t* x, int64_t ld, uint16_t* to, int64_t ldt);
};

const Bfloat16Kernels& bfloat16_kernels();

}  // namespace isentrope::model
