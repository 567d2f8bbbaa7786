// optimizer.consolidation against a loop in double and figures that were computed elsewhere.
#include "csrc/train/consolidation.h"

#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>

#include "csrc/train/optimizer.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;
using State = std::map<std::string, Tensor>;

// Two tasks f = ½ Σ h (w − c)².
struct Task {
  std::vector<double> h, c;
  Tensor gradient(const Tensor& w) const {
    return (torch::tensor(h) * (w.detach().to(torch::kFloat64) - torch::tensor(c))).to(torch::kFloat32);
  }
};
const Task kFirst{{4, 0.1}, {1, 0}}, kSecond{{0.2, 2}, {-1, 2}};

OptimizerConfig sgd(const ConsolidationConfig& consolidation) {
  OptimizerConfig config;
  config.kind = "sgd";
  config.betas = {0};
  config.max_grad_norm = 0;
  config.consolidation = consolidation;
  return config;
}

void learn(Optimizer& optimizer, const Tensor& w, const Task& task, int steps = 50) {
  for (int i = 0; i < steps; ++i) {
    w.mutable_grad() = task.gradient(w);
    optimizer.step(0.1);
  }
}

void expect(const Tensor& found, double a, double b) {
  EXPECT_NEAR(found[0].item<double>(), a, 2e-6);  // figures of six digits
  EXPECT_NEAR(found[1].item<double>(), b, 2e-6);
}

// Of the state that the first task leaves, with Σ g² set to h of that task, so that Ω is (1, 0.025).
State after_first(const Tensor& w, const ConsolidationConfig& config) {
  Optimizer first(sgd(config), {{"w", w}});
  learn(first, w, kFirst);
  expect(w.detach(), 1, 0);
  State left = first.left();
  left.at("squares.w").copy_(torch::tensor({4.0, 0.1}));
  return left;
}

class Rigidity : public testing::TestWithParam<std::tuple<double, double, double>> {};
INSTANTIATE_TEST_SUITE_P(Consolidation, Rigidity,
                         testing::Values(std::tuple{0.0, 0.702381, 0.952374}, std::tuple{1.0, 0.601190, 0.929145},
                                         std::tuple{4.0, 0.540476, 0.865794}));

TEST_P(Rigidity, HoldsWhatATaskNeedsAndTheSlowWeightsFollow) {
  const auto [rigidity, a, b] = GetParam();
  const ConsolidationConfig config{.strength = 4, .slow_rate = 0.5, .rigidity = rigidity};
  Tensor w = torch::zeros({2}).requires_grad_(true);
  const State left = after_first(w, config);

  Optimizer second(sgd(config), {{"w", w}});
  second.begin_task(left);
  const State begun = second.state();
  expect(begun.at("importance.w"), 1, 0.025);
  expect(begun.at("anchor.w"), 1, 0);
  expect(begun.at("slow.w"), 0.5, 0);  // half of the way from 0, as nothing was important before
  learn(second, w, kSecond);
  expect(w.detach(), 0.904762, 1.904747);

  Optimizer third(sgd(config), {{"w", w}});
  third.begin_task(second.left());
  expect(third.state().at("slow.w"), a, b);
}

TEST(Consolidation, WithoutStrengthChangesNoBitAndForgets) {
  Tensor w = torch::zeros({2}).requires_grad_(true), plain = torch::zeros({2}).requires_grad_(true);
  const ConsolidationConfig config{.strength = 0};
  const State left = after_first(w, config);
  Optimizer second(sgd(config), {{"w", w}});
  second.begin_task(left);
  learn(second, w, kSecond);
  expect(w.detach(), -0.271661, 1.999971);

  OptimizerConfig off = sgd(config);
  off.consolidation.reset();
  for (const Task& task : {kFirst, kSecond}) {
    Optimizer optimizer(off, {{"w", plain}});
    learn(optimizer, plain, task);
  }
  EXPECT_TRUE(torch::equal(w, plain)) << w << plain;
}

// AdamW, clipping in every second step, a task with a matrix and a vector: Ω, the pull and its penalty against a loop in double.
TEST(Consolidation, FollowsItsFormulaUnderAdamW) {
  auto generator = at::detail::createCPUGenerator(3);
  const auto draw = [&](std::vector<int64_t> shape) { return at::randn(shape, generator, torch::kFloat32); };
  OptimizerConfig config;
  config.max_grad_norm = 4;
  config.consolidation = ConsolidationConfig{.strength = 30, .slow_rate = 0.3, .rigidity = 2};
  const std::vector<std::vector<int64_t>> shapes{{7, 5}, {31}};
  std::vector<std::pair<std::string, Tensor>> named;
  for (size_t i = 0; i < shapes.size(); ++i)
    named.emplace_back(std::to_string(i), draw(shapes[i]).requires_grad_(true));
  std::vector<Tensor> omega, anchor, slow, first, second;
  for (const auto& [name, w] : named) {
    const Tensor zero = torch::zeros_like(w, torch::kFloat64).detach();
    omega.push_back(zero), anchor.push_back(w.detach().to(torch::kFloat64)), slow.push_back(anchor.back().clone());
  }
  State left;
  for (int task = 0; task < 3; ++task) {
    Optimizer optimizer(config, named);
    optimizer.begin_task(left);
    std::vector<Tensor> squares, m, v;
    for (const Tensor& one : omega)
      squares.push_back(torch::zeros_like(one)), m.push_back(torch::zeros_like(one)),
          v.push_back(torch::zeros_like(one));
    for (int t = 1; t <= 6; ++t) {
      double norm = 0, penalty = 0;
      std::vector<Tensor> grads, before;
      for (size_t i = 0; i < named.size(); ++i) {
        const Tensor g = draw(shapes[i]) * (t % 2 ? 1.0 : 0.1);
        named[i].second.mutable_grad() = g.clone();
        grads.push_back(g.to(torch::kFloat64)), before.push_back(named[i].second.detach().to(torch::kFloat64));
        norm += grads[i].square().sum().item<double>();
      }
      norm = std::sqrt(norm);
      optimizer.ask(1e-2, true);
      const auto held = optimizer.held();
      optimizer.apply();
      for (size_t i = 0; i < named.size(); ++i) {
        Tensor g = grads[i] * std::min(1.0, 4 / norm);
        squares[i] += g.square();
        const Tensor away = before[i] - anchor[i];
        penalty += 15 * (omega[i] * away.square()).sum().item<double>();
        g += 30 * omega[i] * away;
        m[i] = 0.9 * m[i] + 0.1 * g, v[i] = 0.999 * v[i] + 0.001 * g.square();
        Tensor next = before[i] * (before[i].dim() >= 2 ? 1 - 1e-2 * config.weight_decay : 1.0);
        next -= 1e-2 * (m[i] / (1 - std::pow(0.9, t))) / ((v[i] / (1 - std::pow(0.999, t))).sqrt() + config.eps);
        const double error = (named[i].second.detach().to(torch::kFloat64) - next).abs().max().item<double>();
        EXPECT_LE(error, 2e-6) << "task " << task << " step " << t << " tensor "
                               << i;  // a rounding of weights up to 4, and
      }                               // those of a step of 0.01
      EXPECT_EQ(held.has_value(), task > 0);
      if (held) {
        EXPECT_NEAR(*held, penalty, 1e-5 * penalty) << "task " << task << " step " << t;
      }
    }
    double most = 0;
    for (const Tensor& one : squares) most = std::max(most, one.max().item<double>());
    for (size_t i = 0; i < named.size(); ++i) {
      const Tensor w = named[i].second.detach().to(torch::kFloat64);
      slow[i] += 0.3 / (1 + 2 * omega[i]) * (w - slow[i]);
      omega[i] += squares[i] / most;
      anchor[i] = w;
    }
    left = optimizer.left();
    Optimizer next(config, named);
    next.begin_task(left);
    const State state = next.state();
    for (size_t i = 0; i < named.size(); ++i)
      for (const auto& [part, wanted] :
           {std::pair{"importance.", omega[i]}, {"slow.", slow[i]}, {"anchor.", anchor[i]}})
        EXPECT_TRUE(torch::allclose(state.at(part + named[i].first).to(torch::kFloat64), wanted, 1e-5, 1e-6))
            << part << i;
  }
}

TEST(Consolidation, GoesOnFromItsStateBitForBitAndNamesWhatIsMissing) {
  const ConsolidationConfig config{.strength = 4};
  Tensor w = torch::zeros({2}).requires_grad_(true);
  const State left = after_first(w, config);
  Optimizer whole(sgd(config), {{"w", w}});
  whole.begin_task(left);
  learn(whole, w, kSecond, 20);
  State state;
  for (const auto& [name, tensor] : whole.state()) state[name] = tensor.clone();
  Tensor copy = w.detach().clone().requires_grad_(true);
  learn(whole, w, kSecond, 30);

  Optimizer resumed(sgd(config), {{"w", copy}});
  resumed.restore(state);
  learn(resumed, copy, kSecond, 30);
  EXPECT_TRUE(torch::equal(w, copy));
  for (const auto& [name, tensor] : whole.state()) EXPECT_TRUE(torch::equal(tensor, resumed.state().at(name))) << name;

  state.erase("slow.w");
  try {
    resumed.restore(state);
    FAIL() << "a state without slow weights was taken";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("slow.w"), std::string::npos) << error.what();
  }
}

TEST(Consolidation, BeginsAgainAtTheSlowWeights) {
  const ConsolidationConfig config{.strength = 4, .restart = "slow"};
  Tensor w = torch::zeros({2}).requires_grad_(true);
  const State left = after_first(w, config);
  Optimizer second(sgd(config), {{"w", w}});
  second.begin_task(left);
  expect(w.detach(), 0.5, 0);
  expect(second.state().at("anchor.w"), 1, 0);
}

TEST(Consolidation, IsNotForMuon) {
  OptimizerConfig config;
  config.kind = "muon";
  config.consolidation = ConsolidationConfig{};
  EXPECT_NE(config.problem().find("consolidation: "), std::string::npos) << config.problem();
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
