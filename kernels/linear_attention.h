// Causal linear attention with a decay a step, by chunks, and its gradient.
//
// For a key head of a sequence (kernels/recurrence.h), a_t = exp(log_decay_t), and each query head that reads it:
//   S_t = a_t S_{t-1} + k_t v_tᵀ       out_t = S_tᵀ q_t
// that is, out_t = Σ_{s ≤ t} w_ts v_s with w_ts = (q_t·k_s) Π_{s < l ≤ t} a_l. With normalizer
//   z_t = a_t z_{t-1} + k_t            out_t = S_tᵀ q_t / (q_t·z_t), the divisor being Σ_s w_ts, the row's weight; 0 where it is 0
// and z is the last column of the state, [D, E + 1]. S_{-1} is `state`, or 0. No feature map, no scale: q and k are taken as they are.
//
// A chunk with the state S before it:
//   out = rise ⊙ (Q S) + (Q Kᵀ ⊙ Γ) V       S ← exp(b_C) S + (fall ⊙ K)ᵀ V
// Gradient, with dS of the state after the chunk (V and dout stand for [V, 1] and [dout, -dout·out] / weight with normalizer):
//   P = Q Kᵀ ⊙ Γ      dP = dout Vᵀ
//   dQ = rise ⊙ (dout Sᵀ) + (dP ⊙ Γ) K       dV = Pᵀ dout + fall ⊙ (K dS)       dK = (dP ⊙ Γ)ᵀ Q + fall ⊙ (V dSᵀ)
//   dS ← exp(b_C) dS + (rise ⊙ Q)ᵀ dout
//   dlog_decay_t = Σ_{i ≥ t} rise_i q_i·(dout_i Sᵀ) + Σ_{i ≥ t > j} dP_ij P_ij + Σ_{j < t} fall_j k_j·(v_j dSᵀ) + exp(b_C) ⟨dS, S⟩
// with sums over the query heads that read the state. The states before the chunks are computed again.
//
// NaN in a row of q stays in its row of out; NaN in k, v or log_decay reaches that step and those after it.
#pragma once
#include "kernels/recurrence.h"

namespace isentrope::kernels {

// log_decay, states, weight and their gradients are float; double where q is double. E' is E, or E + 1 with normalizer.
struct LinearAttentionForward {
  DType dtype = DType::kFloat;
  RecurrenceShape shape;
  bool normalizer = false;
  const void* q = nullptr;          // [B, H, T, D] dtype, like k, v, out
  const void* k = nullptr;          // [B, G, T, D]
  const void* v = nullptr;          // [B, G, T, E]
  const void* log_decay = nullptr;  // [B, G, T], or null: 0
  const void* state = nullptr;      // [N, G, D, E'] contiguous, or null: 0
  void* out = nullptr;              // [B, H, T, E]
  void* last_state = nullptr;       // [N, G, D, E'] contiguous
  void* weight = nullptr;           // [B, H, T] q·z; with normalizer alone
  HeadStrides q_strides, k_strides, v_strides, decay_strides, out_strides, weight_strides;
  void* workspace = nullptr;  // [linear_attention_workspace] bytes; CUDA only
};

struct LinearAttentionBackward {
  DType dtype = DType::kFloat;
  RecurrenceShape shape;
  bool normalizer = false;
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* log_decay = nullptr;
  const void* state = nullptr;
  const void* out = nullptr;          // [B, H, T, E] and weight as the forward pass gave them; with normalizer alone
  const void* weight = nullptr;       // [B, H, T]
  const void* dout = nullptr;         // [B, H, T, E] dtype
  const void* dlast_state = nullptr;  // [N, G, D, E'] contiguous, or null: 0
  void* dq = nullptr;                 // [B, H, T, D] dtype, like dk and dv
  void* dk = nullptr;                 // [B, G, T, D]
  void* dv = nullptr;                 // [B, G, T, E]
  void* dlog_decay = nullptr;         // [B, G, T] contiguous, or null where it is not wanted
  void* dstate = nullptr;             // [N, G, D, E'] contiguous, or null where it is not wanted
  HeadStrides q_strides, k_strides, v_strides, decay_strides, out_strides, weight_strides, dout_strides;
  HeadStrides dq_strides, dk_strides, dv_strides, ddecay_strides;
  void* workspace = nullptr;  // [linear_attention_backward_workspace] bytes; CUDA only
};

// Bytes of workspace, by the shape alone.
int64_t linear_attention_workspace(const RecurrenceShape& shape, DType dtype);
int64_t linear_attention_backward_workspace(const RecurrenceShape& shape, DType dtype);

// stream is a cudaStream_t; each returns before the work is done. The order of every sum is fixed by the shape: the same bits at
// every run. Throw std::invalid_argument for a dtype other than float, bfloat16 and half.
void linear_attention_forward_cuda(const LinearAttentionForward& p, void* stream);
void linear_attention_backward_cuda(const LinearAttentionBackward& p, void* stream);

}  // namespace isentrope::kernels
