// keep of ops::token_entropy and ops::linear_token_entropy as C++ calls them; values are judged by
// tests/python/test_kept_entropy.py.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace ISENTROPE_UNIT {

TEST(KeptEntropy, OfTheLikeliestAndWithoutTheLeastLikely) {
  at::Tensor logits = at::zeros({1, 8}, at::kDouble);
  logits[0][5] = 1.0;
  logits.requires_grad_();
  const at::Tensor target = at::zeros({1}, at::kLong);
  EXPECT_FALSE(token_entropy(logits, target).kept_entropy.defined());
  // e / (7 + e) = 0.28; with ids 0 to 2 0.589, the fewest that reach 0.5.
  const TokenEntropy top = token_entropy(logits, target, 1.0, -100, false, false, Keep{.share = 0.5});
  const TokenEntropy rest =
      token_entropy(logits, target, 1.0, -100, true, false, Keep{.kind = "without_lowest", .share = 0.5});
  const double e = std::exp(1.0), entropy = std::log(3 + e) - e / (3 + e);
  EXPECT_NEAR(top.kept_entropy.item<double>(), entropy, 1e-12);
  EXPECT_NEAR(rest.kept_entropy.item<double>(), entropy, 1e-12);
  EXPECT_TRUE(rest.sum_p2.defined());
  top.kept_entropy.sum().backward();
  const double p = 1 / (3 + e), slope = -p * (std::log(p) + entropy);
  for (int64_t v = 0; v < 8; ++v)
    EXPECT_NEAR(logits.grad()[0][v].item<double>(), v < 3 ? slope : v == 5 ? -3 * slope : 0.0, 1e-12) << v;
}

TEST(KeptEntropy, OfAHead) {
  at::Tensor hidden = at::ones({1, 1}, at::kFloat).requires_grad_();
  const at::Tensor weight = at::arange(4, at::kFloat).view({4, 1}), target = at::zeros({1}, at::kLong);
  LinearTokenEntropyOptions options;
  options.keep = Keep{.kind = "without_lowest", .share = 0.5};
  const TokenEntropy out = linear_token_entropy(hidden, weight, target, options);
  const double p = 1 / (1 + std::exp(-1.0)), entropy = -p * std::log(p) - (1 - p) * std::log(1 - p);
  EXPECT_NEAR(out.kept_entropy.item<float>(), entropy, 1e-6);
  out.kept_entropy.sum().backward();
  EXPECT_NEAR(hidden.grad().item<float>(), -p * (1 - p) * std::log(p / (1 - p)), 1e-6);
}

TEST(KeptEntropy, ShareOutOfRangeIsNamed) {
  const at::Tensor logits = at::zeros({1, 8}), target = at::zeros({1}, at::kLong);
  EXPECT_THROW(token_entropy(logits, target, 1.0, -100, false, false, Keep{.share = 0}), c10::ValueError);
  EXPECT_THROW(token_entropy(logits, target, 1.0, -100, false, false, Keep{.kind = "top_k"}), c10::ValueError);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::ops
