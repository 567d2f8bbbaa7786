// What the CPU backend of linear_token_entropy offers to linear_token_entropy.cpp, once for every instruction set.
#pragma once
#include <cstdint>

#include "csrc/ops/token_entropy_cpu.h"

namespace isentrope::ops {

// Sums of a row are kept in so many parts at most, each over blocks of the vocabulary that follow each other: tasks for as many
// threads, however few rows there are. Not a matter of how many threads there are, so that the bits are none either.
constexpr int64_t kVocabShares = 16;

// Columns of logits that exist at once: 1/64 of the vocabulary and a multiple of every panel. From 128 on a block's products
// run at the rate of large ones; above 256 they are not faster, and its packed weight leaves the second-level cache.
inline int64_t vocab_block(int64_t vocab) {
  const int64_t wanted = vocab / 64 < 128   ? 128
                         : vocab / 64 > 256 ? 256
                                            : vocab / 64,
                least = vocab < wanted ? vocab : wanted;
  return (least + 31) / 32 * 32;
}

inline int64_t vocab_shares(int64_t vocab) {
  const int64_t blocks = (vocab + vocab_block(vocab) - 1) / vocab_block(vocab);
  return blocks < kVocabShares ? blocks : kVocabShares;
}

// The logits of M of N rows, of hidden · weightᵀ + bias.
struct LinearLogits {
  kernels::DType dtype = kernels::DType::kFloat;
  int64_t rows = 0;              // M
  int64_t width = 0;             // C
  int64_t vocab = 0;             // V
  const int64_t* row = nullptr;  // [M] rising: places in hidden, target and all that has N rows
  const void* hidden = nullptr;  // [N, C] dtype
  int64_t hidden_stride = 0;     // elements from row to row, as below
  const void* weight = nullptr;  // [V, C] dtype
  int64_t weight_stride = 0;
  const void* bias = nullptr;       // [V] dtype, or null
  const int64_t* target = nullptr;  // [N] 0 … V - 1 in the M rows
  double softcap = 0;               // 0 for none
  double temperature = 1;
  bool pairs = false;  // bfloat16, multiplied by the processor's own products (csrc/ops/bfloat16_product.h)
};

// Columns of logits between two additions to dhidden where products are of pairs: fewer than in a block of the forward pass, since
// all rows' dlogits of a block lie in memory; from 128 on those additions take little beside the products.
inline int64_t pair_block(int64_t vocab) {
  const int64_t wanted = vocab / 256 < 128 ? 128 : vocab / 256 > 256 ? 256 : vocab / 256;
  return ((wanted < vocab ? wanted : vocab) + 31) / 32 * 32;
}
constexpr int64_t kPairChunk = 128;  // rows of a product of pairs

struct LinearTokenEntropyCpuForward : kernels::TokenEntropyRows {  // [N]; rows that are not among the M are left alone
  LinearLogits logits;
  int64_t rows_at_once = 0;          // R: so many of the M go by together
  TokenEntropySums* sums = nullptr;  // [R, vocab_shares(V)] scratch
  double* target_logit = nullptr;    // [R] scratch
  // The truncated entropy, or null. Its rows are the N, its layout says V alone, its logits are kept_logits.
  const kernels::TokenEntropyKeep* keep = nullptr;
  void* kept_logits = nullptr;  // [R, V] scratch in float, or double for double; null without keep
};

// Rows whose logits exist together for the kept tokens: at most 128 MiB of them. Each block of rows packs the weight anew, which at
// 100 rows costs as much as a tenth of the products.
inline int64_t kept_rows(int64_t vocab, bool wide) {
  const int64_t rows = (int64_t{128} << 20) / (wide ? 8 : 4) / vocab,
                chunk = 384;  // a multiple of the rows of every product
  return rows >= chunk ? rows / chunk * chunk : rows >= 96 ? 96 : rows < 1 ? 1 : rows;
}

struct LinearTokenEntropyCpuBackward : kernels::TokenEntropyRowGradients {  // [N]
  LinearLogits logits;
  // Scratch [M, dlogits_stride(V)] in float, or double for double; with pairs [M, pair_block(V)] in bfloat16, M a multiple of
  // kPairChunk.
  void* dlogits = nullptr;
  // [M, C] in the same; null where it is not wanted, like the next two. With pairs [N, C] in bfloat16, rows that are not among the M
  // left alone: while sums are formed the upper half of each, the lower in dhidden_low.
  void* dhidden = nullptr;
  uint16_t* dhidden_low = nullptr;  // [M, C] scratch, with pairs
  void* dweight = nullptr;          // [V, C] dtype
  void* dbias = nullptr;            // [V] dtype
};
// Padded, so that its rows do not fall on the same few sets of the cache.
inline int64_t dlogits_stride(int64_t vocab) { return vocab_block(vocab) + 16; }

#define ISENTROPE_DECLARE(ISA)                                                \
  namespace ISA {                                                             \
  void linear_token_entropy_forward(const LinearTokenEntropyCpuForward& p);   \
  void linear_token_entropy_backward(const LinearTokenEntropyCpuBackward& p); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
