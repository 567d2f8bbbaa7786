// optimizer.noise: its draws by their definition, what they are added to, and that no bit depends on how an update is cut.
#include "csrc/train/added_noise.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "csrc/train/optimizer.h"
#include "kernels/gpu/philox.h"

namespace isentrope::train {

void add_noise(const NoiseRun& run);  // the widest of this processor

namespace ISENTROPE_UNIT {

using torch::Tensor;

std::vector<float> drawn(uint64_t key, uint64_t high, int64_t first, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count), 3.0f);
  add_noise({.key = key,
             .counter_high = high,
             .scale = 0,
             .deviation = 1,
             .first = first,
             .count = count,
             .gradient = out.data()});
  return out;
}

TEST(AddedNoise, IsPhiloxAndBoxMullerInDouble) {
  const uint64_t key = 0x123456789abcdef0ull, high = 0xfedcba9876543210ull;
  const std::vector<float> found = drawn(key, high, 0, 1000);
  for (int64_t i = 0; i < 1000; ++i) {
    const int64_t lane = i % 16, number = i % 64 / 16;
    const PhiloxBlock block = philox(key, static_cast<uint64_t>(16 * (i / 64) + lane), high);
    const uint32_t of_radius = block.word[number / 2 * 2], of_angle = block.word[number / 2 * 2 + 1];
    const double radius = std::sqrt(-2 * std::log((static_cast<double>(of_radius >> 9) + 0.5) * 0x1p-23));
    // The angle in quarters of a turn from −45°: a half turn of 2³¹.
    const double angle = (of_angle >> 30) * std::numbers::pi / 2 +
                         (static_cast<double>(of_angle & 0x3fffffffu) * 0x1p-30 - 0.5) * std::numbers::pi / 2;
    const double truth = radius * (number % 2 == 0 ? std::cos(angle) : std::sin(angle));
    EXPECT_NEAR(found[static_cast<size_t>(i)], truth, 2e-6) << i;
  }
}

TEST(AddedNoise, IsNormal) {
  const int64_t n = 1 << 20;
  const std::vector<float> x = drawn(1, 2, 0, n);
  double sum = 0, squares = 0, fourth = 0, beside = 0, within = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double v = x[static_cast<size_t>(i)];
    sum += v, squares += v * v, fourth += v * v * v * v, within += std::abs(v) < 1;
    if (i >= 16) beside += v * x[static_cast<size_t>(i - 16)];  // cosine and sine of one pair
    EXPECT_LT(std::abs(v), kMostDeviations);
  }
  const double four = 4 / std::sqrt(static_cast<double>(n));  // four standard errors of a mean of deviation 1
  EXPECT_LT(std::abs(sum / n), four);
  EXPECT_LT(std::abs(squares / n - 1), four * std::sqrt(2));
  EXPECT_LT(std::abs(fourth / n - 3), four * std::sqrt(96));
  EXPECT_LT(std::abs(beside / n), four);
  EXPECT_LT(std::abs(within / n - 0.682689), four * 0.5);
}

TEST(AddedNoise, DoesNotDependOnTheCut) {
  const std::vector<float> whole = drawn(5, 6, 0, 777);
  for (const int64_t first : {64, 320, 704}) {
    const std::vector<float> part = drawn(5, 6, first, 777 - first);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + first)) << first;
  }
  EXPECT_NE(drawn(6, 6, 0, 64), drawn(5, 6, 0, 64));
  EXPECT_NE(drawn(5, 7, 0, 64), drawn(5, 6, 0, 64));
}

std::vector<std::pair<std::string, Tensor>> parameters(int64_t long_one) {
  return {{"one", torch::ones({33, 31}).requires_grad_(true)},
          {"frozen", torch::ones({7}).requires_grad_(true)},
          {"long", torch::ones({long_one}).requires_grad_(true)}};
}

OptimizerConfig noisy(double eta, double gamma = 0.55) {
  OptimizerConfig config;
  config.kind = "sgd";
  config.betas = {0.0};
  config.weight_decay = 0;
  config.max_grad_norm = 2;
  config.noise = NoiseConfig{.eta = eta, .gamma = gamma};
  return config;
}

TEST(AddedNoise, ComesBehindClippingAndLeavesFrozenParametersAlone) {
  const auto moved = [](bool with_noise, int64_t step, double* ratio) {
    auto all = parameters(100'000);
    OptimizerConfig config = noisy(0.25);
    if (!with_noise) config.noise.reset();
    Optimizer optimizer(config, all);
    for (const size_t i : {0, 2}) all[i].second.mutable_grad() = torch::full_like(all[i].second, 0.5).detach();
    optimizer.ask(1.0, true, {.seed = 9, .step = step});
    *ratio = optimizer.noise_ratio();
    optimizer.apply();
    EXPECT_TRUE(all[1].second.eq(1).all().item<bool>());
    return torch::cat({all[0].second.detach().flatten(), all[2].second.detach()}).to(torch::kFloat64);
  };
  double ratio = 0, none = 0;
  const Tensor clean = moved(false, 0, &none);
  EXPECT_EQ(none, 0);
  const double n = 33 * 31 + 100'000;
  for (const int64_t step : {0, 99}) {
    const Tensor noise = clean - moved(true, step, &ratio);
    const double deviation = std::sqrt(0.25 / std::pow(1.0 + static_cast<double>(step), 0.55));
    EXPECT_NEAR(noise.std().item<double>(), deviation, 0.02 * deviation) << step;
    EXPECT_NEAR(noise.mean().item<double>(), 0, 0.02 * deviation) << step;
    EXPECT_NEAR(ratio, deviation * std::sqrt(n) / 2, 1e-6 * ratio) << step;  // the clipped norm is 2
  }
}

TEST(AddedNoise, HasTheSameBitsOnAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  std::vector<Tensor> found;
  for (const int n : {1, 3}) {
    at::set_num_threads(n);
    auto all = parameters(200'000);
    Optimizer optimizer(noisy(1), all);
    for (auto& [name, x] : all) x.mutable_grad() = torch::ones_like(x).detach();
    optimizer.ask(1.0, true, {.seed = 1, .step = 3});
    optimizer.apply();
    found.push_back(all[2].second.detach().clone());
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(torch::equal(found[0], found[1]));
}

TEST(AddedNoise, OffChangesNoBit) {
  const auto made = [](bool drawn) {
    auto all = parameters(1000);
    OptimizerConfig config = noisy(1);
    config.noise.reset();
    Optimizer optimizer(config, all);
    for (auto& [name, x] : all) x.mutable_grad() = torch::full_like(x, 0.1).detach();
    drawn ? optimizer.ask(0.1, true, {.seed = 7, .step = 1}) : optimizer.ask(0.1, true);
    optimizer.apply();
    return all[2].second.detach().clone();
  };
  EXPECT_TRUE(torch::equal(made(true), made(false)));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
