#include "csrc/methods/ceeh.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

#include "csrc/methods/entropy_advantage.h"
#include "csrc/methods/entropy_control.h"
#include "csrc/methods/estimator.h"
#include "csrc/methods/kth.h"
#include "csrc/methods/weight_cpu.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/result_memory.h"

namespace isentrope::methods {
namespace {

constexpr double kUnseen = std::numeric_limits<double>::quiet_NaN();
constexpr double kQuick = 0.2, kSlow = 0.05;  // shares of a step: towards better, towards worse
constexpr double kLeast = -0.9;               // of the reward

double scale_at(int64_t step, const std::string& shape, int64_t steps) {
  return shape == "constant" ? 1 : entropy_schedule(step, shape, 1, 0, steps);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> ceeh(const Tensor& right, const Tensor& length, const Tensor& group,
                                                const Tensor& accuracy, const Tensor& shortest, double mean,
                                                double scale) {
  constexpr const char* kOp = "method_ceeh";
  OP_CHECK(kOp, right.dim() == 1, "right has ", right.dim(), " dimensions; wanted [B]");
  check_like(kOp, "length", length, "right", right);
  check_like(kOp, "group", group, "right", right);
  ops::check_dtype(kOp, "length", length, {torch::kInt64, torch::kInt32});
  ops::check_dtype(kOp, "group", group, {torch::kInt64, torch::kInt32});
  ops::check_dtype(kOp, "accuracy", accuracy, {torch::kDouble});
  ops::check_dtype(kOp, "shortest", shortest, {torch::kDouble});
  const Groups groups = refusing([&] { return groups_of(group); });
  const auto G = static_cast<int64_t>(groups.size()) - 1;
  for (const auto& [name, x] : {std::pair{"accuracy", &accuracy}, std::pair{"shortest", &shortest}})
    OP_CHECK(kOp, x->dim() == 1 && x->numel() == G, name, " has shape ", x->sizes(), "; wanted [", G, "], one a group");
  check_number(kOp, "mean", mean, !std::isinf(mean), "a finite number, or NaN for none");
  check_number(kOp, "scale", scale, scale >= 0 && std::isfinite(scale), "at least 0, and finite");

  const int64_t B = right.numel();
  const Tensor rights = host_mask(right), lengths = host(length, torch::kInt64);
  Tensor hard = torch::zeros({B}, torch::kBool), reward = torch::zeros({B}, torch::kFloat64),
         next_a = host(accuracy).clone(), next_l = host(shortest).clone();
  const bool* is_right = rights.const_data_ptr<bool>();
  const int64_t* L = lengths.const_data_ptr<int64_t>();
  for (int64_t g = 0; g < G; ++g) {
    double &a = next_a.mutable_data_ptr<double>()[g], &star = next_l.mutable_data_ptr<double>()[g];
    double count = 0, least = std::numeric_limits<double>::infinity();
    for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
      if (is_right[b]) ++count, least = std::min(least, static_cast<double>(L[b]));
    const double acc = count / static_cast<double>(groups[g + 1] - groups[g]);
    for (int64_t b = groups[g]; b < groups[g + 1]; ++b) {
      hard.mutable_data_ptr<bool>()[b] = acc <= mean;  // false of NaN
      if (is_right[b] && acc >= a && star > 0)
        reward.mutable_data_ptr<double>()[b] =
            std::max(kLeast, scale * (star - static_cast<double>(L[b])) / star) + 0.0;  // no −0
    }
    if (count > 0) star = std::isnan(star) ? least : star + (least < star ? kQuick : kSlow) * (least - star);
    a = a <= 0 ? acc : a + (acc > a ? kQuick : kSlow) * (acc - a);
  }
  const auto back = [&](const Tensor& x) { return x.to(right.device()); };
  return {back(hard), back(reward), back(next_a), back(next_l)};
}

Tensor CeehRecord::initial_state() const { return torch::tensor({-1.0, kUnseen, kUnseen}, torch::kFloat64); }

std::pair<Tensor, Tensor> CeehRecord::step(Completions& c, double scale, Context& context) const {
  std::vector<double> state = numbers(host(context.state, torch::kFloat64));
  std::unordered_map<int64_t, size_t> place;
  double sum = 0, seen = 0;
  for (size_t i = 0; i + 2 < state.size(); i += 3) {
    place.emplace(static_cast<int64_t>(state[i]), i);
    if (state[i] >= 0) sum += state[i + 1], ++seen;
  }
  const double all = std::max(seen, static_cast<double>(prompts));
  const double mean = all > 0 ? (sum - (all - seen)) / all : kUnseen;  // those not seen count −1
  const Groups groups = groups_of(c.group);
  const Tensor prompt = host(c.prompt, torch::kInt64);
  std::vector<double> accuracy, shortest;
  std::vector<size_t> at;
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    const int64_t number = prompt.const_data_ptr<int64_t>()[groups[g]];
    const auto [found, is_new] = place.emplace(number, state.size());
    if (is_new) state.insert(state.end(), {static_cast<double>(number), -1.0, kUnseen});
    at.push_back(found->second);
    accuracy.push_back(state[found->second + 1]);
    shortest.push_back(state[found->second + 2]);
  }
  const auto [hard, reward, next_a, next_l] = ceeh(c.right, c.length, c.group, torch::tensor(accuracy, torch::kFloat64),
                                                   torch::tensor(shortest, torch::kFloat64), mean, scale);
  for (size_t g = 0; g < at.size(); ++g) {
    state[at[g] + 1] = next_a.const_data_ptr<double>()[g];
    state[at[g] + 2] = next_l.const_data_ptr<double>()[g];
  }
  context.state = torch::tensor(state, torch::kFloat64);
  c.hard = hard;
  if (hard.numel() > 0) context.stats["ceeh/hard"] = hard.to(torch::kFloat64).mean().item<double>();
  if (!std::isnan(mean)) context.stats["ceeh/accuracy"] = mean;
  return {hard, reward};
}

void CeehReward::apply(Completions& c, Context& context) const {
  const auto [hard, reward] = step(c, scale, context);
  if (reward.numel() > 0) context.stats["ceeh/length"] = reward.mean().item<double>();
  c.add(kKind, c.unit * reward);
}

void CeehAdvantage::apply(Completions& c, Context& context) const {
  const auto [hard, reward] = step(c, 0, context);
  const double now = scale_at(c.step, scale, steps);
  const Tensor gain = entropy_advantage(c.advantage, c.entropy, c.mask, alpha, kappa) - c.advantage;
  c.advantage =
      torch::where(hard.unsqueeze(1) & c.mask, c.advantage + now * gain, c.advantage).to(c.advantage.scalar_type());
}

Tensor ceeh_entropy(const Tensor& hard, const Tensor& mask, double factor) {
  constexpr const char* kOp = "method_ceeh_entropy";
  check_rows(kOp, "mask", mask);
  OP_CHECK(kOp, hard.dim() == 1 && hard.size(0) == mask.size(0), "hard has shape ", hard.sizes(), "; wanted [",
           mask.size(0), "], one a row of mask");
  check_number(kOp, "factor", factor, factor >= 0 && std::isfinite(factor), "at least 0, and finite");
  const Tensor marks = host_mask(mask), hards = host_mask(hard), made = ops::result_like(marks, torch::kFloat32);
  FillLoop p{{mask.size(0), mask.size(1), marks.const_data_ptr<bool>()}};
  std::vector<double> w(static_cast<size_t>(p.rows));
  double sum = 0, tokens = 0;
  for (int64_t b = 0; b < p.rows; ++b) {
    const auto n = static_cast<double>(count_marked(p.mask + b * p.length, p.length));
    w[b] = hards.const_data_ptr<bool>()[b] ? factor : 1;
    sum += w[b] * n, tokens += n;
  }
  for (double& x : w) x = sum > 0 ? x * (tokens / sum) : 0;
  p.value = w.data(), p.factor = made.mutable_data_ptr();
  ISENTROPE_PICK(fill_on_cpu)(p);
  return made.to(mask.device());
}

Bonus CeehEntropy::bonus(const Update& u, int64_t step, Context&) const {
  if (!u.hard.defined())
    throw std::invalid_argument(
        "objective.entropy, ceeh: nothing says which prompts are hard; write a {kind: ceeh} under reward or advantage");
  const double now = scale_at(step, scale, steps);
  return {retain ? coef : coef * now, ceeh_entropy(u.hard, u.mask, retain ? 1 + (factor - 1) * now : factor)};
}

namespace {

Tensor ceeh_entropy_meta(const Tensor&, const Tensor& mask, double) {
  return torch::empty_symint(mask.sym_sizes(), mask.options().dtype(torch::kFloat32));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ceeh_meta(const Tensor& right, const Tensor&, const Tensor&,
                                                     const Tensor& accuracy, const Tensor& shortest, double, double) {
  const auto like = [&](torch::ScalarType type) {
    return torch::empty_symint(right.sym_sizes(), right.options().dtype(type));
  };
  return {like(torch::kBool), like(torch::kFloat64), torch::empty_symint(accuracy.sym_sizes(), accuracy.options()),
          torch::empty_symint(shortest.sym_sizes(), shortest.options())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m,
      "method_ceeh(Tensor right, Tensor length, Tensor group, Tensor accuracy, Tensor shortest, float mean, *, float "
      "scale=0.5) -> (Tensor, Tensor, Tensor, Tensor)",
      ceeh, ceeh_meta);
  define(m, "method_ceeh_entropy(Tensor hard, Tensor mask, *, float factor=5.0) -> Tensor", ceeh_entropy,
         ceeh_entropy_meta);
}

}  // namespace isentrope::methods
