// How texts are matched with texts (objective: {kind: contrastive}; csrc/train/contrastive_objective.h). No tensors.
#pragma once
#include <cstdint>
#include <string>

#include "csrc/field.h"

namespace isentrope::data {

struct ContrastiveConfig {
  std::string score = "soft";
  double attention = 0.1;
  double temperature = 0.05;
  bool symmetric = true;
  int64_t positives = 4;

  template <class Visitor>
  void visit(Visitor& v) {
    v("score", score,
      "How well two texts match, of the vectors of their tokens: soft: the cosines of all pairs of tokens, weighted by "
      "a "
      "softmax of their raw products over the tokens of the other text, summed (soft late interaction, Unified Work "
      "Embeddings); max: the largest cosine of each token, summed (MaxSim, arXiv 2004.12832); mean: the cosine of the "
      "means.",
      one_of({"soft", "max", "mean"}));
    v("attention", attention, "soft: temperature τ_a of that softmax.", above_to(0, 100));
    v("temperature", temperature, "τ: scores are divided by it in the loss.", above_to(0, 100));
    v("symmetric", symmetric,
      "Beside each query's positives among the texts of the update each text's queries too; the losses are added.");
    v("positives", positives, "Most positives of a query that an update has, drawn anew each time.",
      between(1, 1 << 16));
  }
};

}  // namespace isentrope::data
