// What recurrent mixers tell of their weights and states (csrc/model/attention_record.h), without gradient.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "csrc/model/attention_record.h"
#include "csrc/model/packing.h"

namespace isentrope::model {

// exp(−Σ p log p) of p = σ / Σ σ, σ the singular values of each matrix [..., D, E] → [...]: how many directions it uses, 0 of zeros (Roy and
// Vetterli, EUSIPCO 2007); isentrope.nn.effective_rank.
at::Tensor effective_rank(const at::Tensor& state);

// −Σ p log p [nats] of each row t of weights w_ts = (q_t·k_s) exp(Σ_{s < l ≤ t} log_decay_l), s ≤ t, and q_t·e_s of every s of its sequence,
// none below 0, p = w / Σ w; 0 of a row without weight. No recurrence holds Σ w log w, so all weights are made, a block of rows at a time: O(T²).
// q [N, H, F], k [N, G, F], log_decay [N, states] or undefined, e [N, G, F] or undefined, N = B · T tokens → [B, H, T].
at::Tensor weight_entropy(const at::Tensor& q, const at::Tensor& k, const at::Tensor& log_decay, const at::Tensor& e,
                          int64_t T, const Packing* packing);

// Adds a layer's StateRecord without its entropy. state [sequences, states, D, ≥ E]: behind all tokens, of which the first E columns are the
// state. up_to(lengths [B]): the state behind so many tokens of each row, for rows that end in padding.
void tell_states(AttentionRecord& record, int64_t layer, const Packing* packing, const at::Tensor& state, int64_t E,
                 const std::function<at::Tensor(const at::Tensor& lengths)>& up_to);

}  // namespace isentrope::model
