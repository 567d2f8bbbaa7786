#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cmath>
#include <limits>

#include "csrc/ops/autocast.h"
#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/window_entropy_cpu.h"

namespace isentrope::ops {
namespace {

constexpr const char* kOp = "window_entropy";

void check_arguments(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at, const c10::SymInt& before,
                     const c10::SymInt& after) {
  check_dtype(kOp, "entropy", entropy, {at::kFloat, at::kDouble});
  OP_CHECK(kOp, entropy.dim() == 2, "entropy has ", entropy.dim(), " dimensions; wanted [B, T]");
  check_shape(kOp, "mask", mask, entropy.sym_sizes(), "as entropy");
  check_device(kOp, "mask", mask, "entropy", entropy);
  if (at) {
    check_shape(kOp, "at", *at, entropy.sym_sizes(), "as entropy");
    check_device(kOp, "at", *at, "entropy", entropy);
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  OP_CHECK(kOp,
           before >= -kMost && before < kMost && after >= -kMost && after < kMost && before + after >= 0 &&
               before + after < kMost,
           "the window is from ", before, " tokens before to ", after,
           " after; wanted at least 1 token and below 2^31");
}

Tensor flags(const Tensor& x) { return (x.scalar_type() == at::kBool ? x : x.ne(0)).contiguous(); }

void check_selection(const Tensor& mean, const Tensor& count, c10::string_view threshold, double level,
                     c10::string_view scope) {
  check_dtype(kOp, "mean", mean, {at::kFloat, at::kDouble});
  check_dtype(kOp, "count", count, {at::kInt});
  OP_CHECK(kOp, mean.dim() == 2, "mean has ", mean.dim(), " dimensions; wanted [B, T]");
  check_shape(kOp, "count", count, mean.sym_sizes(), "as mean");
  check_device(kOp, "count", count, "mean", mean);
  OP_CHECK(kOp, threshold == "value" || threshold == "quantile" || threshold == "top_fraction", "threshold is \"",
           threshold, "\"; wanted value, quantile or top_fraction");
  OP_CHECK(kOp, scope == "row" || scope == "batch" || scope == "global", "scope is \"", scope,
           "\"; wanted row, batch or global");
  if (threshold == "value") {
    OP_CHECK(kOp, !std::isnan(level), "the threshold is NaN; wanted a number of nats");
  } else if (threshold == "quantile") {
    OP_CHECK(kOp, level >= 0 && level <= 1, "the quantile is ", level, "; wanted 0 to 1");
  } else {
    OP_CHECK(kOp, level > 0 && level <= 1, "top_fraction is ", level, "; wanted above 0, up to 1");
    OP_CHECK(kOp, scope != "batch",
             "scope is batch, and top_fraction takes windows of a row or of all; wanted row or global");
  }
}

// The mean over the rows that have one; infinite where none has.
Tensor mean_of_finite(const Tensor& row, const Tensor& has) {
  const Tensor number = has.sum();
  const Tensor mean = row.masked_fill(has.logical_not(), 0).sum() / number;
  return at::where(number > 0, mean, at::full_like(mean, std::numeric_limits<double>::infinity()));
}

Tensor at_or_above(const Tensor& mean, const Tensor& count, const Tensor& threshold) {
  return mean.ge(threshold.dim() == 1 ? threshold.unsqueeze(1) : threshold).logical_and(count.gt(0));
}

Tensor value_threshold(const Tensor& mean, double level, c10::string_view scope) {
  return scope == "row" ? at::full_symint({mean.sym_size(0)}, level, mean.options())
                        : at::full({}, level, mean.options());
}

}  // namespace

// ---- means ----------------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> window_entropy_run(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                              int64_t before, int64_t after, bool shrink,
                                              void (*launch)(const kernels::WindowEntropyForward&),
                                              bool with_workspace) {
  check_arguments(entropy, mask, at, before, after);
  Tensor mean = at::empty(entropy.sizes(), entropy.options()),
         count = at::empty(entropy.sizes(), entropy.options().dtype(at::kInt));
  if (entropy.numel() == 0) return {mean, count};
  const Tensor x = entropy.contiguous(), counts = flags(mask), places = at ? flags(*at) : Tensor();
  Tensor workspace;
  kernels::WindowEntropyForward p;
  p.dtype = kernel_dtype(kOp, entropy);
  p.rows = entropy.size(0);
  p.length = entropy.size(1);
  p.before = before;
  p.after = after;
  p.shrink = shrink;
  p.x = x.const_data_ptr();
  p.mask = counts.const_data_ptr<bool>();
  p.at = at ? places.const_data_ptr<bool>() : nullptr;
  p.mean = mean.mutable_data_ptr();
  p.count = count.mutable_data_ptr<int32_t>();
  if (with_workspace) {
    workspace = at::empty({2 * entropy.numel() * static_cast<int64_t>(sizeof(kernels::WindowSums))},
                          entropy.options().dtype(at::kByte));
    p.workspace = static_cast<kernels::WindowSums*>(workspace.mutable_data_ptr());
  }
  launch(p);
  return {mean, count};
}

Tensor window_entropy_backward_run(const Tensor& dmean_in, const Tensor& count_in, const Tensor& mask, int64_t before,
                                   int64_t after, void (*launch)(const kernels::WindowEntropyBackward&),
                                   bool with_workspace) {
  check_arguments(dmean_in, mask, {}, before, after);
  check_shape("window_entropy_backward", "count", count_in, dmean_in.sym_sizes(), "as dmean");
  check_dtype("window_entropy_backward", "count", count_in, {at::kInt});
  Tensor dx = at::empty(dmean_in.sizes(), dmean_in.options());
  if (dx.numel() == 0) return dx;
  const Tensor dmean = dmean_in.contiguous(), count = count_in.contiguous(), counts = flags(mask);
  Tensor workspace;
  kernels::WindowEntropyBackward p;
  p.dtype = kernel_dtype(kOp, dmean);
  p.rows = dmean.size(0);
  p.length = dmean.size(1);
  p.before = before;
  p.after = after;
  p.dmean = dmean.const_data_ptr();
  p.count = count.const_data_ptr<int32_t>();
  p.mask = counts.const_data_ptr<bool>();
  p.dx = dx.mutable_data_ptr();
  if (with_workspace) {
    workspace =
        at::empty({2 * dx.numel() * static_cast<int64_t>(sizeof(kernels::WindowSums))}, dx.options().dtype(at::kByte));
    p.workspace = static_cast<kernels::WindowSums*>(workspace.mutable_data_ptr());
  }
  launch(p);
  return dx;
}

std::tuple<Tensor, Tensor> window_entropy_cpu(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                              int64_t before, int64_t after, bool shrink) {
  return window_entropy_run(entropy, mask, at, before, after, shrink, ISENTROPE_PICK(window_entropy_forward_on_cpu),
                            false);
}

Tensor window_entropy_backward_cpu(const Tensor& dmean, const Tensor& count, const Tensor& mask, int64_t before,
                                   int64_t after) {
  return window_entropy_backward_run(dmean, count, mask, before, after, ISENTROPE_PICK(window_entropy_backward_on_cpu),
                                     false);
}

std::tuple<Tensor, Tensor> window_entropy_meta(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                               c10::SymInt before, c10::SymInt after, bool) {
  check_arguments(entropy, mask, at, before, after);
  return {at::empty_symint(entropy.sym_sizes(), entropy.options()),
          at::empty_symint(entropy.sym_sizes(), entropy.options().dtype(at::kInt))};
}

Tensor window_entropy_backward_meta(const Tensor& dmean, const Tensor&, const Tensor& mask, c10::SymInt before,
                                    c10::SymInt after) {
  check_arguments(dmean, mask, {}, before, after);
  return at::empty_symint(dmean.sym_sizes(), dmean.options());
}

namespace {

std::tuple<Tensor, Tensor> call_forward(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                        c10::SymInt before, c10::SymInt after, bool shrink) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::window_entropy", "")
                             .typed<decltype(window_entropy_meta)>();
  return op.call(entropy, mask, at, std::move(before), std::move(after), shrink);
}

struct WindowEntropyFunction : torch::autograd::Function<WindowEntropyFunction> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const Tensor& entropy,
                                                const Tensor& mask, const OptionalTensor& at, const c10::SymInt& before,
                                                const c10::SymInt& after, bool shrink) {
    auto [mean, count] = call_forward(entropy, mask, at, before, after, shrink);
    ctx->save_for_backward({count, mask});
    ctx->mark_non_differentiable({count});
    ctx->saved_data["before"] = before;
    ctx->saved_data["after"] = after;
    return {mean, count};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list d) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::window_entropy_backward", "")
                               .typed<decltype(window_entropy_backward_meta)>();
    const auto saved = ctx->get_saved_variables();
    torch::autograd::variable_list gradients(6);
    gradients[0] =
        op.call(d[0], saved[0], saved[1], ctx->saved_data["before"].toSymInt(), ctx->saved_data["after"].toSymInt());
    return gradients;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> window_entropy_autograd(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                                   c10::SymInt before, c10::SymInt after, bool shrink) {
  check_differentiation(kOp, {{"entropy", entropy}, {"mask", mask}, {"at", at}});
  const auto out = record<WindowEntropyFunction>(entropy, mask, at, before, after, shrink);
  return {out[0], out[1]};
}

// Sums: in float, as torch's own.
std::tuple<Tensor, Tensor> window_entropy_autocast(const Tensor& entropy, const Tensor& mask, const OptionalTensor& at,
                                                   c10::SymInt before, c10::SymInt after, bool shrink) {
  const Autocast cast(entropy);
  return call_forward(cast.single(entropy), mask, at, before, after, shrink);
}

// ---- thresholds -----------------------------------------------------------------------------------------------------

// A choice: constant to autograd.
std::tuple<Tensor, Tensor> window_select_autograd(const Tensor& mean, const Tensor& count, c10::string_view threshold,
                                                  double level, c10::string_view scope, const Numbers& numbers) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::window_select", "")
                             .typed<decltype(window_select_composite)>();
  refuse_forward_mode("window_select", {{"mean", mean}});
  const at::AutoDispatchBelowAutograd guard;
  return op.call(mean, count, threshold, level, scope, numbers);
}

std::tuple<Tensor, Tensor> window_select_cpu(const Tensor& mean_in, const Tensor& count_in, c10::string_view threshold,
                                             double level, c10::string_view scope, const Numbers& numbers) {
  read_numbers(kOp, numbers, {&level});
  check_selection(mean_in, count_in, threshold, level, scope);
  if (mean_in.numel() == 0) return window_select_composite(mean_in, count_in, threshold, level, scope, std::nullopt);
  const Tensor mean = mean_in.contiguous(), count = count_in.contiguous();
  const bool global = scope == "global", top = threshold == "top_fraction";
  Tensor high = at::empty(mean.sizes(), mean.options().dtype(at::kBool)), chosen;
  if (threshold == "value") {
    chosen = value_threshold(mean, level, scope);
  } else {
    WindowSelect p;
    p.dtype = kernel_dtype(kOp, mean);
    p.groups = global ? 1 : mean.size(0);
    p.size = mean.numel() / p.groups;
    chosen = at::empty({p.groups}, mean.options());
    p.mean = mean.const_data_ptr();
    p.count = count.const_data_ptr<int32_t>();
    p.fraction = level;
    p.top = top;
    p.threshold = chosen.mutable_data_ptr();
    p.high = top ? high.mutable_data_ptr<bool>() : nullptr;
    ISENTROPE_PICK(window_select_on_cpu)(p);
    if (scope == "batch") chosen = mean_of_finite(chosen, count.amax(1).gt(0));
    if (global) chosen = chosen.squeeze(0);
  }
  if (!top) {
    WindowMark p;
    p.dtype = kernel_dtype(kOp, mean);
    p.rows = mean.size(0);
    p.length = mean.size(1);
    p.mean = mean.const_data_ptr();
    p.count = count.const_data_ptr<int32_t>();
    p.threshold = chosen.const_data_ptr();
    p.one_threshold = chosen.dim() == 0;
    p.high = high.mutable_data_ptr<bool>();
    ISENTROPE_PICK(window_mark_on_cpu)(p);
  }
  return {high, chosen};
}

std::tuple<Tensor, Tensor> window_select_meta(const Tensor& mean, const Tensor& count, c10::string_view threshold,
                                              double level, c10::string_view scope, const Numbers&) {
  check_selection(mean, count, threshold, level, scope);
  return {at::empty_symint(mean.sym_sizes(), mean.options().dtype(at::kBool)), value_threshold(mean, level, scope)};
}

// By sorting; nothing waits for the device.
std::tuple<Tensor, Tensor> window_select_composite(const Tensor& mean_in, const Tensor& count_in,
                                                   c10::string_view threshold, double level, c10::string_view scope,
                                                   const Numbers& numbers) {
  read_numbers(kOp, numbers, {&level});
  check_selection(mean_in, count_in, threshold, level, scope);
  if (threshold == "value") {
    const Tensor chosen = value_threshold(mean_in, level, scope);
    return {at_or_above(mean_in, count_in, chosen), chosen};
  }
  const bool global = scope == "global";
  const Tensor mean = global ? mean_in.reshape({1, -1}) : mean_in,
               has = (global ? count_in.reshape({1, -1}) : count_in).gt(0);
  const auto size = mean.sym_size(1);
  if (mean_in.sym_numel() == 0) {
    const auto rows = global || scope == "batch" ? Tensor(at::full({}, INFINITY, mean.options()))
                                                 : at::full_symint({mean.sym_size(0)}, INFINITY, mean.options());
    return {at::zeros_symint(mean_in.sym_sizes(), mean_in.options().dtype(at::kBool)), rows};
  }
  // Ranks from the largest down: NaN first, then values, then what is no window. Stable, so that ties keep their order.
  const Tensor number = has.sum(1, /*keepdim=*/true), none = number.eq(0);  // [groups, 1]
  const auto [sorted, order] =
      at::sort(mean.masked_fill(has.logical_not(), -INFINITY), /*stable=*/true, 1, /*descending=*/true);
  const auto value_at = [&](const Tensor& rank) { return sorted.gather(1, rank.clamp_min(0)).squeeze(1); };
  const Tensor infinite = at::full_like(number.squeeze(1), INFINITY, mean.options());
  if (threshold == "top_fraction") {
    const Tensor taken = at::minimum((number.to(at::kDouble) * level).ceil().to(at::kLong).clamp_min(1), number);
    const Tensor rank = at::arange(size, number.options()).unsqueeze(0);
    const Tensor high = at::zeros_like(has).scatter(1, order, rank.lt(taken)).view_symint(mean_in.sym_sizes());
    const Tensor chosen = at::where(none.squeeze(1), infinite, value_at(taken - 1));
    return {high, global ? chosen.squeeze(0) : chosen};
  }
  const Tensor place = (number - 1).clamp_min(0).to(at::kDouble) * level, low = place.floor();
  const Tensor rank = (number - 1) - low.to(at::kLong), share = (place - low).squeeze(1);
  const Tensor below = value_at(rank).to(at::kDouble), above = value_at(rank - 1).to(at::kDouble);
  const Tensor between = at::where(share.eq(0), below, below + share * (above - below)).to(mean.scalar_type());
  Tensor chosen = at::where(none.squeeze(1), infinite, between);
  if (scope == "batch") chosen = mean_of_finite(chosen, has.any(1));
  if (global) chosen = chosen.squeeze(0);
  return {at_or_above(mean_in, count_in, chosen), chosen};
}

// ---- together -------------------------------------------------------------------------------------------------------

WindowEntropy window_entropy(const Tensor& entropy, const Tensor& mask, const WindowEntropyOptions& options) {
  const int64_t w = options.window;
  OP_CHECK(kOp, w >= 1, "window is ", w, "; wanted at least 1");
  int64_t before = 0, after = 0;
  if (options.side == "following")
    after = w - 1;
  else if (options.side == "after")
    before = -1, after = w;
  else if (options.side == "centred")
    before = (w - 1) / 2, after = w / 2;
  else if (options.side == "trailing")
    before = w - 1;
  else
    OP_CHECK(kOp, false, "side is \"", options.side, "\"; wanted following, after, centred or trailing");
  OP_CHECK(kOp, options.partial == "drop" || options.partial == "shrink", "partial is \"", options.partial,
           "\"; wanted drop or shrink");
  auto [mean, count] = call_forward(entropy, mask, options.at, before, after, options.partial == "shrink");
  static const auto select = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("isentrope::window_select", "")
                                 .typed<decltype(window_select_cpu)>();
  auto [high, threshold] = select.call(mean.detach(), count, options.threshold, options.level, options.scope, {});
  return {mean, high, threshold};
}

}  // namespace isentrope::ops
