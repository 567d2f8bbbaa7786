#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "csrc/ops/autocast.h"
#include "csrc/ops/bfloat16_product.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/linear_token_entropy_cpu.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

constexpr const char* kOp = "linear_token_entropy";
constexpr const char* kBackward = "linear_token_entropy_backward";

}  // namespace

void check_linear_arguments(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                            const OptionalTensor& bias, std::optional<double> softcap, double temperature) {
  check_dtype(kOp, "hidden", hidden, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  check_dtype(kOp, "weight", weight, {hidden.scalar_type()});
  check_dtype(kOp, "target", target, {at::kLong});
  OP_CHECK(kOp, hidden.dim() == 2 || hidden.dim() == 3, "hidden has ", hidden.dim(),
           " dimensions; wanted [N, C] or [B, T, C]");
  OP_CHECK(kOp, weight.dim() == 2, "weight has ", weight.dim(), " dimensions; wanted [V, C]");
  OP_CHECK(kOp, weight.sym_size(0) >= 1 && weight.sym_size(1) >= 1, "weight has shape ", weight.sym_sizes(),
           "; wanted a vocabulary and a width of at least 1");
  OP_CHECK(kOp, hidden.sym_size(-1) == weight.sym_size(1), "hidden has shape ", hidden.sym_sizes(), "; wanted [..., ",
           weight.sym_size(1), "], the columns of weight");
  check_shape(kOp, "target", target, hidden.sym_sizes().slice(0, hidden.dim() - 1),
              "hidden without its last dimension");
  check_device(kOp, "weight", weight, "hidden", hidden);
  check_device(kOp, "target", target, "hidden", hidden);
  if (bias) {
    check_dtype(kOp, "bias", *bias, {hidden.scalar_type()});
    check_shape(kOp, "bias", *bias, {weight.sym_size(0)}, "the rows of weight");
    check_device(kOp, "bias", *bias, "hidden", hidden);
  }
  if (softcap)
    OP_CHECK(kOp, std::isfinite(*softcap) && *softcap > 0, "softcap is ", *softcap, "; wanted above 0, or none");
  OP_CHECK(kOp, std::isfinite(temperature) && temperature > 0, "temperature is ", temperature, "; wanted above 0");
}

Tensor with_rows(const Tensor& x) {
  const bool rows = (x.stride(1) == 1 || x.size(1) == 1) && (x.stride(0) >= x.size(1) || x.size(0) <= 1);
  return rows ? x : x.contiguous();
}

namespace {

using torch::autograd::variable_list;

template <class Outputs>
variable_list list_of(const Outputs& outputs) {
  return std::apply([](const auto&... x) { return variable_list{x...}; }, outputs);
}

// ---- the CPU's backend ----------------------------------------------------------------------------------------------

// The arguments as the backend reads them; holds what it points into.
struct Arguments {
  Tensor hidden, weight, bias, target, row;
  LinearLogits logits;

  // takes_part(n): whether row n is one of the M.
  Arguments(const Tensor& hidden_in, const Tensor& weight_in, const Tensor& target_in, const OptionalTensor& bias_in,
            std::optional<double> softcap, double temperature, const std::function<bool(int64_t)>& takes_part)
      : hidden(with_rows(hidden_in.reshape({-1, hidden_in.size(-1)}))),
        weight(with_rows(weight_in)),
        target(target_in.contiguous()),
        row(at::empty({target_in.numel()}, at::kLong)) {
    int64_t* rows = row.mutable_data_ptr<int64_t>();
    for (int64_t n = 0; n < target.numel(); ++n)
      if (takes_part(n)) rows[logits.rows++] = n;
    logits.dtype = kernel_dtype(kOp, hidden);
    logits.width = weight.size(1);
    logits.vocab = weight.size(0);
    logits.row = rows;
    logits.hidden = hidden.const_data_ptr();
    logits.hidden_stride = hidden.stride(0);
    logits.weight = weight.const_data_ptr();
    logits.weight_stride = weight.stride(0);
    if (bias_in) {
      bias = bias_in->contiguous();
      logits.bias = bias.const_data_ptr();
    }
    logits.target = target.const_data_ptr<int64_t>();
    logits.softcap = softcap.value_or(0);
    logits.temperature = temperature;
    logits.pairs =
        hidden.scalar_type() == at::kBFloat16 && isa() != Isa::kDefault && has_bfloat16_products() && logits.rows > 0;
  }
};

// keep: null for none.
variable_list forward_on_cpu(const Tensor& hidden, const Tensor& weight, const Tensor& target_in,
                             const OptionalTensor& bias, std::optional<double> softcap, double temperature,
                             int64_t ignore_index, bool moments, const Keep* keep) {
  check_linear_arguments(hidden, weight, target_in, bias, softcap, temperature);
  const Tensor target = target_in.contiguous();
  check_targets(kOp, target, weight.size(0), ignore_index);
  const int64_t* y = target.const_data_ptr<int64_t>();
  const Arguments arguments(hidden, weight, target, bias, softcap, temperature,
                            [&](int64_t n) { return y[n] != ignore_index; });
  const int64_t rows = arguments.logits.rows;
  const auto outputs = token_entropy_empty(hidden, target, moments);
  variable_list all = list_of(outputs);
  if (keep != nullptr) all = list_of(with_kept(outputs, target));
  if (rows < target.numel())
    for (Tensor& x : all) x.zero_();
  if (rows == 0) return all;
  static_assert(sizeof(TokenEntropySums) == 5 * sizeof(double));
  const int64_t V = weight.size(0);
  LinearTokenEntropyCpuForward p;
  token_entropy_rows(p, outputs);
  p.logits = arguments.logits;
  p.rows_at_once = keep != nullptr ? kept_rows(V, hidden.scalar_type() == at::kDouble) : rows;
  const int64_t at_once = std::min(rows, p.rows_at_once);
  const Tensor sums = at::empty({at_once, vocab_shares(V), 5}, at::kDouble),
               target_logit = at::empty({at_once}, at::kDouble);
  p.sums = static_cast<TokenEntropySums*>(sums.mutable_data_ptr());
  p.target_logit = target_logit.mutable_data_ptr<double>();
  Tensor kept_logits;
  kernels::TokenEntropyKeep k;
  if (keep != nullptr) {
    kept_logits = at::empty({at_once, V}, hidden.options().dtype(statistic_type(hidden)));
    k.layout.vocab = V;
    k.target = y;
    k.ignore_index = ignore_index;
    k.temperature = temperature;
    k.keep = keep_kind(kOp, keep->kind, keep->share);
    k.share = keep->share;
    k.entropy = p.entropy;
    k.anchor = p.anchor;
    k.log_sum = p.log_sum;
    k.kept_entropy = all[7].mutable_data_ptr();
    k.kept = static_cast<kernels::KeptTokens*>(all[8].mutable_data_ptr());
    p.keep = &k;
    p.kept_logits = kept_logits.mutable_data_ptr();
  }
  ISENTROPE_PICK(linear_token_entropy_forward)(p);
  return all;
}

}  // namespace

TokenEntropyOutputs linear_token_entropy_cpu(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                             const OptionalTensor& bias, std::optional<double> softcap,
                                             double temperature, int64_t ignore_index, bool moments,
                                             const Numbers& numbers) {
  read_numbers(kOp, numbers, {optional_number(softcap), &temperature});
  const auto out = forward_on_cpu(hidden, weight, target, bias, softcap, temperature, ignore_index, moments, nullptr);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

KeptTokenEntropyOutputs linear_token_entropy_kept_cpu(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                      const OptionalTensor& bias, std::optional<double> softcap,
                                                      double temperature, int64_t ignore_index, bool moments,
                                                      c10::string_view keep, double share, const Numbers& numbers) {
  read_numbers(kOp, numbers, {optional_number(softcap), &temperature, &share});
  keep_kind(kOp, keep, share);
  const Keep kept{std::string(keep), share};
  const auto out = forward_on_cpu(hidden, weight, target, bias, softcap, temperature, ignore_index, moments, &kept);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
}

KeptTokenEntropyOutputs linear_token_entropy_kept_meta(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                       const OptionalTensor& bias, std::optional<double> softcap,
                                                       double temperature, c10::SymInt, bool moments,
                                                       c10::string_view keep, double share, const Numbers& numbers) {
  check_linear_arguments(hidden, weight, target, bias, softcap, temperature);
  if (!numbers) keep_kind(kOp, keep, share);
  return with_kept(token_entropy_empty(hidden, target, moments), target);
}

TokenEntropyOutputs linear_token_entropy_meta(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                              const OptionalTensor& bias, std::optional<double> softcap,
                                              double temperature, c10::SymInt, bool moments, const Numbers&) {
  check_linear_arguments(hidden, weight, target, bias, softcap, temperature);
  return token_entropy_empty(hidden, target, moments);
}

// ---- backward -------------------------------------------------------------------------------------------------------

LinearStatistics::LinearStatistics(const Tensor& hidden, const Tensor& target, const Tensor& entropy_in,
                                   const Tensor& anchor_in, const Tensor& log_sum_in, const OptionalTensor& dlogprob_in,
                                   const OptionalTensor& dentropy_in, const OptionalTensor& dlse_in,
                                   const OptionalTensor& bias, std::array<bool, 3> wanted,
                                   const OptionalTensor& dkept_entropy, const OptionalTensor& kept_in) {
  OP_CHECK(kBackward, bias || !wanted[2], "wanted[2] asks for the gradient of a bias, and there is none");
  const at::ScalarType type = statistic_type(hidden);
  entropy = row_statistic(kBackward, entropy_in, "entropy", target, type);
  anchor = row_statistic(kBackward, anchor_in, "anchor", target, type);
  log_sum = row_statistic(kBackward, log_sum_in, "log_sum", target, type);
  dlogprob = row_gradient(kBackward, dlogprob_in, "dlogprob", target, type);
  dentropy = row_gradient(kBackward, dentropy_in, "dentropy", target, type);
  dlse = row_gradient(kBackward, dlse_in, "dlse", target, type);
  dkept = row_gradient(kBackward, dkept_entropy, "dkept_entropy", target, type);
  if (kept_in) kept = kept_in->contiguous();
  tokens = kept_tokens(kBackward, dkept, kept, target);
}

void LinearStatistics::fill(kernels::TokenEntropyRowGradients& p) const {
  auto data_or_null = [](const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; };
  p.entropy = entropy.const_data_ptr();
  p.anchor = anchor.const_data_ptr();
  p.log_sum = log_sum.const_data_ptr();
  p.dlogprob = data_or_null(dlogprob);
  p.dentropy = data_or_null(dentropy);
  p.dlse = data_or_null(dlse);
  p.dkept = data_or_null(dkept);
  p.kept = tokens;
}

namespace {

// Of the M rows that `row` names; dhidden may be undefined or empty where it is not wanted.
void backward_in_place(LinearTokenEntropyCpuBackward& p, const Tensor& dhidden) {
  const int64_t rows = p.logits.rows, padded = (rows + kPairChunk - 1) / kPairChunk * kPairChunk;
  const Tensor dlogits = at::empty({padded, pair_block(p.logits.vocab)}, at::kBFloat16);
  Tensor low;
  if (dhidden.numel() > 0) {
    if (dhidden.numel() > rows * p.logits.width) dhidden.zero_();
    low = at::empty({rows, p.logits.width}, at::kShort);
    p.dhidden = dhidden.mutable_data_ptr();
    p.dhidden_low = static_cast<uint16_t*>(low.mutable_data_ptr());
  }
  p.dlogits = dlogits.mutable_data_ptr();
  ISENTROPE_PICK(linear_token_entropy_backward)(p);
}

void backward_beside(LinearTokenEntropyCpuBackward& p, const Tensor& row, at::ScalarType type, const Tensor& dhidden) {
  const int64_t rows = p.logits.rows, C = p.logits.width;
  const auto wide = dhidden.options().dtype(type);
  const Tensor dlogits = at::empty({rows, dlogits_stride(p.logits.vocab)}, wide);
  const bool wanted = dhidden.numel() > 0, all = dhidden.numel() == rows * C;
  const bool in_place = all && dhidden.scalar_type() == type;
  Tensor sums;  // of dhidden, [rows, C]
  if (wanted) sums = in_place ? dhidden : at::empty({rows, C}, wide);
  p.dlogits = dlogits.mutable_data_ptr();
  p.dhidden = wanted ? sums.mutable_data_ptr() : nullptr;
  ISENTROPE_PICK(linear_token_entropy_backward)(p);
  if (!wanted || in_place) return;
  const Tensor flat = dhidden.view({-1, C});
  if (all)
    flat.copy_(sums);
  else
    flat.zero_().index_copy_(0, row, sums.to(flat.scalar_type()));
}

}  // namespace

LinearTokenEntropyGradients linear_token_entropy_backward_cpu(
    const Tensor& hidden, const Tensor& weight, const Tensor& target_in, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy, const OptionalTensor& dlse,
    const OptionalTensor& bias, std::optional<double> softcap, double temperature, int64_t ignore_index,
    std::array<bool, 3> wanted, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
    const Numbers& numbers) {
  read_numbers(kBackward, numbers, {optional_number(softcap), &temperature});
  check_linear_arguments(hidden, weight, target_in, bias, softcap, temperature);
  const Tensor target = target_in.contiguous();
  check_targets(kBackward, target, weight.size(0), ignore_index);
  const LinearStatistics statistics(hidden, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse, bias, wanted,
                                    dkept_entropy, kept);
  const at::ScalarType type = statistic_type(hidden);
  auto value = [type](const Tensor& x, int64_t n) {
    if (!x.defined()) return 0.0;
    return type == at::kDouble ? x.const_data_ptr<double>()[n] : static_cast<double>(x.const_data_ptr<float>()[n]);
  };
  const int64_t* y = target.const_data_ptr<int64_t>();
  // Rows whose gradient is 0 whatever their logits: ignored, nothing flows in, every logit -inf.
  const Arguments arguments(hidden, weight, target, bias, softcap, temperature, [&](int64_t n) {
    if (y[n] == ignore_index || (value(statistics.dlogprob, n) == 0 && value(statistics.dentropy, n) == 0 &&
                                 value(statistics.dlse, n) == 0 && value(statistics.dkept, n) == 0))
      return false;
    return !(std::isinf(value(statistics.anchor, n)) && value(statistics.log_sum, n) == 0);
  });
  const int64_t rows = arguments.logits.rows, C = weight.size(1), V = weight.size(0);
  auto new_gradient = [&](bool of, at::IntArrayRef sizes) {
    if (!of) return at::empty({0}, hidden.options());
    return rows > 0 ? at::empty(sizes, hidden.options()) : at::zeros(sizes, hidden.options());
  };
  Tensor dhidden = new_gradient(wanted[0], hidden.sizes()), dweight = new_gradient(wanted[1], {V, C}),
         dbias = new_gradient(wanted[2], {V});
  if (rows == 0) return {dhidden, dweight, dbias};

  LinearTokenEntropyCpuBackward p;
  p.logits = arguments.logits;
  statistics.fill(p);
  p.dweight = wanted[1] ? dweight.mutable_data_ptr() : nullptr;
  p.dbias = wanted[2] ? dbias.mutable_data_ptr() : nullptr;
  if (p.logits.pairs)
    backward_in_place(p, dhidden);
  else
    backward_beside(p, arguments.row.slice(0, 0, rows), type, dhidden);
  return {dhidden, dweight, dbias};
}

LinearTokenEntropyGradients linear_token_entropy_backward_meta(
    const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor&, const Tensor&, const Tensor&,
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor& bias,
    std::optional<double> softcap, double temperature, c10::SymInt, std::array<bool, 3> wanted, const OptionalTensor&,
    const OptionalTensor&, const Numbers&) {
  check_linear_arguments(hidden, weight, target, bias, softcap, temperature);
  auto like = [&](bool of, c10::SymIntArrayRef sizes) {
    return of ? at::empty_symint(sizes, hidden.options()) : at::empty({0}, hidden.options());
  };
  return {like(wanted[0], hidden.sym_sizes()), like(wanted[1], weight.sym_sizes()),
          like(wanted[2], {weight.sym_size(0)})};
}

// ---- autograd, autocast ---------------------------------------------------------------------------------------------

namespace {

using torch::autograd::AutogradContext;

// Without keep the op's seven outputs, with it the nine of linear_token_entropy_kept.
variable_list call_forward(const Tensor& hidden, const Tensor& weight, const Tensor& target, const OptionalTensor& bias,
                           std::optional<double> softcap, double temperature, c10::SymInt ignore_index, bool moments,
                           const std::optional<Keep>& keep, const Numbers& numbers) {
  if (keep) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::linear_token_entropy_kept", "")
                               .typed<decltype(linear_token_entropy_kept_meta)>();
    return list_of(op.call(hidden, weight, target, bias, softcap, temperature, std::move(ignore_index), moments,
                           keep->kind, keep->share, numbers));
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::linear_token_entropy", "")
                             .typed<decltype(linear_token_entropy_meta)>();
  return list_of(
      op.call(hidden, weight, target, bias, softcap, temperature, std::move(ignore_index), moments, numbers));
}

OptionalTensor optional(const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; }

struct LinearTokenEntropyFunction : torch::autograd::Function<LinearTokenEntropyFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& weight, const Tensor& target,
                               const OptionalTensor& bias, std::optional<double> softcap, double temperature,
                               const c10::SymInt& ignore_index, bool moments, const std::optional<Keep>& keep,
                               const Numbers& numbers) {
    const variable_list out =
        call_forward(hidden, weight, target, bias, softcap, temperature, ignore_index, moments, keep, numbers);
    ctx->set_materialize_grads(false);
    // entropy, anchor, log_sum, kept
    variable_list saved{hidden, weight, target, bias.value_or(Tensor()),
                        out[1], out[3], out[4], keep ? out[8] : Tensor()};
    variable_list constant(out.begin() + 3, out.begin() + 7);
    if (keep) constant.push_back(out[8]);
    if (numbers) saved.insert(saved.end(), {numbers->get(0), numbers->get(1)});
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable(constant);
    ctx->saved_data["softcap"] = softcap;
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["ignore_index"] = ignore_index;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::linear_token_entropy_backward", "")
                               .typed<decltype(linear_token_entropy_backward_meta)>();
    variable_list out(10);
    const Tensor dkept = d.size() > 7 ? d[7] : Tensor();
    if (!d[0].defined() && !d[1].defined() && !d[2].defined() && !dkept.defined()) return out;
    const auto saved = ctx->get_saved_variables();
    // Arguments of forward: hidden, weight, target, bias; needs_input_grad counts the tensors that were given.
    const std::array<bool, 3> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        saved[3].defined() && ctx->needs_input_grad(3)};
    const auto [dhidden, dweight, dbias] =
        op.call(saved[0], saved[1], saved[2], saved[4], saved[5], saved[6], optional(d[0]), optional(d[1]),
                optional(d[2]), optional(saved[3]), ctx->saved_data["softcap"].toOptional<double>(),
                ctx->saved_data["temperature"].toDouble(), ctx->saved_data["ignore_index"].toSymInt(), wanted,
                optional(dkept), dkept.defined() ? optional(saved[7]) : std::nullopt,
                saved.size() > 8 ? Numbers(c10::List<Tensor>({saved[8], saved[9]})) : std::nullopt);
    if (wanted[0]) out[0] = dhidden;
    if (wanted[1]) out[1] = dweight;
    if (wanted[2]) out[3] = dbias;
    return out;
  }
};

}  // namespace

TokenEntropyOutputs linear_token_entropy_autograd(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                  const OptionalTensor& bias, std::optional<double> softcap,
                                                  double temperature, c10::SymInt ignore_index, bool moments,
                                                  const Numbers& numbers) {
  check_differentiation(kOp, {{"hidden", hidden}, {"weight", weight}, {"target", target}, {"bias", bias}});
  const auto out = record<LinearTokenEntropyFunction>(hidden, weight, target, bias, softcap, temperature, ignore_index,
                                                      moments, std::optional<Keep>(), numbers);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

KeptTokenEntropyOutputs linear_token_entropy_kept_autograd(const Tensor& hidden, const Tensor& weight,
                                                           const Tensor& target, const OptionalTensor& bias,
                                                           std::optional<double> softcap, double temperature,
                                                           c10::SymInt ignore_index, bool moments,
                                                           c10::string_view keep, double share,
                                                           const Numbers& numbers) {
  check_differentiation(kOp, {{"hidden", hidden}, {"weight", weight}, {"target", target}, {"bias", bias}});
  const auto out =
      record<LinearTokenEntropyFunction>(hidden, weight, target, bias, softcap, temperature, ignore_index, moments,
                                         std::optional<Keep>({std::string(keep), share}), numbers);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
}

TokenEntropyOutputs linear_token_entropy_autocast(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                  const OptionalTensor& bias, std::optional<double> softcap,
                                                  double temperature, c10::SymInt ignore_index, bool moments,
                                                  const Numbers& numbers) {
  const Autocast cast(hidden);
  const auto out = call_forward(cast.lower(hidden), cast.lower(weight), target, cast.lower(bias), softcap, temperature,
                                std::move(ignore_index), moments, std::nullopt, numbers);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

KeptTokenEntropyOutputs linear_token_entropy_kept_autocast(const Tensor& hidden, const Tensor& weight,
                                                           const Tensor& target, const OptionalTensor& bias,
                                                           std::optional<double> softcap, double temperature,
                                                           c10::SymInt ignore_index, bool moments,
                                                           c10::string_view keep, double share,
                                                           const Numbers& numbers) {
  const Autocast cast(hidden);
  const auto out = call_forward(cast.lower(hidden), cast.lower(weight), target, cast.lower(bias), softcap, temperature,
                                std::move(ignore_index), moments, Keep{std::string(keep), share}, numbers);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
}

TokenEntropy linear_token_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                  const LinearTokenEntropyOptions& options) {
  const auto out = call_forward(hidden, weight, target, options.bias, options.softcap, options.temperature,
                                options.ignore_index, options.moments, options.keep, std::nullopt);
  const bool moments = options.moments, keep = options.keep.has_value();
  return {out[0], out[1], out[2], moments ? out[5] : Tensor(), moments ? out[6] : Tensor(), keep ? out[7] : Tensor()};
}

}  // namespace isentrope::ops
