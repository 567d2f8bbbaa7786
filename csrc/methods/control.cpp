#include "csrc/methods/control.h"

#include <cmath>

namespace isentrope::methods {

void Control::add(const Control& more) {
  entropy_coef += more.entropy_coef;
  positive *= more.positive;
  negative *= more.negative;
  weighs = weighs || more.weighs;
  if (more.ref_kl_coef) ref_kl_coef = more.ref_kl_coef;
  if (more.layer) layer = more.layer;
}

void Control::tell(std::map<std::string, double>& stats) const {
  stats["entropy_coef"] = entropy_coef;
  if (positive != 1 || negative != 1)
    stats.insert({{"advantage/positive", positive}, {"advantage/negative", negative}});
}

Bonus together(double plain, const std::vector<Bonus>& bonuses) {
  std::vector<Bonus> there;
  double size = std::abs(plain);
  for (const Bonus& one : bonuses)
    if (one.coef != 0) there.push_back(one), size += std::abs(one.coef);
  if (there.empty()) return {plain};
  if (there.size() == 1 && plain == 0) return there.front();
  Tensor sum = torch::full_like(there.front().weight, plain / size);
  for (const Bonus& one : there) sum = sum + one.weight * (one.coef / size);
  return {size, sum};
}

}  // namespace isentrope::methods
