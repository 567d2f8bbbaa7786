#include "csrc/methods/kl_control.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/objective_control.h"
#include "csrc/methods/op.h"

namespace isentrope::methods {

double adaptive_kl(double coef, double kl, double target, double horizon) {
  constexpr const char* kOp = "method_adaptive_kl";
  check_number(kOp, "kl", kl, std::isfinite(kl), "a finite number");
  check_number(kOp, "target", target, target > 0, "above 0");
  check_number(kOp, "horizon", horizon, horizon >= 1, "1 or more");
  return coef * (1 + std::clamp(kl / target - 1, -0.2, 0.2) / horizon);
}

Tensor adaptive_kl_each(const Tensor& coef, const Tensor& kl, double target, double horizon) {
  constexpr const char* kOp = "method_adaptive_kl";
  check_floating(kOp, "coef", coef);
  check_floating(kOp, "kl", kl);
  check_like(kOp, "kl", kl, "coef", coef);
  Tensor made = host(coef, torch::kFloat64).clone();
  const Tensor measured = host(kl, torch::kFloat64);
  for (int64_t i = 0; i < made.numel(); ++i)
    made.mutable_data_ptr<double>()[i] =
        adaptive_kl(made.const_data_ptr<double>()[i], measured.const_data_ptr<double>()[i], target, horizon);
  return made.to(coef.options());
}

void RefKlControl::observe(const std::map<std::string, double>& seen, Context& context) const {
  const auto kl = seen.find("ref_kl/k3");
  if (kl == seen.end()) return;
  const double now = *context.state.const_data_ptr<double>();
  context.stats["ref_kl_coef"] = now;
  context.state = torch::tensor({adaptive_kl(now, kl->second, control.target, control.horizon)}, torch::kFloat64);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_adaptive_kl(Tensor coef, Tensor kl, float target, float horizon) -> Tensor", adaptive_kl_each);
}

}  // namespace isentrope::methods
