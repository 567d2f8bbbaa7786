// Products of bfloat16 with sums in float by instructions of the processor for them (AVX-512 bf16, AMX), through the kernels
// that ATen has oneDNN make at run time (brgemm); products of few rows by 64 columns have a kernel here, with the same bits. No
// torch header is included: the CPU backends are compiled for one instruction set each.
#pragma once
#include <cstdint>

namespace isentrope::ops {

// Asked of the processor once. ISENTROPE_BFLOAT16_PRODUCTS in the environment overrides: off, or plain for the same products in
// plain loops on any processor, which is how tests reach what is built on them.
bool has_bfloat16_products();

// C [M, N] = or += A [M, K] · B [K, N], K even. A and C are row-major; B lies in pairs of rows: element (k, n) at
// b[(k / 2 · ldb + n) · 2 + k % 2]. Operands are the bits of bfloat16, 16 a number. Each new set of sizes costs some 50 µs once
// a thread, so callers keep to few.
void bfloat16_product(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                      float* c, int64_t ldc, bool add);

// The same of an A that lies in pairs too, its transpose [K, M] as B does: element (m, k) at a[(k / 2 · lda + m) · 2 + k % 2]. So
// sums over the rows of a block need nothing transposed.
void bfloat16_product_of_pairs(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b,
                               int64_t ldb, float* c, int64_t ldc, bool add);

// to [n] = x rounded to bfloat16, ties to even; to may be where x is.
void bfloat16_round(int64_t n, const float* x, uint16_t* to);
// to [n, 2] = the numbers of two rows side by side, rounded; odd may be null: 0.
void bfloat16_pairs(int64_t n, const float* even, const float* odd, uint16_t* to);

// Said by a thread at the end of a task with such products: it gives the registers of AMX back.
void end_bfloat16_products();

}  // namespace isentrope::ops
