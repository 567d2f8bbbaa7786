// What a controller of the policy's entropy sets for an update (csrc/methods/entropy_control.h has the list of them).
#pragma once
#include "csrc/methods/method.h"

namespace isentrope::methods {

struct Control {
  double entropy_coef = 0;            // weight of the entropy bonus
  double positive = 1, negative = 1;  // factors of advantages above 0 and below
  bool weighs = false;                // bonus() says the coefficient, and what each token weighs in it
};

// Subtracted from the loss: coef times weight · entropy of each token, aggregated as the loss is. The entropy is that of what
// objective.entropy_keep keeps.
struct Bonus {
  double coef = 0;
  Tensor weight;  // [B, T] float, of a token that counts
};

}  // namespace isentrope::methods
