// Every op of isentrope as a C++ function, one screen. All that the model and the trainer see of csrc/ops.
// Each is differentiable through the dispatcher (CPU and CUDA); mathematics and promises: kernels/<op>.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace isentrope::ops {

using at::Tensor;

// ---- entropy_attention -------------------------------------------------------------------------------------------
struct EntropyAttentionOptions {
  bool causal = true;                 // the last query sees the last key
  std::optional<int64_t> window;      // causal: a query sees itself and the window − 1 keys before it
  std::optional<double> softcap;      // s → softcap · tanh(s / softcap)
  std::optional<double> scale;        // default 1/√D
  std::optional<Tensor> temperature;  // [H], [H, T] or [B, H, T] above 0, by which logits are divided; has a gradient
  std::optional<Tensor> key_lengths;  // [B] integers: keys at and after it are not read
  std::optional<Tensor>
      query_start;  // [B] integers: the key that query 0 sees last; default S − T. Or [B, T]: of each query
  std::optional<Tensor> cu_seqlens;   // [sequences + 1] integers, 0 first, then where each packed sequence ends
  std::optional<int64_t> max_seqlen;  // packed: at least the longest sequence; spares a GPU empty blocks
  // With b = block_size, a multiple of 16: [B, H or 1, ⌈T/b⌉, ⌈S/b⌉] bool, the blocks of keys that the rows of a block see; or
  // [B, H or 1, ⌈T/b⌉, any] integers, the columns of those blocks, filled up with −1. Packed: B sequences, T and S max_seqlen
  std::optional<Tensor> block_mask;
  std::optional<int64_t> block_size;
  std::optional<Tensor>
      gates;  // [B, H or 1, ⌈T/b⌉ or 1, ⌈S/b⌉] ≥ 0, factors of the weights; with block_mask; has a gradient
  std::optional<Tensor> sinks;   // [H] logits of a column without value; has a gradient
  std::optional<Tensor> slopes;  // [H] s → s − slope · |distance|, before the temperature; no gradient
  bool return_entropy = true;
};
struct EntropyAttention {
  Tensor out;        // [B, H, T, D] like q
  Tensor lse;        // [B, H, T] float, or double for double q, like all that follow
  Tensor entropy;    // [B, H, T] nats; undefined without return_entropy
  Tensor max_logit;  // [B, H, T]; no gradient
};
// q [B, H, T, D], k, v [B, G, S, D], H a multiple of G, D a multiple of 8 up to 256, any strides but 1 in D. Packed by
// cu_seqlens: q [total, H, D], k, v [total, G, D], statistics [total, H]. Gradients of out, lse and entropy.
EntropyAttention entropy_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const EntropyAttentionOptions& options = {});

// ---- merge_attention_states --------------------------------------------------------------------------------------
// The attention over the union of disjoint sets of keys, from those over each: states are stacked in dimension 0,
// out [N, …, D], lse, entropy, max_logit [N, …] → the same without N. entropy and max_logit may be undefined.
EntropyAttention merge_attention_states(const Tensor& out, const Tensor& lse, const Tensor& entropy = {},
                                        const Tensor& max_logit = {});

// ---- gathered_attention ------------------------------------------------------------------------------------------
struct GatheredAttentionOptions {
  std::optional<Tensor> key_index;       // [B, H, C, m] like index, the keys of each cluster; default: index
  bool causal = true;                    // a query sees the keys at its own position and before it, by position
  std::optional<double> softcap, scale;  // of entropy_attention
  bool return_entropy = true;
};
// The attention of each of C clusters within itself: q [B, H, T, D], k, v [B, G, S, D], index [B, H, C, w] the positions that a
// cluster gathers, in any order, -1 for none → out [B, H, C, w, D], statistics [B, H, C, w]; rows of -1 are empty rows.
EntropyAttention gathered_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                    const GatheredAttentionOptions& options = {});

// ---- scatter_mean ------------------------------------------------------------------------------------------------
// x [B, H, C, w, D] or [B, H, C, w], index [B, H, C, w] → [B, H, length, D] or [B, H, length]: at each position the mean of what
// index says is of it, 0 where nothing is; -1: of none.
Tensor scatter_mean(const Tensor& x, const Tensor& index, const c10::SymInt& length);

// ---- hierarchical_attention --------------------------------------------------------------------------------------
struct HierarchicalAttentionOptions {
  std::optional<int64_t> branching;  // families of so many neighbours, of these families again, up to one root
  std::optional<std::vector<Tensor>>
      tree;                           // or of each level [families, m] or [B, families, m] integers: the nodes of the
                                      // level below that a family has (of the first: tokens), -1 for none
  std::optional<Tensor> key_lengths;  // [B] integers: tokens at and after it are padding
  std::optional<Tensor> mask;         // [B, T] bool: false is padding
  std::optional<Tensor>
      position;  // [m, E], [H, m, E] or [levels, H, m, E]: features of the places in a family, whose products
                 // are added to the logits of siblings; has a gradient
  std::optional<double> scale;  // default 1/√D
  bool return_entropy = true;
};
struct HierarchicalAttention {
  Tensor out;            // [B, H, T, D] like q
  Tensor entropy;        // [B, H, T] nats, float, or double for double q; undefined without return_entropy
  Tensor log_partition;  // [B, H, roots]: mean over a root's tokens of Σ θ (s − log θ)
};
// The softmax attention of all tokens to all, tied in blocks by a tree: csrc/ops/hierarchical_attention.cpp. q [B, H, T, D],
// k, v [B, G, T, D], H a multiple of G. Gradients of all three outputs.
HierarchicalAttention hierarchical_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                             const HierarchicalAttentionOptions& options);

// ---- sigma_linear ----------------------------------------------------------------------------------------------
struct SigmaLinear {
  Tensor y;      // [..., out] like x
  Tensor sigma;  // [] float, or double for double weight; has a gradient if sigma_grad is through
};
// y = (γ/σ) · x Wᵀ + bias, σ = ‖W u‖: x [..., in], weight [out, in], gamma [], u [in], bias [out]; gamma and u in float or
// weight's dtype. u is not changed: power_step does that. Gradients of x, weight, gamma and bias.
SigmaLinear sigma_linear(const Tensor& x, const Tensor& weight, const Tensor& gamma, const Tensor& u,
                         const std::optional<Tensor>& bias = {}, const std::string& sigma_grad = "through");

// ---- power_step ------------------------------------------------------------------------------------------------
struct PowerStep {
  Tensor sigmas;  // [layers] σ = ‖Wᵀv‖ of each layer's last step; 0 where W u = 0, NaN where it is not finite
  Tensor steps;   // [layers] int: steps taken
};
// Power steps of all layers of a model, in place in us, once after an optimiser step: u ← Wᵀv / ‖Wᵀv‖, v = W u / ‖W u‖,
// in each layer until σ grows by less than tolerance (relative), at most steps_max times; tolerance 0: always so many.
// weights [out_i, in_i] of one dtype and device, us [in_i]. No host synchronisation. Defaults: python/isentrope/ops.
PowerStep power_step(at::TensorList weights, at::TensorList us, int64_t steps_max = 20, double tolerance = 1e-4);

// ---- token_entropy ---------------------------------------------------------------------------------------------
struct TokenEntropy {
  Tensor logprob;            // [N] or [B, T], like target; float, or double for double logits, like all that follow
  Tensor entropy;            // same shape, nats
  Tensor lse;                // same shape
  Tensor sum_p2;             // same shape; undefined without moments; no gradient
  Tensor sum_p2_logp;        // same shape; undefined without moments; no gradient
  Tensor kept_entropy = {};  // same shape, nats: of the tokens that are kept, renormalised; undefined without keep
};
struct Keep {
  std::string kind =
      "top_p";  // the fewest likeliest tokens whose probabilities reach share; or without_lowest: all but the
                // floor(share · V) least likely
  double share = 0.8;
};
// logits [N, V] or [B, T, V], target [N] or [B, T] int64. Rows whose target is ignore_index give 0 everywhere and are
// not read. inplace_backward: the backward pass writes the gradient over the logits, which must not be needed after.
TokenEntropy token_entropy(const Tensor& logits, const Tensor& target, double temperature = 1.0,
                           int64_t ignore_index = -100, bool moments = false, bool inplace_backward = false,
                           const std::optional<Keep>& keep = {});

// ---- linear_token_entropy --------------------------------------------------------------------------------------
struct LinearTokenEntropyOptions {
  std::optional<Tensor> bias;     // [V] like weight
  std::optional<double> softcap;  // z → softcap · tanh(z / softcap)
  double temperature = 1.0;
  int64_t ignore_index = -100;
  bool moments = false;
  // The logits of a block of rows then exist, at most 128 MiB of them on a CPU and 256 MiB on a GPU.
  std::optional<Keep> keep = {};
};
// token_entropy of the logits hidden · weightᵀ, which never exist together, in neither direction: hidden [N, C] or [B, T, C],
// weight [V, C], target [N] or [B, T]. Gradients of hidden, weight and bias.
TokenEntropy linear_token_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                  const LinearTokenEntropyOptions& options = {});

// ---- window_entropy --------------------------------------------------------------------------------------------
struct WindowEntropyOptions {
  int64_t window = 4;  // tokens of a window
  std::string side =
      "following";  // it begins with its token; after: behind it; centred: around it; trailing: ends with it
  std::string partial = "drop";        // windows of fewer tokens: none, or shrink, the mean of those there are
  std::string threshold = "quantile";  // value, quantile, top_fraction
  double level = 0.95;
  std::string scope = "row";  // row, batch: the mean over rows of their thresholds, global: of all windows together
  std::optional<Tensor> at;   // [B, T] where windows may be; everywhere if left out
};
struct WindowEntropy {
  Tensor mean;       // [B, T] float, or double for double entropy; 0 where there is no window; has a gradient
  Tensor high;       // [B, T] bool: mean is at or above the threshold, or among the top_fraction
  Tensor threshold;  // [B] with scope row, else []; infinite where there is no window
};
// entropy, mask [B, T]. Definitions: python/isentrope/ops.
WindowEntropy window_entropy(const Tensor& entropy, const Tensor& mask, const WindowEntropyOptions& options = {});

// ---- linear_attention ------------------------------------------------------------------------------------------
struct LinearAttentionOptions {
  std::optional<Tensor> log_decay;    // [B, G, T] of either sign; 0 if left out
  std::optional<Tensor> state;        // [N, G, D, E'] float, or double for double q; 0 if left out
  std::optional<Tensor> key_lengths;  // [B] integers: steps at and after it do not exist
  std::optional<Tensor> cu_seqlens;   // [N + 1] integers, 0 first, then where each packed sequence ends
  bool normalizer = false;            // out is divided by the row's weight, whose state is the last column: E' = E + 1
  int64_t chunk = 64;                 // a multiple of 16 from 16 to 256
};
struct LinearAttention {
  Tensor out;    // [B, H, T, E] like q
  Tensor state;  // [N, G, D, E'] after the last step
};
// q [B, H, T, D], k [B, G, T, D], v [B, G, T, E], H a multiple of G; packed: q [total, H, D], k [total, G, D], v [total, G, E],
// log_decay [total, G]. Gradients of out and state by q, k, v, log_decay and state.
LinearAttention linear_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const LinearAttentionOptions& options = {});

// ---- gated_delta_rule ------------------------------------------------------------------------------------------
struct GatedDeltaRuleOptions {
  std::optional<Tensor>
      write;  // [N, G, ⌈T/chunk⌉] gate of what a chunk leaves in the state; 0: it decays the state alone
  std::optional<Tensor> state;                    // [N, G, D, E] float, or double for double q; 0 if left out
  std::optional<Tensor> key_lengths, cu_seqlens;  // as in linear_attention
  int64_t chunk = 64;                             // a multiple of 16 from 16 to 256
};
// beta, log_decay [B, G, T] or [total, G]; the rest as in linear_attention. Gradients of out and state by all inputs.
LinearAttention gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                 const std::optional<Tensor>& log_decay, const GatedDeltaRuleOptions& options = {});

// ---- grpo_select -----------------------------------------------------------------------------------------------
struct GrpoSelectOptions {
  std::string mode = "clip_cov";  // clip_cov, kl_cov, random_clip_cov, random_kl_cov
  int64_t seed = 0;
  double cov_ratio = 2e-4;
  double cov_lower = 1.0, cov_upper = 5.0;  // clip_cov
  double clip_low = 0.2;
  std::optional<double> clip_high;  // default: clip_low
  int64_t minimum = 1;              // tokens chosen even where the fraction is of less
};
// logprob, old_logprob, advantage [B, T], mask [B, T] (≠ 0: the token counts) → [B, T] bool: the tokens that clip_cov
// and kl_cov treat apart. Covariances are centred and ranked over all tokens given: hand over a whole update for the
// global choice, a micro-batch for the local one. Constant; reproducible from seed, order of sequences and T.
Tensor grpo_select(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage, const Tensor& mask,
                   const GrpoSelectOptions& options);

// ---- grpo_loss -------------------------------------------------------------------------------------------------
struct GrpoLossOptions {
  // or clip_higher, clip_cov, kl_cov, gspo, luspo, geo_mean, cispo, reinforce, dppo_tv, dppo_kl, sapo, vespo, ce_gppo, dro, gpg
  std::string mode = "clip";
  // or seq-mean-token-sum, seq-mean-token-mean, seq-mean-token-sum-norm, token-sum-norm, token-sum
  std::string aggregate = "token-mean";
  double clip_low = 0.2;
  std::optional<double> clip_high;       // default: clip_low; 0.28 for clip_higher
  std::optional<double> dual_clip;       // clip, clip_higher and ce_gppo; above 1
  std::optional<double> delta;           // most of the ratio itself; default: none, 20 for dppo, 2 for reinforce
  double kl_cov_coef = 1.0;              // kl_cov
  double tau_pos = 1.0, tau_neg = 1.05;  // sapo
  double vespo_k_pos = 2.0, vespo_lambda_pos = 3.0;  // vespo, where A ≥ 0,
  double vespo_k_neg = 3.0, vespo_lambda_neg = 2.0;  // and where A < 0
  double gppo_beta1 = 0.75, gppo_beta2 = 1.0;        // ce_gppo, under the clip and over it
  double dro_beta = 0.05;                            // dro
  std::string ref_kl = "k3";                         // k1, k2, k3, k1+, k3+, k3_is
  double ref_kl_coef = 0.0;
  double entropy_coef = 0.0;
  std::optional<Tensor> selected;       // [B, T] bool, of grpo_select; clip_cov and kl_cov
  std::optional<Tensor> ref_logprob;    // [B, T]; without a ref_kl_coef for the statistics alone, like entropy
  std::optional<Tensor> ref_kl_weight;  // [B, T] factor of ref_kl_coef at each token; 1 where it is not given
  std::optional<Tensor> entropy;        // [B, T]
  // One number of a whole step, so that the losses of its micro-batches add up to that of the whole: its tokens
  // (token-mean), sequences with tokens S (seq-mean-token-sum, seq-mean-token-mean), S · L (seq-mean-token-sum-norm),
  // L (token-sum-norm) with a constant L in place of T, or 1 (token-sum).
  std::optional<Tensor> normalizer;
  bool statistics = true;  // false: stats is empty, and nothing of it is computed
};
struct GrpoLoss {
  Tensor loss;        // [] float, or double for double logprob
  Tensor token_loss;  // [B, T] same type, before aggregation; 0 outside the mask
  Tensor stats;       // [grpo_stat_names().size()] float, or [0]; no gradient
};
// Gradients of loss and token_loss by logprob and entropy; all else is constant.
GrpoLoss grpo_loss(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage, const Tensor& mask,
                   const GrpoLossOptions& options);
// The names of stats, in order: "tokens", "sequences", "entropy/mean", "ratio/max", "clip/frac", "cov/mean", …
std::vector<std::string> grpo_stat_names();
// stats [calls, names] of the micro-batches of a step → [names], as of one call. (cov/max, and what depends on a
// selection, are about each micro-batch's own means and choice.) No host synchronisation.
Tensor grpo_combine_stats(const Tensor& stats);

// ---- crrelu ------------------------------------------------------------------------------------------------------
// max(0, x) + ε x exp(−x²/2) of x of any shape, epsilon [1]: kernels/crrelu.h. Gradients of both.
Tensor crrelu(const Tensor& x, const Tensor& epsilon);

}  // namespace isentrope::ops
