// token_entropy of the logits of a linear head, which never exist together: they are made block by block of the vocabulary.
//
//   z = h · Wᵀ + b         where there is a soft cap c:  z ← c · tanh(z / c)         then token_entropy (kernels/token_entropy.h)
//
// A block's logits are added to the sums of their row, l = Σ exp(s - m), e = Σ exp(s - m)(s - m), which move to a higher reference m
// where a block holds one: l ← k·l, e ← k·(e + l·log k), k = exp(m - m'), so that no digit is lost. Backward, the logits are made
// again, and with token_entropy's dz of a row (from entropy, anchor and log_sum of the whole row)
//
//   dz ← dz · (1 - (z/c)²)        dh = Σ_blocks dz · W        dW = dzᵀ · h        db = Σ_rows dz
//
// In bfloat16 z, the sums and dz are float. dz may be rounded to bfloat16 as an operand of dh and dW; what these products add up,
// within a block and over blocks, is float and rounded once, at the end.
//
// For the truncated entropy, whose kept tokens are a matter of a whole row, the logits of a block of rows are written out as they
// are made, and token_entropy_keep reads them; backward, they are made again by products of the same rows, hence with the same bits.
//
// Special rows are those of token_entropy. Rows that are ignored, and backward those into which nothing flows, need not be given:
// the CPU backend leaves them out of the products.
#pragma once
#include <cstdint>

#include "kernels/gpu/dtype.h"
#include "kernels/token_entropy.h"

namespace isentrope::kernels {

// A block of the vocabulary: columns first … first + columns - 1 of N rows of V logits, W's product with h. Logits and all that
// is kept of a row are float, or double where dtype is double.
struct LogitBlock {
  DType dtype = DType::kFloat;  // of h, W, b and dlogits
  int64_t rows = 0;             // N
  int64_t vocab = 0;            // V
  int64_t first = 0;
  int64_t columns = 0;
  const void* logits = nullptr;     // [N, columns], contiguous
  const void* bias = nullptr;       // [V] dtype, or null
  const int64_t* target = nullptr;  // [N]
  int64_t ignore_index = -100;
  double softcap = 0;      // 0 for none
  double temperature = 1;  // τ > 0
};

// The blocks are given in order, each in a launch of its own; the last writes the outputs.
struct LinearTokenEntropyForward : TokenEntropyRows, LogitBlock {
  void* sums = nullptr;  // [N, kLogitBlockSums], kept from block to block
  void* capped =
      nullptr;  // [N, V] in the type of logits: those with bias and soft cap, of rows that are not ignored; or null
};
constexpr int64_t kLogitBlockSums = 6;

struct LinearTokenEntropyBackward : TokenEntropyRowGradients, LogitBlock {
  void* dlogits = nullptr;  // [N, columns] dtype, contiguous; may be the logits where they have that type
};

// Adds a block to the sums of its rows. stream is a cudaStream_t; returns before the work is done. Throws std::invalid_argument for
// a dtype out of the list.
void linear_token_entropy_forward_cuda(const LinearTokenEntropyForward& p, void* stream);
// The gradient of a block's logits, before bias and soft cap.
void linear_token_entropy_backward_cuda(const LinearTokenEntropyBackward& p, void* stream);

}  // namespace isentrope::kernels
