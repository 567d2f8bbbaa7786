#include "csrc/ops/bfloat16_product.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string_view>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace isentrope::ops {
namespace {

enum class Means { kNone, kPlain, kBrgemm };

void brgemm(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float* c,
            int64_t ldc, bool add) {
  at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, add, reinterpret_cast<const c10::BFloat16*>(a),
                              reinterpret_cast<const c10::BFloat16*>(b), c, /*is_vnni=*/true);
}

// brgemm throws where the processor lacks the instructions, and also where it says that it has some of them: it is tried.
Means means() {
  static const Means found = [] {
    const char* wanted = std::getenv("ISENTROPE_BFLOAT16_PRODUCTS");
    if (wanted != nullptr && std::string_view(wanted) == "off") return Means::kNone;
    if (wanted != nullptr && std::string_view(wanted) == "plain") return Means::kPlain;
    const uint16_t one = 0x3f80, a[2] = {one, one}, b[64] = {one, one};
    float c[32] = {};
    try {
      brgemm(1, 32, 2, a, 2, b, 32, c, 32, false);
      at::native::cpublas::brgemm_release();
      return c[0] == 2 && c[1] == 0 ? Means::kBrgemm : Means::kNone;
    } catch (const std::exception&) {
      return Means::kNone;
    }
  }();
  return found;
}

#if defined(__x86_64__)
// Some rows by a panel of 64 columns with the processor's instruction for it: what brgemm computes, bit for bit, in the order that
// memory has the panel, which is where a product of few rows spends its time; brgemm takes several times as long there.
#define ISENTROPE_PAIRS __attribute__((target("avx512f,avx512bf16")))
constexpr int64_t kTilePanel = 64, kTileRows = 6, kMostTiled = 64;

// The left operand: rows are `row` numbers apart, pairs of columns `pair`.
struct Left {
  const uint16_t* data;
  int64_t row, pair;
  Left from(int64_t m) const { return {data + m * row, row, pair}; }
};

template <int kRows>
ISENTROPE_PAIRS void tile(int64_t K, Left a, const uint16_t* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  __m512 sum[kRows][4];  // in registers throughout, which takes loops that are unrolled
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) sum[m][n] = _mm512_setzero_ps();
  for (int64_t k = 0; k < K; k += 2, a.data += a.pair, b += 2 * ldb) {
    __m512bh column[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) column[n] = (__m512bh)_mm512_loadu_si512(b + 32 * n);
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      int32_t pair;
      std::memcpy(&pair, a.data + m * a.row, sizeof pair);
      const __m512bh row = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], row, column[n]);
    }
  }
  if (add)
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) sum[m][n] = _mm512_add_ps(_mm512_loadu_ps(c + m * ldc + 16 * n), sum[m][n]);
#pragma GCC unroll 6
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) _mm512_storeu_ps(c + m * ldc + 16 * n, sum[m][n]);
}

template <int kRows = kTileRows>
void tile_of(int64_t rows, int64_t K, Left a, const uint16_t* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  if (rows == kRows) return tile<kRows>(K, a, b, ldb, c, ldc, add);
  if constexpr (kRows > 1) tile_of<kRows - 1>(rows, K, a, b, ldb, c, ldc, add);
}

void tiles(int64_t M, int64_t N, int64_t K, Left a, const uint16_t* b, int64_t ldb, float* c, int64_t ldc, bool add) {
  for (int64_t n = 0; n < N; n += kTilePanel)
    for (int64_t m = 0; m < M; m += kTileRows)
      tile_of(std::min(kTileRows, M - m), K, a.from(m), b + 2 * n, ldb, c + m * ldc + n, ldc, add);
}

// Not where there are AMX's instructions: brgemm takes those, whose sums have another order.
bool has_tiles() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_supports("amx-bf16");
  return has && means() == Means::kBrgemm;
}

bool has_rounding() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && means() == Means::kBrgemm;
  return has;
}

// Rounded as to_bits rounds, but that numbers below the least normal one become 0, as which the products take them anyway.
ISENTROPE_PAIRS int64_t round_vectors(int64_t n, const float* x, uint16_t* to) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m256bh y = _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i));
    std::memcpy(to + i, &y, sizeof y);
  }
  return i;
}
ISENTROPE_PAIRS int64_t pair_vectors(int64_t n, const float* even, const float* odd, uint16_t* to) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even + i))),
                  high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(odd + i)));
    _mm512_storeu_si512(to + 2 * i, _mm512_or_si512(low, _mm512_maskz_slli_epi32(0xffff, high, 16)));
  }
  return i;
}
#endif

uint16_t to_bits(float x) {
  if (x != x) return 0x7fc0;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float widen(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

}  // namespace

bool has_bfloat16_products() {
  return means() == Means::kPlain || (means() == Means::kBrgemm && at::globalContext().userEnabledMkldnn());
}

void bfloat16_product(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                      float* c, int64_t ldc, bool add) {
  if (means() == Means::kBrgemm) {
#if defined(__x86_64__)
    if (M <= kMostTiled && N == kTilePanel && ldb == kTilePanel && has_tiles())
      return tiles(M, N, K, {a, lda, 2}, b, ldb, c, ldc, add);
#endif
    return brgemm(M, N, K, a, lda, b, ldb, c, ldc, add);
  }
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += widen(a[m * lda + k]) * widen(b[(k / 2 * ldb + n) * 2 + k % 2]);
      c[m * ldc + n] = add ? c[m * ldc + n] + sum : sum;
    }
}

void bfloat16_product_of_pairs(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b,
                               int64_t ldb, float* c, int64_t ldc, bool add) {
#if defined(__x86_64__)
  if (N % kTilePanel == 0 && has_tiles()) return tiles(M, N, K, {a, 2, 2 * lda}, b, ldb, c, ldc, add);
#endif
  thread_local std::vector<uint16_t> rows;
  rows.resize(M * K);
  for (int64_t k = 0; k < K; k += 2)
    for (int64_t m = 0; m < M; ++m) std::memcpy(&rows[m * K + k], a + (k / 2 * lda + m) * 2, 2 * sizeof(uint16_t));
  bfloat16_product(M, N, K, rows.data(), K, b, ldb, c, ldc, add);
}

void bfloat16_round(int64_t n, const float* x, uint16_t* to) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (has_rounding()) i = round_vectors(n, x, to);
#endif
  for (; i < n; ++i) to[i] = to_bits(x[i]);
}

void bfloat16_pairs(int64_t n, const float* even, const float* odd, uint16_t* to) {
  int64_t i = 0;
#if defined(__x86_64__)
  if (has_rounding() && odd != nullptr) i = pair_vectors(n, even, odd, to);
#endif
  for (; i < n; ++i) {
    to[2 * i] = to_bits(even[i]);
    to[2 * i + 1] = odd == nullptr ? 0 : to_bits(odd[i]);
  }
}

void end_bfloat16_products() {
  if (means() == Means::kBrgemm) at::native::cpublas::brgemm_release();
}

}  // namespace isentrope::ops
