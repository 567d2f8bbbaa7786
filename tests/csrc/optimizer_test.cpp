// The update rules against their formulas in double, and the learning-rate schedule.
#include "csrc/train/optimizer.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "csrc/train/finite.h"
#include "csrc/train/schedule.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;
using Named = std::vector<std::pair<std::string, Tensor>>;

Tensor leaf(const std::vector<int64_t>& shape, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, torch::kFloat32).requires_grad_(true);
}

Tensor draw(const Tensor& like, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  return at::randn(like.sizes(), generator, torch::kFloat32);
}

Named model() {
  return {{"embed", leaf({33, 31}, 1)}, {"norm", leaf({31}, 2)}, {"up", leaf({97, 31}, 3)}, {"one", leaf({1, 1}, 4)}};
}

// csrc/train/optimizer.h in double.
struct Reference {
  std::vector<Tensor> weights, first, second;
  int64_t t = 0;

  explicit Reference(const Named& parameters) {
    for (const auto& [name, w] : parameters) {
      weights.push_back(w.detach().to(torch::kFloat64));
      first.push_back(torch::zeros_like(weights.back()));
      second.push_back(torch::zeros_like(weights.back()));
    }
  }
  void step(const std::vector<Tensor>& grads, const OptimizerConfig& c, double lr) {
    ++t;
    double squares = 0;
    for (const Tensor& g : grads) squares += g.to(torch::kFloat64).square().sum().item<double>();
    const double norm = std::sqrt(squares), b1 = c.betas[0];
    const double scale = c.max_grad_norm > 0 && norm > c.max_grad_norm ? c.max_grad_norm / norm : 1.0;
    for (size_t i = 0; i < grads.size(); ++i) {
      const Tensor g = grads[i].to(torch::kFloat64) * scale;
      if (weights[i].dim() >= 2) weights[i] = weights[i] * (1 - lr * c.weight_decay);
      if (c.kind == "sgd") {
        first[i] = b1 * first[i] + g;
        weights[i] = weights[i] - lr * first[i];
        continue;
      }
      const double b2 = c.betas[1];
      first[i] = b1 * first[i] + (1 - b1) * g;
      second[i] = b2 * second[i] + (1 - b2) * g.square();
      weights[i] =
          weights[i] - lr * (first[i] / (1 - std::pow(b1, t))) / ((second[i] / (1 - std::pow(b2, t))).sqrt() + c.eps);
    }
  }
};

// torch's own AdamW in float, which sets the error that is allowed.
struct Plain {
  std::vector<Tensor> weights;
  std::unique_ptr<torch::optim::AdamW> optimizer;

  Plain(const Named& parameters, const OptimizerConfig& c) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (const auto& [name, w] : parameters) {
      weights.push_back(w.detach().clone().requires_grad_(true));
      auto options = std::make_unique<torch::optim::AdamWOptions>(c.lr);
      options->betas({c.betas[0], c.betas[1]}).eps(c.eps).weight_decay(w.dim() >= 2 ? c.weight_decay : 0.0);
      groups.emplace_back(std::vector<Tensor>{weights.back()}, std::move(options));
    }
    optimizer = std::make_unique<torch::optim::AdamW>(groups, torch::optim::AdamWOptions(c.lr));
  }
  void step(const std::vector<Tensor>& grads, const OptimizerConfig& c, double lr) {
    for (size_t i = 0; i < grads.size(); ++i) weights[i].mutable_grad() = grads[i].clone();
    if (c.max_grad_norm > 0) torch::nn::utils::clip_grad_norm_(weights, c.max_grad_norm);
    for (auto& group : optimizer->param_groups()) group.options().set_lr(lr);
    optimizer->step();
  }
};

double largest(const Tensor& x) { return x.abs().max().item<double>(); }

TEST(Optimizer, AgreesWithDoubleAsWellAsTorchDoes) {
  OptimizerConfig config;
  config.betas = {0.9, 0.98};
  config.weight_decay = 0.1;
  config.max_grad_norm = 5.0;
  const Named parameters = model();
  Reference reference(parameters);
  Plain plain(parameters, config);
  Optimizer optimizer(config, parameters);
  for (int step = 0; step < 20; ++step) {
    const double lr = 1e-3 * (step + 1);
    std::vector<Tensor> grads;
    for (size_t i = 0; i < parameters.size(); ++i) {
      // Steps of every second kind are clipped: the norm of the draws is about 64 and about 0.6.
      grads.push_back(draw(parameters[i].second, 100 + 10 * step + i) * (step % 2 ? 1.0 : 0.01));
      Tensor(parameters[i].second).mutable_grad() = grads.back().clone();
    }
    optimizer.step(lr);
    reference.step(grads, config, lr);
    plain.step(grads, config, lr);
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double error = largest(parameters[i].second.detach().to(torch::kFloat64) - reference.weights[i]);
    const double allowed = largest(plain.weights[i].detach().to(torch::kFloat64) - reference.weights[i]);
    EXPECT_LE(error, std::max(2 * allowed, 1e-7)) << parameters[i].first;  // 1e-7: one rounding of a weight near 1
  }
}

// momentum 0: torch's fused update, which this is, wants no buffer for it then.
class SgdMomentum : public testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Optimizer, SgdMomentum, testing::Values(0.9, 0.0));

TEST_P(SgdMomentum, FollowsItsFormula) {
  OptimizerConfig config;
  config.kind = "sgd";
  config.betas = {GetParam()};
  config.weight_decay = 0.1;
  config.max_grad_norm = 5.0;
  const Named parameters = model();
  Reference reference(parameters);
  Optimizer optimizer(config, parameters);
  constexpr int kSteps = 20;
  for (int step = 0; step < kSteps; ++step) {
    std::vector<Tensor> grads;
    for (size_t i = 0; i < parameters.size(); ++i) {
      grads.push_back(draw(parameters[i].second, 100 + 10 * step + i) * (step % 2 ? 1.0 : 0.01));
      Tensor(parameters[i].second).mutable_grad() = grads.back().clone();
    }
    optimizer.step(1e-2);
    reference.step(grads, config, 1e-2);
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const double size = largest(reference.weights[i]);
    // Two roundings of the weight a step, of half a unit in the last place each.
    EXPECT_LE(largest(parameters[i].second.detach().to(torch::kFloat64) - reference.weights[i]),
              kSteps * size * 0x1p-23)
        << parameters[i].first;
  }
  for (const auto& [name, tensor] : optimizer.state()) EXPECT_TRUE(name.starts_with("first.")) << name;
}

TEST(Optimizer, ReturnsTheNormBeforeClippingAndSkipsWhatHasNoGradient) {
  OptimizerConfig config;
  config.max_grad_norm = 1.0;
  const Named parameters = model();
  const Tensor before = parameters[2].second.detach().clone();
  Optimizer optimizer(config, parameters);
  Tensor(parameters[1].second).mutable_grad() = torch::full({31}, 3.0);
  EXPECT_NEAR(optimizer.step(0.1), 3.0 * std::sqrt(31.0), 1e-5);
  EXPECT_TRUE(torch::equal(parameters[2].second, before));
  optimizer.zero_grad();
  EXPECT_EQ(optimizer.step(0.1), 0.0);
}

TEST(Optimizer, NormsHaveNoDecay) {
  OptimizerConfig config;
  config.weight_decay = 0.5;
  const Named parameters = model();
  const Tensor norm = parameters[1].second.detach().clone(), up = parameters[2].second.detach().clone();
  Optimizer optimizer(config, parameters);
  for (const auto& [name, w] : parameters) Tensor(w).mutable_grad() = torch::zeros_like(w);
  optimizer.step(0.1);
  EXPECT_TRUE(torch::equal(parameters[1].second, norm));
  EXPECT_TRUE(torch::allclose(parameters[2].second, up * 0.95, 1e-6, 0));
}

TEST(Optimizer, NonFiniteGradientIsNamedAndChangesNothing) {
  for (const double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
    const Named parameters = model();
    std::vector<Tensor> before;
    Optimizer optimizer({}, parameters);
    for (const auto& [name, w] : parameters) {
      before.push_back(w.detach().clone());
      Tensor(w).mutable_grad() = torch::ones_like(w);
    }
    Tensor(parameters[2].second).mutable_grad()[96][30] = bad;
    try {
      optimizer.step(0.1);
      FAIL() << "no error for " << bad;
    } catch (const NonFinite& error) {
      EXPECT_NE(std::string(error.what()).find("up [97, 31]"), std::string::npos) << error.what();
    }
    for (size_t i = 0; i < parameters.size(); ++i) EXPECT_TRUE(torch::equal(parameters[i].second, before[i]));
    for (const auto& [name, tensor] : optimizer.state()) EXPECT_EQ(largest(tensor), 0.0) << name;
  }
}

void train(Optimizer& optimizer, const Named& parameters, int first, int last) {
  for (int step = first; step < last; ++step) {
    for (size_t i = 0; i < parameters.size(); ++i)
      Tensor(parameters[i].second).mutable_grad() = draw(parameters[i].second, 10 * step + i);
    optimizer.step(1e-2);
  }
}

class OptimizerKinds : public testing::TestWithParam<OptimizerConfig> {};
INSTANTIATE_TEST_SUITE_P(Kinds, OptimizerKinds,
                         testing::Values(OptimizerConfig{}, OptimizerConfig{.kind = "sgd", .betas = {0.9}},
                                         OptimizerConfig{.kind = "muon"}),
                         [](const auto& info) { return info.param.kind; });

TEST_P(OptimizerKinds, RestoredStateGoesOnBitForBit) {
  const Named whole = model(), first = model(), second = model();
  const std::map<std::string, std::vector<int64_t>> matrices{{"up", {90, 7}}};
  Optimizer a(GetParam(), whole, matrices), b(GetParam(), first, matrices), c(GetParam(), second, matrices);
  train(a, whole, 0, 7);
  train(b, first, 0, 3);
  std::map<std::string, Tensor> state;
  for (const auto& [name, tensor] : b.state()) state[name] = tensor.clone();
  {
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < first.size(); ++i) Tensor(second[i].second).copy_(first[i].second);
  }
  c.restore(state);
  train(c, second, 3, 7);
  for (size_t i = 0; i < whole.size(); ++i)
    EXPECT_TRUE(torch::equal(whole[i].second, second[i].second)) << whole[i].first;
}

TEST(Optimizer, RestoreNamesWhatDiffers) {
  Optimizer optimizer({}, model());
  auto message = [&](std::map<std::string, Tensor> state) -> std::string {
    try {
      optimizer.restore(state);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "no error";
  };
  auto state = optimizer.state();
  state["first.up"] = torch::zeros({3, 31});
  EXPECT_EQ(message(state), "optimiser state 'first.up' has shape [3, 31], and this model wants [97, 31]");
  state = optimizer.state();
  state.erase("second.norm");
  EXPECT_EQ(message(state), "optimiser state lacks 'second.norm'");
  state = optimizer.state();
  state["first.other"] = torch::zeros({1});
  EXPECT_EQ(message(state), "optimiser state holds 'first.other', which this model does not have");
}

TEST(Optimizer, SameBitsForAnyNumberOfThreads) {
  auto run = [](const std::string& kind, int threads) {
    at::set_num_threads(threads);
    const Named parameters{{"big", leaf({1237, 97}, 1)}, {"vector", leaf({70001}, 2)}};
    Optimizer optimizer({.kind = kind}, parameters, {{"big", {600, 637}}});
    train(optimizer, parameters, 0, 5);
    return parameters;
  };
  const int threads = at::get_num_threads();
  for (const std::string kind : {"adamw", "muon"}) {
    const Named one = run(kind, 1), three = run(kind, 3);
    at::set_num_threads(threads);
    for (size_t i = 0; i < one.size(); ++i)
      EXPECT_TRUE(torch::equal(one[i].second, three[i].second)) << kind << " " << one[i].first;
  }
}

// Muon as its paper has it, in double: what of the update is not that is the rounding of its bfloat16.
Tensor muon_direction(const MuonConfig& c, const Tensor& update) {
  Tensor x = update.size(0) > update.size(1) ? update.t() : update;
  x = x / x.norm();
  const double a = c.ns_coefficients[0], b = c.ns_coefficients[1], d = c.ns_coefficients[2];
  for (int64_t i = 0; i < c.ns_steps; ++i) {
    const Tensor gram = x.mm(x.t());
    x = a * x + (b * gram + d * gram.mm(gram)).mm(x);
  }
  return update.size(0) > update.size(1) ? x.t() : x;
}

TEST(Muon, MovesEveryJoinedMatrixByItself) {
  for (const bool nesterov : {true, false})
    for (const std::string adjust : {"original", "match_rms_adamw"}) {
      const MuonConfig muon{.lr = 0.02, .nesterov = nesterov, .adjust_lr_fn = adjust};
      OptimizerConfig config{.kind = "muon", .lr = 0.01, .weight_decay = 0.1, .max_grad_norm = 0, .muon = muon};
      const Named parameters = model();
      const std::vector<int64_t> rows{64, 16, 17};
      Optimizer optimizer(config, parameters, {{"up", rows}});
      Tensor weight = parameters[2].second.detach().to(torch::kFloat64).clone(), mean = torch::zeros_like(weight);
      for (int step = 0; step < 3; ++step) {
        const Tensor before = weight.clone();
        const Tensor grad = draw(weight, 7 + step);
        for (const auto& [name, w] : parameters) Tensor(w).mutable_grad() = draw(w, 50 + step);
        Tensor(parameters[2].second).mutable_grad() = grad.clone();
        optimizer.step(/*lr=*/0.005);  // half of the peak
        const Tensor g = grad.to(torch::kFloat64);
        mean = 0.95 * mean + 0.05 * g;
        const Tensor update = nesterov ? 0.95 * mean + 0.05 * g : mean;
        weight = weight * (1 - 0.01 * 0.1);
        int64_t first = 0;
        for (const int64_t count : rows) {
          const auto A = static_cast<double>(count), B = 31.0;
          const double share = adjust == "original" ? std::sqrt(std::max(1.0, A / B)) : 0.2 * std::sqrt(std::max(A, B));
          weight.slice(0, first, first + count)
              .sub_(0.01 * share * muon_direction(muon, update.slice(0, first, first + count)));
          first += count;
        }
        const double moved = largest(weight - before);
        EXPECT_LT(largest(parameters[2].second.detach().to(torch::kFloat64) - weight), 0.05 * moved * (step + 1))
            << adjust << " " << nesterov << ", step " << step;
      }
      const auto state = optimizer.state();
      EXPECT_TRUE(state.contains("first.up") && !state.contains("second.up") && state.contains("second.embed"));
    }
}

TEST(Muon, AllElseIsAdamW) {
  const Named with = model(), plain = model();
  Optimizer a({.kind = "muon"}, with, {{"up", {97}}}), b({.kind = "adamw"}, plain);
  train(a, with, 0, 3);
  train(b, plain, 0, 3);
  for (size_t i = 0; i < with.size(); ++i)
    EXPECT_EQ(torch::equal(with[i].second, plain[i].second), with[i].first != "up") << with[i].first;
}

TEST(Muon, ItsMatricesAreThoseOfTheBlocks) {
  model::DecoderConfig config{.num_attention_heads = 4, .num_key_value_heads = 2, .vocabulary = 11};
  config.sigma_reparam.layers = {"all"};
  config.attention.qk_norm = true;
  config.attention.temperature = "row";
  const auto matrices = muon_matrices(config);
  model::Decoder decoder(config, 1);
  size_t met = 0;
  for (const auto& parameter : decoder->named_parameters()) {
    const auto found = matrices.find(parameter.key());
    const bool in_block = parameter.key().starts_with("layers.");
    EXPECT_EQ(found != matrices.end(), in_block && parameter.value().dim() == 2) << parameter.key();
    if (found == matrices.end()) continue;
    ++met;
    int64_t sum = 0;
    for (const int64_t rows : found->second) sum += rows;
    EXPECT_EQ(sum, parameter.value().size(0)) << parameter.key();
  }
  EXPECT_EQ(met, matrices.size());
  EXPECT_EQ(matrices.at("layers.1.qkv"), (std::vector<int64_t>{64, 32, 32}));
}

TEST(Optimizer, ConfigProblems) {
  OptimizerConfig config;
  EXPECT_EQ(config.problem(), "");
  config.betas = {0.9};
  EXPECT_NE(config.problem(), "");
  config.betas = {0.9, 1.0};
  EXPECT_NE(config.problem(), "");
  config.muon.emplace();
  config.betas = {0.9, 0.98};
  EXPECT_NE(config.problem().find("belongs to kind muon"), std::string::npos);
  config.kind = "muon";
  EXPECT_EQ(config.problem(), "");
  config.muon->ns_coefficients = {1, 2};
  EXPECT_NE(config.muon->problem(), "");
  config.muon->ns_coefficients = {1, 2, 3};
  config.muon->momentum = 1;
  EXPECT_NE(config.muon->problem(), "");
  config.muon.reset();
  config.kind = "sgd";
  config.betas = {0.9, 0.98};
  EXPECT_EQ(config.problem(), "betas: 2 values; sgd has one moment: write [0.9], or [0] for none");
  config.betas = {0.9};
  EXPECT_EQ(config.problem(), "");
}

TEST(Schedule, TheLastStepHasTheFloorAndTheFirstThePeak) {
  for (const char* kind : {"linear", "cosine"})
    for (const int64_t warmup : {0, 2})
      for (const int64_t steps : {4, 6, 50}) {
        const ScheduleConfig config{.kind = kind, .warmup_steps = warmup, .min_lr_ratio = 0.1};
        EXPECT_DOUBLE_EQ(learning_rate_share(config, warmup, steps), 1.0) << kind << " " << warmup << " " << steps;
        EXPECT_DOUBLE_EQ(learning_rate_share(config, steps - 1, steps), 0.1) << kind << " " << warmup << " " << steps;
        EXPECT_GT(learning_rate_share(config, steps - 2, steps), 0.1);
      }
  EXPECT_DOUBLE_EQ(learning_rate_share({.kind = "linear", .min_lr_ratio = 0.1}, 0, 1), 0.1);
}

TEST(Schedule, WsdStaysAndFallsAtTheEnd) {
  ScheduleConfig config{.kind = "wsd", .warmup_steps = 4, .min_lr_ratio = 0.1, .decay_ratio = 0.2};
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 1, 100), 0.5);
  for (const int64_t step : {4, 50, 79}) EXPECT_EQ(learning_rate_share(config, step, 100), 1.0) << step;
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 80, 100), 1 - 0.9 * 0.05);
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 84, 100), 1 - 0.9 * 0.25);
  config.decay_shape = "1-sqrt";
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 84, 100), 1 - 0.9 * 0.5);
  config.decay_shape = "cosine";
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 89, 100), 0.55);
  for (const char* shape : {"linear", "cosine", "1-sqrt"}) {
    config.decay_shape = shape;
    EXPECT_DOUBLE_EQ(learning_rate_share(config, 99, 100), 0.1) << shape;
    EXPECT_EQ(learning_rate_share(config, 79, 100), 1.0) << shape;
    EXPECT_EQ(learning_rate_share(config, 100, 1000), 1.0) << "a longer phase goes on at the peak";
  }
  config.decay_ratio = 0.001;
  EXPECT_EQ(learning_rate_share(config, 98, 100), 1.0) << "one step at least";
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 99, 100), 0.1);
}

TEST(Schedule, Shapes) {
  ScheduleConfig config{.kind = "cosine", .warmup_steps = 4, .min_lr_ratio = 0.1};
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 0, 105), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 3, 105), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 4, 105), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 54, 105), 0.55);
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 104, 105), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 1000, 105), 0.1);
  config.kind = "linear";
  EXPECT_DOUBLE_EQ(learning_rate_share(config, 29, 105), 1.0 - 0.9 * 0.25);
  config.kind = "constant";
  EXPECT_EQ(learning_rate_share(config, 103, 105), 1.0);
  config = {};
  EXPECT_EQ(learning_rate_share(config, 0, 1), 1.0);
  config.kind = "cosine";
  config.warmup_steps = 10;
  EXPECT_EQ(learning_rate_share(config, 4, 5), 0.5);  // warm-up longer than the phase
  config.kind = "step";
  EXPECT_THROW(learning_rate_share(config, 10, 20), std::invalid_argument);
}

// By which a copy of a weight in another type knows that it is another (csrc/model/bfloat16_training.h).
TEST(Optimizer, EveryUpdateCountsAsAChangeInPlace) {
  for (const char* kind : {"adamw", "sgd", "muon"}) {
    OptimizerConfig config;
    config.kind = kind;
    if (config.kind == "sgd") config.betas = {0.9};
    const Named parameters = model();
    Optimizer optimizer(config, parameters, {{"up", {97}}});
    for (int64_t step = 0; step < 3; ++step) {
      std::vector<uint32_t> before;
      for (const auto& [name, w] : parameters) {
        Tensor(w).mutable_grad() = draw(w, 7);
        before.push_back(w._version());
      }
      optimizer.step(1e-3);
      for (size_t i = 0; i < parameters.size(); ++i)
        EXPECT_GT(parameters[i].second._version(), before[i])
            << kind << ", " << parameters[i].first << ", step " << step;
    }
  }
}

// ---- what is asked before an update -------------------------------------------------------------------------------

// Rules with moments that are long, short and none, a decay that overshoots, and gradients from those that underflow when squared
// to those whose square is next to the largest float.
TEST(UpdateBound, HoldsWhateverTheGradients) {
  const std::vector<OptimizerConfig> configs{
      {},
      {.betas = {0.99, 0.9}, .weight_decay = 0},
      {.betas = {0.9, 0.0}},
      {.betas = {0.0, 0.0}, .eps = 1e-30},
      {.betas = {0.95, 0.99999}, .eps = 1e-3, .weight_decay = 0.5},
      {.kind = "sgd", .betas = {0.99}},
      {.kind = "sgd", .betas = {0.0}, .weight_decay = 0.5},
  };
  auto generator = at::detail::createCPUGenerator(7);
  for (size_t c = 0; c < configs.size(); ++c) {
    OptimizerConfig config = configs[c];
    config.max_grad_norm = 0;
    for (const double scale : {1e-30, 1e-21, 1e-19, 1.0, 1e12, 1e17}) {
      const Tensor weight = leaf({31, 33}, 11 + c);
      Optimizer optimizer(config, {{"w", weight}});
      UpdateBound bound{.weights = largest(weight.detach())};
      int made = 0;
      for (int step = 0; step < 60; ++step) {
        const double lr = std::pow(10.0, step % 7 - 4);
        Tensor grad = at::randn({31, 33}, generator, torch::kFloat32) * scale;
        grad.masked_fill_(at::rand({31, 33}, generator) < 0.5, 0.0);
        if (step % 11 == 5) grad *= 30;
        weight.mutable_grad() = grad;
        double norm = 0;
        try {
          norm = optimizer.ask(lr, /*bounded=*/true);
        } catch (const NonFinite&) {
          EXPECT_GT(scale, 1e11) << c;
          break;
        }
        bound = bound.after(config, lr, norm);
        optimizer.apply();
        ++made;
        ASSERT_TRUE(all_finite(weight.detach())) << "config " << c << ", gradients " << scale << ", step " << step;
        ASSERT_LE(largest(weight.detach()), bound.weights) << "config " << c << ", gradients " << scale;
        const auto state = optimizer.state();
        const Tensor first = state.at("first.w").to(torch::kFloat64);
        ASSERT_LE(largest(first), bound.first);
        if (config.kind == "sgd") continue;
        const Tensor second = state.at("second.w").to(torch::kFloat64);
        ASSERT_LE(largest(first.square() / (second + lost_to_underflow(config))), 1.01 * bound.ratio)
            << "config " << c << ", gradients " << scale;
      }
      EXPECT_GT(made, 0) << "config " << c << ", gradients " << scale;
    }
  }
}

TEST(Optimizer, AnUpdateThatCouldOverflowIsRefusedBeforeIt) {
  struct Case {
    OptimizerConfig config;
    double lr, gradient, weight;
  };
  const std::vector<Case> cases{
      {{}, 1e200, 1, 1},
      {{}, 1e37, 1, 1},
      {{.eps = 1e-60}, 1e-3, 0, 1},  // 0 / (0 + eps), and eps is 0 in float
      {{.weight_decay = 1e30}, 1.0, 1, 1e10},
      {{.max_grad_norm = 0}, 1e-3, 1e18, 1},  // times 33 · 31 in the norm, a square beyond the largest float
      {{.kind = "sgd", .betas = {0.9}, .max_grad_norm = 0}, 1e30, 1e9, 1},
      {{.kind = "sgd", .betas = {0.0}}, 1e-3, 1, 2e38},
  };
  for (size_t c = 0; c < cases.size(); ++c) {
    const Named parameters = model();
    std::vector<Tensor> before;
    Optimizer optimizer(cases[c].config, parameters);
    {
      const torch::NoGradGuard no_grad;
      for (const auto& [name, w] : parameters) Tensor(w).fill_(cases[c].weight);
    }
    for (const auto& [name, w] : parameters) {
      before.push_back(w.detach().clone());
      Tensor(w).mutable_grad() = torch::full_like(w, cases[c].gradient);
    }
    try {
      optimizer.ask(cases[c].lr, /*bounded=*/true);
      ADD_FAILURE() << "no error, case " << c;
    } catch (const NonFinite& error) {
      const std::string said = error.what();
      EXPECT_NE(said.find("no weight was changed"), std::string::npos) << said;
      EXPECT_NE(said.find("could leave weights that are not finite"), std::string::npos) << said;
    }
    for (size_t i = 0; i < parameters.size(); ++i) EXPECT_TRUE(torch::equal(parameters[i].second, before[i])) << c;
    for (const auto& [name, tensor] : optimizer.state()) EXPECT_EQ(largest(tensor), 0.0) << name;
  }
}

TEST(Optimizer, ManyOrdinaryUpdatesAreNotRefused) {
  OptimizerConfig config;
  config.betas = {0.9, 0.95};
  const Named parameters = model();
  Optimizer optimizer(config, parameters);
  for (int step = 0; step < 2000; ++step) {
    for (const auto& [name, w] : parameters) Tensor(w).mutable_grad() = torch::ones_like(w);
    EXPECT_NO_THROW(optimizer.ask(0.1, /*bounded=*/true)) << step;
    optimizer.apply();
  }
}

TEST(Optimizer, MomentsThatNoUpdateLeavesAreRefused) {
  Optimizer optimizer({}, model());
  for (const auto& [key, value] : std::vector<std::pair<std::string, float>>{
           {"first.up", NAN}, {"first.up", INFINITY}, {"second.up", NAN}, {"second.up", -1}}) {
    auto state = optimizer.state();
    for (auto& [name, tensor] : state) tensor = tensor.clone();
    state.at(key)[5][7] = value;
    try {
      optimizer.restore(state);
      ADD_FAILURE() << key << " " << value;
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()), "the optimiser state of 'up' is not finite; take another checkpoint");
    }
  }
}

TEST(Finite, SeesOneNumberThatIsNoneAnywhere) {
  const float large = std::numeric_limits<float>::max(), infinite = std::numeric_limits<float>::infinity();
  for (const int64_t size : {0, 1, 15, 16, 17, 100003}) {
    const torch::Tensor x = torch::full({size}, large);
    EXPECT_TRUE(all_finite(x)) << size;
    for (const int64_t at : {int64_t{0}, size / 2, size - 1})
      for (const float bad : {infinite, -infinite, std::numeric_limits<float>::quiet_NaN()}) {
        if (size == 0) continue;
        x[at] = bad;
        EXPECT_FALSE(all_finite(x)) << size << " " << at;
        EXPECT_FALSE(all_finite(x.to(torch::kBFloat16)));
        x[at] = -0.0f;
      }
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
