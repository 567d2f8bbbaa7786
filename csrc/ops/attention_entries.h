// What entropy_attention and the ops beside it give the dispatcher: the functions that library.cpp and library_cuda.cpp register.
// Shapes: ops.h.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/entropy_attention.h"

namespace isentrope::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- entropy_attention -----------------------------------------------------------------------------------------------
struct EntropyAttentionArguments {
  Tensor q, k, v;
  bool causal;
  std::optional<c10::SymInt> window;  // a number that torch.compile may not know, like max_seqlen
  std::optional<double> softcap, scale;
  OptionalTensor temperature, key_lengths, query_start, cu_seqlens;
  std::optional<c10::SymInt> max_seqlen;
  OptionalTensor block_mask;
  std::optional<c10::SymInt> block_size;
  OptionalTensor gates, sinks, slopes;
};
// (out, lse, entropy, max_logit, anchor, log_sum); entropy is empty without return_entropy; the last two are for the backward pass.
using EntropyAttentionOutputs = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using EntropyAttentionRun = EntropyAttentionOutputs (*)(const EntropyAttentionArguments&, bool return_entropy);

EntropyAttentionOutputs entropy_attention_autograd(const EntropyAttentionArguments& arguments, bool return_entropy);
EntropyAttentionOutputs entropy_attention_autocast(const EntropyAttentionArguments& arguments, bool return_entropy);
EntropyAttentionOutputs entropy_attention_meta(const EntropyAttentionArguments& arguments, bool return_entropy);
EntropyAttentionOutputs entropy_attention_cpu(const EntropyAttentionArguments& arguments, bool return_entropy);
// workspace: how many bytes the launcher wants beside its parameters; null for none.
using AttentionWorkspace = int64_t (*)(const kernels::AttentionShape&, kernels::DType);
EntropyAttentionOutputs entropy_attention_run(const EntropyAttentionArguments& arguments, bool return_entropy,
                                              void (*launch)(const kernels::EntropyAttentionForward&),
                                              AttentionWorkspace workspace);

// A backend as the dispatcher calls it.
template <EntropyAttentionRun run>
EntropyAttentionOutputs entropy_attention_entry(const Tensor& q, const Tensor& k, const Tensor& v, bool causal,
                                                std::optional<c10::SymInt> window, std::optional<double> softcap,
                                                std::optional<double> scale, const OptionalTensor& temperature,
                                                const OptionalTensor& key_lengths, const OptionalTensor& query_start,
                                                const OptionalTensor& cu_seqlens, std::optional<c10::SymInt> max_seqlen,
                                                const OptionalTensor& block_mask, std::optional<c10::SymInt> block_size,
                                                const OptionalTensor& gates, const OptionalTensor& sinks,
                                                const OptionalTensor& slopes, bool return_entropy) {
  return run({q, k, v, causal, std::move(window), softcap, scale, temperature, key_lengths, query_start, cu_seqlens,
              std::move(max_seqlen), block_mask, std::move(block_size), gates, sinks, slopes},
             return_entropy);
}

// What the backward pass reads beside the arguments: the forward pass' outputs, and the gradients that came in.
struct EntropyAttentionState {
  Tensor out, entropy, anchor, log_sum;
  OptionalTensor dout, dlse, dentropy;
  bool of_temperature, of_gates, of_sinks;
};
// (dq, dk, dv, dtemperature, dgates, dsinks); the last three have the shapes of what they are of, and are empty where not asked for.
using EntropyAttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using EntropyAttentionBackwardRun = EntropyAttentionGradients (*)(const EntropyAttentionArguments&,
                                                                  const EntropyAttentionState&);

EntropyAttentionGradients entropy_attention_backward_meta(const EntropyAttentionArguments& arguments,
                                                          const EntropyAttentionState& state);
EntropyAttentionGradients entropy_attention_backward_cpu(const EntropyAttentionArguments& arguments,
                                                         const EntropyAttentionState& state);
EntropyAttentionGradients entropy_attention_backward_run(const EntropyAttentionArguments& arguments,
                                                         const EntropyAttentionState& state,
                                                         void (*launch)(const kernels::EntropyAttentionBackward&),
                                                         AttentionWorkspace workspace);

template <EntropyAttentionBackwardRun run>
EntropyAttentionGradients entropy_attention_backward_entry(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dout, const OptionalTensor& dlse, const OptionalTensor& dentropy,
    bool causal, std::optional<c10::SymInt> window, std::optional<double> softcap, std::optional<double> scale,
    const OptionalTensor& temperature, const OptionalTensor& key_lengths, const OptionalTensor& query_start,
    const OptionalTensor& cu_seqlens, std::optional<c10::SymInt> max_seqlen, const OptionalTensor& block_mask,
    std::optional<c10::SymInt> block_size, const OptionalTensor& gates, const OptionalTensor& sinks,
    const OptionalTensor& slopes, bool of_temperature, bool of_gates, bool of_sinks) {
  return run({q, k, v, causal, std::move(window), softcap, scale, temperature, key_lengths, query_start, cu_seqlens,
              std::move(max_seqlen), block_mask, std::move(block_size), gates, sinks, slopes},
             {out, entropy, anchor, log_sum, dout, dlse, dentropy, of_temperature, of_gates, of_sinks});
}

// ---- merge_attention_states ------------------------------------------------------------------------------------------
using AttentionStates = std::tuple<Tensor, Tensor, Tensor, Tensor>;  // (out, lse, entropy, max_logit)
AttentionStates merge_attention_states_composite(const Tensor& out, const Tensor& lse, const Tensor& entropy,
                                                 const Tensor& max_logit);

// ---- gathered_attention, scatter_mean --------------------------------------------------------------------------------
AttentionStates gathered_attention_composite(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                             const OptionalTensor& key_index, bool causal,
                                             std::optional<double> softcap, std::optional<double> scale,
                                             bool return_entropy);
AttentionStates gathered_attention_autocast(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& index,
                                            const OptionalTensor& key_index, bool causal, std::optional<double> softcap,
                                            std::optional<double> scale, bool return_entropy);
Tensor scatter_mean_composite(const Tensor& x, const Tensor& index, c10::SymInt length);

// ---- hierarchical_attention ------------------------------------------------------------------------------------------
using HierarchicalAttentionOutputs = std::tuple<Tensor, Tensor, Tensor>;  // (out, entropy, log_partition)
HierarchicalAttentionOutputs hierarchical_attention_composite(
    const Tensor& q, const Tensor& k, const Tensor& v, std::optional<int64_t> branching,
    std::optional<std::vector<Tensor>> tree, const OptionalTensor& key_lengths, const OptionalTensor& mask,
    const OptionalTensor& position, std::optional<double> scale, bool return_entropy);
HierarchicalAttentionOutputs hierarchical_attention_autocast(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             std::optional<int64_t> branching,
                                                             std::optional<std::vector<Tensor>> tree,
                                                             const OptionalTensor& key_lengths,
                                                             const OptionalTensor& mask, const OptionalTensor& position,
                                                             std::optional<double> scale, bool return_entropy);

}  // namespace isentrope::ops
