#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>

#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/entropy_attention_cpu.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

using kernels::AttentionShape;
using kernels::DType;
using kernels::EntropyAttentionBackward;
using kernels::EntropyAttentionForward;
using kernels::HeadStrides;
using Arguments = EntropyAttentionArguments;

constexpr const char* kOp = "entropy_attention";
constexpr int64_t kMostHeadSize = 256;

bool given(const OptionalTensor& x) { return x && x->defined(); }

// Where there is data there are numbers.
std::optional<int64_t> number(const std::optional<c10::SymInt>& x) {
  return x ? std::optional<int64_t>(x->guard_int(__FILE__, __LINE__)) : std::nullopt;
}
std::optional<c10::SymInt> symbol(const std::optional<int64_t>& x) {
  return x ? std::optional<c10::SymInt>(*x) : std::nullopt;
}

// ---- checks ----------------------------------------------------------------------------------------------------------

void check_integers(const char* name, const Tensor& x, const Tensor& q, const c10::SymInt& count, const char* meaning) {
  check_dtype(kOp, name, x, {at::kInt, at::kLong});
  check_shape(kOp, name, x, {count}, meaning);
  check_device(kOp, name, x, "q", q);
}

void check_arguments(const Arguments& a) {
  const auto& [q, k, v, causal, window, softcap, scale, temperature, key_lengths, query_start, cu_seqlens, max_seqlen] =
      a;
  const bool packed = given(cu_seqlens);
  const int64_t dims = packed ? 3 : 4;
  check_dtype(kOp, "q", q, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  for (const auto& [name, x] : {std::pair("k", k), std::pair("v", v)}) {
    check_dtype(kOp, name, x, {q.scalar_type()});
    check_device(kOp, name, x, "q", q);
  }
  OP_CHECK(kOp, q.dim() == dims, "q has ", q.dim(), " dimensions; wanted ",
           packed ? "[total, H, D], since cu_seqlens is given" : "[B, H, T, D], or [total, H, D] with cu_seqlens");
  OP_CHECK(kOp, k.dim() == dims, "k has ", k.dim(), " dimensions; wanted ", dims, " as q has");
  OP_CHECK(kOp, k.sym_sizes() == v.sym_sizes(), "v has shape ", v.sym_sizes(), "; wanted ", k.sym_sizes(),
           ", the shape of k");
  OP_CHECK(kOp, q.sym_size(0) == k.sym_size(0), "k has ", k.sym_size(0), packed ? " rows" : " batches", "; wanted ",
           q.sym_size(0), " as q has");
  OP_CHECK(kOp, q.sym_size(-1) == k.sym_size(-1), "k has a head size of ", k.sym_size(-1), "; wanted ", q.sym_size(-1),
           " as q has");
  const c10::SymInt H = q.sym_size(1), G = k.sym_size(1), D = q.sym_size(-1);
  OP_CHECK(kOp, G >= 1 && H % G == 0, "q has ", H, " heads and k has ", G, "; wanted a multiple of k's");
  OP_CHECK(kOp, D <= kMostHeadSize, "the head size is ", D, "; wanted at most ", kMostHeadSize,
           "; layers with larger heads need another attention");
  OP_CHECK(kOp, D >= 8 && D % 8 == 0, "the head size is ", D, "; wanted a multiple of 8 up to ", kMostHeadSize,
           "; pad q, k and v with zeros and give scale");
  OP_CHECK(kOp, !window || *window >= 1, "window is ", *window, "; wanted at least 1, or none");
  OP_CHECK(kOp, !window || causal, "window is given and causal is false; a window looks back from a query's own place");
  OP_CHECK(kOp, !softcap || (std::isfinite(*softcap) && *softcap > 0), "softcap is ", *softcap,
           "; wanted above 0, or none");
  OP_CHECK(kOp, !scale || (std::isfinite(*scale) && *scale > 0), "scale is ", *scale,
           "; wanted above 0, or none for 1/sqrt(D)");
  if (given(temperature)) {
    const Tensor& t = *temperature;
    const c10::SymInt T = packed ? q.sym_size(0) : q.sym_size(2);
    OP_CHECK(kOp, t.is_floating_point(), "temperature has dtype ", t.scalar_type(), "; wanted a floating point type");
    const bool one_a_head = t.dim() == 1 && t.sym_size(0) == H,
               one_a_row = t.dim() == 2 && t.sym_size(0) == H && t.sym_size(1) == T;
    const bool own =
        !packed && t.dim() == 3 && t.sym_size(0) == q.sym_size(0) && t.sym_size(1) == H && t.sym_size(2) == T;
    OP_CHECK(kOp, one_a_head || one_a_row || own, "temperature has shape ", t.sym_sizes(), "; wanted [", H,
             "], one a head, [", H, ", ", T, "], one a row",
             packed ? "" : ", or one a row of every batch, as q without its last dimension");
    check_device(kOp, "temperature", t, "q", q);
  }
  if (packed) {
    OP_CHECK(kOp, !given(key_lengths), "key_lengths and cu_seqlens are both given; packed sequences have no padding");
    OP_CHECK(kOp, !given(query_start),
             "query_start and cu_seqlens are both given; packed queries start at their own keys");
    OP_CHECK(kOp, cu_seqlens->dim() == 1 && cu_seqlens->sym_size(0) >= 1, "cu_seqlens has shape ",
             cu_seqlens->sym_sizes(), "; wanted [sequences + 1]");
    check_integers("cu_seqlens", *cu_seqlens, q, cu_seqlens->sym_size(0), "sequences + 1");
  }
  OP_CHECK(kOp, packed || !max_seqlen, "max_seqlen is given without cu_seqlens, which it is about");
  if (given(key_lengths)) check_integers("key_lengths", *key_lengths, q, q.sym_size(0), "one a batch");
  if (given(query_start)) check_integers("query_start", *query_start, q, q.sym_size(0), "one a batch");
}

// What is known of values without waiting for a device: on the CPU alone. (On a GPU bad values are bounded, and a temperature that
// is not above 0 gives NaN.)
void check_values(const Arguments& a) {
  auto integers = [](const OptionalTensor& x) {
    return given(x) ? x->to(at::kLong).contiguous() : at::empty({0}, at::kLong);
  };
  const Tensor lengths = integers(a.key_lengths), starts = integers(a.query_start), ends = integers(a.cu_seqlens);
  for (int64_t b = 0; b < lengths.numel(); ++b) {
    const int64_t n = lengths.const_data_ptr<int64_t>()[b];
    OP_CHECK(kOp, n >= 0 && n <= a.k.size(2), "key_lengths[", b, "] is ", n, "; wanted 0 to ", a.k.size(2),
             ", the keys that k has");
  }
  for (int64_t b = 0; b < starts.numel(); ++b) {
    const int64_t n = starts.const_data_ptr<int64_t>()[b];
    OP_CHECK(kOp, n >= 0 && n <= a.k.size(2), "query_start[", b, "] is ", n, "; wanted 0 to ", a.k.size(2));
  }
  const int64_t* end = ends.const_data_ptr<int64_t>();
  const std::optional<int64_t> longest = number(a.max_seqlen);
  for (int64_t n = 0; n < ends.numel(); ++n) {
    OP_CHECK(kOp, n > 0 || end[0] == 0, "cu_seqlens[0] is ", end[0], "; wanted 0");
    OP_CHECK(kOp, n == 0 || end[n] >= end[n - 1], "cu_seqlens[", n, "] is ", end[n], ", below the one before it (",
             end[n - 1], "); wanted rising values");
    OP_CHECK(kOp, n == 0 || !longest || end[n] - end[n - 1] <= *longest, "cu_seqlens: sequence ", n - 1, " has ",
             end[n] - end[n - 1], " rows; wanted at most max_seqlen (", *longest, ")");
    OP_CHECK(kOp, n + 1 < ends.numel() || end[n] == a.q.size(0), "cu_seqlens ends at ", end[n], "; wanted ",
             a.q.size(0), ", the rows of q");
  }
  if (given(a.temperature))
    OP_CHECK(kOp, a.temperature->gt(0).all().item<bool>(),
             "temperature holds a value that is not above 0; the least is ", a.temperature->min().item<double>());
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

// The arguments as the kernels take them: contiguous head dimension, lengths as int64, temperature in the statistics' type.
struct Prepared {
  Tensor q, k, v, temperature, key_lengths, query_start, cu_seqlens;
  AttentionShape shape;
  HeadStrides temperature_strides;
};

// CUDA reads rows by 16 bytes.
Tensor with_whole_rows(const Tensor& x) {
  if (x.stride(-1) != 1) return x.contiguous();
  if (x.is_cpu()) return x;
  bool aligned = reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int64_t d = 0; d + 1 < x.dim(); ++d)
    aligned = aligned && (x.size(d) == 1 || x.stride(d) * x.element_size() % 16 == 0);
  return aligned ? x : x.clone(at::MemoryFormat::Contiguous);
}

Prepared prepare(const Arguments& a) {
  check_arguments(a);
  if (a.q.is_cpu()) check_values(a);
  auto integers = [](const OptionalTensor& x) { return given(x) ? x->to(at::kLong).contiguous() : Tensor(); };
  auto pointer = [](const Tensor& x) { return x.defined() ? x.const_data_ptr<int64_t>() : nullptr; };
  Prepared r{with_whole_rows(a.q),
             with_whole_rows(a.k),
             with_whole_rows(a.v),
             {},
             integers(a.key_lengths),
             integers(a.query_start),
             integers(a.cu_seqlens),
             {},
             {}};
  AttentionShape& shape = r.shape;
  const bool packed = r.cu_seqlens.defined();
  shape.heads = a.q.size(1);
  shape.kv_heads = a.k.size(1);
  shape.head_size = a.q.size(-1);
  shape.batch = packed ? r.cu_seqlens.numel() - 1 : a.q.size(0);
  shape.queries = packed ? std::min(number(a.max_seqlen).value_or(a.q.size(0)), a.q.size(0)) : a.q.size(2);
  shape.keys = packed ? shape.queries : a.k.size(2);
  shape.total = packed ? a.q.size(0) : 0;
  shape.scale = a.scale.value_or(1.0 / std::sqrt(static_cast<double>(shape.head_size)));
  shape.causal = a.causal;
  shape.window = number(a.window).value_or(0);
  shape.softcap = a.softcap.value_or(0);
  shape.key_lengths = pointer(r.key_lengths);
  shape.query_start = pointer(r.query_start);
  shape.cu_seqlens = pointer(r.cu_seqlens);
  if (given(a.temperature)) {
    r.temperature = a.temperature->detach().to(statistic_type(a.q));
    const Tensor t = r.temperature.dim() == 1 ? r.temperature.unsqueeze(1) : r.temperature;  // […, H, 1 or T]
    r.temperature_strides = {t.dim() == 3 ? t.stride(0) : 0, t.stride(-2), r.temperature.dim() == 1 ? 0 : t.stride(-1)};
  }
  return r;
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
  const Prepared a = prepare(arguments);
  auto gradients = entropy_attention_backward_meta(arguments, state);
  auto& [dq, dk, dv, dtemperature] = gradients;
  if (arguments.q.numel() == 0) {
    dk.zero_(), dv.zero_(), dtemperature.zero_();
    return gradients;
  }
  if (arguments.k.numel() == 0) {  // no key: every row is empty
    dq.zero_(), dtemperature.zero_();
    return gradients;
  }
  const Tensor anchor = state.anchor.contiguous(), log_sum = state.log_sum.contiguous();
  auto statistic = [&](const OptionalTensor& x) {
    return given(x) ? x->to(anchor.scalar_type()).contiguous() : Tensor();
  };
  const Tensor dlse = statistic(state.dlse), dentropy = statistic(state.dentropy), entropy = statistic(state.entropy);
  const Tensor out = with_whole_rows(state.out);
  const Tensor dout = given(state.dout) ? with_whole_rows(state.dout->to(out.scalar_type())) : at::zeros_like(out);
  const Tensor rows = state.of_temperature ? at::empty_like(anchor) : Tensor();
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
  p.dtemperature = rows.defined() ? rows.mutable_data_ptr() : nullptr;
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
  return {empty_rows_like(arguments.q), empty_rows_like(arguments.k), empty_rows_like(arguments.v),
          state.of_temperature ? at::empty_like(*arguments.temperature)
                               : at::empty({0}, arguments.q.options().dtype(statistic_type(arguments.q)))};
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
                 a.cu_seqlens, a.max_seqlen, return_entropy);
}

OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }
Tensor tensor_of(const OptionalTensor& x) { return given(x) ? *x : Tensor(); }

struct EntropyAttentionFunction : torch::autograd::Function<EntropyAttentionFunction> {
  // The optional tensors are given as tensors, so that autograd sees the temperature.
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& temperature, const Arguments& a, bool return_entropy) {
    auto [out, lse, entropy, max_logit, anchor, log_sum] = call_forward(a, return_entropy);
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({q, k, v, out, entropy, anchor, log_sum, tensor_of(temperature), tensor_of(a.key_lengths),
                            tensor_of(a.query_start), tensor_of(a.cu_seqlens)});
    ctx->mark_non_differentiable({max_logit, anchor, log_sum});
    if (!return_entropy) ctx->mark_non_differentiable({entropy, max_logit, anchor, log_sum});
    auto& data = ctx->saved_data;
    data["causal"] = a.causal;
    data["window"] = a.window;
    data["softcap"] = a.softcap;
    data["scale"] = a.scale;
    data["max_seqlen"] = a.max_seqlen;
    data["of_temperature"] = given(temperature) && temperature->requires_grad();
    return {out, lse, entropy, max_logit, anchor, log_sum};
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::entropy_attention_backward", "")
                               .typed<decltype(entropy_attention_backward_entry<entropy_attention_backward_cpu>)>();
    variable_list gradients(6);
    if (!d[0].defined() && !d[1].defined() && !d[2].defined()) return gradients;
    const variable_list saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const bool of_temperature = data["of_temperature"].toBool();
    auto [dq, dk, dv, dtemperature] =
        op.call(saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], optional(d[0]), optional(d[1]),
                optional(d[2]), data["causal"].toBool(), data["window"].toOptional<c10::SymInt>(),
                data["softcap"].toOptional<double>(), data["scale"].toOptional<double>(), optional(saved[7]),
                optional(saved[8]), optional(saved[9]), optional(saved[10]),
                data["max_seqlen"].toOptional<c10::SymInt>(), of_temperature);
    gradients[0] = dq, gradients[1] = dk, gradients[2] = dv;
    if (of_temperature) gradients[3] = dtemperature;
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
                              {"cu_seqlens", a.cu_seqlens}});
  const auto out = record<EntropyAttentionFunction>(a.q, a.k, a.v, a.temperature, a, return_entropy);
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
       options.key_lengths, options.query_start, options.cu_seqlens, symbol(options.max_seqlen)},
      options.return_entropy);
  return {out, lse, options.return_entropy ? entropy : Tensor(), max_logit};
}

}  // namespace isentrope::ops
