// ops::window_entropy as C++ calls it; its values are judged by tests/python/test_window_entropy.py.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace ISENTROPE_UNIT {

std::vector<double> list(const at::Tensor& x) {
  const at::Tensor d = x.to(at::kDouble).contiguous();
  return {d.const_data_ptr<double>(), d.const_data_ptr<double>() + d.numel()};
}

TEST(WindowEntropy, EverySideMeansItsOwnTokens) {
  const at::Tensor entropy = at::arange(1, 6, at::kDouble).unsqueeze(0), mask = at::ones({1, 5}, at::kBool);
  const auto mean = [&](const std::string& side) {
    return list(window_entropy(entropy, mask, {.window = 2, .side = side}).mean);
  };
  EXPECT_EQ(mean("following"), (std::vector<double>{1.5, 2.5, 3.5, 4.5, 0}));
  EXPECT_EQ(mean("after"), (std::vector<double>{2.5, 3.5, 4.5, 0, 0}));
  EXPECT_EQ(mean("centred"), (std::vector<double>{1.5, 2.5, 3.5, 4.5, 0}));
  EXPECT_EQ(mean("trailing"), (std::vector<double>{0, 1.5, 2.5, 3.5, 4.5}));
}

TEST(WindowEntropy, ThresholdsOfRowsThatEndEarly) {
  at::Tensor entropy = at::arange(8, at::kFloat).view({2, 4}).requires_grad_(), mask = at::ones({2, 4}, at::kBool);
  mask[1][3] = false;
  const WindowEntropy found = window_entropy(entropy, mask, {.window = 2, .threshold = "quantile", .level = 0.5});
  EXPECT_EQ(list(found.mean.detach()), (std::vector<double>{0.5, 1.5, 2.5, 0, 4.5, 5.5, 0, 0}));
  EXPECT_EQ(list(found.threshold), (std::vector<double>{1.5, 5.0}));
  EXPECT_EQ(list(found.high), (std::vector<double>{0, 1, 1, 0, 0, 1, 0, 0}));
  found.mean.sum().backward();
  EXPECT_EQ(list(entropy.grad()), (std::vector<double>{0.5, 1, 1, 0.5, 0.5, 1, 0.5, 0}));
  const WindowEntropy none =
      window_entropy(entropy.detach(), mask, {.window = 5, .threshold = "top_fraction", .level = 0.5});
  EXPECT_FALSE(none.high.any().item<bool>());
  EXPECT_TRUE(none.threshold.isinf().all().item<bool>());
}

TEST(WindowEntropy, ErrorsNameWhatIsWrong) {
  const at::Tensor entropy = at::zeros({1, 3}), mask = at::ones({1, 3});
  const auto expect = [&](const WindowEntropyOptions& options, const std::string& text) {
    try {
      window_entropy(entropy, mask, options);
      ADD_FAILURE() << "nothing was thrown, wanted: " << text;
    } catch (const std::exception& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  expect({.window = 0}, "window is 0; wanted at least 1");
  expect({.side = "left"}, "side is \"left\"; wanted following, after, centred or trailing");
  expect({.partial = "keep"}, "partial is \"keep\"; wanted drop or shrink");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::ops
