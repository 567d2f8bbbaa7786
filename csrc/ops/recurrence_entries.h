// What linear_attention and gated_delta_rule give the dispatcher, and what they share: checks, and parameters for the kernels.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <optional>
#include <tuple>

#include "kernels/gated_delta_rule.h"
#include "kernels/linear_attention.h"

namespace isentrope::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct RecurrenceArguments {
  Tensor q, k, v;
  OptionalTensor log_decay, state, key_lengths, cu_seqlens;
  int64_t chunk;
};

// Throws where the arguments are not what kernels/recurrence.h says. extra: columns of the state beside those of v.
void check_recurrence(const char* op, const RecurrenceArguments& a, int64_t extra);
// x [B, G, T], or [total, G] of packed sequences.
void check_of_steps(const char* op, const char* name, const Tensor& x, const RecurrenceArguments& a);

// The arguments as the kernels take them, with contiguous rows, lengths as int64, log_decay and state in the statistics' type.
struct PreparedRecurrence {
  Tensor q, k, v, log_decay, state, key_lengths, cu_seqlens;
  kernels::RecurrenceShape shape;
};
PreparedRecurrence prepare_recurrence(const char* op, const RecurrenceArguments& a, int64_t extra);

// Strides of x [B, H, T, …] or [total, H, …].
kernels::HeadStrides head_strides(const Tensor& x, bool packed);
inline bool is_given(const OptionalTensor& x) { return x && x->defined(); }
inline OptionalTensor optional_tensor(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
inline Tensor tensor_or_none(const OptionalTensor& x) { return is_given(x) ? *x : Tensor(); }
// New rows of `columns` elements for the heads and steps of x, heads and steps in memory in the order that x has them.
Tensor empty_rows(const Tensor& x, c10::SymInt columns);
// [N, G, D, E + extra] in the statistics' type, and one number a step of every head of x.
Tensor empty_state(const RecurrenceArguments& a, int64_t extra);
Tensor empty_steps(const Tensor& x);
// dout in q's dtype with contiguous rows; 0 where it is not given.
Tensor prepared_dout(const OptionalTensor& dout, const RecurrenceArguments& a);

template <class Parameters>
void set_recurrence(Parameters& p, kernels::DType dtype, const PreparedRecurrence& a) {
  const bool packed = a.cu_seqlens.defined();
  p.dtype = dtype;
  p.shape = a.shape;
  p.q = a.q.const_data_ptr();
  p.k = a.k.const_data_ptr();
  p.v = a.v.const_data_ptr();
  p.log_decay = a.log_decay.defined() ? a.log_decay.const_data_ptr() : nullptr;
  p.state = a.state.defined() ? a.state.const_data_ptr() : nullptr;
  p.q_strides = head_strides(a.q, packed);
  p.k_strides = head_strides(a.k, packed);
  p.v_strides = head_strides(a.v, packed);
  if (a.log_decay.defined()) p.decay_strides = head_strides(a.log_decay, packed);
}

// The gradients that come in and those that go out; dlog_decay and dstate where their inputs are given.
template <class Parameters>
void set_recurrence_gradients(Parameters& p, const PreparedRecurrence& a, const Tensor& dout, const Tensor& dlast,
                              const Tensor& dq, const Tensor& dk, const Tensor& dv, const Tensor& dlog_decay,
                              const Tensor& dstate) {
  const bool packed = a.cu_seqlens.defined();
  p.dout = dout.const_data_ptr();
  p.dout_strides = head_strides(dout, packed);
  p.dlast_state = dlast.defined() ? dlast.const_data_ptr() : nullptr;
  p.dq = dq.mutable_data_ptr();
  p.dq_strides = head_strides(dq, packed);
  p.dk = dk.mutable_data_ptr();
  p.dk_strides = head_strides(dk, packed);
  p.dv = dv.mutable_data_ptr();
  p.dv_strides = head_strides(dv, packed);
  if (a.log_decay.defined()) {
    p.dlog_decay = dlog_decay.mutable_data_ptr();
    p.ddecay_strides = head_strides(dlog_decay, packed);
  }
  p.dstate = a.state.defined() ? dstate.mutable_data_ptr() : nullptr;
}

// Bytes that a launcher wants beside its parameters; null for none.
using RecurrenceWorkspace = int64_t (*)(const kernels::RecurrenceShape&, kernels::DType);
template <class Parameters>
Tensor recurrence_workspace(RecurrenceWorkspace workspace, Parameters& p, const Tensor& like) {
  if (workspace == nullptr) return {};
  const Tensor memory = at::empty({workspace(p.shape, p.dtype)}, like.options().dtype(at::kByte));
  p.workspace = memory.mutable_data_ptr();
  return memory;
}

// ---- linear_attention ------------------------------------------------------------------------------------------------
// (out, last_state, weight); weight is empty without normalizer.
using LinearAttentionOutputs = std::tuple<Tensor, Tensor, Tensor>;
using LinearAttentionRun = LinearAttentionOutputs (*)(const RecurrenceArguments&, bool normalizer);
LinearAttentionOutputs linear_attention_autograd(const RecurrenceArguments& a, bool normalizer);
LinearAttentionOutputs linear_attention_autocast(const RecurrenceArguments& a, bool normalizer);
LinearAttentionOutputs linear_attention_meta(const RecurrenceArguments& a, bool normalizer);
LinearAttentionOutputs linear_attention_cpu(const RecurrenceArguments& a, bool normalizer);
LinearAttentionOutputs linear_attention_run(const RecurrenceArguments& a, bool normalizer,
                                            void (*launch)(const kernels::LinearAttentionForward&),
                                            RecurrenceWorkspace workspace);
template <LinearAttentionRun run>
LinearAttentionOutputs linear_attention_entry(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const OptionalTensor& log_decay, const OptionalTensor& state,
                                              const OptionalTensor& key_lengths, const OptionalTensor& cu_seqlens,
                                              bool normalizer, int64_t chunk) {
  return run({q, k, v, log_decay, state, key_lengths, cu_seqlens, chunk}, normalizer);
}

// What the backward pass reads beside the arguments: with normalizer outputs of the forward pass, and the gradients that came in.
struct LinearAttentionState {
  OptionalTensor out, weight, dout, dlast_state;
};
// (dq, dk, dv, dlog_decay, dstate); the last two are empty where log_decay and state are not given.
using LinearAttentionGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using LinearAttentionBackwardRun = LinearAttentionGradients (*)(const RecurrenceArguments&, const LinearAttentionState&,
                                                                bool normalizer);
LinearAttentionGradients linear_attention_backward_meta(const RecurrenceArguments& a, const LinearAttentionState& state,
                                                        bool normalizer);
LinearAttentionGradients linear_attention_backward_cpu(const RecurrenceArguments& a, const LinearAttentionState& state,
                                                       bool normalizer);
LinearAttentionGradients linear_attention_backward_run(const RecurrenceArguments& a, const LinearAttentionState& state,
                                                       bool normalizer,
                                                       void (*launch)(const kernels::LinearAttentionBackward&),
                                                       RecurrenceWorkspace workspace);
template <LinearAttentionBackwardRun run>
LinearAttentionGradients linear_attention_backward_entry(const Tensor& q, const Tensor& k, const Tensor& v,
                                                         const OptionalTensor& out, const OptionalTensor& weight,
                                                         const OptionalTensor& dout, const OptionalTensor& dlast_state,
                                                         const OptionalTensor& log_decay, const OptionalTensor& state,
                                                         const OptionalTensor& key_lengths,
                                                         const OptionalTensor& cu_seqlens, bool normalizer,
                                                         int64_t chunk) {
  return run({q, k, v, log_decay, state, key_lengths, cu_seqlens, chunk}, {out, weight, dout, dlast_state}, normalizer);
}

// ---- gated_delta_rule ------------------------------------------------------------------------------------------------
struct GatedDeltaArguments : RecurrenceArguments {
  Tensor beta;
  OptionalTensor write;
};
using GatedDeltaOutputs = std::tuple<Tensor, Tensor>;  // (out, last_state)
using GatedDeltaRun = GatedDeltaOutputs (*)(const GatedDeltaArguments&);
GatedDeltaOutputs gated_delta_rule_autograd(const GatedDeltaArguments& a);
GatedDeltaOutputs gated_delta_rule_autocast(const GatedDeltaArguments& a);
GatedDeltaOutputs gated_delta_rule_meta(const GatedDeltaArguments& a);
GatedDeltaOutputs gated_delta_rule_cpu(const GatedDeltaArguments& a);
GatedDeltaOutputs gated_delta_rule_run(const GatedDeltaArguments& a, void (*launch)(const kernels::GatedDeltaForward&),
                                       RecurrenceWorkspace workspace);
template <GatedDeltaRun run>
GatedDeltaOutputs gated_delta_rule_entry(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                         const OptionalTensor& log_decay, const OptionalTensor& write,
                                         const OptionalTensor& state, const OptionalTensor& key_lengths,
                                         const OptionalTensor& cu_seqlens, int64_t chunk) {
  return run({{q, k, v, log_decay, state, key_lengths, cu_seqlens, chunk}, beta, write});
}

// (dq, dk, dv, dbeta, dlog_decay, dwrite, dstate); those of optional arguments are empty where these are not given.
using GatedDeltaGradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using GatedDeltaBackwardRun = GatedDeltaGradients (*)(const GatedDeltaArguments&, const OptionalTensor& dout,
                                                      const OptionalTensor& dlast_state);
GatedDeltaGradients gated_delta_rule_backward_meta(const GatedDeltaArguments& a, const OptionalTensor& dout,
                                                   const OptionalTensor& dlast_state);
GatedDeltaGradients gated_delta_rule_backward_cpu(const GatedDeltaArguments& a, const OptionalTensor& dout,
                                                  const OptionalTensor& dlast_state);
GatedDeltaGradients gated_delta_rule_backward_run(const GatedDeltaArguments& a, const OptionalTensor& dout,
                                                  const OptionalTensor& dlast_state,
                                                  void (*launch)(const kernels::GatedDeltaBackward&),
                                                  RecurrenceWorkspace workspace);
template <GatedDeltaBackwardRun run>
GatedDeltaGradients gated_delta_rule_backward_entry(const Tensor& q, const Tensor& k, const Tensor& v,
                                                    const Tensor& beta, const OptionalTensor& dout,
                                                    const OptionalTensor& dlast_state, const OptionalTensor& log_decay,
                                                    const OptionalTensor& write, const OptionalTensor& state,
                                                    const OptionalTensor& key_lengths, const OptionalTensor& cu_seqlens,
                                                    int64_t chunk) {
  return run({{q, k, v, log_decay, state, key_lengths, cu_seqlens, chunk}, beta, write}, dout, dlast_state);
}

}  // namespace isentrope::ops
