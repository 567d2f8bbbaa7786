// What controllers set for an update (csrc/methods/entropy_control.h has the list of those of the policy's entropy,
// csrc/methods/objective_control.h those of other keys of the objective).
#pragma once
#include <optional>
#include <vector>

#include "csrc/methods/chain.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct Control {
  double entropy_coef = 0;                 // weight of the entropy bonus
  double positive = 1, negative = 1;       // factors of advantages above 0 and below
  bool weighs = false;                     // bonus() says the coefficient, and what each token weighs in it
  std::optional<double> ref_kl_coef = {};  // weight of the divergence from the reference; nothing: the objective's
  std::optional<int64_t> layer = {};       // whose policy learns in the place of the whole; nothing: the whole

  // What one more controller sets besides: coefficients add up, factors multiply.
  void add(const Control& more);
  // The metrics of the entropy's controllers.
  void tell(std::map<std::string, double>& stats) const;
};

// Adds what each of a chain sets for the step.
template <class Entry>
void set(Chain<Entry>& chain, int64_t step, Control& control) {
  std::map<std::string, double> none;
  chain.each(none, [&](const auto& method, Context context) { control.add(method.at(step, context.state)); });
}

// Subtracted from the loss: coef times weight · entropy of each token, aggregated as the loss is. The entropy is that of what
// objective.entropy_keep keeps.
struct Bonus {
  double coef = 0;
  Tensor weight = {};  // [B, T] float, of a token that counts; undefined: 1
};

// The bonus that is the sum of one of coefficient plain, in which tokens weigh alike, and of some in which they do not: where there are
// several its coefficient is the sum of theirs in size.
Bonus together(double plain, const std::vector<Bonus>& bonuses);

}  // namespace isentrope::methods
