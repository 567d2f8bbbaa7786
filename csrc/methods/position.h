// Advantage: late tokens gain (arXiv 2508.02260, "position").
#pragma once
#include <optional>
#include <string>

#include "csrc/field.h"
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of advantage's dtype: A + sign(A) · min(gamma σ(slope (ρ − centre)), cap |A|) where mask marks, else 0. ρ = t / n, t the
// position in the row from 0 and n one behind the last that counts; σ the logistic function. An advantage of 0 stays; gamma 0 changes
// nothing. gamma, cap ≥ 0. float32 or float64.
Tensor position(const Tensor& advantage, const Tensor& mask, double gamma, double slope, double centre, double cap);

struct Position {
  static constexpr const char* kKind = "position";
  static constexpr const char* kHelp =
      "A + sign(A) · min(gamma σ(slope (ρ − centre)), cap |A|), with ρ from 0 to 1 the place of a token in its "
      "completion: late tokens learn more (arXiv 2508.02260).";
  double gamma = 0.1;
  double slope = 15.0;
  double centre = 0.5;
  double cap = 0.5;
  int64_t start_step = 0;
  std::optional<int64_t> end_step = {};

  std::string problem() const {
    return end_step && *end_step <= start_step ? "end_step: " + std::to_string(*end_step) +
                                                     " is not above start_step (" + std::to_string(start_step) + ")"
                                               : "";
  }
  template <class Visitor>
  void visit(Visitor& v) {
    v("gamma", gamma, "Most that is added; 0: no effect.", at_least(0));
    v("slope", slope, "How steeply the gain rises over the completion, the paper's d.", at_least(0));
    v("centre", centre,
      "Place at which half of gamma is added: 0.5 in the released code. The paper writes gamma σ(d r) of the "
      "relative position r; 0 is that with r = ρ.",
      between(0, 1));
    v("cap", cap, "The gain is at most this share of |A|.", at_least(0));
    v("start_step", start_step,
      "Step of the phase, from 0, at which it begins. The released code has it between steps 200 and 300 alone, where "
      "the paper's runs stand on their plateau.",
      at_least(0));
    v("end_step", end_step, "Step before which it ends; absent: with the phase.", at_least(0));
  }
  void apply(Completions& c, Context&) const {
    if (c.step >= start_step && (!end_step || c.step < *end_step))
      c.advantage = position(c.advantage, c.mask, gamma, slope, centre, cap);
  }
};

}  // namespace isentrope::methods
