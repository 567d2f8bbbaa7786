// The update rules, with decoupled decay on matrices alone and clipping of the gradient by its global norm. g: the gradient, t: the
// number of the step, η: the learning rate.
//
//   adamw  m ← β₁ m + (1-β₁) g,  v ← β₂ v + (1-β₂) g²,  w ← (1 - η decay) w - η (m / (1-β₁ᵗ)) / (√(v / (1-β₂ᵗ)) + eps)
//          (Loshchilov and Hutter, ICLR 2019)
//   muon   matrices of the decoder's blocks as csrc/train/muon.h, all else as adamw
//   sgd    m ← β m + g,  w ← (1 - η decay) w - η m          (heavy ball, as torch.optim.SGD)
#pragma once
#include <torch/types.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/field.h"
#include "csrc/train/adamw.h"
#include "csrc/train/consolidation.h"
#include "csrc/train/gradients.h"
#include "csrc/train/muon.h"
#include "csrc/train/update_bound.h"

namespace isentrope::train {

// Gaussian noise that gradients get behind clipping, of variance eta / (1 + t)^gamma at step t of the phase, from 0 (Neelakantan et
// al. 2015, arXiv:1511.06807): csrc/train/added_noise.h.
struct NoiseConfig {
  double eta = 0.01;
  double gamma = 0.55;

  template <class Visitor>
  void visit(Visitor& v) {
    v("eta", eta,
      "Variance of the noise of each element at the phase's first step (the paper: 0.01, 0.3 or 1). Gradients clipped "
      "to norm 1 have about 1 / number of weights.",
      above(0));
    v("gamma", gamma, "The variance falls with (1 + step) to this power.", at_least(0));
  }
};

// The draws of an update: a number of it alone, and its step.
struct NoiseDraw {
  uint64_t seed = 0;
  int64_t step = 0;
};

struct OptimizerConfig {
  std::string kind = "adamw";
  double lr = 1e-3;
  std::vector<double> betas = {0.9, 0.999};
  double eps = 1e-8;
  double weight_decay = 0.01;
  double max_grad_norm = 1.0;
  std::optional<MuonConfig> muon = {};
  std::optional<NoiseConfig> noise = {};
  std::optional<ConsolidationConfig> consolidation = {};

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "Update rule (csrc/train/optimizer.h).", one_of({"adamw", "muon", "sgd"}));
    v("lr", lr, "Peak learning rate.", above(0));
    v("betas", betas,
      "Decays of the moments: two of adamw, which muon uses for all but matrices too, one of sgd, its momentum.",
      between(0, 1));
    v("eps", eps, "Added to the root of the second moment; adamw.", above_to(0, 1));
    v("weight_decay", weight_decay, "Decoupled decay of matrices; norms, biases and learned spectral norms have none.",
      at_least(0));
    v("max_grad_norm", max_grad_norm, "Gradients are scaled down to this norm; 0 for no clipping.", at_least(0));
    v("muon", muon, "What muon does to the matrices of the decoder's blocks; all keys have defaults.");
    v("noise", noise,
      "Gaussian noise that is added to the clipped gradient and falls with the steps (docs/options.md); absent: none.");
    v("consolidation", consolidation,
      "The phase is one of a sequence of tasks: weights that the phases before it need are held, and slow weights "
      "follow "
      "from phase to phase (csrc/train/consolidation.h, docs/options.md); absent: none.");
  }
};

class Optimizer {
 public:
  // parameters: (name, tensor); names are kept for state() and for errors. matrices: which of them Muon moves (muon_matrices()).
  // With several ranks each has the moments of its own parameters alone, and updates these (csrc/train/gradients.h).
  Optimizer(const OptimizerConfig& config, std::vector<std::pair<std::string, torch::Tensor>> parameters,
            const std::map<std::string, std::vector<int64_t>>& matrices = {},
            std::shared_ptr<const Ranks> ranks = std::make_shared<Ranks>());

  void zero_grad();
  // The two halves of an update with learning rate lr: ask() refuses, apply() changes. ask() returns the gradient norm before
  // clipping. One that is not finite throws NonFinite naming the first bad gradient; so does, with `bounded`, an update whose
  // arithmetic could leave a weight that is not finite (csrc/train/update_bound.h; of adamw and sgd, on one rank). Nothing has changed
  // then. apply() makes the update that was asked last.
  // noise: its draws, where the configuration has any; the norm is that before it.
  double ask(double lr, bool bounded, const NoiseDraw& noise = {});
  // Of the update that was asked: the expected norm of its noise over that of the clipped gradient; 0 without noise.
  double noise_ratio() const { return asked_.noise_ratio; }
  // Of the update that was asked: λ/2 Σ Ω (θ − θ*)² (csrc/train/consolidation.h); nothing where no weight is held. A verb of Ranks.
  std::optional<double> held() const;
  void apply();
  double step(double lr) {
    const double norm = ask(lr, false);
    apply();
    return norm;
  }

  // Moments and step counts by name, for checkpoints; restore() takes what state() gave and names what differs. Called by all
  // ranks: the first gets the whole, which does not depend on their number, the others their own; restore() takes the whole.
  std::map<std::string, torch::Tensor> state() const;
  void restore(const std::map<std::string, torch::Tensor>& state);
  std::vector<torch::Tensor> moments() const;  // this rank's, as they are
  Gradients& gradients() { return gradients_; }

  // What the phase leaves of optimizer.consolidation to the next, whole on all ranks; empty without. A verb of Ranks.
  std::map<std::string, torch::Tensor> left() const;
  // At the beginning of a phase with consolidation: takes what the one before left, or begins. A verb of Ranks.
  void begin_task(const std::map<std::string, torch::Tensor>& left);

 private:
  std::map<std::string, torch::Tensor> own_state() const;
  std::vector<std::pair<std::string, std::vector<int64_t>>> layout(int64_t rank) const;  // of its state: names, shapes

  void prepare_runs();
  bool runs_alone(size_t parameter) const;  // whether csrc/train/adamw.h moves it
  double largest_weight() const;
  double add_noise(const NoiseDraw& draw, double norm);

  // What ask() prepared for apply().
  struct Update {
    double lr = 0, gradient_scale = 1, noise_ratio = 0;
    double held_scale = 1;  // of the gradients that apply() gives to consolidation
    std::optional<double> held = {};
    std::vector<size_t> present;  // parameters that have a gradient
    std::vector<AdamwRun> runs;   // of those that csrc/train/adamw.h moves
    UpdateBound bound = {};
  };

  OptimizerConfig config_;
  MuonConfig muon_;
  std::optional<Consolidation> consolidation_;
  UpdateBound bound_;
  Update asked_;
  Gradients gradients_;
  std::vector<std::string> names_;
  std::vector<std::vector<int64_t>> rows_;  // of the matrices joined in each that Muon moves; empty for the others
  std::vector<bool> adamw_;                 // which of them AdamW moves
  std::vector<torch::Tensor> parameters_, first_;  // first_, second_, steps_: undefined tensors of what other ranks own
  std::vector<torch::Tensor> second_, steps_;      // of adamw; undefined tensors with sgd, and of what Muon moves
};

struct NonFinite : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace isentrope::train
