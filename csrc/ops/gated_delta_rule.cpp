#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/gated_delta_rule_cpu.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/recurrence_entries.h"

namespace isentrope::ops {
namespace {

using kernels::GatedDeltaBackward;
using kernels::GatedDeltaForward;
using Arguments = GatedDeltaArguments;

constexpr const char* kOp = "gated_delta_rule";

void check_arguments(const Arguments& a) {
  check_recurrence(kOp, a, 0);
  check_of_steps(kOp, "beta", a.beta, a);
  if (!is_given(a.write)) return;
  const Tensor& write = *a.write;
  const bool packed = is_given(a.cu_seqlens);
  const c10::SymInt steps = packed ? a.q.sym_size(0) : a.q.sym_size(2);
  OP_CHECK(kOp, write.is_floating_point() || write.scalar_type() == at::kBool, "write has dtype ", write.scalar_type(),
           "; wanted a floating point type, or bool");
  check_shape(
      kOp, "write", write,
      {packed ? a.cu_seqlens->sym_size(0) - 1 : a.q.sym_size(0), a.k.sym_size(1), (steps + (a.chunk - 1)) / a.chunk},
      "one number a chunk of every key head and sequence");
  check_device(kOp, "write", write, "q", a.q);
}

Tensor empty_like_sums(const Tensor& x, const Tensor& q) {
  return at::empty_symint(x.sym_sizes(), q.options().dtype(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
}

struct Prepared : PreparedRecurrence {
  Tensor beta, write;
};

template <class Parameters>
Prepared prepare(const Arguments& a, Parameters& p) {
  check_arguments(a);
  Prepared r{prepare_recurrence(kOp, a, 0), {}, {}};
  const at::ScalarType sums = a.q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  r.beta = a.beta.detach().to(sums);
  if (is_given(a.write)) r.write = a.write->detach().to(sums).contiguous();
  set_recurrence(p, kernel_dtype(kOp, r.q), r);
  p.beta = r.beta.const_data_ptr();
  p.beta_strides = head_strides(r.beta, r.cu_seqlens.defined());
  p.write = r.write.defined() ? r.write.const_data_ptr() : nullptr;
  return r;
}

}  // namespace

// ---- forward ---------------------------------------------------------------------------------------------------------

GatedDeltaOutputs gated_delta_rule_meta(const Arguments& a) {
  check_arguments(a);
  return {empty_rows(a.q, a.v.sym_size(-1)), empty_state(a, 0)};
}

GatedDeltaOutputs gated_delta_rule_run(const Arguments& arguments, void (*launch)(const GatedDeltaForward&),
                                       RecurrenceWorkspace workspace) {
  GatedDeltaForward p;
  const Prepared a = prepare(arguments, p);
  auto outputs = gated_delta_rule_meta(arguments);
  auto& [out, last_state] = outputs;
  p.out = out.mutable_data_ptr();
  p.out_strides = head_strides(out, a.cu_seqlens.defined());
  p.last_state = last_state.mutable_data_ptr();
  const Tensor scratch = recurrence_workspace(workspace, p, a.q);
  launch(p);
  return outputs;
}

GatedDeltaOutputs gated_delta_rule_cpu(const Arguments& a) {
  return gated_delta_rule_run(a, ISENTROPE_PICK(gated_delta_rule_forward_cpu), nullptr);
}

// ---- backward --------------------------------------------------------------------------------------------------------

GatedDeltaGradients gated_delta_rule_backward_meta(const Arguments& a, const OptionalTensor&, const OptionalTensor&) {
  const auto like = [&](const OptionalTensor& x) {
    return is_given(x) ? empty_like_sums(*x, a.q) : at::empty({0}, a.q.options());
  };
  return {empty_rows(a.q, a.q.sym_size(-1)),
          empty_rows(a.k, a.k.sym_size(-1)),
          empty_rows(a.v, a.v.sym_size(-1)),
          empty_like_sums(a.beta, a.q),
          like(a.log_decay),
          like(a.write),
          like(a.state)};
}

GatedDeltaGradients gated_delta_rule_backward_run(const Arguments& arguments, const OptionalTensor& dout_given,
                                                  const OptionalTensor& dlast_state,
                                                  void (*launch)(const GatedDeltaBackward&),
                                                  RecurrenceWorkspace workspace) {
  GatedDeltaBackward p;
  const Prepared a = prepare(arguments, p);
  auto gradients = gated_delta_rule_backward_meta(arguments, dout_given, dlast_state);
  auto& [dq, dk, dv, dbeta, dlog_decay, dwrite, dstate] = gradients;
  const bool packed = a.cu_seqlens.defined();
  const Tensor dout = prepared_dout(dout_given, arguments);
  const Tensor dlast = is_given(dlast_state) ? dlast_state->contiguous() : Tensor();
  set_recurrence_gradients(p, a, dout, dlast, dq, dk, dv, dlog_decay, dstate);
  p.dbeta = dbeta.mutable_data_ptr();
  p.dbeta_strides = head_strides(dbeta, packed);
  p.dwrite = a.write.defined() ? dwrite.mutable_data_ptr() : nullptr;
  const Tensor scratch = recurrence_workspace(workspace, p, a.q);
  launch(p);
  return gradients;
}

GatedDeltaGradients gated_delta_rule_backward_cpu(const Arguments& a, const OptionalTensor& dout,
                                                  const OptionalTensor& dlast_state) {
  return gated_delta_rule_backward_run(a, dout, dlast_state, ISENTROPE_PICK(gated_delta_rule_backward_cpu), nullptr);
}

// ---- autograd --------------------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

GatedDeltaOutputs call_forward(const Arguments& a) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::gated_delta_rule", "")
                             .typed<decltype(gated_delta_rule_entry<gated_delta_rule_cpu>)>();
  return op.call(a.q, a.k, a.v, a.beta, a.log_decay, a.write, a.state, a.key_lengths, a.cu_seqlens, a.chunk);
}

struct GatedDeltaFunction : torch::autograd::Function<GatedDeltaFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const Tensor& beta, const OptionalTensor& log_decay, const OptionalTensor& write,
                               const OptionalTensor& state, const Arguments& a) {
    auto [out, last_state] = call_forward(a);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({q, k, v, beta, tensor_or_none(log_decay), tensor_or_none(write), tensor_or_none(state),
                            tensor_or_none(a.key_lengths), tensor_or_none(a.cu_seqlens)});
    ctx->saved_data["chunk"] = a.chunk;
    return {out, last_state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::gated_delta_rule_backward", "")
                               .typed<decltype(gated_delta_rule_backward_entry<gated_delta_rule_backward_cpu>)>();
    variable_list gradients(8);
    if (!d[0].defined() && !d[1].defined()) return gradients;
    const variable_list saved = ctx->get_saved_variables();
    auto [dq, dk, dv, dbeta, dlog_decay, dwrite, dstate] =
        op.call(saved[0], saved[1], saved[2], saved[3], optional_tensor(d[0]), optional_tensor(d[1]),
                optional_tensor(saved[4]), optional_tensor(saved[5]), optional_tensor(saved[6]),
                optional_tensor(saved[7]), optional_tensor(saved[8]), ctx->saved_data["chunk"].toInt());
    gradients[0] = dq, gradients[1] = dk, gradients[2] = dv;
    gradients[3] = dbeta.to(saved[3].scalar_type());
    if (saved[4].defined()) gradients[4] = dlog_decay.to(saved[4].scalar_type());
    if (saved[5].defined() && saved[5].is_floating_point()) gradients[5] = dwrite.to(saved[5].scalar_type());
    if (saved[6].defined()) gradients[6] = dstate;
    return gradients;
  }
};

}  // namespace

GatedDeltaOutputs gated_delta_rule_autograd(const Arguments& a) {
  check_differentiation(kOp, {{"q", a.q},
                              {"k", a.k},
                              {"v", a.v},
                              {"beta", a.beta},
                              {"log_decay", a.log_decay},
                              {"write", a.write},
                              {"state", a.state},
                              {"key_lengths", a.key_lengths},
                              {"cu_seqlens", a.cu_seqlens}});
  const auto out = record<GatedDeltaFunction>(a.q, a.k, a.v, a.beta, a.log_decay, a.write, a.state, a);
  return {out[0], out[1]};
}

// q, k and v, as attention takes them; β, decays and states stay what they are.
GatedDeltaOutputs gated_delta_rule_autocast(const Arguments& a) {
  const Autocast cast(a.q);
  Arguments lowered = a;
  for (Tensor* x : {&lowered.q, &lowered.k, &lowered.v}) *x = cast.lower(*x);
  return call_forward(lowered);
}

LinearAttention gated_delta_rule(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& beta,
                                 const std::optional<Tensor>& log_decay, const GatedDeltaRuleOptions& options) {
  auto [out, state] =
      call_forward({{q, k, v, log_decay, options.state, options.key_lengths, options.cu_seqlens, options.chunk},
                    beta,
                    options.write});
  return {out, state};
}

}  // namespace isentrope::ops
