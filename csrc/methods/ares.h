// ARES: rewards that make a policy explore little where prompts are easy and much where they are hard (arXiv
// 2510.08457; its code says AEPO). How much a completion explores is the number N of its stretches of high token
// entropy. Pure C++.
//
//   window      w tokens of a completion in a row; its value is the mean of their entropies, nats
//   threshold   of a step: the median over its completions of the q-quantile of a completion's windows. In use is its
//               running mean over the steps before; in the first step its own
//   high        a window whose value is at least the threshold
//   N           with triggers: how many tokens are triggers with a high window right behind them; without: the high windows
//   difficulty  of a group, by its share of right completions, to which the first reward gives at least 0.5: easy from
//               2/3 on, medium from 1/3 on, else hard
//   N*          of a difficulty: the running mean, over the steps before that had such groups, of their completions'
//               mean N; where there is none yet, the mean of this step. Δ = N − N*
//
// shaping, added to the reward of a completion: m = max(1, f max(N*, 1)), cap = alpha · scale, σ logistic, h(x) = x²/2κ
// up to κ, then x − κ/2, and 0 below 0
//
//                          easy  medium  hard
//     margin fraction f     .15     .25   .35
//     κ                       2       3     4
//     temperature τ           2     2.5     3
//     scale                   1       1   1.2
//     share s                .6      .8     1
//
//   released   right   easy, medium   −min(cap, cap h(x − m)/(m + κ)) with x = Δ if easy, |Δ| if medium
//                      hard           cap σ((Δ + m)/τ) from Δ = −m on, below it −min(cap, cap h(−Δ − m)/2(m + κ))
//              wrong                  cap s σ(max(Δ − m, 0)/τ)
//   strict     right                  as released
//              wrong                  min(cap, (1 − cap)/2) s (2σ(max(Δ − m, 0)/τ) − 1)
//   paper      right                  0
//              wrong                  −λ g; g = max(0, Δ) if easy, |Δ| if medium, max(0, −Δ) if hard
//
// released is the published code. There σ(0) = ½ pays every wrong answer, at least 0.15 to 0.3 at alpha 0.5, and one
// can come before a right answer of its group. In strict it cannot: a right one keeps at least 1 − cap, a wrong one gets
// less than half of that, and nothing up to the margin above the target. In paper λ = max(0, (E − N*)/(V + 1)), with E
// and V the mean and variance of N over this step's completions of the difficulty. (A target from the same step would
// make λ 0; the 1, one window squared, is for a step whose N are all equal.)
//
// What the paper does otherwise: its threshold is the mean over the batch of the quantiles of single tokens. What the
// published code does otherwise: N* is the rounded mean of the step itself; a trigger is looked for in the likeliest
// token, not in the one drawn; windows cut off at the end are filled with the mean of those before, and none begins with the
// first token, which moves a threshold of a completion by up to 0.2 nats where it is short; alpha has a schedule, which
// rounding alone moves.
//
// alpha_control: the published schedule of alpha, of each difficulty by itself: after a step that had such groups, with E the mean N of
// their completions, alpha ← alpha + rate (E − N*) where they are easy or medium, and alpha − rate (E − N*) where they are hard, within
// [least, most]. Absent: alpha stays. It is the lagged N* that makes it move.
//
// kl: a controller for each difficulty of the weight β of the divergence from the reference. β starts at 1. K is the
// running mean of the divergence (k3, nats a token) measured at each update that has such groups, e = K/target − 1 its
// relative error. After every `every` of these, unless |e| is below the dead zone: E ← error_decay E + (1 − error_decay) e,
// from E = 0, and log β += 0.05 clip(E, ±0.2), β in [1e-4, 1e2]. Tokens of the windows that N counts have β · inside. The
// paper has neither running mean; both are the published code's, and with the second, β moves slowly: at twice the target it
// takes 7 changes of β until the clip holds. error_decay 0 is the controller without it. What the published code does
// otherwise here: it counts all updates, not those that have such groups, and K is the mean of the sequences' means.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/methods/method.h"
#include "csrc/methods/windows.h"

namespace isentrope::methods {

enum Difficulty { kEasy, kMedium, kHard, kDifficulties };
constexpr const char* kDifficultyNames[kDifficulties] = {"easy", "medium", "hard"};

struct AresKlConfig {
  double target = 0.01;
  int64_t every = 100;
  double decay = 0.97;
  double error_decay = 0.97;
  double dead_zone = 0.02;
  double inside = 1.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("target", target, "Divergence from the reference, nats a token, that the weights are steered to.", above(0));
    v("every", every, "Updates with groups of a difficulty between two changes of its weight.", at_least(1));
    v("decay", decay, "Decay of the running mean of the divergence.", between(0, 1));
    v("error_decay", error_decay,
      "Decay of the running mean of the relative error, which starts at 0 and moves with the weight; 0: the error "
      "itself.",
      between(0, 1));
    v("dead_zone", dead_zone, "Relative error up to which a weight stays.", at_least(0));
    v("inside", inside, "Factor of the weight at the tokens of high windows; below 1 lets them explore.", at_least(0));
  }
};

struct AresAlphaConfig {
  double rate = 0.05;
  double least = 0;
  double most = 2;

  std::string problem() const { return least > most ? "least: is above most; wanted at most as large" : ""; }
  template <class Visitor>
  void visit(Visitor& v) {
    v("rate", rate, "What alpha changes by for a high window more than the target (fewer, of hard prompts).", above(0));
    v("least", least, "Least alpha.", between(0, 2));
    v("most", most, "Largest alpha.", between(0, 2));
  }
};

struct AresConfig {
  static constexpr const char* kKind = "ares";
  static constexpr const char* kScope = "step";
  static constexpr const char* kHelp =
      "Shapes rewards by the entropy of completions and the difficulty of prompts (ARES, arXiv 2510.08457; "
      "csrc/methods/ares.h): much exploration where prompts are hard, little where they are easy.";
  std::string form = "released";
  double alpha = 0.5;
  int64_t window = 4;
  std::vector<std::string> triggers;
  double quantile = 0.95;
  double threshold_decay = 0.99;
  double target_decay = 0.9;
  double easy = 2.0 / 3;
  double medium = 1.0 / 3;
  std::optional<AresAlphaConfig> alpha_control;
  std::optional<AresKlConfig> kl;

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("form", form,
      "Shape of the reward (csrc/methods/ares.h): that of the published code, one in which no wrong answer outranks a "
      "right "
      "one, or that of the paper.",
      one_of({"released", "strict", "paper"}));
    v("alpha", alpha,
      "Most that is added to a reward or taken from it, 1.2 of it for hard prompts, times the weight of the first "
      "reward; not for paper.",
      between(0, 2));
    v("window", window, "Tokens of a window of entropy.", at_least(1));
    v("triggers", triggers,
      "Tokens behind which high windows count, upper and lower case alike; empty: all high windows count.");
    v("quantile", quantile, "Quantile of a completion's windows that makes its threshold.", between(0, 1));
    v("threshold_decay", threshold_decay, "Decay of the threshold's running mean over steps.", between(0, 1));
    v("target_decay", target_decay, "Decay of the running mean over steps that a difficulty's target is.",
      between(0, 1));
    v("easy", easy, "Least share of right completions of an easy group.", between(0, 1));
    v("medium", medium, "Least share of right completions of a medium group; the others are hard.", between(0, 1));
    v("alpha_control", alpha_control,
      "Let alpha grow for a difficulty whose completions explore too much (too little, of hard prompts); absent: it "
      "stays.");
    v("kl", kl, "Steer the weight of the divergence from the reference for each difficulty; absent: it stays.");
  }

  // Of each token whether it is a trigger, found by bind(); not a key.
  std::vector<bool> trigger = {};

  // Throws std::invalid_argument that names a trigger which is no token.
  void bind(const TokensCalled& tokens_called);
  Tensor initial_state() const;
  void apply(Completions& c, Context& context) const;
  void observe(const std::map<std::string, double>& seen, Context& context) const;  // ref_kl/<difficulty>
};

// ---- pure functions -------------------------------------------------------------------------------------------------

// Where the windows that N counts begin, in order. trigger: for each token whether it is one; empty: all windows count.
std::vector<int64_t> counted_windows(const std::vector<double>& means, double threshold,
                                     const std::vector<bool>& trigger);

Difficulty difficulty(double accuracy, const AresConfig& config);

// lambda: of form paper alone.
double ares_shaping(const AresConfig& config, Difficulty difficulty, bool right, double high, double target,
                    double lambda = 0);

// A step. entropy [B, T] float32 or float64, nats, of each completion's tokens from the first on; length [B] int64, how many of them there
// are; right [B] bool; group [B] int64, rising; trigger [B, T] bool, where config names triggers, else undefined; state as
// AresConfig::initial_state() begins it. What config.trigger says is not looked at.
struct AresMade {
  Tensor shaping;     // [B] double, to be added to rewards of which a right answer has 1
  Tensor difficulty;  // [B] int64
  Tensor
      ref_kl_weight;  // [B, T] float, of the divergence from the reference; 1 behind a completion's tokens. Undefined without kl
  Tensor state;  // for the next step
  std::map<std::string, double> stats;
};
AresMade ares(const Tensor& entropy, const Tensor& length, const Tensor& right, const Tensor& group,
              const Tensor& trigger, const Tensor& state, const AresConfig& config);
// The state after an update: kl [3], nats a token, of each difficulty, NaN where the update has no token of it.
Tensor ares_measured(const Tensor& state, const Tensor& kl, const AresConfig& config);

// ---- from step to step ----------------------------------------------------------------------------------------------

struct AresCompletion {
  std::span<const int64_t> tokens;  // numbers of AresConfig::trigger
  std::span<const float> entropy;   // of each token
  bool right;
};

struct AresStep {
  std::vector<double> shaping;                // [completions] to be added to rewards where a right answer has 1
  std::vector<Difficulty> difficulty;         // [completions] of the group
  std::vector<std::vector<float>> kl_weight;  // [completions][tokens]; empty without kl
  std::map<std::string, double> stats;        // ares/… of csrc/train/metrics.h
};

class Ares {
 public:
  // config: bound, where it names triggers.
  explicit Ares(const AresConfig& config);

  // The completions of a step, group after group: those of group g are number groups[g] … groups[g + 1] − 1, at least
  // one. No group at all: an empty result, and nothing is learnt. Throws std::invalid_argument for other offsets.
  AresStep step(const std::vector<AresCompletion>& completions, const std::vector<int64_t>& groups);

  // After an update: the mean divergence from the reference over the tokens of a difficulty.
  void measured(Difficulty difficulty, double kl);

  // What a resumed run goes on from. restore throws std::runtime_error for what state() did not give; a state from before
  // error_decay, without the errors, it takes where they do not matter.
  std::vector<double> state() const;
  void restore(const std::vector<double>& state);

 private:
  struct Controller {
    double beta = 1;
    std::optional<double> kl = {};  // running mean
    int64_t measurements = 0;
    double error = 0;  // running mean
  };

  AresConfig config_;
  std::optional<double> threshold_;
  std::array<std::optional<double>, kDifficulties> target_;
  std::array<Controller, kDifficulties> controller_;
  std::array<double, kDifficulties> alpha_;  // as alpha_control has steered it
};

}  // namespace isentrope::methods
