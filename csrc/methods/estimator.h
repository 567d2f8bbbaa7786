// What the estimators of advantages share: checks of what they are given, rewards that are equal up to rounding, and how an estimator
// of one advantage a completion becomes a torch op.
#pragma once
#include <span>
#include <stdexcept>
#include <string>

#include "csrc/methods/method.h"
#include "csrc/methods/op.h"

namespace isentrope::methods {

// Throws std::invalid_argument, "<who>: what came and what was wanted", on groups that do not cut the rewards, counts that differ, a
// reward that is not finite or beyond 1e18 (whose square would overflow float32), a negative length.
void check(const std::string& who, const Rewarded& r);

// The check of one of them, number i of those that `what` names.
void check_reward(const std::string& who, const char* what, size_t i, double reward);

// What numbers of this size that are equal by right may differ by: 2^-21 of the largest, or 1e-12.
double rounding(std::span<const double> s);

// Whether numbers differ by no more than rounding. Scores that are equal by right are sums
// in float32 or double of terms that may cancel. True of none and of one.
bool equal(std::span<const double> s);

// Of each group whether its values differ by more than rounding, as above, so that it has something to say (dynamic sampling, DAPO,
// arXiv 2503.14476). A group of one is kept.
std::vector<bool> keep_groups(std::span<const double> rewards, const Groups& groups);

// Sum, from the first to the last.
double sum(std::span<const double> x);

// x as text for a message.
std::string written(double x);

// 1 / (std + eps), std with n − 1; that of numbers that are equal up to rounding, or of one alone, counts as 1.
double inverse_std(std::span<const double> s, double eps);

// What a difference of rewards is divided by: nothing, std + eps of the rewards of the group, or of all of the batch; std with n − 1.
enum class Scale { kNone, kGroup, kBatch };

// Of each group 1 / (std + eps), as above.
std::vector<double> scales(const Rewarded& r, Scale scale, double eps);

// Makes the mean over all tokens 0 and their unbiased variance 1, (a − m) / √(v + 1e-8); lengths in tokens, a value a completion,
// slopes scaled likewise. Fewer than two tokens are centred but not scaled.
void whiten_by_token(std::span<const int64_t> lengths, Advantages& a);

// The arguments of an op as its estimator takes them: reward [B] float32 or float64, group [B] int64 rising, length [B] int64
// (undefined: 1 each).
Rewarded rewarded(const char* op, const Tensor& reward, const Tensor& group, const Tensor& length = {});

// A tensor of doubles on the CPU as numbers.
std::vector<double> numbers(const Tensor& x);

// values [B] as a tensor of the dtype, the device and the shape of like.
Tensor as_tensor(const std::vector<double>& values, const Tensor& like);

// f(), with what it throws as std::invalid_argument thrown as the error of an op, which Python has as ValueError.
template <class Function>
auto refusing(Function f) {
  try {
    return f();
  } catch (const std::invalid_argument& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

// The whole op: advantages [B] of reward's dtype. also(who): what else is to be checked.
template <class Method, class Check>
Tensor estimated(const char* op, const Method& method, const Rewarded& r, const Tensor& reward, Check also) {
  return refusing([&] {
    const std::string who = std::string("isentrope::") + op;
    check(who, r);
    also(who);
    return as_tensor(method.estimate(r).value, reward);
  });
}
template <class Method>
Tensor estimated(const char* op, const Method& method, const Rewarded& r, const Tensor& reward) {
  return estimated(op, method, r, reward, [](const std::string&) {});
}

}  // namespace isentrope::methods
