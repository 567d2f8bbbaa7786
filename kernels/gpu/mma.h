// Tensor core products of 16 x 8 x 16 tiles and the loads that feed them, for sm_80 and later.
//
// Fragments of one warp, g = lane / 4, t = lane % 4 (PTX ISA, "Matrix Fragments for mma.m16n8k16"); two 16-bit
// elements in a word, the lower column (A) or row (B) in the low half:
//   A [16, 16] row major: a[0] = A[g][2t..], a[1] = A[g + 8][2t..], a[2] = A[g][2t + 8..], a[3] = A[g + 8][2t + 8..]
//   B [16, 8]: b0 = B[2t..][g], b1 = B[2t + 8..][g]
//   D [16, 8] float: d[0], d[1] = D[g][2t], D[g][2t + 1]; d[2], d[3] = the same of row g + 8
#pragma once
#include "kernels/gpu/platform.h"

namespace isentrope::gpu {

#if defined(__CUDACC__)
GPU_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
#endif

// Two elements as one word of a fragment, each rounded to nearest even.
template <class T>
GPU_DEVICE uint32_t pack_pair(float low, float high) {
#if defined(__CUDACC__)
  uint32_t word;
  if constexpr (std::is_same<T, bfloat16>::value) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, 4);
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, 4);
  }
  return word;
#else
  return narrow<T>(low).bits | uint32_t{narrow<T>(high).bits} << 16;
#endif
}

// d += A B. T is bfloat16 or half. All 32 lanes must call.
template <class T>
GPU_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 GPU_AT) {
  constexpr bool kBFloat = std::is_same<T, bfloat16>::value;
  static_assert(kBFloat || std::is_same<T, half>::value, "bfloat16 or half");
#if defined(__CUDACC__)
  if constexpr (kBFloat) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  simt::mma_m16n8k16(d, a, b0, b1, kBFloat GPU_HERE);
#endif
}

// Four 8 x 8 matrices of 16-bit elements. row: shared address, 16-byte aligned, of row lane % 8 of matrix lane / 8.
// fragment[i]: elements 2t, 2t + 1 of row g of matrix i. All 32 lanes must call.
GPU_DEVICE void ldmatrix_x4(uint32_t (&fragment)[4], const void* row GPU_AT) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
#else
  simt::ldmatrix_x4(fragment, row, false GPU_HERE);
#endif
}

// The same of the transposed matrices: elements of rows 2t, 2t + 1 in column g.
GPU_DEVICE void ldmatrix_x4_transposed(uint32_t (&fragment)[4], const void* row GPU_AT) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(shared_address(row))
               : "memory");
#else
  simt::ldmatrix_x4(fragment, row, true GPU_HERE);
#endif
}

}  // namespace isentrope::gpu
