#include "csrc/methods/siren.h"

#include <cmath>

#include "csrc/methods/token_table.h"
#include "csrc/methods/top_entropy.h"

namespace isentrope::methods {

std::tuple<Tensor, Tensor, Tensor> siren(const Tensor& entropy, const Tensor& kept, const Tensor& mask, double anchor,
                                         double coef, double share) {
  constexpr const char* kOp = "method_siren";
  TokenTable given(kOp, "entropy", entropy, mask);
  const double* own = given.take("kept", kept);
  check_number(kOp, "anchor", anchor, !std::isinf(anchor), "a finite number, or NaN for none");
  check_number(kOp, "coef", coef, coef >= 0 && std::isfinite(coef), "at least 0, and finite");
  check_number(kOp, "share", share, share > 0 && share <= 1, "above 0 to 1");
  const Tensor chosen = host(top_entropy(entropy, mask, share), torch::kFloat64);
  const double* is = chosen.const_data_ptr<double>();
  double tokens = 0, number = 0, sum = 0;
  for (int64_t i = 0; i < given.size(); ++i) {
    tokens += given.mask()[i];
    if (is[i] != 0) ++number, sum += own[i];
  }
  const double mean = number > 0 ? sum / number : 0, weight = number > 0 ? tokens / number : 0;
  const double coefficient = number > 0 && !std::isnan(anchor) ? -2 * coef * (mean - anchor) : 0;
  const auto one = [&](double x) { return torch::full({}, x + 0.0, torch::kFloat64).to(entropy.device()); };
  return {one(coefficient), given.give([&](int64_t i) { return weight * is[i]; }), one(mean)};
}

namespace {

std::tuple<Tensor, Tensor, Tensor> siren_meta(const Tensor& entropy, const Tensor&, const Tensor&, double, double,
                                              double) {
  const auto one = [&] { return torch::empty({}, entropy.options().dtype(torch::kFloat64)); };
  return {one(), torch::empty_symint(entropy.sym_sizes(), entropy.options()), one()};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m,
      "method_siren(Tensor entropy, Tensor kept, Tensor mask, float anchor, *, float coef=0.005, float share=0.2) -> "
      "(Tensor, Tensor, Tensor)",
      siren, siren_meta);
}

}  // namespace isentrope::methods
