#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/linear_attention_cpu.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/recurrence_entries.h"

namespace isentrope::ops {
namespace {

using kernels::LinearAttentionBackward;
using kernels::LinearAttentionForward;

constexpr const char* kOp = "linear_attention";

}  // namespace

// ---- forward ---------------------------------------------------------------------------------------------------------

LinearAttentionOutputs linear_attention_meta(const RecurrenceArguments& a, bool normalizer) {
  check_recurrence(kOp, a, normalizer);
  return {empty_rows(a.q, a.v.sym_size(-1)), empty_state(a, normalizer),
          normalizer ? empty_steps(a.q) : at::empty({0}, a.q.options())};
}

LinearAttentionOutputs linear_attention_run(const RecurrenceArguments& arguments, bool normalizer,
                                            void (*launch)(const LinearAttentionForward&),
                                            RecurrenceWorkspace workspace) {
  const PreparedRecurrence a = prepare_recurrence(kOp, arguments, normalizer);
  auto outputs = linear_attention_meta(arguments, normalizer);
  auto& [out, last_state, weight] = outputs;
  const bool packed = a.cu_seqlens.defined();
  LinearAttentionForward p;
  set_recurrence(p, kernel_dtype(kOp, a.q), a);
  p.normalizer = normalizer;
  p.out = out.mutable_data_ptr();
  p.out_strides = head_strides(out, packed);
  p.last_state = last_state.mutable_data_ptr();
  if (normalizer) {
    p.weight = weight.mutable_data_ptr();
    p.weight_strides = head_strides(weight, packed);
  }
  const Tensor scratch = recurrence_workspace(workspace, p, a.q);
  launch(p);
  return outputs;
}

LinearAttentionOutputs linear_attention_cpu(const RecurrenceArguments& a, bool normalizer) {
  return linear_attention_run(a, normalizer, ISENTROPE_PICK(linear_attention_forward_cpu), nullptr);
}

// ---- backward --------------------------------------------------------------------------------------------------------

LinearAttentionGradients linear_attention_backward_meta(const RecurrenceArguments& a, const LinearAttentionState&,
                                                        bool normalizer) {
  return {empty_rows(a.q, a.q.sym_size(-1)), empty_rows(a.k, a.k.sym_size(-1)), empty_rows(a.v, a.v.sym_size(-1)),
          is_given(a.log_decay) ? empty_steps(a.k) : at::empty({0}, a.q.options()),
          is_given(a.state) ? empty_state(a, normalizer) : at::empty({0}, a.q.options())};
}

LinearAttentionGradients linear_attention_backward_run(const RecurrenceArguments& arguments,
                                                       const LinearAttentionState& state, bool normalizer,
                                                       void (*launch)(const LinearAttentionBackward&),
                                                       RecurrenceWorkspace workspace) {
  const PreparedRecurrence a = prepare_recurrence(kOp, arguments, normalizer);
  auto gradients = linear_attention_backward_meta(arguments, state, normalizer);
  auto& [dq, dk, dv, dlog_decay, dstate] = gradients;
  const bool packed = a.cu_seqlens.defined();
  const Tensor dout = prepared_dout(state.dout, arguments);
  const Tensor dlast = is_given(state.dlast_state) ? state.dlast_state->contiguous() : Tensor();
  const Tensor out = normalizer ? (state.out->stride(-1) == 1 ? *state.out : state.out->contiguous()) : Tensor();
  LinearAttentionBackward p;
  set_recurrence(p, kernel_dtype(kOp, a.q), a);
  p.normalizer = normalizer;
  if (normalizer) {
    p.out = out.const_data_ptr();
    p.out_strides = head_strides(out, packed);
    p.weight = state.weight->const_data_ptr();
    p.weight_strides = head_strides(*state.weight, packed);
  }
  set_recurrence_gradients(p, a, dout, dlast, dq, dk, dv, dlog_decay, dstate);
  const Tensor scratch = recurrence_workspace(workspace, p, a.q);
  launch(p);
  return gradients;
}

LinearAttentionGradients linear_attention_backward_cpu(const RecurrenceArguments& a, const LinearAttentionState& state,
                                                       bool normalizer) {
  return linear_attention_backward_run(a, state, normalizer, ISENTROPE_PICK(linear_attention_backward_cpu), nullptr);
}

// ---- autograd --------------------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

LinearAttentionOutputs call_forward(const RecurrenceArguments& a, bool normalizer) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::linear_attention", "")
                             .typed<decltype(linear_attention_entry<linear_attention_cpu>)>();
  return op.call(a.q, a.k, a.v, a.log_decay, a.state, a.key_lengths, a.cu_seqlens, normalizer, a.chunk);
}

struct LinearAttentionFunction : torch::autograd::Function<LinearAttentionFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& log_decay, const OptionalTensor& state,
                               const RecurrenceArguments& a, bool normalizer) {
    auto [out, last_state, weight] = call_forward(a, normalizer);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({q, k, v, normalizer ? out : Tensor(), normalizer ? weight : Tensor(),
                            tensor_or_none(log_decay), tensor_or_none(state), tensor_or_none(a.key_lengths),
                            tensor_or_none(a.cu_seqlens)});
    ctx->mark_non_differentiable({weight});
    ctx->saved_data["normalizer"] = normalizer;
    ctx->saved_data["chunk"] = a.chunk;
    return {out, last_state, weight};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::linear_attention_backward", "")
                               .typed<decltype(linear_attention_backward_entry<linear_attention_backward_cpu>)>();
    variable_list gradients(7);
    if (!d[0].defined() && !d[1].defined()) return gradients;
    const variable_list saved = ctx->get_saved_variables();
    auto [dq, dk, dv, dlog_decay, dstate] = op.call(
        saved[0], saved[1], saved[2], optional_tensor(saved[3]), optional_tensor(saved[4]), optional_tensor(d[0]),
        optional_tensor(d[1]), optional_tensor(saved[5]), optional_tensor(saved[6]), optional_tensor(saved[7]),
        optional_tensor(saved[8]), ctx->saved_data["normalizer"].toBool(), ctx->saved_data["chunk"].toInt());
    gradients[0] = dq, gradients[1] = dk, gradients[2] = dv;
    if (saved[5].defined()) gradients[3] = dlog_decay.to(saved[5].scalar_type());
    if (saved[6].defined()) gradients[4] = dstate;
    return gradients;
  }
};

}  // namespace

LinearAttentionOutputs linear_attention_autograd(const RecurrenceArguments& a, bool normalizer) {
  check_differentiation(kOp, {{"q", a.q},
                              {"k", a.k},
                              {"v", a.v},
                              {"log_decay", a.log_decay},
                              {"state", a.state},
                              {"key_lengths", a.key_lengths},
                              {"cu_seqlens", a.cu_seqlens}});
  const auto out = record<LinearAttentionFunction>(a.q, a.k, a.v, a.log_decay, a.state, a, normalizer);
  return {out[0], out[1], out[2]};
}

// q, k and v, as attention takes them; decays and states stay what they are.
LinearAttentionOutputs linear_attention_autocast(const RecurrenceArguments& a, bool normalizer) {
  const Autocast cast(a.q);
  RecurrenceArguments lowered = a;
  for (Tensor* x : {&lowered.q, &lowered.k, &lowered.v}) *x = cast.lower(*x);
  return call_forward(lowered, normalizer);
}

LinearAttention linear_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                 const LinearAttentionOptions& options) {
  auto [out, state, weight] =
      call_forward({q, k, v, options.log_decay, options.state, options.key_lengths, options.cu_seqlens, options.chunk},
                   options.normalizer);
  return {out, state};
}

}  // namespace isentrope::ops
