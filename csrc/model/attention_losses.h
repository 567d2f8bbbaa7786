// How far attention that is estimated or learnt is from full softmax attention: the losses of SEA (arXiv 2310.01777).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "csrc/model/attention_record.h"
#include "csrc/model/packing.h"

namespace isentrope::model {

using at::Tensor;

// x [N, …] of the tokens of rows of T, or of packed rows → [S, L, …], a sequence each, 0 behind its end; packing may be null.
Tensor padded(const Tensor& x, int64_t B, const Packing* packing);
// [S, L, …] → [N, …] of the same tokens.
Tensor unpadded(const Tensor& x, int64_t N, const Packing* packing);

// The log-weights [S, H, L, L] of causal softmax attention with logits q·k / √D, −∞ where a key is not in sight; q [S, L, H, D],
// k [S, L, G, D], in float or double. window, softcap: 0 for none.
Tensor full_attention(const Tensor& q, const Tensor& k, int64_t window = 0, double softcap = 0);

// weights [S, H, L, L] added up over the M cells of each row: token s of row t lies in cell ⌊s M / (t + 1)⌋ → [S, H, L, M].
Tensor in_cells(const Tensor& weights, int64_t M);

// Σ_j a_j (log a_j − log b_j) of rows a ≥ 0 and log b [.., n] → [..]; columns with a = 0 say nothing.
Tensor divergence(const Tensor& a, const Tensor& log_b);

// [S, H, L] each of some loss, undefined: 0 → means over heads, [B, T, kLosses].
Tensor losses_of_rows(const std::vector<Tensor>& losses, int64_t B, int64_t N, const Packing* packing);

// With record->teacher: adds kAttentionKl, kAttentionSquare and kContextSquare of a layer to losses [kLosses] of [S, H, L]. log_weights
// [S, H, L, L] its own full attention, out [N, H · D] before the output projection. Throws c10::Error where the teacher's layer has other shapes.
void compare_with_teacher(std::vector<Tensor>& losses, const AttentionMap& teacher, const Tensor& log_weights,
                          const Tensor& out, int64_t B, const Packing* packing);

}  // namespace isentrope::model
