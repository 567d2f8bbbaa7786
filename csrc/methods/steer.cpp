#include "csrc/methods/steer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor steer(const Tensor& logprob, const Tensor& old_logprob, const Tensor& entropy, const Tensor& advantage,
             const Tensor& mask, c10::string_view form, double low, double high, int64_t power) {
  constexpr const char* kOp = "method_steer";
  TokenArguments given(kOp, "logprob", logprob, mask);
  ChangeLoop change{given.rows()};
  change.logprob = given.first(), change.old_logprob = given.take("old_logprob", old_logprob);
  change.entropy = given.take("entropy", entropy), change.advantage = given.take("advantage", advantage);
  const bool exponential = form == "exponential";
  OP_CHECK(kOp, exponential || form == "linear", "form is \"", form, "\"; wanted \"linear\" or \"exponential\"");
  if (exponential) {
    check_number(kOp, "low", low, low >= 1e-6 && low <= 1, "1e-6 to 1 with form exponential");
  } else {
    check_number(kOp, "low", low, low >= 0, "at least 0");
    check_number(kOp, "high", high, high >= low && std::isfinite(high), "at least low, and finite");
  }
  OP_CHECK(kOp, power == 1 || power == 2, "power is ", power, "; wanted 1 or 2");
  std::vector<double> least(static_cast<size_t>(change.rows)), most(least.size());
  const Tensor factor = given.make();
  change.power = power, change.change = factor.mutable_data_ptr(), change.least = least.data(),
  change.most = most.data();
  ISENTROPE_PICK(change_on_cpu)(change);

  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  double m = kInfinity, M = -kInfinity;
  for (const double x : least) m = std::min(m, x);
  for (const double x : most) M = std::max(M, x);
  FallLoop fall{given.rows()};
  fall.factor = factor.mutable_data_ptr(), fall.exponential = exponential;
  fall.low = low, fall.high = high, fall.least = m;
  if (exponential) {
    constexpr double kSmallest = 0.02;  // as released: below it no token is held back much
    fall.slope = -std::log(low) / std::max(M, kSmallest);
  } else if (M > m) {
    fall.slope = (high - low) / (M - m);
  } else {
    fall.high = fall.low = (low + high) / 2, fall.least = 0;
  }
  ISENTROPE_PICK(fall_on_cpu)(fall);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_steer(Tensor logprob, Tensor old_logprob, Tensor entropy, Tensor advantage, Tensor mask, *, str "
         "form=\"linear\", float low=0.8, float high=1.2, int power=2) -> Tensor",
         steer);
}

}  // namespace isentrope::methods
