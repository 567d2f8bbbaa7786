// Vectors of the instruction set that a file is compiled for, and the one matrix product that the CPU kernels
// share. Included by sources that are compiled once per instruction set (csrc/CMakeLists.txt). Everything
// stands in a namespace of that set's name, and no standard container is used: the linker must not find an
// AVX-512 copy of a common inline function that it could keep for every processor.
#pragma once
#include <cstdint>

namespace isentrope::model::CPU_CAPABILITY {

// kTile: rows of C held in registers, 2 vectors wide. 12 × 2 of 32 registers in AVX-512, 6 × 2 of 16 in AVX2.
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int kVectorBytes = 64, kTile = 12, kFewRows = 4;
#elif defined(CPU_CAPABILITY_AVX2)
inline constexpr int kVectorBytes = 32, kTile = 6, kFewRows = 2;
#else
inline constexpr int kVectorBytes = 16, kTile = 4, kFewRows = 2;
#endif

template <class T>
inline constexpr int kLanes = kVectorBytes / sizeof(T);

template <class T, int kCount>
struct Lanes {
  typedef T type __attribute__((vector_size(kCount * sizeof(T)), aligned(alignof(T)), may_alias));
  static type load(const T* p) { return *reinterpret_cast<const type*>(p); }
  static void store(T* p, type x) { *reinterpret_cast<type*>(p) = x; }
};

// C [kRows, kVectors · kCount] = A [kRows, K] · B [K, kVectors · kCount], added to C where add.
// Element (m, k) of A lies at a[m · a_row + k · a_col]. Every element of C is one chain of multiply-adds in
// the order of k, whatever kRows is: a row's bits do not depend on the rows beside it. (Added as a whole to
// C: sums over long K come in blocks, whose rounding errors grow less.)
template <class T, int kCount, int kRows, int kVectors>
inline void tile(int64_t K, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb, T* c,
                 int64_t ldc, bool add) {
  using L = Lanes<T, kCount>;
  typename L::type sum[kRows][kVectors], column[kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) sum[m][n] = typename L::type{};
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) column[n] = L::load(b + k * ldb + n * kCount);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
      for (int n = 0; n < kVectors; ++n) sum[m][n] += a[m * a_row + k * a_col] * column[n];
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 16
    for (int n = 0; n < kVectors; ++n) {
      T* to = c + m * ldc + n * kCount;
      L::store(to, add ? L::load(to) + sum[m][n] : sum[m][n]);
    }
}

// The same for M rows.
template <class T, int kCount, int kVectors>
inline void strip(int64_t M, int64_t K, const T* a, int64_t a_row, int64_t a_col, const T* b, int64_t ldb,
                  T* c, int64_t ldc, bool add) {
  int64_t m = 0;
  for (; m + kTile <= M; m += kTile)
    tile<T, kCount, kTile, kVectors>(K, a + m * a_row, a_row, a_col, b, ldb, c + m * ldc, ldc, add);
  for (; m + kFewRows <= M; m += kFewRows)
    tile<T, kCount, kFewRows, kVectors>(K, a + m * a_row, a_row, a_col, b, ldb, c + m * ldc, ldc, add);
  for (; m < M; ++m)
    tile<T, kCount, 1, kVectors>(K, a + m * a_row, a_row, a_col, b, ldb, c + m * ldc, ldc, add);
}

// e^x. float: 2^n · p(r), x = n ln 2 + r, |r| ≤ ln 2 / 2, with the polynomial of Cephes' expf (Moshier):
// within one unit in the last place, and p(0) = 1. Below −87.3, where the result would be subnormal, 0.
inline float exponential(float x) {
  const float y = x < -87.3f ? -87.3f : (x > 88.3f ? 88.3f : x);
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const float n = (y * 1.44269504088896341f + kRound) - kRound;
  const float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return x < -87.3f ? 0.0f : p * power;
}
inline double exponential(double x) { return __builtin_exp(x); }

}  // namespace isentrope::model::CPU_CAPABILITY
