// The fit of reward over entropy against the closed form on all points at once.
#include "csrc/rl/entropy_law.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

TEST(EntropyLaw, FindsALawThatHolds) {
  EntropyLaw law;
  for (int i = 0; i < 50; ++i) law.add(2.0 - 0.03 * i, 0.9 - 0.11 * std::exp(2.0 - 0.03 * i));
  const auto fit = law.fit();
  ASSERT_TRUE(fit);
  EXPECT_NEAR(fit->a, 0.11, 1e-12);
  EXPECT_NEAR(fit->b, 0.9, 1e-12);
  EXPECT_NEAR(fit->ceiling(), 0.79, 1e-12);
  EXPECT_NEAR(fit->r2, 1, 1e-12);
  EXPECT_NEAR(fit->rmse, 0, 1e-7);
}

TEST(EntropyLaw, IsLeastSquaresOfPointsThatScatter) {
  EntropyLaw law;
  std::vector<double> x, r;
  for (int i = 0; i < 40; ++i) {
    const double H = 1.5 * std::sin(i) * std::sin(i), noise = 0.1 * std::cos(7.0 * i);
    law.add(H, 0.8 - 0.1 * std::exp(H) + noise);
    x.push_back(std::exp(H));
    r.push_back(0.8 - 0.1 * std::exp(H) + noise);
  }
  double mx = 0, mr = 0, xx = 0, xr = 0, rr = 0, rest = 0;
  for (int i = 0; i < 40; ++i) mx += x[i] / 40, mr += r[i] / 40;
  for (int i = 0; i < 40; ++i)
    xx += (x[i] - mx) * (x[i] - mx), xr += (x[i] - mx) * (r[i] - mr), rr += (r[i] - mr) * (r[i] - mr);
  const double slope = xr / xx, b = mr - slope * mx;
  for (int i = 0; i < 40; ++i) rest += std::pow(r[i] - slope * x[i] - b, 2);
  const auto fit = law.fit();
  EXPECT_NEAR(fit->a, -slope, 1e-12);
  EXPECT_NEAR(fit->b, b, 1e-12);
  EXPECT_NEAR(fit->r2, 1 - rest / rr, 1e-12);
  EXPECT_NEAR(fit->rmse, std::sqrt(rest / 40), 1e-12);
}

TEST(EntropyLaw, RefusesWhatFixesNoLine) {
  EntropyLaw law;
  law.add(1, 0.5);
  law.add(0.5, 0.6);
  EXPECT_FALSE(law.fit()) << "two points";
  law.add(std::nan(""), 0.5);
  law.add(1000, 0.5);  // exp overflows
  EXPECT_EQ(law.points(), 2);
  EntropyLaw flat;
  for (int i = 0; i < 10; ++i) flat.add(0.3 + 1e-6 * i, 0.1 * i);
  EXPECT_FALSE(flat.fit()) << "entropies that are one number";
}

TEST(EntropyLaw, GoesOnFromItsState) {
  EntropyLaw whole, first, second;
  for (int i = 0; i < 9; ++i) whole.add(0.1 * i, std::sin(i));
  for (int i = 0; i < 4; ++i) first.add(0.1 * i, std::sin(i));
  second.restore(first.state());
  for (int i = 4; i < 9; ++i) second.add(0.1 * i, std::sin(i));
  EXPECT_EQ(whole.state(), second.state());
  EXPECT_THROW(second.restore({1, 2}), std::runtime_error);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
