// What a student learns from a teacher's logits and from its layers.
#pragma once
#include <optional>
#include <string>

#include "csrc/field.h"

namespace isentrope::train {

struct DistillConfig {
  std::string teacher;
  double temperature = 1.0;
  double logits = 1.0;
  double targets = 0.0;
  std::optional<double> layers = {};
  double kl = 0.1;

  template <class Visitor>
  void visit(Visitor& v) {
    v("teacher", teacher,
      "Checkpoint, run or folder of transformers with the model's vocabulary; it is not trained. Must be given.");
    v("temperature", temperature, "Both models' logits are divided by it; the divergence is multiplied by its square.",
      above_to(0, 1000));
    v("logits", logits,
      "Weight of the divergence KL(teacher ‖ student) of the next token's distribution, mean over the targets.",
      at_least(0));
    v("targets", targets, "Weight of the mean cross-entropy of the targets beside it.", at_least(0));
    v("layers", layers,
      "Weight of the losses of the layers (docs/mixers.md), sum over the layers of kinds softmax and estimated, mean "
      "over the targets; needs a teacher of as many layers, all of kind softmax, and as many heads of the same size. "
      "Left out: 1 where the teacher is such, else 0.",
      at_least(0));
    v("kl", kl,
      "In the losses of the layers, weight of the divergences beside the squared differences (SEA's authors: 0.1).",
      at_least(0));
  }
};

}  // namespace isentrope::train
