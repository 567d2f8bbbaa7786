#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/entropy_attention_arguments.h"
#include "csrc/ops/entropy_attention_cpu.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

using attention::check_arguments;
using attention::given;
using attention::prepare;
using attention::Prepared;
using attention::with_whole_rows;
using kernels::AttentionShape;
using kernels::DType;
using kernels::EntropyAttentionBackward;
using kernels::EntropyAttentionForward;
using kernels::HeadStrides;
using Arguments = EntropyAttentionArguments;

constexpr const char* kOp = "entropy_attention";
std::optional<c10::SymInt> symbol(const std::optional<int64_t>& x) {
  return x ? std::optional<c10::SymInt>(*x) : std::nullopt;
}

// ---- parameters ------------------------------------------------------------------------------------------------------

// x [B, H, T, D] or [total, H, D].
HeadStrides strides_of(const Tensor& x) {
  return x.dim() == 4 ? HeadStrides{x.stride(0), x.stride(1), x.stride(2)} : HeadStrides{0, x.stride(1), x.stride(0)};
}

// x [B, H, T] or [total, H].
HeadStrides statistic_strides_of(const Tensor& x) {
  return x.dim() == 3 ? HeadStrides{x.stride(0), x.stride(1), x.stride(2)} : HeadStrides{0, x.stride(1), x.stride(0)};
}

c10::SymDimVector statistic_sizes(const Tensor& q) {
  return c10::SymDimVector(q.sym_sizes().begin(), q.sym_sizes().end() - 1);
}

// New memory laid out as x is ([B, T, H, D] stays so), dense, but with unit stride in D, as kernels write.
Tensor empty_rows_like(const Tensor& x) {
  const Tensor y = at::empty_like(x);
  return y.sym_stride(-1) == 1 ? y : at::empty_like(x, at::MemoryFormat::Contiguous);
}

EntropyAttentionOutputs empty_outputs(const Tensor& q, bool return_entropy) {
  const auto options = q.options().dtype(statistic_type(q));
  auto statistic = [&] { return at::empty_symint(statistic_sizes(q), options); };
  return {empty_rows_like(q), statistic(), return_entropy ? statistic() : at::empty({0}, options),
          statistic(),        statistic(), statistic()};
}

Tensor scratch_of(AttentionWorkspace workspace, const AttentionShape& shape, DType dtype, const Tensor& like) {
  return workspace ? at::empty({workspace(shape, dtype)}, like.options().dtype(at::kByte)) : Tensor();
}

const void* data_or_null(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

// What both directions read.
template <class Parameters>
void set_inputs(Parameters& p, const Prepared& a) {
  p.dtype = kernel_dtype(kOp, a.q);
  p.shape = a.shape;
  p.q = a.q.const_data_ptr();
  p.k = a.k.const_data_ptr();
  p.v = a.v.const_data_ptr();
  p.temperature = data_or_null(a.temperature);
  p.q_strides = strides_of(a.q);
  p.k_strides = strides_of(a.k);
  p.v_strides = strides_of(a.v);
  p.temperature_strides = a.temperature_strides;
  p.bias = {data_or_null(a.gates), data_or_null(a.slopes), data_or_null(a.sinks), a.gate_strides};
}

}  // namespace

// ---- forward ---------------------------------------------------------------------------------------------------------

EntropyAttentionOutputs entropy_attention_run(const Arguments& arguments, bool return_entropy,
                                              void (*launch)(const EntropyAttentionForward&),
                                              AttentionWorkspace workspace) {
  const Prepared a = prepare(arguments);
  auto outputs = empty_outputs(arguments.q, return_entropy);
  auto& [out, lse, entropy, max_logit, anchor, log_sum] = outputs;
  if (out.numel() == 0) return outputs;
  EntropyAttentionForward p;
  set_inputs(p, a);
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  p.entropy = return_entropy ? entropy.mutable_data_ptr() : nullptr;
  p.max_logit = max_logit.mutable_data_ptr();
  p.anchor = anchor.mutable_data_ptr();
  p.log_sum = log_sum.mutable_data_ptr();
  p.out_strides = strides_of(out);
  p.statistic_strides = statistic_strides_of(lse);
  const Tensor scratch = scratch_of(workspace, p.shape, p.dtype, a.q);
  p.workspace = scratch.defined() ? scratch.mutable_data_ptr() : nullptr;
  launch(p);
  return outputs;
}

void entropy_attention_forward_cpu(const EntropyAttentionForward& p) {
  static const auto chosen = ISENTROPE_PICK(entropy_attention_forward_cpu);
  chosen(p);
}

EntropyAttentionOutputs entropy_attention_cpu(const Arguments& arguments, bool return_entropy) {
  return entropy_attention_run(arguments, return_entropy, entropy_attention_forward_cpu, nullptr);
}

EntropyAttentionOutputs entropy_attention_meta(const Arguments& arguments, bool return_entropy) {
  check_arguments(arguments);
  return empty_outputs(arguments.q, return_entropy);
}

// ---- backward --------------------------------------------------------------------------------------------------------

EntropyAttentionGradients entropy_attention_backward_run(const Arguments& arguments, const EntropyAttentionState& state,
                                                         void (*launch)(const EntropyAttentionBackward&),
                                                         AttentionWorkspace workspace) {
  Prepared a = prepare(arguments);
  auto gradients = entropy_attention_backward_meta(arguments, state);
  auto& [dq, dk, dv, dtemperature, dgates, dsinks] = gradients;
  // No query, or no key: every row is empty. (Sinks alone are then differentiated by the kernels.)
  if (arguments.q.numel() == 0 || (arguments.k.numel() == 0 && !a.sinks.defined())) {
    for (Tensor* x : {&dq, &dk, &dv, &dtemperature, &dgates, &dsinks}) x->zero_();
    return gradients;
  }
  a.shape.of_gates = state.of_gates;
  const Tensor anchor = state.anchor.contiguous(), log_sum = state.log_sum.contiguous();
  auto statistic = [&](const OptionalTensor& x) {
    return given(x) ? x->to(anchor.scalar_type()).contiguous() : Tensor();
  };
  const Tensor dlse = statistic(state.dlse), dentropy = statistic(state.dentropy), entropy = statistic(state.entropy);
  const Tensor out = with_whole_rows(state.out);
  const Tensor dout = given(state.dout) ? with_whole_rows(state.dout->to(out.scalar_type())) : at::zeros_like(out);
  const Tensor rows = state.of_temperature ? at::empty_like(anchor) : Tensor(),
               sink_rows = a.sinks.defined() ? at::empty_like(anchor) : Tensor();
  Tensor blocks;
  if (state.of_gates)
    blocks = at::zeros({a.shape.batch, a.shape.heads, a.block_mask.size(2), a.block_mask.size(3)}, anchor.options());
  EntropyAttentionBackward p;
  set_inputs(p, a);
  p.out = out.const_data_ptr();
  p.anchor = anchor.const_data_ptr();
  p.log_sum = log_sum.const_data_ptr();
  p.entropy = entropy.defined() && entropy.numel() > 0 ? entropy.const_data_ptr() : nullptr;
  p.dout = dout.const_data_ptr();
  p.dlse = data_or_null(dlse);
  p.dentropy = data_or_null(dentropy);
  p.dq = dq.mutable_data_ptr();
  p.dk = dk.mutable_data_ptr();
  p.dv = dv.mutable_data_ptr();
  const auto target = [](const Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; };
  p.dtemperature = target(rows);
  p.dgates = target(blocks);
  p.dsinks = target(sink_rows);
  p.out_strides = strides_of(out);
  p.dout_strides = strides_of(dout);
  p.dq_strides = strides_of(dq);
  p.dk_strides = strides_of(dk);
  p.dv_strides = strides_of(dv);
  p.statistic_strides = statistic_strides_of(anchor);
  const Tensor scratch = scratch_of(workspace, p.shape, p.dtype, a.q);
  p.workspace = scratch.defined() ? scratch.mutable_data_ptr() : nullptr;
  launch(p);
  if (rows.defined()) {  // [B, H, T] or [total, H] → [H], [H, T] or [B, H, T]
    const Tensor each = rows.dim() == 3 ? rows : rows.t().unsqueeze(0);
    dtemperature.copy_(dtemperature.dim() == 1   ? each.sum(at::IntArrayRef({0, 2}))
                       : dtemperature.dim() == 2 ? each.sum(0)
                                                 : each);
  }
  if (state.of_gates) dgates.copy_(blocks.sum_to_size(dgates.sizes()));
  if (state.of_sinks) dsinks.copy_(sink_rows.dim() == 3 ? sink_rows.sum(at::IntArrayRef({0, 2})) : sink_rows.sum(0));
  return gradients;
}

EntropyAttentionGradients entropy_attention_backward_cpu(const Arguments& arguments,
                                                         const EntropyAttentionState& state) {
  return entropy_attention_backward_run(arguments, state, ISENTROPE_PICK(entropy_attention_backward_cpu), nullptr);
}

EntropyAttentionGradients entropy_attention_backward_meta(const Arguments& arguments,
                                                          const EntropyAttentionState& state) {
  OP_CHECK("entropy_attention_backward", !state.of_temperature || given(arguments.temperature),
           "of_temperature is set and no temperature is given");
  OP_CHECK("entropy_attention_backward", !state.of_gates || given(arguments.gates),
           "of_gates is set and no gates are given");
  OP_CHECK("entropy_attention_backward", !state.of_sinks || given(arguments.sinks),
           "of_sinks is set and no sinks are given");
  const auto gradient = [&](bool wanted, const OptionalTensor& x) {
    return wanted ? at::empty_like(*x) : at::empty({0}, arguments.q.options().dtype(statistic_type(arguments.q)));
  };
  return {empty_rows_like(arguments.q),
          empty_rows_like(arguments.k),
          empty_rows_like(arguments.v),
          gradient(state.of_temperature, arguments.temperature),
          gradient(state.of_gates, arguments.gates),
          gradient(state.of_sinks, arguments.sinks)};
}

// ---- autograd --------------------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

EntropyAttentionOutputs call_forward(const Arguments& a, bool return_entropy) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::entropy_attention", "")
                             .typed<decltype(entropy_attention_entry<entropy_attention_cpu>)>();
  return op.call(a.q, a.k, a.v, a.causal, a.window, a.softcap, a.scale, a.temperature, a.key_lengths, a.query_start,
                 a.cu_seqlens, a.max_seqlen, a.block_mask, a.block_size, a.gates, a.sinks, a.slopes, return_entropy);
}

OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
Tensor tensor_of(const OptionalTensor& x) { return given(x) ? *x : Tensor(); }

struct EntropyAttentionFunction : torch::autograd::Function<EntropyAttentionFunction> {
  // The optional tensors are given as tensors, so that autograd sees what it differentiates.
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& temperature, const OptionalTensor& gates,
                               const OptionalTensor& sinks, const Arguments& a, bool return_entropy) {
    auto [out, lse, entropy, max_logit, anchor, log_sum] = call_forward(a, return_entropy);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({q, k, v, out, entropy, anchor, log_sum, tensor_of(temperature), tensor_of(a.key_lengths),
                            tensor_of(a.query_start), tensor_of(a.cu_seqlens), tensor_of(a.block_mask),
                            tensor_of(gates), tensor_of(sinks), tensor_of(a.slopes)});
    ctx->mark_non_differentiable({max_logit, anchor, log_sum});
    if (!return_entropy) ctx->mark_non_differentiable({entropy, max_logit, anchor, log_sum});
    auto& data = ctx->saved_data;
    data["causal"] = a.causal;
    data["window"] = a.window;
    data["softcap"] = a.softcap;
    data["scale"] = a.scale;
    data["max_seqlen"] = a.max_seqlen;
    data["block_size"] = a.block_size;
    const auto wanted = [](const OptionalTensor& x) { return given(x) && x->requires_grad(); };
    data["of_temperature"] = wanted(temperature);
    data["of_gates"] = wanted(gates);
    data["of_sinks"] = wanted(sinks);
    return {out, lse, entropy, max_logit, anchor, log_sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::entropy_attention_backward", "")
                               .typed<decltype(entropy_attention_backward_entry<entropy_attention_backward_cpu>)>();
    variable_list gradients(8);
    if (!d[0].defined() && !d[1].defined() && !d[2].defined()) return gradients;
    const variable_list saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const bool of_temperature = data["of_temperature"].toBool(), of_gates = data["of_gates"].toBool(),
               of_sinks = data["of_sinks"].toBool();
    auto [dq, dk, dv, dtemperature, dgates, dsinks] = op.call(
        saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], optional(d[0]), optional(d[1]),
        optional(d[2]), data["causal"].toBool(), data["window"].toOptional<c10::SymInt>(),
        data["softcap"].toOptional<double>(), data["scale"].toOptional<double>(), optional(saved[7]),
        optional(saved[8]), optional(saved[9]), optional(saved[10]), data["max_seqlen"].toOptional<c10::SymInt>(),
        optional(saved[11]), data["block_size"].toOptional<c10::SymInt>(), optional(saved[12]), optional(saved[13]),
        optional(saved[14]), of_temperature, of_gates, of_sinks);
    gradients[0] = dq, gradients[1] = dk, gradients[2] = dv;
    if (of_temperature) gradients[3] = dtemperature;
    if (of_gates) gradients[4] = dgates;
    if (of_sinks) gradients[5] = dsinks;
    return gradients;
  }
};

}  // namespace

EntropyAttentionOutputs entropy_attention_autograd(const Arguments& a, bool return_entropy) {
  check_differentiation(kOp, {{"q", a.q},
                              {"k", a.k},
                              {"v", a.v},
                              {"temperature", a.temperature},
                              {"key_lengths", a.key_lengths},
                              {"query_start", a.query_start},
                              {"cu_seqlens", a.cu_seqlens},
                              {"block_mask", a.block_mask},
                              {"gates", a.gates},
                              {"sinks", a.sinks},
                              {"slopes", a.slopes}});
  OP_CHECK(kOp, !given(a.slopes) || !a.slopes->requires_grad() || !at::GradMode::is_enabled(),
           "slopes require a gradient, and have none; wanted slopes.detach()");
  const auto out = record<EntropyAttentionFunction>(a.q, a.k, a.v, a.temperature, a.gates, a.sinks, a, return_entropy);
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

// q, k and v, as scaled_dot_product_attention takes them: a rotation leaves q and k in float, v is what a projection gave.
EntropyAttentionOutputs entropy_attention_autocast(const Arguments& a, bool return_entropy) {
  const Autocast cast(a.q);
  Arguments lowered = a;
  for (Tensor* x : {&lowered.q, &lowered.k, &lowered.v}) *x = cast.lower(*x);
  return call_forward(lowered, return_entropy);
}

EntropyAttention entropy_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const EntropyAttentionOptions& options) {
  auto [out, lse, entropy, max_logit, anchor, log_sum] = call_forward(
      {q, k, v, options.causal, symbol(options.window), options.softcap, options.scale, options.temperature,
       options.key_lengths, options.query_start, options.cu_seqlens, symbol(options.max_seqlen), options.block_mask,
       symbol(options.block_size), options.gates, options.sinks, options.slopes},
      options.return_entropy);
  return {out, lse, options.return_entropy ? entropy : Tensor(), max_logit};
}

}  // namespace isentrope::ops
