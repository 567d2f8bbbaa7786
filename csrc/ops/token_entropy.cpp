#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/token_entropy_cpu.h"

namespace isentrope::ops {
namespace {

using kernels::LogitRows;
using kernels::TokenEntropyBackward;
using kernels::TokenEntropyForward;
using kernels::TokenEntropyKeep;

constexpr const char* kOp = "token_entropy";
constexpr const char* kBackward = "token_entropy_backward";

void check_arguments(const Tensor& logits, const Tensor& target, double temperature) {
  check_dtype(kOp, "logits", logits, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  check_dtype(kOp, "target", target, {at::kLong});
  OP_CHECK(kOp, logits.dim() == 2 || logits.dim() == 3, "logits has ", logits.dim(),
           " dimensions; wanted [N, V] or [B, T, V]");
  check_shape(kOp, "target", target, logits.sym_sizes().slice(0, logits.dim() - 1),
              "logits without its last dimension");
  OP_CHECK(kOp, logits.sym_size(-1) >= 1, "logits has a vocabulary of 0; wanted at least 1");
  check_device(kOp, "target", target, "logits", logits);
  OP_CHECK(kOp, std::isfinite(temperature) && temperature > 0, "temperature is ", temperature, "; wanted above 0");
}

// x [N, V] or [B, T, V] with any strides but 1 in the last dimension.
LogitRows layout_of(const Tensor& x) {
  LogitRows rows;
  rows.vocab = x.size(-1);
  rows.rows = x.numel() / rows.vocab;
  rows.group_rows = x.dim() == 3 ? std::max<int64_t>(x.size(1), 1) : std::max<int64_t>(x.size(0), 1);
  rows.group_stride = x.dim() == 3 ? x.stride(0) : 0;
  rows.row_stride = x.stride(-2);
  return rows;
}

// The copy is made only where the vocabulary is not contiguous.
Tensor with_contiguous_vocab(const Tensor& x) { return x.stride(-1) == 1 || x.size(-1) == 1 ? x : x.contiguous(); }

const void* data_or_null(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

// ---- the CPU's launchers: units of work over torch's threads --------------------------------------------------------

void forward_on_cpu(const TokenEntropyForward& p) {
  const int64_t rows = p.layout.rows, chunks = token_entropy_chunks(p.layout.vocab);
  const int64_t grain = token_entropy_grain(p.layout.vocab);
  std::vector<TokenEntropySums> sums(rows * chunks);
  at::parallel_for(0, rows * chunks, grain, [&](int64_t begin, int64_t end) {
    ISENTROPE_PICK(token_entropy_forward_chunks)(p, begin, end, sums.data());
  });
  at::parallel_for(0, rows, std::max<int64_t>(grain, 64), [&](int64_t begin, int64_t end) {
    ISENTROPE_PICK(token_entropy_finish)(p, begin, end, sums.data());
  });
}

void keep_on_cpu(const TokenEntropyKeep& p) {
  at::parallel_for(0, p.layout.rows, token_entropy_grain(p.layout.vocab), [&](int64_t begin, int64_t end) {
    ISENTROPE_PICK(token_entropy_keep)(p, begin, end);
  });
}

void backward_on_cpu(const TokenEntropyBackward& p) {
  at::parallel_for(0, p.layout.rows * token_entropy_chunks(p.layout.vocab), token_entropy_grain(p.layout.vocab),
                   [&](int64_t begin, int64_t end) {
                     ISENTROPE_PICK(token_entropy_backward_chunks)
                     (p, begin, end);
                   });
}

}  // namespace

// ---- what linear_token_entropy shares -------------------------------------------------------------------------------

at::ScalarType statistic_type(const Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

TokenEntropyOutputs token_entropy_empty(const Tensor& like, const Tensor& target, bool moments) {
  const auto options = like.options().dtype(statistic_type(like));
  auto rows = [&] { return at::empty_symint(target.sym_sizes(), options); };
  auto optional_rows = [&] { return moments ? rows() : at::empty({0}, options); };
  Tensor logprob = rows(), entropy = rows(), lse = rows(), anchor = rows(), log_sum = rows();
  return {logprob, entropy, lse, anchor, log_sum, optional_rows(), optional_rows()};
}

void token_entropy_rows(kernels::TokenEntropyRows& p, const TokenEntropyOutputs& outputs) {
  const auto& [logprob, entropy, lse, anchor, log_sum, sum_p2, sum_p2_logp] = outputs;
  const bool moments = sum_p2.numel() > 0;
  p.logprob = logprob.mutable_data_ptr();
  p.entropy = entropy.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr();
  p.anchor = anchor.mutable_data_ptr();
  p.log_sum = log_sum.mutable_data_ptr();
  p.sum_p2 = moments ? sum_p2.mutable_data_ptr() : nullptr;
  p.sum_p2_logp = moments ? sum_p2_logp.mutable_data_ptr() : nullptr;
}

// An incoming gradient as the kernels take it: [N] in the statistics' type, or undefined.
Tensor row_gradient(const char* op, const OptionalTensor& gradient, const char* name, const Tensor& target,
                    at::ScalarType type) {
  if (!gradient || !gradient->defined()) return {};
  check_shape(op, name, *gradient, target.sym_sizes(), "as target");
  check_device(op, name, *gradient, "target", target);
  return gradient->to(type).contiguous();
}

Tensor row_statistic(const char* op, const Tensor& x, const char* name, const Tensor& target, at::ScalarType type) {
  check_shape(op, name, x, target.sym_sizes(), "as target");
  check_dtype(op, name, x, {type});
  check_device(op, name, x, "target", target);
  return x.contiguous();
}

kernels::Keep keep_kind(const char* op, c10::string_view keep, double share) {
  if (keep == "top_p") {
    OP_CHECK(op, share > 0 && share <= 1, "share is ", share, " with keep=\"top_p\"; wanted above 0, at most 1");
    return kernels::Keep::kTopP;
  }
  OP_CHECK(op, keep == "without_lowest", "keep is \"", keep, "\"; wanted \"top_p\" or \"without_lowest\"");
  OP_CHECK(op, share >= 0 && share < 1, "share is ", share,
           " with keep=\"without_lowest\"; wanted at least 0, below 1");
  return kernels::Keep::kWithoutLowest;
}

constexpr int64_t kKeptNumbers = sizeof(kernels::KeptTokens) / sizeof(double);

KeptTokenEntropyOutputs with_kept(const TokenEntropyOutputs& outputs, const Tensor& target) {
  const Tensor& entropy = std::get<1>(outputs);
  c10::SymDimVector sizes(target.sym_sizes().begin(), target.sym_sizes().end());
  const Tensor kept_entropy = at::empty_symint(sizes, entropy.options());
  sizes.push_back(kKeptNumbers);
  return std::tuple_cat(outputs,
                        std::tuple(kept_entropy, at::empty_symint(sizes, entropy.options().dtype(at::kDouble))));
}

const kernels::KeptTokens* kept_tokens(const char* op, const Tensor& dkept_entropy, const OptionalTensor& kept,
                                       const Tensor& target) {
  if (!dkept_entropy.defined()) return nullptr;
  OP_CHECK(op, kept && kept->defined(), "dkept_entropy is given and kept is not; wanted what the forward op gave");
  c10::SymDimVector sizes(target.sym_sizes().begin(), target.sym_sizes().end());
  sizes.push_back(kKeptNumbers);
  check_shape(op, "kept", *kept, sizes, "as the forward op gave it");
  check_dtype(op, "kept", *kept, {at::kDouble});
  check_device(op, "kept", *kept, "target", target);
  return static_cast<const kernels::KeptTokens*>(kept->const_data_ptr());
}

void check_targets(const char* op, const Tensor& target, int64_t vocab, int64_t ignore_index) {
  const int64_t* y = target.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < target.numel(); ++n)
    if (y[n] != ignore_index && (y[n] < 0 || y[n] >= vocab))
      TORCH_CHECK_INDEX(false, "isentrope::", op, ": target[", n, "] (counted row by row) is ", y[n], "; wanted 0 to ",
                        vocab - 1, " or ignore_index, which is ", ignore_index);
}

TokenEntropyOutputs token_entropy_run(const Tensor& logits_in, const Tensor& target_in, double temperature,
                                      int64_t ignore_index, bool moments, void (*launch)(const TokenEntropyForward&)) {
  check_arguments(logits_in, target_in, temperature);
  const Tensor logits = with_contiguous_vocab(logits_in), target = target_in.contiguous();
  const auto outputs = token_entropy_empty(logits, target, moments);
  if (target.numel() == 0) return outputs;
  TokenEntropyForward p;
  p.dtype = kernel_dtype(kOp, logits);
  p.layout = layout_of(logits);
  p.logits = logits.const_data_ptr();
  p.target = target.const_data_ptr<int64_t>();
  p.ignore_index = ignore_index;
  p.temperature = temperature;
  token_entropy_rows(p, outputs);
  launch(p);
  return outputs;
}

TokenEntropyOutputs token_entropy_cpu(const Tensor& logits, const Tensor& target, double temperature,
                                      int64_t ignore_index, bool moments, bool, const Numbers& numbers) {
  read_numbers(kOp, numbers, {&temperature});
  check_arguments(logits, target, temperature);
  check_targets(kOp, target.contiguous(), logits.size(-1), ignore_index);
  return token_entropy_run(logits, target, temperature, ignore_index, moments, forward_on_cpu);
}

KeptTokenEntropyOutputs token_entropy_keep_run(const TokenEntropyOutputs& outputs, const Tensor& logits_in,
                                               const Tensor& target_in, double temperature, int64_t ignore_index,
                                               c10::string_view keep, double share,
                                               void (*launch)(const TokenEntropyKeep&)) {
  const auto all = with_kept(outputs, target_in);
  if (target_in.numel() == 0) return all;
  const Tensor logits = with_contiguous_vocab(logits_in), target = target_in.contiguous();
  TokenEntropyKeep p;
  p.dtype = kernel_dtype(kOp, logits);
  p.layout = layout_of(logits);
  p.logits = logits.const_data_ptr();
  p.target = target.const_data_ptr<int64_t>();
  p.ignore_index = ignore_index;
  p.temperature = temperature;
  p.keep = keep_kind(kOp, keep, share);
  p.share = share;
  p.entropy = std::get<1>(all).const_data_ptr();
  p.anchor = std::get<3>(all).const_data_ptr();
  p.log_sum = std::get<4>(all).const_data_ptr();
  p.kept_entropy = std::get<7>(all).mutable_data_ptr();
  p.kept = static_cast<kernels::KeptTokens*>(std::get<8>(all).mutable_data_ptr());
  launch(p);
  return all;
}

KeptTokenEntropyOutputs token_entropy_kept_cpu(const Tensor& logits, const Tensor& target, double temperature,
                                               int64_t ignore_index, bool moments, bool, c10::string_view keep,
                                               double share, const Numbers& numbers) {
  read_numbers(kOp, numbers, {&temperature, &share});
  keep_kind(kOp, keep, share);
  const auto outputs = token_entropy_cpu(logits, target, temperature, ignore_index, moments, false, std::nullopt);
  return token_entropy_keep_run(outputs, logits, target, temperature, ignore_index, keep, share, keep_on_cpu);
}

KeptTokenEntropyOutputs token_entropy_kept_meta(const Tensor& logits, const Tensor& target, double temperature,
                                                c10::SymInt, bool moments, bool, c10::string_view keep, double share,
                                                const Numbers& numbers) {
  check_arguments(logits, target, temperature);
  if (!numbers) keep_kind(kOp, keep, share);
  return with_kept(token_entropy_empty(logits, target, moments), target);
}

TokenEntropyOutputs token_entropy_meta(const Tensor& logits, const Tensor& target, double temperature, c10::SymInt,
                                       bool moments, bool, const Numbers&) {
  check_arguments(logits, target, temperature);
  return token_entropy_empty(logits, target, moments);
}

// ---- backward -------------------------------------------------------------------------------------------------------

void token_entropy_backward_run(const Tensor& dlogits, const Tensor& logits_in, const Tensor& target_in,
                                const Tensor& entropy, const Tensor& anchor, const Tensor& log_sum,
                                const OptionalTensor& dlogprob, const OptionalTensor& dentropy,
                                const OptionalTensor& dlse, double temperature, int64_t ignore_index,
                                const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
                                void (*launch)(const TokenEntropyBackward&)) {
  check_arguments(logits_in, target_in, temperature);
  const Tensor target = target_in.contiguous();
  if (target.numel() == 0) return;
  const bool inplace = dlogits.is_same(logits_in);
  const Tensor logits = with_contiguous_vocab(logits_in);
  // Where the vocabulary of logits is strided, "in place" means through a contiguous copy.
  const Tensor written = inplace ? logits : dlogits;
  const at::ScalarType type = statistic_type(logits);
  auto statistic = [&](const Tensor& x, const char* name) { return row_statistic(kBackward, x, name, target, type); };
  auto gradient = [&](const OptionalTensor& x, const char* name) {
    return row_gradient(kBackward, x, name, target, type);
  };
  const Tensor H = statistic(entropy, "entropy"), m = statistic(anchor, "anchor"), l = statistic(log_sum, "log_sum");
  const Tensor dlp = gradient(dlogprob, "dlogprob"), dH = gradient(dentropy, "dentropy"), dz = gradient(dlse, "dlse"),
               dkept = gradient(dkept_entropy, "dkept_entropy");
  const OptionalTensor kept_in = kept ? OptionalTensor(kept->contiguous()) : std::nullopt;
  TokenEntropyBackward p;
  p.dtype = kernel_dtype(kOp, logits);
  p.layout = layout_of(logits);
  p.dlogits_layout = layout_of(written);
  p.logits = logits.const_data_ptr();
  p.target = target.const_data_ptr<int64_t>();
  p.ignore_index = ignore_index;
  p.temperature = temperature;
  p.entropy = H.const_data_ptr();
  p.anchor = m.const_data_ptr();
  p.log_sum = l.const_data_ptr();
  p.dlogprob = data_or_null(dlp);
  p.dentropy = data_or_null(dH);
  p.dlse = data_or_null(dz);
  p.dkept = data_or_null(dkept);
  p.kept = kept_tokens(kBackward, dkept, kept_in, target);
  p.dlogits = written.mutable_data_ptr();
  launch(p);
  if (!written.is_same(dlogits)) dlogits.copy_(written);
}

namespace {

// A gradient of many megabytes is new memory at every step, and its page faults cost more than its arithmetic. Asks the
// kernel for large pages; a hint, which it may pass over.
void prefer_large_pages(const Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(x.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(x.mutable_data_ptr()) + x.nbytes();
  if (end > begin + kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

Tensor token_entropy_backward_cpu(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                  const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                  const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                  int64_t ignore_index, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
                                  const Numbers& numbers) {
  read_numbers(kBackward, numbers, {&temperature});
  Tensor dlogits = at::empty(logits.sizes(), logits.options());
  prefer_large_pages(dlogits);
  token_entropy_backward_run(dlogits, logits, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse, temperature,
                             ignore_index, dkept_entropy, kept, backward_on_cpu);
  return dlogits;
}

void token_entropy_backward_inplace_cpu(const Tensor& logits, const Tensor& target, const Tensor& entropy,
                                        const Tensor& anchor, const Tensor& log_sum, const OptionalTensor& dlogprob,
                                        const OptionalTensor& dentropy, const OptionalTensor& dlse, double temperature,
                                        int64_t ignore_index, const OptionalTensor& dkept_entropy,
                                        const OptionalTensor& kept) {
  token_entropy_backward_run(logits, logits, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse, temperature,
                             ignore_index, dkept_entropy, kept, backward_on_cpu);
}

Tensor token_entropy_backward_meta(const Tensor& logits, const Tensor& target, const Tensor&, const Tensor&,
                                   const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                                   double temperature, c10::SymInt, const OptionalTensor&, const OptionalTensor&,
                                   const Numbers&) {
  check_arguments(logits, target, temperature);
  return at::empty_symint(logits.sym_sizes(), logits.options());
}

void token_entropy_backward_inplace_meta(const Tensor& logits, const Tensor& target, const Tensor&, const Tensor&,
                                         const Tensor&, const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, double temperature, int64_t, const OptionalTensor&,
                                         const OptionalTensor&) {
  check_arguments(logits, target, temperature);
}

}  // namespace isentrope::ops
