// Operands of the processor's products of bfloat16 (csrc/ops/bfloat16_product.h), which take a matrix in pairs of rows, for the CPU
// backends, compiled for the instruction set of the file that includes it. Elements are the bits of bfloat16.
#pragma once
#include <cstdint>
#include <cstring>

#include "csrc/ops/cpu_product.h"

namespace isentrope::ops::CPU_CAPABILITY {

typedef uint32_t Four __attribute__((vector_size(16), aligned(2), may_alias));
typedef uint16_t Eight __attribute__((vector_size(16), aligned(2), may_alias));

// to [⌈C/2⌉, kColumns, 2] = the transpose of x, rows count of C elements, ld apart; 0 beyond the last row and column.
template <int64_t kColumns>
void pack_pair_columns(int64_t count, int64_t C, const uint16_t* x, int64_t ld, uint16_t* to) {
  const int64_t pairs = (C + 1) / 2;
  int64_t k = 0;
  if (count == kColumns) {
    constexpr int64_t kLine = 16;  // pairs: a row's whole line of the cache before the next row's
    for (; k + kLine <= C / 2; k += kLine)
      for (int64_t n = 0; n < kColumns; n += 4)
        for (int64_t i = k; i < k + kLine; i += 4) {
          const auto row = [&](int64_t r) { return *reinterpret_cast<const Four*>(x + (n + r) * ld + 2 * i); };
          const auto put = [&](int64_t r, Four y) { *reinterpret_cast<Four*>(to + ((i + r) * kColumns + n) * 2) = y; };
          const Four a = row(0), b = row(1), c = row(2), d = row(3);
          const Four low_ab = __builtin_shuffle(a, b, Four{0, 4, 1, 5}),
                     low_cd = __builtin_shuffle(c, d, Four{0, 4, 1, 5}),
                     high_ab = __builtin_shuffle(a, b, Four{2, 6, 3, 7}),
                     high_cd = __builtin_shuffle(c, d, Four{2, 6, 3, 7});
          put(0, __builtin_shuffle(low_ab, low_cd, Four{0, 1, 4, 5}));
          put(1, __builtin_shuffle(low_ab, low_cd, Four{2, 3, 6, 7}));
          put(2, __builtin_shuffle(high_ab, high_cd, Four{0, 1, 4, 5}));
          put(3, __builtin_shuffle(high_ab, high_cd, Four{2, 3, 6, 7}));
        }
  }
  for (; k < pairs; ++k)
    for (int64_t n = 0; n < kColumns; ++n)
      for (int64_t i = 0; i < 2; ++i)
        to[(k * kColumns + n) * 2 + i] = n < count && 2 * k + i < C ? x[n * ld + 2 * k + i] : 0;
}

// to [count / 2, N, 2] = rows 0 … count - 1, the elements [0, width) of row i at row(i); 0 where row(i) is null and beyond width.
template <class RowAt>
void pack_pair_rows(int64_t count, int64_t width, int64_t N, const RowAt& row, uint16_t* to) {
  if (width < N && count > 0) std::memset(to, 0, count * N * sizeof(uint16_t));
  for (int64_t k = 0; k < count; k += 2, to += 2 * N) {
    const uint16_t *low = row(k), *high = row(k + 1);
    uint32_t* pair = reinterpret_cast<uint32_t*>(to);
    if (low != nullptr && high != nullptr)
      for (int64_t n = 0; n < width; ++n) pair[n] = low[n] | static_cast<uint32_t>(high[n]) << 16;
    else
      for (int64_t n = 0; n < width; ++n) pair[n] = low != nullptr ? low[n] : 0;
  }
}

// to [columns, ldt] = the transpose of x [rows, ld].
inline void transpose(int64_t rows, int64_t columns, const uint16_t* x, int64_t ld, uint16_t* to, int64_t ldt) {
  constexpr Eight low{0, 8, 1, 9, 2, 10, 3, 11}, high{4, 12, 5, 13, 6, 14, 7, 15};
  const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (int64_t r = 0; r < whole_rows; r += 8)
    for (int64_t c = 0; c < whole_columns; c += 8) {
      Eight y[8], next[8];
      for (int i = 0; i < 8; ++i) y[i] = *reinterpret_cast<const Eight*>(x + (r + i) * ld + c);
#pragma GCC unroll 3
      for (int step = 0; step < 3; ++step) {  // rows i and i + 4 woven into each other, three times
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          next[2 * i] = __builtin_shuffle(y[i], y[i + 4], low);
          next[2 * i + 1] = __builtin_shuffle(y[i], y[i + 4], high);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) y[i] = next[i];
      }
      for (int i = 0; i < 8; ++i) *reinterpret_cast<Eight*>(to + (c + i) * ldt + r) = y[i];
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) to[c * ldt + r] = x[r * ld + c];
}

}  // namespace isentrope::ops::CPU_CAPABILITY
