#include <ATen/ATen.h>

#include "csrc/ops/check.h"
#include "csrc/ops/recurrence_entries.h"

namespace isentrope::ops {
namespace {

at::ScalarType sums_of(const Tensor& q) { return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

void check_integers(const char* op, const char* name, const Tensor& x, const Tensor& q, const c10::SymInt& count,
                    const char* meaning) {
  check_dtype(op, name, x, {at::kInt, at::kLong});
  check_shape(op, name, x, {count}, meaning);
  check_device(op, name, x, "q", q);
}

c10::SymInt sequences_of(const RecurrenceArguments& a) {
  return is_given(a.cu_seqlens) ? a.cu_seqlens->sym_size(0) - 1 : a.q.sym_size(0);
}

// What is known of values without waiting for a device: on the CPU alone. (On a GPU bad values are bounded.)
void check_values(const char* op, const RecurrenceArguments& a) {
  const auto integers = [](const OptionalTensor& x) {
    return is_given(x) ? x->to(at::kLong).contiguous() : at::empty({0}, at::kLong);
  };
  const Tensor lengths = integers(a.key_lengths), ends = integers(a.cu_seqlens);
  for (int64_t b = 0; b < lengths.numel(); ++b) {
    const int64_t n = lengths.const_data_ptr<int64_t>()[b];
    OP_CHECK(op, n >= 0 && n <= a.q.size(2), "key_lengths[", b, "] is ", n, "; wanted 0 to ", a.q.size(2),
             ", the steps that q has");
  }
  const int64_t* end = ends.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < ends.numel(); ++n) {
    OP_CHECK(op, n > 0 || end[0] == 0, "cu_seqlens[0] is ", end[0], "; wanted 0");
    OP_CHECK(op, n == 0 || end[n] >= end[n - 1], "cu_seqlens[", n, "] is ", end[n], ", below the one before it (",
             end[n - 1], "); wanted rising values");
    OP_CHECK(op, n + 1 < ends.numel() || end[n] == a.q.size(0), "cu_seqlens ends at ", end[n], "; wanted ", a.q.size(0),
             ", the rows of q");
  }
}

}  // namespace

void check_of_steps(const char* op, const char* name, const Tensor& x, const RecurrenceArguments& a) {
  OP_CHECK(op, x.is_floating_point(), name, " has dtype ", x.scalar_type(), "; wanted a floating point type");
  const auto sizes = a.k.sym_sizes();
  check_shape(op, name, x, sizes.slice(0, sizes.size() - 1),
              "one number a step of every key head, as k without its last dimension");
  check_device(op, name, x, "q", a.q);
}

void check_recurrence(const char* op, const RecurrenceArguments& a, int64_t extra) {
  const auto& [q, k, v, log_decay, state, key_lengths, cu_seqlens, chunk] = a;
  const bool packed = is_given(cu_seqlens);
  const int64_t dims = packed ? 3 : 4;
  check_dtype(op, "q", q, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  for (const auto& [name, x] : {std::pair("k", k), std::pair("v", v)}) {
    check_dtype(op, name, x, {q.scalar_type()});
    check_device(op, name, x, "q", q);
  }
  OP_CHECK(op, q.dim() == dims, "q has ", q.dim(), " dimensions; wanted ",
           packed ? "[total, H, D], since cu_seqlens is given" : "[B, H, T, D], or [total, H, D] with cu_seqlens");
  for (const auto& [name, x] : {std::pair("k", k), std::pair("v", v)})
    OP_CHECK(op, x.dim() == dims, name, " has ", x.dim(), " dimensions; wanted ", dims, " as q has");
  for (const int64_t d : {0, 2}) {
    if (packed && d == 2) continue;
    OP_CHECK(op, q.sym_size(d) == k.sym_size(d), "k has ", k.sym_size(d),
             d == 2   ? " steps"
             : packed ? " rows"
                      : " batches",
             "; wanted ", q.sym_size(d), " as q has");
  }
  const auto rows = k.sym_sizes().slice(0, dims - 1);
  OP_CHECK(op, v.sym_sizes().slice(0, dims - 1) == rows, "v has shape ", v.sym_sizes(), "; wanted ", rows,
           " and a value size, as k has heads and steps");
  OP_CHECK(op, q.sym_size(-1) == k.sym_size(-1), "k has a key size of ", k.sym_size(-1), "; wanted ", q.sym_size(-1),
           " as q has");
  const c10::SymInt H = q.sym_size(1), G = k.sym_size(1);
  OP_CHECK(op, G >= 1 && H % G == 0, "q has ", H, " heads and k has ", G, "; wanted a multiple of k's");
  OP_CHECK(op, q.sym_size(-1) >= 1, "the key size is 0; wanted at least 1");
  OP_CHECK(op, v.sym_size(-1) >= 1, "the value size is 0; wanted at least 1");
  OP_CHECK(op, chunk >= 16 && chunk <= 256 && chunk % 16 == 0, "chunk is ", chunk,
           "; wanted a multiple of 16 from 16 to 256");
  if (packed) {
    OP_CHECK(op, !is_given(key_lengths), "key_lengths and cu_seqlens are both given; packed sequences have no padding");
    OP_CHECK(op, cu_seqlens->dim() == 1 && cu_seqlens->sym_size(0) >= 1, "cu_seqlens has shape ",
             cu_seqlens->sym_sizes(), "; wanted [sequences + 1]");
    check_integers(op, "cu_seqlens", *cu_seqlens, q, cu_seqlens->sym_size(0), "sequences + 1");
  }
  if (is_given(key_lengths)) check_integers(op, "key_lengths", *key_lengths, q, q.sym_size(0), "one a batch");
  if (is_given(log_decay)) check_of_steps(op, "log_decay", *log_decay, a);
  if (is_given(state)) {
    check_dtype(op, "state", *state, {sums_of(q)});
    check_shape(op, "state", *state, {sequences_of(a), G, q.sym_size(-1), v.sym_size(-1) + extra},
                extra ? "one a sequence and key head, D rows of E values and the weight"
                      : "one a sequence and key head, D rows of E values");
    check_device(op, "state", *state, "q", q);
  }
}

kernels::HeadStrides head_strides(const Tensor& x, bool packed) {
  if (packed) return {0, x.stride(1), x.stride(0)};
  return {x.stride(0), x.stride(1), x.stride(2)};
}

PreparedRecurrence prepare_recurrence(const char* op, const RecurrenceArguments& a, int64_t extra) {
  check_recurrence(op, a, extra);
  if (a.q.is_cpu()) check_values(op, a);
  const auto rows = [](const Tensor& x) { return x.stride(-1) == 1 ? x : x.contiguous(); };
  const auto integers = [](const OptionalTensor& x) { return is_given(x) ? x->to(at::kLong).contiguous() : Tensor(); };
  const auto pointer = [](const Tensor& x) { return x.defined() ? x.const_data_ptr<int64_t>() : nullptr; };
  PreparedRecurrence r{rows(a.q), rows(a.k), rows(a.v), {}, {}, integers(a.key_lengths), integers(a.cu_seqlens), {}};
  if (is_given(a.log_decay)) r.log_decay = a.log_decay->detach().to(sums_of(a.q));
  if (is_given(a.state)) r.state = a.state->contiguous();
  const bool packed = r.cu_seqlens.defined();
  r.shape.sequences = packed ? r.cu_seqlens.numel() - 1 : a.q.size(0);
  r.shape.heads = a.q.size(1);
  r.shape.kv_heads = a.k.size(1);
  r.shape.steps = packed ? a.q.size(0) : a.q.size(2);
  r.shape.key_size = a.q.size(-1);
  r.shape.value_size = a.v.size(-1);
  r.shape.chunk = a.chunk;
  r.shape.key_lengths = pointer(r.key_lengths);
  r.shape.cu_seqlens = pointer(r.cu_seqlens);
  return r;
}

Tensor empty_rows(const Tensor& x, c10::SymInt columns) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = std::move(columns);
  const bool steps_first = sizes.size() == 4 && x.sym_stride(1) < x.sym_stride(2);  // [B, T, H, …] in memory
  if (!steps_first) return at::empty_symint(sizes, x.options());
  std::swap(sizes[1], sizes[2]);
  return at::empty_symint(sizes, x.options()).transpose(1, 2);
}

Tensor empty_state(const RecurrenceArguments& a, int64_t extra) {
  return at::empty_symint({sequences_of(a), a.k.sym_size(1), a.q.sym_size(-1), a.v.sym_size(-1) + extra},
                          a.q.options().dtype(sums_of(a.q)));
}

Tensor empty_steps(const Tensor& x) {
  const auto sizes = x.sym_sizes();
  return at::empty_symint(sizes.slice(0, sizes.size() - 1), x.options().dtype(sums_of(x)));
}

Tensor prepared_dout(const OptionalTensor& dout, const RecurrenceArguments& a) {
  if (!is_given(dout)) return empty_rows(a.q, a.v.sym_size(-1)).zero_();
  const Tensor x = dout->to(a.q.scalar_type());
  return x.stride(-1) == 1 ? x : x.contiguous();
}

}  // namespace isentrope::ops
