// What a student learns from a teacher that does not change. With z and Z the logits of student and teacher, τ the temperature and N the
// targets of an update (tokens of a text, or those of completions):
//
//   logits · τ² / N Σ KL(softmax(Z / τ) ‖ softmax(z / τ)) + targets / N Σ −log softmax(z)_target
//     + layers / N Σ Σ over layers of  kl · KL(A_T ‖ Â) + ‖A_T − Â‖² + kl · KL(A_T ‖ A) + ‖A_T − A‖² + mean (O_T − O)²
//
// A_T, A a row of the full attention of the teacher's and the student's layer, Â of its estimate (kind estimated alone; A_T added up over its
// cells), means over heads; O what the heads give before the output projection (SEA, arXiv 2310.01777, whose mean squares are over T² pairs
// and here are sums over a row). Logits of a micro-batch exist as a whole, of both models, and so do maps [H, T, T] of the layers.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "csrc/train/objective.h"

namespace isentrope::train {

class DistillObjective : public Objective {
 public:
  // teacher must be there. Throws std::invalid_argument where layers are asked for and its layers are not as the student's.
  DistillObjective(AttentionEntropy attention, const DistillConfig& config, const BatchConfig& batch,
                   const model::Decoder& student, std::optional<model::Decoder> teacher,
                   std::shared_ptr<const Ranks> ranks);

  std::map<std::string, double> backward(model::Decoder& model, const data::Batch& update, uint64_t seed,
                                         AttentionWatch* watch, Gradients* gradients) override;

 private:
  DistillConfig config_;
  BatchConfig batch_;
  model::Decoder teacher_;
  double layers_;  // weight of the losses of the layers
};

// Why the layers of a student cannot be compared with a teacher's; "" where they can.
std::string layers_problem(const model::DecoderConfig& student, const model::DecoderConfig& teacher);

}  // namespace isentrope::train
