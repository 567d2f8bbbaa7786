// Keys of metrics.representation; what they ask for: csrc/train/representation.h.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/field.h"

namespace isentrope::train {

struct RepresentationConfig {
  int64_t every = 0;
  int64_t tokens = 2048;
  int64_t first = 10;
  int64_t last = 100;
  std::vector<std::string> weights = {"model.layers.-1.self_attn.o_proj.weight",
                                      "model.layers.-1.mlp.down_proj.weight"};

  // Three indices or more make a fit that can miss.
  std::string problem() const {
    return last < first + 2 ? "last: " + std::to_string(last) + "; a fit from first (" + std::to_string(first) +
                                  ") takes three indices, so at least " + std::to_string(first + 2)
                            : "";
  }

  template <class Visitor>
  void visit(Visitor& v) {
    v("every", every,
      "Steps of a phase between those that measure the effective rank and the power law of the last layer's states, "
      "and the spectrum of a few weights (docs/metrics.md). 0: none does.",
      at_least(0));
    v("tokens", tokens,
      "Most tokens whose states are looked at, the first of the step's first update; more than hidden_size, or they "
      "cut the rank.",
      between(2, 1 << 20));
    v("first", first, "First index of the power law's fit, from 1.", at_least(1));
    v("last", last, "Last index of it.", at_least(3));
    v("weights", weights,
      "Matrices whose spectrum is told, by their names in the checkpoint: * stands for any text, layers.-1 for the "
      "last layer. Each takes the eigenvalues of its smaller side, so name few. []: none.");
  }
};

}  // namespace isentrope::train
