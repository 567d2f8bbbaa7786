// The gated delta rule by chunks, and its gradient: a linear attention whose state forgets what it says of a key before it writes.
//
// For a key head of a sequence (kernels/recurrence.h), a_t = exp(log_decay_t), and each query head that reads it:
//   S_t = a_t S_{t-1} + β_t k_t (v_t - (a_t S_{t-1})ᵀ k_t)ᵀ       out_t = S_tᵀ q_t
// S_{-1} is `state`, or 0. With a gate write_c for each chunk c, the state that the next chunk begins with is
//   write_c S_last + (1 - write_c) (Π a) S_before                 of chunk c
// so that with write_c = 0 a chunk's own queries run the recurrence and the state after it has only decayed.
//
// A chunk with the state S before it, Γ, rise and fall as in kernels/recurrence.h:
//   X = V - rise ⊙ (K S)       (I + L) U = β ⊙ X,  L_ij = β_i (k_i·k_j) Γ_ij for j < i
//   out = rise ⊙ (Q S) + (Q Kᵀ ⊙ Γ) U       S ← exp(b_C) S + write_c (fall ⊙ K)ᵀ U
// Gradient, with dS of the state after the chunk, m = write_c, P = Q Kᵀ ⊙ Γ:
//   dU = Pᵀ dout + m fall ⊙ (K dS)       (I + L)ᵀ Y = dU       dX = dV = β ⊙ Y       dP = dout Uᵀ       dL = -Y Uᵀ below the diagonal
//   dQ = rise ⊙ (dout Sᵀ) + (dP ⊙ Γ) K
//   dK = (dP ⊙ Γ)ᵀ Q + m fall ⊙ (U dSᵀ) + (dL ⊙ β ⊙ Γ)ᵀ K  [as k_j]  +  (dL ⊙ β ⊙ Γ) K - rise ⊙ (dX Sᵀ)  [as k_i]
//   dβ_i = Y_i·X_i + Σ_j dL_ij (k_i·k_j) Γ_ij       dwrite = Σ_j fall_j k_j·(u_j dSᵀ)
//   dS ← exp(b_C) dS + (rise ⊙ Q)ᵀ dout - (rise ⊙ K)ᵀ dX
//   dlog_decay_t: as in kernels/linear_attention.h, Σ_{i ≥ t} also of -rise_i k_i·(dX_i Sᵀ), Σ_{i ≥ t > j} also of dL_ij L_ij
// with sums over the query heads that read the state. The states before the chunks are computed again.
//
// Source: Yang et al., arXiv 2412.06464 (gated delta networks); the gate of a chunk is that of NAtS-L.
//
// NaN in a row of q stays in its row of out; NaN in k, v, beta or log_decay reaches that step and those after it.
#pragma once
#include "kernels/recurrence.h"

namespace isentrope::kernels {

// beta, log_decay, write, states and their gradients are float; double where q is double.
struct GatedDeltaForward {
  DType dtype = DType::kFloat;
  RecurrenceShape shape;
  const void* q = nullptr;          // [B, H, T, D] dtype, like k, v, out
  const void* k = nullptr;          // [B, G, T, D]
  const void* v = nullptr;          // [B, G, T, E]
  const void* beta = nullptr;       // [B, G, T]
  const void* log_decay = nullptr;  // [B, G, T], or null: 0
  const void* write = nullptr;      // [N, G, ⌈T/C⌉] contiguous, or null: 1
  const void* state = nullptr;      // [N, G, D, E] contiguous, or null: 0
  void* out = nullptr;              // [B, H, T, E]
  void* last_state = nullptr;       // [N, G, D, E] contiguous
  HeadStrides q_strides, k_strides, v_strides, beta_strides, decay_strides, out_strides;
  void* workspace = nullptr;  // [gated_delta_rule_workspace] bytes; CUDA only
};

struct GatedDeltaBackward {
  DType dtype = DType::kFloat;
  RecurrenceShape shape;
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* beta = nullptr;
  const void* log_decay = nullptr;
  const void* write = nullptr;
  const void* state = nullptr;
  const void* dout = nullptr;         // [B, H, T, E] dtype
  const void* dlast_state = nullptr;  // [N, G, D, E] contiguous, or null: 0
  void* dq = nullptr;                 // [B, H, T, D] dtype, like dk and dv
  void* dk = nullptr;                 // [B, G, T, D]
  void* dv = nullptr;                 // [B, G, T, E]
  void* dbeta = nullptr;              // [B, G, T] contiguous
  void* dlog_decay = nullptr;         // [B, G, T] contiguous, or null where it is not wanted
  void* dwrite = nullptr;             // [N, G, ⌈T/C⌉] contiguous, or null where it is not wanted
  void* dstate = nullptr;             // [N, G, D, E] contiguous, or null where it is not wanted
  HeadStrides q_strides, k_strides, v_strides, beta_strides, decay_strides, dout_strides;
  HeadStrides dq_strides, dk_strides, dv_strides, dbeta_strides, ddecay_strides;
  void* workspace = nullptr;  // [gated_delta_rule_backward_workspace] bytes; CUDA only
};

// Bytes of workspace, by the shape alone.
int64_t gated_delta_rule_workspace(const RecurrenceShape& shape, DType dtype);
int64_t gated_delta_rule_backward_workspace(const RecurrenceShape& shape, DType dtype);

// stream is a cudaStream_t; each returns before the work is done. The order of every sum is fixed by the shape: the same bits at
// every run. Throw std::invalid_argument for a dtype other than float, bfloat16 and half.
void gated_delta_rule_forward_cuda(const GatedDeltaForward& p, void* stream);
void gated_delta_rule_backward_cuda(const GatedDeltaBackward& p, void* stream);

}  // namespace isentrope::kernels
