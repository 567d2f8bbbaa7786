// The gradient noise scale against variances by their definition, and against gradients whose covariance is planted.
#include "csrc/train/gradient_noise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using Vector = std::vector<double>;

double squares(const Vector& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return sum;
}

// Σ of vectors begin … end − 1, each over B: what they add to the mean of all B.
Vector share(const std::vector<Vector>& x, size_t begin, size_t end) {
  Vector sum(x[0].size(), 0.0);
  for (size_t i = begin; i < end; ++i)
    for (size_t k = 0; k < sum.size(); ++k) sum[k] += x[i][k] / static_cast<double>(x.size());
  return sum;
}

// One sequence a part, all of them: the variance of the sample, and the square of its mean less what chance has in that.
TEST(GradientNoise, OfSinglesIsTheVarianceOfTheSample) {
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  const size_t B = 7, D = 5;
  std::vector<Vector> x(B, Vector(D));
  for (Vector& one : x)
    for (double& v : one) v = 0.3 + normal(random);
  const Vector mean = share(x, 0, B);
  double trace = 0;
  for (const Vector& one : x)
    for (size_t k = 0; k < D; ++k) trace += (one[k] - mean[k]) * (one[k] - mean[k]) / (B - 1);
  std::vector<GradientNoise::Part> parts;
  for (size_t i = 0; i < B; ++i) parts.push_back({squares(share(x, i, i + 1)), 1});
  const auto found = GradientNoise::find(parts, B, std::sqrt(squares(mean)));
  ASSERT_TRUE(found);
  EXPECT_NEAR(found->trace, trace, 1e-12);
  EXPECT_NEAR(found->square, squares(mean) - trace / B, 1e-12);
}

// Gradients G + σ_k n with known σ; one part of b of B sequences, and two parts of other sizes: both without bias, and the scale of
// their running means is tr Σ / |G|².
TEST(GradientNoise, FindsAPlantedCovariance) {
  const size_t B = 12, D = 40, updates = 20000;
  Vector mean(D), sigma(D);
  double trace = 0;
  for (size_t k = 0; k < D; ++k) {
    mean[k] = 0.2 * std::cos(static_cast<double>(k));
    sigma[k] = 0.5 + 0.02 * static_cast<double>(k);
    trace += sigma[k] * sigma[k];
  }
  const double square = squares(mean);
  for (const auto& cuts : {std::vector<size_t>{0, 3}, {0, 2, 7}}) {
    std::mt19937_64 random(11);
    std::normal_distribution<double> normal;
    double traces = 0, trace_squares = 0, of_square = 0, square_squares = 0;
    GradientNoise noise;
    double log_scale = 0;
    size_t told = 0;
    for (size_t u = 0; u < updates; ++u) {
      std::vector<Vector> x(B, Vector(D));
      for (Vector& one : x)
        for (size_t k = 0; k < D; ++k) one[k] = mean[k] + sigma[k] * normal(random);
      std::vector<GradientNoise::Part> parts;
      for (size_t i = 0; i + 1 < cuts.size(); ++i)
        parts.push_back({squares(share(x, cuts[i], cuts[i + 1])), static_cast<double>(cuts[i + 1] - cuts[i])});
      const auto found = GradientNoise::find(parts, B, std::sqrt(squares(share(x, 0, B))));
      ASSERT_TRUE(found);
      traces += found->trace, trace_squares += found->trace * found->trace;
      of_square += found->square, square_squares += found->square * found->square;
      noise.add(*found);
      if (const auto scale = noise.scale(); scale && u % 100 == 99) log_scale += std::log(*scale), ++told;
    }
    const double n = updates;
    const auto error = [&](double sum, double sums) { return std::sqrt((sums / n - sum / n * sum / n) / n); };
    EXPECT_NEAR(traces / n, trace, 4 * error(traces, trace_squares));
    EXPECT_NEAR(of_square / n, square, 4 * error(of_square, square_squares));
    EXPECT_LT(4 * error(traces, trace_squares), 0.05 * trace) << "the test sees nothing";
    ASSERT_GT(told, 150u);
    EXPECT_NEAR(std::exp(log_scale / static_cast<double>(told)), trace / square, 0.5 * trace / square);
  }
}

TEST(GradientNoise, WantsAPartThatIsNotTheWhole) {
  EXPECT_FALSE(GradientNoise::find({}, 4, 1.0));
  EXPECT_FALSE(GradientNoise::find({{2.0, 4.0}}, 4, 1.0));
  EXPECT_FALSE(GradientNoise::find({{2.0, 0.0}}, 4, 1.0));
  EXPECT_TRUE(GradientNoise::find({{2.0, 4.0}, {0.0, 0.0}, {0.3, 1.0}}, 4, 1.0));
}

TEST(GradientNoise, GoesOnWhereItWas) {
  GradientNoise noise;
  EXPECT_TRUE(noise.state().empty());
  EXPECT_FALSE(noise.scale());
  noise.add({.trace = 3, .square = 2});
  noise.add({.trace = 1, .square = -0.5});
  GradientNoise other;
  other.restore(noise.state());
  noise.add({.trace = 2, .square = 1});
  other.add({.trace = 2, .square = 1});
  EXPECT_EQ(noise.state(), other.state());
  EXPECT_EQ(*noise.scale(), *other.scale());
  GradientNoise below;
  below.add({.trace = 3, .square = -2});
  EXPECT_FALSE(below.scale());
  EXPECT_THROW(other.restore({1}), std::runtime_error);
}

// What Gradients measures of the first pass is the gradient that its rows alone have, over the whole update's tokens.
TEST(GradientNoise, TheFirstPassIsMeasured) {
  const data::Batch update = update_of();
  for (const char* kind : {"sft", "grpo"})
    for (const auto& [micro_tokens, rows] : {std::pair<int64_t, int64_t>{0, 6}, {33, 3}, {11, 1}}) {
      ObjectiveConfig config = grpo("clip");
      config.kind = kind;
      model::Decoder model = small_model();
      Gradients gradients(std::make_shared<Ranks>(), model->parameters());
      const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model);
      objective->backward(model, update, 5, nullptr, &gradients);
      EXPECT_FALSE(gradients.measured()) << "nobody asked";
      gradients.drop();
      gradients.measure();
      objective->backward(model, update, 5, nullptr, &gradients);
      const auto part = gradients.measured();
      ASSERT_TRUE(part);
      EXPECT_FALSE(gradients.measured()) << "told once";
      data::Batch first = update.rows(0, rows);
      const double share =
          (first.target != data::kIgnore).sum().item<double>() / (update.target != data::kIgnore).sum().item<double>();
      double squares = 0;
      for (const Tensor& g : run(config, 0, first).gradient)
        squares += g.to(torch::kFloat64).square().sum().item<double>();
      EXPECT_NEAR(part->squares, share * share * squares, 1e-5 * part->squares) << kind << " " << micro_tokens;
      EXPECT_EQ(part->sequences, rows == 6 ? 5 : rows) << "one has no token that counts";
    }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
