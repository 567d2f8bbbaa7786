// ARES as torch ops.
#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "csrc/methods/ares.h"
#include "csrc/methods/estimator.h"

namespace isentrope::methods {
namespace {

// Of a state: threshold, target, weight, mean divergence and measurements of each difficulty, the errors; with alpha_rate the alphas.
constexpr int64_t kPlainState = 1 + 5 * kDifficulties, kStateWithAlphas = kPlainState + kDifficulties;

void check_state(const char* op, const Tensor& state, int64_t size) {
  ops::check_dtype(op, "state", state, {torch::kDouble});
  OP_CHECK(op, state.dim() == 1 && state.numel() == size, "state has shape ", state.sizes(), "; wanted [", size, "]");
}

// What is wrong with a configuration is an error of the op.
void check_config(const char* op, const AresConfig& config) {
  const std::string problem = config.problem();
  OP_CHECK(op, problem.empty(), problem);
  OP_CHECK(op, config.form == "released" || config.form == "strict" || config.form == "paper", "form is \"",
           config.form, "\"; wanted released, strict or paper");
  check_number(op, "alpha", config.alpha, config.alpha >= 0 && config.alpha <= 2, "0 to 2");
  OP_CHECK(op, config.window >= 1, "window is ", config.window, "; wanted 1 or more");
  for (const auto& [name, share] : {std::pair{"quantile", config.quantile},
                                    {"threshold_decay", config.threshold_decay},
                                    {"target_decay", config.target_decay},
                                    {"easy", config.easy},
                                    {"medium", config.medium}})
    check_number(op, name, share, share >= 0 && share <= 1, "0 to 1");
}

using Made = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Made ares_op(const Tensor& entropy, const Tensor& length, const Tensor& right, const Tensor& group,
             const std::optional<Tensor>& state, const std::optional<Tensor>& trigger, c10::string_view form,
             double alpha, int64_t window, double quantile, double threshold_decay, double target_decay, double easy,
             double medium, double inside, double alpha_rate, double alpha_least, double alpha_most) {
  constexpr const char* kOp = "method_ares";
  check_rows(kOp, "entropy", entropy);
  check_floating(kOp, "entropy", entropy);
  const int64_t B = entropy.size(0);
  for (const auto& [name, x] : {std::pair{"length", &length}, {"right", &right}, {"group", &group}})
    OP_CHECK(kOp, x->dim() == 1 && x->size(0) == B, name, " has shape ", x->sizes(), "; wanted [", B,
             "], one a row of entropy");
  ops::check_dtype(kOp, "length", length, {torch::kInt64});
  ops::check_dtype(kOp, "group", group, {torch::kInt64, torch::kInt32});
  if (trigger) check_like(kOp, "trigger", *trigger, "entropy", entropy);
  check_number(kOp, "inside", inside, inside >= 0 && std::isfinite(inside), "at least 0, and finite");
  check_number(kOp, "alpha_rate", alpha_rate, alpha_rate >= 0 && std::isfinite(alpha_rate), "at least 0, and finite");
  AresConfig config;
  config.form = std::string(form.data(), form.size());
  config.alpha = alpha;
  config.window = window;
  if (trigger) config.triggers = {"trigger"};
  config.quantile = quantile;
  config.threshold_decay = threshold_decay;
  config.target_decay = target_decay;
  config.easy = easy;
  config.medium = medium;
  if (alpha_rate > 0) config.alpha_control = {.rate = alpha_rate, .least = alpha_least, .most = alpha_most};
  config.kl = {.inside = inside};
  check_config(kOp, config);
  const Tensor n = host(length, torch::kInt64), begun = state ? host(*state) : config.initial_state();
  check_state(kOp, begun, alpha_rate > 0 ? kStateWithAlphas : kPlainState);
  const int64_t T = entropy.size(1);
  for (int64_t b = 0; b < B; ++b)
    OP_CHECK(kOp, n.const_data_ptr<int64_t>()[b] >= 0 && n.const_data_ptr<int64_t>()[b] <= T, "length ", b, " is ",
             n.const_data_ptr<int64_t>()[b], "; wanted 0 to ", T, ", the tokens of a row");
  const AresMade made = refusing([&] {
    return ares(host(entropy), n, host_mask(right), host(group, torch::kInt64),
                trigger ? host_mask(*trigger) : Tensor(), begun, config);
  });
  const auto there = [&](const Tensor& x) { return x.to(entropy.device()); };
  return {there(made.shaping), there(made.difficulty), there(made.ref_kl_weight),
          made.state.to(state ? state->device() : entropy.device())};
}

Made ares_meta(const Tensor& entropy, const Tensor& length, const Tensor&, const Tensor&,
               const std::optional<Tensor>& state, const std::optional<Tensor>&, c10::string_view, double, int64_t,
               double, double, double, double, double, double, double alpha_rate, double, double) {
  const auto like = [&](const Tensor& x, torch::ScalarType type) {
    return torch::empty_symint(x.sym_sizes(), entropy.options().dtype(type));
  };
  return {like(length, torch::kFloat64), like(length, torch::kInt64), like(entropy, torch::kFloat32),
          state ? torch::empty_symint(state->sym_sizes(), state->options())
                : torch::empty({alpha_rate > 0 ? kStateWithAlphas : kPlainState},
                               entropy.options().dtype(torch::kFloat64))};
}

Tensor ares_kl_op(const Tensor& state, const Tensor& kl, double target, int64_t every, double decay, double error_decay,
                  double dead_zone) {
  constexpr const char* kOp = "method_ares_kl";
  ops::check_dtype(kOp, "kl", kl, {torch::kDouble});
  OP_CHECK(kOp, kl.dim() == 1 && kl.numel() == kDifficulties, "kl has shape ", kl.sizes(),
           "; wanted [3]: easy, medium, hard");
  check_number(kOp, "target", target, target > 0 && std::isfinite(target), "above 0");
  OP_CHECK(kOp, every >= 1, "every is ", every, "; wanted 1 or more");
  check_number(kOp, "decay", decay, decay >= 0 && decay <= 1, "0 to 1");
  check_number(kOp, "error_decay", error_decay, error_decay >= 0 && error_decay <= 1, "0 to 1");
  check_number(kOp, "dead_zone", dead_zone, dead_zone >= 0, "at least 0");
  AresConfig config;
  config.kl = {.target = target, .every = every, .decay = decay, .error_decay = error_decay, .dead_zone = dead_zone};
  // A state with alphas keeps them.
  if (state.dim() == 1 && state.numel() == kStateWithAlphas) config.alpha_control.emplace();
  check_state(kOp, state, config.alpha_control ? kStateWithAlphas : kPlainState);
  return ares_measured(host(state), host(kl), config).to(state.device());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_ares(Tensor entropy, Tensor length, Tensor right, Tensor group, Tensor? state=None, Tensor? "
         "trigger=None, *, str form='released', float alpha=0.5, int window=4, float quantile=0.95, float "
         "threshold_decay=0.99, float target_decay=0.9, float easy=0.6666666666666666, float "
         "medium=0.3333333333333333, float inside=1.0, float alpha_rate=0.0, float alpha_least=0.0, float "
         "alpha_most=2.0) -> (Tensor, Tensor, Tensor, Tensor)",
         ares_op, ares_meta);
  define(m,
         "method_ares_kl(Tensor state, Tensor kl, *, float target=0.01, int every=100, float decay=0.97, float "
         "error_decay=0.97, float dead_zone=0.02) -> Tensor",
         ares_kl_op);
}

}  // namespace isentrope::methods
