#include "csrc/methods/position.h"

#include <cmath>
#include <vector>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor position(const Tensor& advantage, const Tensor& mask, double gamma, double slope, double centre, double cap) {
  constexpr const char* kOp = "method_position";
  TokenArguments given(kOp, "advantage", advantage, mask);
  check_number(kOp, "gamma", gamma, gamma >= 0 && std::isfinite(gamma), "at least 0, and finite");
  check_number(kOp, "slope", slope, std::isfinite(slope), "a finite number");
  check_number(kOp, "centre", centre, std::isfinite(centre), "a finite number");
  check_number(kOp, "cap", cap, cap >= 0, "at least 0");
  PositionLoop p{given.rows()};
  std::vector<double> end(static_cast<size_t>(p.rows), 1.0);
  for (int64_t b = 0; b < p.rows; ++b)
    for (int64_t t = p.length; t-- > 0;)
      if (p.mask[b * p.length + t]) {
        end[b] = static_cast<double>(t + 1);
        break;
      }
  p.advantage = given.first(), p.end = end.data();
  p.gamma = gamma, p.slope = slope, p.centre = centre, p.cap = cap;
  return given.made(p, ISENTROPE_PICK(position_on_cpu));
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_position(Tensor advantage, Tensor mask, *, float gamma=0.1, float slope=15.0, float centre=0.5, float "
         "cap=0.5) -> Tensor",
         position);
}

}  // namespace isentrope::methods
