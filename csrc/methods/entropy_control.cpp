#include "csrc/methods/entropy_control.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "csrc/methods/op.h"
#include "csrc/methods/siren.h"

namespace isentrope::methods {
namespace {

constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

Tensor two(double a, double b) { return torch::tensor({a, b}, torch::kFloat64); }

// The state of two numbers of an op.
std::pair<double, double> both(const char* op, const Tensor& state) {
  ops::check_dtype(op, "state", state, {torch::kDouble});
  OP_CHECK(op, state.dim() == 1 && state.numel() == 2, "state has shape ", state.sizes(), "; wanted [2]");
  const Tensor own = host(state);
  return {own.const_data_ptr<double>()[0], own.const_data_ptr<double>()[1]};
}

// What an update saw, where it saw an entropy.
const double* entropy_in(const std::map<std::string, double>& seen) {
  const auto found = seen.find("entropy/mean");
  return found == seen.end() ? nullptr : &found->second;
}

}  // namespace

double entropy_schedule(int64_t step, std::string_view shape, double from, double to, int64_t steps) {
  const double way = std::clamp(static_cast<double>(step) / static_cast<double>(steps), 0.0, 1.0);
  return from + (to - from) * (shape == "cosine" ? (1 - std::cos(std::numbers::pi * way)) / 2 : way);
}

namespace {

// [...] double: of each of step [...].
template <class Of>
Tensor of_steps(const char* op, const Tensor& step, Of of) {
  ops::check_dtype(op, "step", step, {torch::kInt64});
  const Tensor own = host(step);
  Tensor made = torch::empty(own.sizes(), torch::kFloat64);
  for (int64_t i = 0; i < own.numel(); ++i) {
    const int64_t s = own.const_data_ptr<int64_t>()[i];
    OP_CHECK(op, s >= 0, "step is ", s, "; wanted 0 or more");
    made.mutable_data_ptr<double>()[i] = of(s);
  }
  return made.to(step.device());
}

Tensor steps_meta(const Tensor& step) {
  return torch::empty_symint(step.sym_sizes(), step.options().dtype(torch::kFloat64));
}

void check_way(const char* op, std::string_view shape, int64_t steps) {
  OP_CHECK(op, shape == "linear" || shape == "cosine", "shape is \"", std::string(shape),
           "\"; wanted linear or cosine");
  OP_CHECK(op, steps >= 1, "steps is ", steps, "; wanted 1 or more");
}

void check_coef(const char* op, const char* name, double coef) {
  check_number(op, name, coef, coef >= 0 && std::isfinite(coef), "at least 0, and finite");
}

std::string problem_of_table(at::IntArrayRef steps, at::ArrayRef<double> coefs) {
  if (steps.empty() || steps.size() != coefs.size())
    return "steps: " + std::to_string(steps.size()) + " of them and " + std::to_string(coefs.size()) +
           " coefs; wanted one coefficient for each stretch";
  if (steps.front() != 0 || !std::is_sorted(steps.begin(), steps.end(), std::less_equal<>()))
    return "steps: wanted numbers that rise from 0";
  return "";
}

Tensor one_step(int64_t step) { return torch::full({}, step, torch::kInt64); }

std::string_view view(c10::string_view text) { return {text.data(), text.size()}; }

}  // namespace

Tensor constant_coef(const Tensor& step, double coef) {
  constexpr const char* kOp = "method_constant";
  check_coef(kOp, "coef", coef);
  return of_steps(kOp, step, [&](int64_t) { return coef; });
}

Tensor scheduled_coef(const Tensor& step, std::string_view shape, double start, double end, int64_t steps) {
  constexpr const char* kOp = "method_schedule";
  check_way(kOp, shape, steps);
  check_coef(kOp, "start", start);
  check_coef(kOp, "end", end);
  return of_steps(kOp, step, [&](int64_t s) { return entropy_schedule(s, shape, start, end, steps); });
}

Tensor table_of_coef(const Tensor& step, at::IntArrayRef steps, at::ArrayRef<double> coefs) {
  constexpr const char* kOp = "method_table";
  const std::string problem = problem_of_table(steps, coefs);
  OP_CHECK(kOp, problem.empty(), problem);
  for (const double coef : coefs) check_coef(kOp, "coefs", coef);
  return of_steps(kOp, step, [&](int64_t s) {
    return coefs[static_cast<size_t>(std::upper_bound(steps.begin(), steps.end(), s) - steps.begin()) - 1];
  });
}

Tensor band_factors(const Tensor& state, int64_t step, std::string_view shape, at::ArrayRef<double> start,
                    at::ArrayRef<double> end, int64_t steps) {
  constexpr const char* kOp = "method_band";
  ops::check_dtype(kOp, "state", state, {torch::kDouble});
  OP_CHECK(kOp, state.dim() == 1 && state.numel() == 1, "state has shape ", state.sizes(), "; wanted [1]");
  OP_CHECK(kOp, step >= 0, "step is ", step, "; wanted 0 or more");
  check_way(kOp, shape, steps);
  for (const auto& [name, ends] : {std::pair{"start", start}, {"end", end}})
    OP_CHECK(kOp, ends.size() == 2 && ends[0] <= ends[1], name,
             ": wanted two numbers, the lower end of the band and the upper one");
  const double H = *host(state).const_data_ptr<double>();  // unknown: within the band
  const bool below = H < entropy_schedule(step, shape, start[0], end[0], steps);
  const bool above = H > entropy_schedule(step, shape, start[1], end[1], steps);
  return two(below ? 0.0 : 1.0, above ? 0.0 : 1.0).to(state.device());
}

Tensor adaptive_entropy(const Tensor& state, double entropy, double target, double delta, double least, double most) {
  constexpr const char* kOp = "method_adaptive_entropy";
  check_number(kOp, "entropy", entropy, std::isfinite(entropy), "a finite number");
  OP_CHECK(kOp, least <= most, "least is ", least, " and most ", most, "; wanted least at most as large");
  const double coef = both(kOp, state).first;
  return two(std::clamp(coef + (entropy <= target ? delta : -delta), least, most), entropy).to(state.device());
}

Tensor entropic(const Tensor& state, double entropy, double target, double proportional, double integral) {
  constexpr const char* kOp = "method_entropic";
  check_number(kOp, "entropy", entropy, std::isfinite(entropy), "a finite number");
  const double error = entropy - target, sum = std::clamp(both(kOp, state).first + integral * error, -1.0, 1.0);
  return two(sum, std::clamp(sum + proportional * error, -1.0, 1.0)).to(state.device());
}

Tensor entropy_band_coef(const Tensor& state, double entropy, double low, double high, double rate, double least,
                         double most, int64_t warmup) {
  constexpr const char* kOp = "method_aent";
  check_number(kOp, "entropy", entropy, std::isfinite(entropy), "a finite number");
  OP_CHECK(kOp, low <= high, "low is ", low, " and high ", high, "; wanted low at most as large");
  OP_CHECK(kOp, least <= most, "least is ", least, " and most ", most, "; wanted least at most as large");
  check_number(kOp, "rate", rate, rate >= 0 && std::isfinite(rate), "at least 0, and finite");
  const auto [coef, updates] = both(kOp, state);
  const double outside = std::min(0.0, entropy - low) + std::max(0.0, entropy - high);
  return two(updates < static_cast<double>(warmup) ? coef : std::clamp(coef - rate * outside, least, most), updates + 1)
      .to(state.device());
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_adaptive_entropy(Tensor state, float entropy, float target=0.2, float delta=0.005, float least=0.0, "
         "float most=1.0) -> Tensor",
         adaptive_entropy);
  define(
      m,
      "method_aent(Tensor state, float entropy, float low=0.05, float high=0.23, float rate=0.001, float least=1e-05, "
      "float most=0.003, int warmup=0) -> Tensor",
      entropy_band_coef);
  define(
      m, "method_constant(Tensor step, *, float coef=0.01) -> Tensor", constant_coef,
      +[](const Tensor& step, double) { return steps_meta(step); });
  define(
      m,
      "method_schedule(Tensor step, *, str shape='linear', float start=0.01, float end=0.0, int steps=100) -> Tensor",
      +[](const Tensor& step, c10::string_view shape, double start, double end, int64_t steps) {
        return scheduled_coef(step, view(shape), start, end, steps);
      },
      +[](const Tensor& step, c10::string_view, double, double, int64_t) { return steps_meta(step); });
  define(
      m, "method_table(Tensor step, *, int[] steps, float[] coefs) -> Tensor", table_of_coef,
      +[](const Tensor& step, at::IntArrayRef, at::ArrayRef<double>) { return steps_meta(step); });
  define(
      m,
      "method_band(Tensor state, int step, *, str shape='linear', float[] start, float[] end, int steps=100) -> Tensor",
      +[](const Tensor& state, int64_t step, c10::string_view shape, at::ArrayRef<double> start,
          at::ArrayRef<double> end,
          int64_t steps) { return band_factors(state, step, view(shape), start, end, steps); },
      +[](const Tensor& state, int64_t, c10::string_view, at::ArrayRef<double>, at::ArrayRef<double>, int64_t) {
        return torch::empty({2}, state.options());
      });
  define(m,
         "method_entropic(Tensor state, float entropy, float target=0.3, float proportional=1.0, float integral=0.01) "
         "-> Tensor",
         entropic);
}

std::string TableOfEntropy::problem() const { return problem_of_table(steps, coefs); }

Control ConstantEntropy::at(int64_t step, const Tensor&) const {
  return {.entropy_coef = constant_coef(one_step(step), coef).item<double>()};
}

Control ScheduledEntropy::at(int64_t step, const Tensor&) const {
  return {.entropy_coef = scheduled_coef(one_step(step), shape, from, to, steps).item<double>()};
}

Control TableOfEntropy::at(int64_t step, const Tensor&) const {
  return {.entropy_coef = table_of_coef(one_step(step), steps, coefs).item<double>()};
}

std::string AdaptiveEntropy::problem() const {
  if (least > most) return "least: is above most; wanted at most as large";
  if (coef < least || coef > most) return "coef: does not lie between least and most";
  return "";
}

Tensor AdaptiveEntropy::initial_state() const { return two(coef, kUnknown); }

Control AdaptiveEntropy::at(int64_t, const Tensor& state) const {
  const auto [now, last] = both("adaptive", state);
  return {.entropy_coef = last > target ? 0 : now};
}

void AdaptiveEntropy::observe(const std::map<std::string, double>& seen, Context& context) const {
  if (const double* H = entropy_in(seen))
    context.state = adaptive_entropy(context.state, *H, target, delta, least, most);
}

std::string AEnt::problem() const {
  if (low > high) return "low: is above high; wanted the lower end of the band";
  if (least > most) return "least: is above most; wanted at most as large";
  if (coef < least || coef > most) return "coef: does not lie between least and most";
  return "";
}

Tensor AEnt::initial_state() const { return two(coef, 0); }

Control AEnt::at(int64_t, const Tensor& state) const { return {.entropy_coef = both("aent", state).first}; }

void AEnt::observe(const std::map<std::string, double>& seen, Context& context) const {
  const auto kept = seen.find("entropy/kept");
  if (const double* H = kept != seen.end() ? &kept->second : entropy_in(seen))
    context.state = entropy_band_coef(context.state, *H, low, high, rate, least, most, warmup);
}

Tensor Siren::initial_state() const { return torch::full({1}, anchor.value_or(kUnknown), torch::kFloat64); }

Bonus Siren::bonus(const Update& u, int64_t, Context& context) const {
  const double held = *context.state.const_data_ptr<double>();
  const auto [coefficient, weight, mean] = siren(u.entropy, u.kept, u.mask, held, coef, share);
  if (u.mask.any().item<bool>()) context.stats["entropy/peak"] = mean.item<double>();
  return {coefficient.item<double>(), weight};
}

void Siren::observe(const std::map<std::string, double>& seen, Context& context) const {
  const auto peak = seen.find("entropy/peak");
  if (peak != seen.end() && std::isnan(*context.state.const_data_ptr<double>()))
    context.state = torch::full({1}, peak->second, torch::kFloat64);
}

Tensor EntroPic::initial_state() const { return two(0, 0); }

Control EntroPic::at(int64_t, const Tensor& state) const {
  const double a = both("entropic", state).second;
  return {.positive = 1 + a, .negative = 1 - a};
}

void EntroPic::observe(const std::map<std::string, double>& seen, Context& context) const {
  if (const double* H = entropy_in(seen)) context.state = entropic(context.state, *H, target, proportional, integral);
}

std::string EntropyBand::problem() const {
  for (const auto& [key, ends] : {std::pair{"from", &from}, {"to", &to}})
    if (ends->size() != 2 || (*ends)[0] > (*ends)[1])
      return std::string(key) + ": wanted two numbers, the lower end of the band and the upper one";
  return "";
}

Tensor EntropyBand::initial_state() const { return torch::full({1}, kUnknown, torch::kFloat64); }

Control EntropyBand::at(int64_t step, const Tensor& state) const {
  const Tensor factors = band_factors(state, step, shape, from, to, steps);
  const double* factor = factors.const_data_ptr<double>();
  return {.positive = factor[0], .negative = factor[1]};
}

void EntropyBand::observe(const std::map<std::string, double>& seen, Context& context) const {
  if (const double* H = entropy_in(seen)) context.state = torch::full({1}, *H, torch::kFloat64);
}

}  // namespace isentrope::methods
