// Rows in which several sequences stand behind one another, and attention that keeps each to itself.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "csrc/ops/ops.h"

namespace isentrope::model {

using at::Tensor;

struct Packing {
  // position [B, T] int64: of every token in its sequence; a sequence begins where it is 0, as it is at the start of every row.
  explicit Packing(const Tensor& position);

  Tensor position;      // [B · T]
  Tensor ends;          // [sequences + 1] int64: 0, then where each ends in the B · T tokens
  int64_t rows = 0;     // B
  int64_t longest = 0;  // tokens of a sequence, at most
};

// Causal attention of packed rows: q [1, H, B · T, D], k, v [1, G, B · T, D] → out [1, H, B · T, D], lse [1, H, B · T], entropy and max_logit [B, H, T].
// A temperature of the options is [H] or [H, B · T].
ops::EntropyAttention packed_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                       ops::EntropyAttentionOptions options, const Packing& packing);

// entropy_bound (csrc/model/entropy_bound.h) of each sequence → [B, H, T].
Tensor packed_entropy_bound(const Tensor& q, const Tensor& k, const ops::EntropyAttentionOptions& options,
                            const Packing& packing);

}  // namespace isentrope::model
