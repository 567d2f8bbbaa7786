#include "csrc/methods/position.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {

Tensor position(const Tensor& advantage, const Tensor& mask, double gamma, double slope, double centre, double cap) {
  constexpr const char* kOp = "method_position";
  const TokenTable given(kOp, "advantage", advantage, mask);
  check_number(kOp, "gamma", gamma, gamma >= 0 && std::isfinite(gamma), "at least 0, and finite");
  check_number(kOp, "slope", slope, std::isfinite(slope), "a finite number");
  check_number(kOp, "centre", centre, std::isfinite(centre), "a finite number");
  check_number(kOp, "cap", cap, cap >= 0, "at least 0");
  const double* A = given.first();
  std::vector<double> end(static_cast<size_t>(given.rows()), 1.0);
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i]) end[i / given.length()] = static_cast<double>(i % given.length() + 1);
  return given.give([&](int64_t i) {
    const double at = static_cast<double>(i % given.length()) / end[i / given.length()];
    const double gain = std::min(gamma / (1 + std::exp(-slope * (at - centre))), cap * std::abs(A[i]));
    return A[i] + (A[i] > 0 ? gain : A[i] < 0 ? -gain : 0.0);
  });
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_position(Tensor advantage, Tensor mask, *, float gamma=0.1, float slope=15.0, float centre=0.5, float "
         "cap=0.5) -> Tensor",
         position);
}

}  // namespace isentrope::methods
