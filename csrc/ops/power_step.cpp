#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cmath>
#include <unordered_map>
#include <vector>

#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/sigma_linear_cpu.h"
#include "csrc/ops/sigma_matrix.h"

namespace isentrope::ops {

namespace {

constexpr const char* kPower = "power_step";

void check_power_arguments(at::TensorList weights, at::TensorList us, int64_t steps_max, double tolerance) {
  OP_CHECK(kPower, weights.size() == us.size(), "there are ", weights.size(), " weights and ", us.size(),
           " us; wanted as many of one as of the other");
  OP_CHECK(kPower, steps_max >= 1, "steps_max is ", steps_max, "; wanted at least 1");
  OP_CHECK(kPower, std::isfinite(tolerance) && tolerance >= 0, "tolerance is ", tolerance, "; wanted 0 or above");
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::string weight = c10::str("weights[", i, "]"), u = c10::str("us[", i, "]");
    check_weight(kPower, weight.c_str(), weights[i]);
    check_dtype(kPower, weight.c_str(), weights[i], {weights[0].scalar_type()});
    check_device(kPower, weight.c_str(), weights[i], "weights[0]", weights[0]);
    check_vector(kPower, u.c_str(), us[i], {weights[i].sym_size(1)}, "the columns of its weight", weights[i]);
    OP_CHECK(kPower, !us[i].requires_grad(), u, " requires grad; wanted a buffer, which has none");
  }
}

}  // namespace

std::tuple<Tensor, Tensor> power_step_run(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                          double tolerance, void (*launch)(const kernels::PowerStep&),
                                          bool with_workspace) {
  check_power_arguments(weights, us, steps_max, tolerance);
  const int64_t count = static_cast<int64_t>(weights.size());
  const at::ScalarType type = accumulator_type(weights[0]);
  const auto options = weights[0].options().dtype(type);
  const Tensor sigmas = at::empty({count}, options), steps = at::zeros({count}, options.dtype(at::kInt));
  std::vector<Tensor> kept;  // what the pointers below point into
  std::vector<kernels::PowerLayer> layers(count);
  std::unordered_map<const void*, int64_t> seen;
  for (int64_t i = 0; i < count; ++i) {
    const auto [first, fresh] = seen.emplace(us[i].const_data_ptr(), i);
    OP_CHECK(kPower, fresh, "us[", i, "] and us[", first->second, "] are one tensor; wanted one for each weight");
    kept.push_back(with_rows(weights[i]));
    layers[i].weight = matrix_of(kept.back());
    kept.push_back(us[i].to(type).contiguous());
    layers[i].u = kept.back().mutable_data_ptr();
  }
  kernels::PowerStep p;
  p.dtype = kernel_dtype(kPower, weights[0]);
  p.layers = layers.data();
  p.count = count;
  p.steps_max = steps_max;
  p.tolerance = tolerance;
  p.sigma = sigmas.mutable_data_ptr();
  p.steps = steps.mutable_data_ptr<int32_t>();
  Tensor done, workspace;
  if (with_workspace) {
    done = at::zeros({count}, steps.options());
    workspace = at::empty({kernels::power_step_workspace(p)}, options.dtype(at::kByte));
    p.done = done.mutable_data_ptr<int32_t>();
    p.workspace = workspace.mutable_data_ptr();
  }
  launch(p);
  for (int64_t i = 0; i < count; ++i)
    if (!kept[2 * i + 1].is_same(us[i])) us[i].copy_(kept[2 * i + 1]);
  return {sigmas, steps};
}

std::tuple<Tensor, Tensor> power_step_cpu(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                          double tolerance) {
  return power_step_run(
      weights, us, steps_max, tolerance,
      [](const kernels::PowerStep& p) {
        ISENTROPE_PICK(power_step)
        (p);
      },
      false);
}

std::tuple<Tensor, Tensor> power_step_meta(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                           double tolerance) {
  check_power_arguments(weights, us, steps_max, tolerance);
  const int64_t count = static_cast<int64_t>(weights.size());
  const auto options = weights[0].options();
  return {at::empty({count}, options.dtype(accumulator_type(weights[0]))), at::empty({count}, options.dtype(at::kInt))};
}

namespace {

std::tuple<Tensor, Tensor> call_power_step(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                           double tolerance) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("isentrope::power_step", "").typed<decltype(power_step_cpu)>();
  return op.call(weights, us, steps_max, tolerance);
}

}  // namespace

// A constant to autograd: no gradient, no place in a graph.
std::tuple<Tensor, Tensor> power_step_autograd(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                               double tolerance) {
  for (const Tensor& weight : weights) refuse_forward_mode(kPower, {{"weights", weight}});
  for (const Tensor& u : us) refuse_forward_mode(kPower, {{"us", u}});
  const at::AutoDispatchBelowAutograd guard;
  return call_power_step(weights, us, steps_max, tolerance);
}

// Counts the writes, so that autograd notices a backward pass that still needs the old u.
std::tuple<Tensor, Tensor> power_step_inplace_or_view(at::TensorList weights, at::TensorList us, int64_t steps_max,
                                                      double tolerance) {
  std::tuple<Tensor, Tensor> out;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    out = call_power_step(weights, us, steps_max, tolerance);
  }
  for (const Tensor& u : us) u.unsafeGetTensorImpl()->bump_version();
  return out;
}

PowerStep power_step(at::TensorList weights, at::TensorList us, int64_t steps_max, double tolerance) {
  if (weights.empty() && us.empty()) return {at::empty({0}), at::empty({0}, at::kInt)};
  auto [sigmas, steps] = call_power_step(weights, us, steps_max, tolerance);
  return {sigmas, steps};
}

}  // namespace isentrope::ops
