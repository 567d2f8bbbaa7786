// What the CPU backend of token_entropy offers to token_entropy.cpp, once for every instruction set. Work is counted in
// chunks: chunk i is part (i % chunks) of row (i / chunks), chunks = token_entropy_chunks(V).
#pragma once
#include <cstdint>

#include "kernels/token_entropy.h"

namespace isentrope::ops {

// A row is cut here however many threads there are, so that the bits do not depend on their number. 32768 logits take
// about 10 µs: worth a thread's while, and one row of a 150k vocabulary still feeds five.
constexpr int64_t kTokenEntropyChunk = 32768;

inline int64_t token_entropy_chunks(int64_t vocab) { return (vocab + kTokenEntropyChunk - 1) / kTokenEntropyChunk; }

// Fewest chunks a thread takes: about 32k logits.
inline int64_t token_entropy_grain(int64_t vocab) {
  return vocab >= kTokenEntropyChunk ? 1 : kTokenEntropyChunk / vocab + 1;
}

// Sums over a chunk of s = 2^((z - anchor)·c), c = log2(e)/τ.
struct TokenEntropySums {
  double anchor = 0;      // a logit near the maximum; -inf where every logit is
  double sum = 0;         // l = Σ s
  double sum_log = 0;     // e = Σ s·log2 s
  double square = 0;      // Σ s²
  double square_log = 0;  // Σ s²·log2 s
};

// forward_chunks: fills sums[begin, end); those of ignored rows are left alone.
// finish: joins the chunks of rows [begin, end) in order and writes their outputs.
// keep: the kept tokens of rows [begin, end).
// backward_chunks: writes dlogits of chunks [begin, end).
#define ISENTROPE_DECLARE(ISA)                                                                            \
  namespace ISA {                                                                                         \
  void token_entropy_forward_chunks(const kernels::TokenEntropyForward& p, int64_t begin, int64_t end,    \
                                    TokenEntropySums* sums);                                              \
  void token_entropy_finish(const kernels::TokenEntropyForward& p, int64_t begin, int64_t end,            \
                            const TokenEntropySums* sums);                                                \
  void token_entropy_keep(const kernels::TokenEntropyKeep& p, int64_t begin, int64_t end);                \
  void token_entropy_backward_chunks(const kernels::TokenEntropyBackward& p, int64_t begin, int64_t end); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
