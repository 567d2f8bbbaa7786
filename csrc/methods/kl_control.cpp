#include "csrc/methods/kl_control.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/op.h"

namespace isentrope::methods {

double adaptive_kl(double coef, double kl, double target, double horizon) {
  constexpr const char* kOp = "method_adaptive_kl";
  check_number(kOp, "kl", kl, std::isfinite(kl), "a finite number");
  check_number(kOp, "target", target, target > 0, "above 0");
  check_number(kOp, "horizon", horizon, horizon >= 1, "1 or more");
  return coef * (1 + std::clamp(kl / target - 1, -0.2, 0.2) / horizon);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  m.def("method_adaptive_kl(float coef, float kl, float target, float horizon) -> float", adaptive_kl);
}

}  // namespace isentrope::methods
