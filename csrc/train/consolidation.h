// Fast and slow weights over a sequence of tasks, of which each phase is one (optimizer.consolidation). θ: the weights that the update
// rule moves, the fast ones; φ: the slow ones; θ*: θ at the end of the task before; Ω: the importance of each weight to the tasks that
// have ended, the sum over them of Σ g² over the updates of a task, divided by its largest. g: the gradient that the rule gets.
//
//   in a task         g ← g + λ Ω (θ − θ*), behind clipping and noise: the gradient of λ/2 Σ Ω (θ − θ*)²
//   where one begins  φ ← φ + η / (1 + γ Ω) (θ − φ), by Ω of the tasks before the one that has ended; then Ω gets that one's, θ* ← θ,
//                     and with restart: slow θ ← φ
//
// λ: strength, η: slow_rate, γ: rigidity. The idea of an interdependent pair of weights and two steps of consolidation is that of arXiv
// 2104.09034, whose formulas are not published there; the pull is that of arXiv 1612.00796 with Ω from the gradients of training in the
// place of Fisher information, the slow weights are those of arXiv 1803.02999, a task its inner loop.
#pragma once
#include <torch/types.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "csrc/field.h"
#include "csrc/train/gradients.h"

namespace isentrope::train {

struct ConsolidationConfig {
  double strength = 1000.0;
  double slow_rate = 0.5;
  double rigidity = 1.0;
  std::string restart = "fast";

  template <class Visitor>
  void visit(Visitor& v) {
    v("strength", strength,
      "λ: how strongly a weight is held where the phases before left it, times its importance, whose largest is 1 a "
      "phase and most of which are far below; 0: not at all.",
      at_least(0));
    v("slow_rate", slow_rate, "η: how far the slow weights go towards the fast ones where a phase has ended.",
      between(0, 1));
    v("rigidity", rigidity, "γ: how much less far where the phases before it need the weight.", at_least(0));
    v("restart", restart, "Weights that the phase begins with: those that the one before left, or the slow ones.",
      one_of({"fast", "slow"}));
  }
};

// Of the parameters that a rank owns.
class Consolidation {
 public:
  using State = std::map<std::string, torch::Tensor>;

  // parameters: (name, tensor) of all; gradients: says which are owned.
  Consolidation(const ConsolidationConfig& config, const std::vector<std::pair<std::string, torch::Tensor>>& parameters,
                const Gradients& gradients);

  struct Pull {
    double penalty = 0;  // λ/2 Σ Ω (θ − θ*)²
    double largest = 0;  // of |λ Ω (θ − θ*)|
  };
  // Whether Ω of anything is above 0 here.
  bool pulls() const;
  Pull pull() const;
  // Before the update rule moves parameter number i: adds (scale · g)² to Σ g²; with pulls g becomes scale · g + λ Ω (θ − θ*).
  void apply(size_t i, torch::Tensor gradient, double scale, bool pulls);

  // {"anchor.NAME", "importance.NAME", "slow.NAME", "squares.NAME"}: θ*, Ω, φ, Σ g², which alone changes within a phase.
  State state() const;
  static std::vector<std::string> parts() { return {"anchor.", "importance.", "slow.", "squares."}; }
  static bool owns(const std::string& name) { return stays(name) || name.starts_with("squares."); }
  static bool stays(const std::string& name) {
    return name.starts_with("anchor.") || name.starts_with("importance.") || name.starts_with("slow.");
  }
  void restored();  // after state()'s tensors were written
  // Of all ranks, whole on each; a verb of Ranks.
  State left(const Ranks& ranks) const;
  // left: what left() gave at the end of the phase before. What it does not have begins here. A verb of Ranks; the parameters of others
  // are not changed yet.
  void begin_task(const State& left, const Ranks& ranks);

 private:
  struct Own {
    torch::Tensor weight, anchor, importance, slow, squares;  // of one shape; all but weight undefined where not owned
    bool pulled = false;                                      // importance is not 0
    bool here() const { return anchor.defined(); }
  };

  ConsolidationConfig config_;
  std::vector<std::string> names_;
  std::vector<Own> own_;
};

}  // namespace isentrope::train
