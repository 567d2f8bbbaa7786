// Linear attention whose state begins with a prefix that is read in both directions (JRT-RNN: Arora et al., arXiv 2407.05483): with a
// second key e and value w of each of the M tokens of the prefix,
//
//   S_0 = Σ_{j ≤ M} φ(e_j) w_jᵀ,   S_t = S_{t−1} + φ(k_t) v_tᵀ,   out_t = S_tᵀ φ(q_t) / (φ(q_t)·(Σ_{j ≤ M} φ(e_j) + Σ_{s ≤ t} φ(k_s)))
//
// so that every token, those of the prefix too, sees the whole prefix.
#pragma once
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

RecurrenceOptions prefix_linear_options(const DecoderConfig& config);

}  // namespace isentrope::model
