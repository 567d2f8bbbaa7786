// Products of matrices on the CPU out of the kernels of cpu_kernels.h, over torch's threads: every element is one sum in a fixed
// order, so that no bit depends on the number of threads, nor one of a row on the rows beside it. T: float or double.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "csrc/model/cpu_kernels.h"

namespace isentrope::model {

// c [rows, N] (+)= a [rows, K] · b [K, N]; rows of a lie lda apart, those of c ldc; element (k, n) of b at
// b[k · k_stride + n · n_stride], times k_scale[k] · n_scale[n].
template <class T>
void multiply(int64_t rows, int64_t N, int64_t K, const T* a, int64_t lda, const T* b, int64_t k_stride,
              int64_t n_stride, const T* k_scale, const T* n_scale, T* c, int64_t ldc, bool add) {
  // Rows of a task: a multiple of the tiles of every instruction set (12, 6, 4). And bytes of b that are packed at a time: they
  // stay in the second-level cache, beside those rows at widths of a thousand, while all rows of a thread go by.
  constexpr int64_t kRows = 48, kPacked = 256 << 10;
  const auto& kernels = cpu_kernels<T>();
  const int64_t P = kernels.panel,
                width =
                    std::max<int64_t>(kPacked / (std::max<int64_t>(K, 1) * static_cast<int64_t>(sizeof(T))) / P, 1) * P;
  const int64_t blocks = (rows + kRows - 1) / kRows, tasks = (N + width - 1) / width * blocks;
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const at::Tensor memory = at::empty({packed_size(K, std::min(width, N), P)}, c10::CppTypeToScalarType<T>::value);
    T* const packed = memory.template data_ptr<T>();
    int64_t first = -1, columns = 0;  // that are packed
    for (int64_t task = begin; task < end; ++task) {
      if (const int64_t of = task / blocks * width; of != first) {
        first = of;
        columns = std::min(width, N - first);
        kernels.pack(K, columns, b + first * n_stride, k_stride, n_stride, k_scale,
                     n_scale == nullptr ? nullptr : n_scale + first, packed);
      }
      const int64_t row = task % blocks * kRows;
      kernels.packed_product(std::min(kRows, rows - row), columns, K, a + row * lda, lda, false, packed,
                             c + row * ldc + first, ldc, add);
    }
  });
}

// dw [M, K] = dyᵀ x of dy [rows, M], whose rows lie ld_dy apart, and x [rows, K], ld_x apart; rows ≥ 1. Tasks are shares of dw's
// rows: the sums do not depend on them.
template <class T>
void weight_gradient(int64_t rows, int64_t M, int64_t K, const T* dy, int64_t ld_dy, const T* x, int64_t ld_x, T* dw) {
  // Rows over which a weight's gradient is summed in registers before it goes to memory, and rows of that
  // gradient which are visited together: both operands and the sums stay in the second-level cache at widths of
  // a thousand.
  constexpr int64_t kDepth = 384, kGradientRows = 96;
  const auto& kernels = cpu_kernels<T>();
  at::parallel_for(0, (M + 11) / 12, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 12, last = std::min(end * 12, M);
    const at::Tensor packed = at::empty({packed_size(kDepth, K, kernels.panel)}, c10::CppTypeToScalarType<T>::value);
    for (int64_t row = 0; row < rows; row += kDepth) {
      const int64_t depth = std::min(kDepth, rows - row);
      kernels.pack(depth, K, x + row * ld_x, ld_x, 1, nullptr, nullptr, packed.template data_ptr<T>());
      for (int64_t m = first; m < last; m += kGradientRows)
        kernels.packed_product(std::min(kGradientRows, last - m), K, depth, dy + row * ld_dy + m, ld_dy, true,
                               packed.template data_ptr<T>(), dw + m * K, K, row > 0);
    }
  });
}

}  // namespace isentrope::model
