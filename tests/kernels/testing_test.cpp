// The tests' own tools: a comparison that could not fail would hide every other failure.
#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(Testing, WorstNamesTheElementFurthestOff) {
  const Worst w = worst({1, 2, 3.5, 4}, {1, 2.25, 3, 4});
  EXPECT_EQ(w.index, 2);
  EXPECT_EQ(w.error, 0.5);
  EXPECT_EQ(worst({1}, {1}).index, -1);
}

TEST(Testing, InfinitiesAndNaNsAgreeOnlyWithThemselves) {
  EXPECT_EQ(worst({-kInfinity, NAN}, {-kInfinity, NAN}).index, -1);
  EXPECT_EQ(worst({0, NAN}, {0, 1}).error, kInfinity);
  EXPECT_EQ(worst({0, 1}, {0, NAN}).error, kInfinity);
  EXPECT_EQ(worst({kInfinity}, {-kInfinity}).error, kInfinity);
  EXPECT_FALSE(close("nan", std::vector<float>{NAN}, {0.0}, 1e30));
}

TEST(Testing, CloseFailsOnSizeAndOnError) {
  EXPECT_TRUE(close("x", std::vector<float>{1, 2}, {1, 2.5}, 0.5));
  EXPECT_FALSE(close("x", std::vector<float>{1, 2}, {1, 2.5}, 0.499));
  EXPECT_FALSE(close("x", std::vector<float>{1}, {1, 2}, 9));
  const std::string message = close("x", std::vector<float>{1, 2}, {1, 3}, 0).message();
  EXPECT_NE(message.find("x[1] is 2, expected 3"), std::string::npos) << message;
}

TEST(Testing, WithinTwiceAllowsTwiceTheErrorOfThePlainLoop) {
  EXPECT_TRUE(within_twice<float>("x", {1.2f}, {1.1f}, {1.0}));
  EXPECT_FALSE(within_twice<float>("x", {1.3f}, {1.1f}, {1.0}));
  EXPECT_FALSE(within_twice<float>("x", {1.001f}, {1.0f}, {1.0}));
}

TEST(Testing, ValuesAreFixedBySeedAndIndex) {
  EXPECT_EQ(normal(5, 3)[4], normal(9, 3)[4]);
  EXPECT_NE(normal(5, 3)[4], normal(5, 4)[4]);
  double sum = 0, squares = 0, low = 1, high = 0;
  for (const double v : normal(20000, 1)) sum += v, squares += v * v;
  // Five standard errors: 1/sqrt(n) of the mean, sqrt(2/n) of the variance.
  EXPECT_NEAR(sum / 20000, 0, 5 / std::sqrt(20000.0));
  EXPECT_NEAR(squares / 20000, 1, 5 * std::sqrt(2 / 20000.0));
  for (const double v : uniform(20000, 1, 0, 1)) low = std::fmin(low, v), high = std::fmax(high, v);
  EXPECT_TRUE(low > 0 && low < 1e-3 && high < 1 && high > 1 - 1e-3) << low << " " << high;
}

TEST(Testing, BuffersKeepValuesAndOffset) {
  DeviceBuffer<float> buffer(std::vector<float>{1, 2, 3}, "values", 3);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 256, 12u);
  EXPECT_EQ(buffer.read(), (std::vector<float>{1, 2, 3}));
  DeviceBuffer<float> fresh(2);
  for (const float v : fresh.read()) EXPECT_TRUE(std::isnan(v));
  DeviceBuffer<float> empty(0);
  EXPECT_TRUE(empty.read().empty());
}

}  // namespace
}  // namespace isentrope::testing
