// Softmax attention with the entropy of every row, from one pass over the keys, and its gradient.
//
// For a query of batch b, head h, place t, with key head g = h / (H / G) and keys j that it sees:
//   z_j = scale · q·k_j       y_j = softcap · tanh(z_j / softcap), or z_j without softcap      s_j = y_j / τ
//   p_j = exp(s_j) / Σ exp(s)         out = Σ p_j v_j         lse = log Σ exp(s)
//   entropy H = -Σ p_j log p_j        max_logit = max s_j     natural logarithms, nats
//
// It sees key j where j < n_b, and if causal first ≤ j ≤ place with place = start_b + t and, with a window, first =
// place - window + 1 (itself and the window - 1 keys before it).
//   n_b      key_lengths[b], or S
//   start_b  query_start[b], or S - T: the last query sees the last key; or places[b, t] in place of start_b + t
// Packed: sequence b has the rows cu_seqlens[b] … cu_seqlens[b + 1] - 1 of q, k and v alike; n_b is their number, start_b = 0.
//
// Options; one that is not given costs nothing. Rows and keys are counted in their own sequence.
//   block mask   it sees key j only where block (t / b, j / b) of its head is kept: b = block_size, fractions cut off
//   gates        g > 0 of each block: p_j ∝ g exp(s_j); a block whose gate is 0 is not kept
//   slopes       one a head: s_j = (y_j - slope · |place - j|) / τ   (ALiBi; no gradient)
//   sinks        one a head: a column of logit sink that has no value, so that Σ p_j = 1 - p_sink. Its weight is in lse and in
//                the entropy, its logit in max_logit; it is not divided by τ. A row that sees no key has out 0, lse = sink
// With w_j = s_j + log g the formulas are those above: p_j = exp(w_j) / Σ exp(w), the sink one of the sum; max_logit = max w_j.
// What is kept is a constant to the gradient.
//
// The entropy is kept centred: with a running maximum m, l = Σ exp(s - m) and e = Σ exp(s - m)(s - m) give H = log l - e/l; a
// larger maximum m' turns them into c·l and c·(e + (m - m') l), c = exp(m - m'). Partial states are merged by the same rule.
//
// lse = m + log l is one number, which keeps of log l what the size of m leaves it: of common offsets of ±1e8 nothing. So the
// backward pass is given the two apart, anchor and log_sum, m not yet multiplied by the factor of the logits: what is taken off
// a score is then the very number that the forward pass took off it.
//
// Gradient, from out, entropy, anchor and log_sum alone (log P = (s - m) - log l):
//   dP_j = dout·v_j        δ = dout·out + dentropy·H - dlse
//   ds_j = p_j (dP_j - δ - dentropy · log p_j)             every row of ds sums to dlse
//   dy_j = ds_j / τ        dz_j = dy_j (1 - (y_j / softcap)²)
//   dq = scale Σ dz_j k_j      dk_j = scale Σ dz_j q       dv_j = Σ p_j dout      dτ = -(1/τ) Σ ds_j s_j
// dk and dv sum over the queries of all heads of the key head, dτ is one number a row.
//   dg = (1/g) Σ ds_j over the rows and keys of its block; 0 of a block that is not kept or has g = 0
//   dsink = p_sink (-δ - dentropy · log p_sink), a number a row, to be summed over the rows of the head
//
// Rows of a special kind:
//   no key in sight           out 0, lse = max_logit = -inf, entropy 0, gradient 0
//   one key in sight          out = v, entropy 0 exactly
//   NaN, or a logit of +inf   NaN in that row
// Keys at and after n_b are not read.
#pragma once
#include <cstdint>

#include "kernels/gpu/dtype.h"

namespace isentrope::kernels {

// Where an array of rows lies: element (b, h, t, d) at b·batch + h·head + t·row + d. Packed: batch is 0 and t counts from the
// first row of all. Statistics and temperature (no d) likewise.
struct HeadStrides {
  int64_t batch = 0, head = 0, row = 0;
};

struct AttentionShape {
  int64_t batch = 0;      // B, or the number of packed sequences
  int64_t heads = 0;      // H, a multiple of G
  int64_t kv_heads = 0;   // G
  int64_t queries = 0;    // T; packed: at least the longest sequence's
  int64_t keys = 0;       // S; packed: the same
  int64_t head_size = 0;  // D, a multiple of 8 up to 256
  double scale = 1;       // above 0
  bool causal = false;
  int64_t window = 0;  // 0: none; causal only
  double softcap = 0;  // 0: none
  // Out of range values are bounded to 0 … S, and to the rows there are: nothing is read out of bounds.
  const int64_t* key_lengths = nullptr;  // [B], or null
  const int64_t* query_start = nullptr;  // [B], or null
  const int64_t* places = nullptr;      // [B, T] from -1 to S, never falling from t to t + 1; or null, like query_start
  const int64_t* cu_seqlens = nullptr;  // [B + 1], or null: not packed
  int64_t total = 0;                    // rows of all packed sequences
  const bool* block_mask = nullptr;     // [B, H, ⌈T/b⌉, ⌈S/b⌉] true: kept; or null
  int64_t block_size = 0;               // b, a multiple of 16; with block_mask
  HeadStrides block_strides;            // of block_mask; 0 where one serves all batches or heads
  bool of_gates = false;                // the backward pass gives dgates
};

// What is added to the logits. float, double where q is double, like all that is not q, k, v, out or a gradient of them.
struct AttentionBias {
  const void* gates = nullptr;   // [B, H, ⌈T/b⌉, ⌈S/b⌉], at least 0, or null: 1; with block_mask
  const void* slopes = nullptr;  // [H], or null: 0
  const void* sinks = nullptr;   // [H], or null: none
  HeadStrides gate_strides;      // 0 where one serves all batches, heads or row blocks
};

// Statistics, temperature and their gradients are float; double where q is double.
struct EntropyAttentionForward {
  DType dtype = DType::kFloat;
  AttentionShape shape;
  AttentionBias bias;
  const void* q = nullptr;            // [B, H, T, D] dtype, like k, v, out; rows 16-byte aligned on CUDA
  const void* k = nullptr;            // [B, G, S, D]
  const void* v = nullptr;            // [B, G, S, D]
  const void* temperature = nullptr;  // [B, H, T] τ > 0, or null: 1
  void* out = nullptr;                // [B, H, T, D]
  void* lse = nullptr;                // [B, H, T]
  void* entropy = nullptr;            // [B, H, T], or null
  void* max_logit = nullptr;          // [B, H, T], or null
  void* anchor = nullptr;   // [B, H, T], or null, like log_sum: for the backward pass of the same device, in the
  void* log_sum = nullptr;  // [B, H, T]  unit and base that it computes in
  HeadStrides q_strides, k_strides, v_strides, out_strides;
  HeadStrides statistic_strides;    // of all statistics
  HeadStrides temperature_strides;  // row is 0 where a head has one temperature, batch where all batches share them
  void* workspace = nullptr;        // [entropy_attention_workspace] bytes, 16-byte aligned; CUDA only
};

struct EntropyAttentionBackward {
  DType dtype = DType::kFloat;
  AttentionShape shape;
  AttentionBias bias;
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* temperature = nullptr;
  const void* out = nullptr;      // as the forward pass gave it, like entropy, anchor and log_sum
  const void* anchor = nullptr;   // [B, H, T]
  const void* log_sum = nullptr;  // [B, H, T]
  const void* entropy = nullptr;  // [B, H, T]; needed with dentropy; with dtemperature it keeps digits, and may be null
  const void* dout = nullptr;     // [B, H, T, D] dtype; rows 16-byte aligned on CUDA, like q, k, v and out
  const void* dlse = nullptr;     // [B, H, T], or null for 0
  const void* dentropy = nullptr;  // [B, H, T], or null for 0
  void* dq = nullptr;              // [B, H, T, D] dtype
  void* dk = nullptr;              // [B, G, S, D] dtype; every row is written, those that no query sees with 0
  void* dv = nullptr;              // [B, G, S, D] dtype; the same
  void* dtemperature = nullptr;    // [B, H, T], or null where it is not wanted
  void* dgates = nullptr;          // [B, H, ⌈T/b⌉, ⌈S/b⌉] contiguous, 0 before; or null where it is not wanted
  void* dsinks = nullptr;          // [B, H, T] of each row; with sinks
  HeadStrides q_strides, k_strides, v_strides, out_strides, dout_strides, dq_strides, dk_strides, dv_strides;
  HeadStrides statistic_strides;  // of anchor, log_sum, entropy, dlse, dentropy, dtemperature, dsinks
  HeadStrides temperature_strides;
  void* workspace = nullptr;  // [entropy_attention_backward_workspace] bytes, 16-byte aligned; CUDA only
};

// Bytes of workspace; 0 where none is needed. They depend on the shape alone, not on lengths.
int64_t entropy_attention_workspace(const AttentionShape& shape, DType dtype);
int64_t entropy_attention_backward_workspace(const AttentionShape& shape, DType dtype);

// stream is a cudaStream_t; each returns before the work is done, and never waits for the device. The order of every sum is fixed
// by the shape: the same bits at every run. Throw std::invalid_argument for a dtype other than float, bfloat16 and half, and for a
// head size that is not supported.
void entropy_attention_forward_cuda(const EntropyAttentionForward& p, void* stream);
void entropy_attention_backward_cuda(const EntropyAttentionBackward& p, void* stream);

}  // namespace isentrope::kernels
