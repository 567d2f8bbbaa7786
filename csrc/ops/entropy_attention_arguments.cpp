#include "csrc/ops/entropy_attention_arguments.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "csrc/ops/check.h"
#include "csrc/ops/entries.h"

namespace isentrope::ops::attention {
namespace {

using kernels::AttentionShape;
using kernels::HeadStrides;
using Arguments = EntropyAttentionArguments;

constexpr const char* kOp = "entropy_attention";
constexpr int64_t kMostHeadSize = 256;

// ---- checks ----------------------------------------------------------------------------------------------------------

void check_integers(const char* name, const Tensor& x, const Tensor& q, const c10::SymInt& count, const char* meaning) {
  check_dtype(kOp, name, x, {at::kInt, at::kLong});
  check_shape(kOp, name, x, {count}, meaning);
  check_device(kOp, name, x, "q", q);
}

// x with the sizes of a block mask, of which those named may be 1.
void check_blocks(const char* name, const Tensor& x, const std::array<c10::SymInt, 4>& wanted,
                  std::initializer_list<int64_t> broadcast, const char* meaning) {
  const auto fits = [&](int64_t d) {
    const bool may_be_1 = std::find(broadcast.begin(), broadcast.end(), d) != broadcast.end();
    return x.sym_size(d) == wanted[d] || (may_be_1 && x.sym_size(d) == 1);
  };
  OP_CHECK(kOp, x.dim() == 4 && fits(0) && fits(1) && fits(2) && fits(3), name, " has shape ", x.sym_sizes(),
           "; wanted ", c10::SymIntArrayRef(wanted), " (", meaning, ")");
}

bool lists_columns(const Tensor& block_mask) { return block_mask.scalar_type() != at::kBool; }

// The sizes of a block mask: [B, H, ⌈T/b⌉, ⌈S/b⌉]; packed, of sequences that are as long as may be.
std::array<c10::SymInt, 4> block_sizes(const Arguments& a) {
  const c10::SymInt b = *a.block_size, H = a.q.sym_size(1);
  const auto blocks = [&](const c10::SymInt& n) { return (n + b - 1) / b; };
  if (!given(a.cu_seqlens)) return {a.q.sym_size(0), H, blocks(a.q.sym_size(2)), blocks(a.k.sym_size(2))};
  const c10::SymInt n = blocks(a.max_seqlen ? a.max_seqlen->min(a.q.sym_size(0)) : a.q.sym_size(0));
  return {a.cu_seqlens->sym_size(0) - 1, H, n, n};
}

void check_block_mask(const Arguments& a) {
  OP_CHECK(kOp, given(a.block_mask) || !a.block_size, "block_size is given without block_mask, which it is about");
  OP_CHECK(kOp, given(a.block_mask) || !given(a.gates),
           "gates are given without block_mask, whose blocks they are factors of");
  if (!given(a.block_mask)) return;
  const Tensor& mask = *a.block_mask;
  OP_CHECK(kOp, a.block_size.has_value(), "block_mask is given without block_size, the rows and keys of its blocks");
  OP_CHECK(kOp, *a.block_size >= 16 && *a.block_size % 16 == 0, "block_size is ", *a.block_size,
           "; wanted a multiple of 16");
  check_dtype(kOp, "block_mask", mask, {at::kBool, at::kInt, at::kLong});
  check_device(kOp, "block_mask", mask, "q", a.q);
  auto wanted = block_sizes(a);
  if (lists_columns(mask) && mask.dim() == 4) wanted[3] = mask.sym_size(3);
  check_blocks("block_mask", mask, wanted, {1},
               lists_columns(mask) ? "B, H or 1, blocks of block_size rows, columns that they keep"
                                   : "B, H or 1, blocks of block_size rows, blocks of block_size keys");
  if (!given(a.gates)) return;
  OP_CHECK(kOp, a.gates->is_floating_point(), "gates have dtype ", a.gates->scalar_type(),
           "; wanted a floating point type");
  check_device(kOp, "gates", *a.gates, "q", a.q);
  check_blocks("gates", *a.gates, block_sizes(a), {1, 2},
               "B, H or 1, blocks of block_size rows or 1, blocks of block_size keys");
}

}  // namespace

void check_arguments(const Arguments& a) {
  const auto& [q, k, v, causal, window, softcap, scale, temperature, key_lengths, query_start, cu_seqlens, max_seqlen,
               block_mask, block_size, gates, sinks, slopes] = a;
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
  if (given(query_start) && query_start->dim() == 2) {
    check_dtype(kOp, "query_start", *query_start, {at::kInt, at::kLong});
    check_shape(kOp, "query_start", *query_start, {q.sym_size(0), q.sym_size(2)}, "one a query, or one a batch");
    check_device(kOp, "query_start", *query_start, "q", q);
  } else if (given(query_start)) {
    check_integers("query_start", *query_start, q, q.sym_size(0), "one a batch");
  }
  check_block_mask(a);
  for (const auto& [name, x] : {std::pair("sinks", sinks), std::pair("slopes", slopes)}) {
    if (!given(x)) continue;
    OP_CHECK(kOp, x->is_floating_point(), name, " have dtype ", x->scalar_type(), "; wanted a floating point type");
    check_shape(kOp, name, *x, {H}, "one a query head");
    check_device(kOp, name, *x, "q", q);
  }
}

namespace {

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
  const bool each = starts.dim() == 2;  // query
  const int64_t T = each ? starts.size(1) : 1;
  for (int64_t i = 0; i < starts.numel(); ++i) {
    const int64_t n = starts.const_data_ptr<int64_t>()[i], before = i % T ? starts.const_data_ptr<int64_t>()[i - 1] : n;
    OP_CHECK(kOp, n >= (each ? -1 : 0) && n <= a.k.size(2), "query_start[", i / T, each ? ", " : "",
             each ? std::to_string(i % T) : "", "] is ", n, "; wanted ", each ? -1 : 0, " to ", a.k.size(2));
    OP_CHECK(kOp, n >= before, "query_start[", i / T, ", ", i % T, "] is ", n, ", below the one before it (", before,
             "); wanted values that do not fall");
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
  if (given(a.block_mask) && lists_columns(*a.block_mask) && a.block_mask->numel() > 0) {
    const int64_t columns = block_sizes(a)[3].guard_int(__FILE__, __LINE__),
                  least = a.block_mask->min().item<int64_t>(), most = a.block_mask->max().item<int64_t>();
    OP_CHECK(kOp, least >= -1 && most < columns, "block_mask names column ", least < -1 ? least : most,
             "; wanted 0 to ", columns - 1, ", the blocks of keys, or -1 for none");
  }
  if (given(a.gates))
    OP_CHECK(kOp, !a.gates->lt(0).any().item<bool>(), "gates hold a value below 0; the least is ",
             a.gates->min().item<double>());
  if (given(a.temperature))
    OP_CHECK(kOp, a.temperature->gt(0).all().item<bool>(),
             "temperature holds a value that is not above 0; the least is ", a.temperature->min().item<double>());
}

// ---- parameters ------------------------------------------------------------------------------------------------------

// x [B, H, ⌈T/b⌉, ⌈S/b⌉] of which sizes may be 1, with unit stride in its last dimension.
HeadStrides block_strides_of(const Tensor& x) {
  const auto stride = [&](int64_t d) { return x.size(d) == 1 ? 0 : x.stride(d); };
  return {stride(0), stride(1), stride(2)};
}
Tensor with_unit_stride(const Tensor& x) { return x.size(-1) == 1 || x.stride(-1) == 1 ? x : x.contiguous(); }

// bool, whatever it was given as.
Tensor block_mask_of(const Arguments& a) {
  if (!lists_columns(*a.block_mask)) return with_unit_stride(*a.block_mask);
  const int64_t columns = block_sizes(a)[3].guard_int(__FILE__, __LINE__);
  auto sizes = a.block_mask->sizes().vec();
  sizes[3] = columns + 1;  // the last takes what names no column
  const Tensor named = a.block_mask->to(at::kLong), none = named.lt(0).logical_or(named.ge(columns));
  return at::zeros(sizes, named.options().dtype(at::kBool))
      .scatter_(3, named.masked_fill(none, columns), true)
      .narrow(3, 0, columns);
}

}  // namespace

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
             {},
             {},
             {},
             {},
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
  const bool places = r.query_start.defined() && r.query_start.dim() == 2;
  shape.query_start = places ? nullptr : pointer(r.query_start);
  shape.places = places ? pointer(r.query_start) : nullptr;
  shape.cu_seqlens = pointer(r.cu_seqlens);
  if (given(a.temperature)) {
    r.temperature = a.temperature->detach().to(statistic_type(a.q));
    const Tensor t = r.temperature.dim() == 1 ? r.temperature.unsqueeze(1) : r.temperature;  // […, H, 1 or T]
    r.temperature_strides = {t.dim() == 3 ? t.stride(0) : 0, t.stride(-2), r.temperature.dim() == 1 ? 0 : t.stride(-1)};
  }
  if (given(a.block_mask)) {
    r.block_mask = block_mask_of(a);
    shape.block_mask = r.block_mask.const_data_ptr<bool>();
    shape.block_size = *number(a.block_size);
    shape.block_strides = block_strides_of(r.block_mask);
  }
  const auto statistic = [&](const OptionalTensor& x) {
    return given(x) ? with_unit_stride(x->detach().to(statistic_type(a.q))) : Tensor();
  };
  r.gates = statistic(a.gates);
  if (r.gates.defined()) r.gate_strides = block_strides_of(r.gates);
  r.sinks = statistic(a.sinks);
  r.slopes = statistic(a.slopes);
  return r;
}

}  // namespace isentrope::ops::attention
