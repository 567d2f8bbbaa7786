// Reward and advantage: short answers to easy prompts, exploration of hard ones (arXiv 2602.22642, "CEEH": compress the easy, explore the
// hard). Either has a record of each prompt that the phase has seen:
//
//   accuracy a    −1 before the first step that has the prompt; then, with acc the share of right completions of its group,
//                 a ← acc where a ≤ 0, else a + (acc > a ? 0.2 : 0.05) (acc − a)
//   shortest L*   unknown before its first right completion; then, with l the least length of the group's right completions,
//                 L* ← l, later L* + (l < L* ? 0.2 : 0.05) (l − L*)
//   hard          acc ≤ the mean of a over prompts, as it was before the step; none where there is no record yet
//
//   reward        of a right completion of L tokens, where acc ≥ a: max(−0.9, scale (L* − L) / L*); 0 where L* is unknown
//   advantage     A + min(alpha H, |A| / kappa) · scale(t) on the tokens of hard prompts (the paper's mode EA)
//   controller    an entropy bonus in which tokens of hard prompts weigh factor times as much (its mode ME); which prompts are hard
//                 the record of a ceeh under reward or advantage says
//
// (a and L* before the step.) A record of exactly 0 counts as none, as published. The mean of a is over the prompts seen; published is
// that over the whole data set, in which those not seen yet count −1, so that early almost nothing is hard: prompts has their number.
#pragma once
#include <string>
#include <tuple>
#include <utility>

#include "csrc/field.h"
#include "csrc/methods/control.h"

namespace isentrope::methods {

// Of the groups of a step, G of them in order: hard [B] bool of each completion; the reward [B] double; accuracy and shortest [G] double
// behind the step. right [B] bool or number; length [B] integer, tokens; group [B] rising; accuracy, shortest [G] double before it (−1
// and NaN: unknown); mean: of a, NaN: none. scale ≥ 0; 0: the reward is 0.
std::tuple<Tensor, Tensor, Tensor, Tensor> ceeh(const Tensor& right, const Tensor& length, const Tensor& group,
                                                const Tensor& accuracy, const Tensor& shortest, double mean,
                                                double scale);

// [B, T] float, 0 where mask does not mark: w = factor on the tokens of hard rows, 1 on the others, over the mean of w over all tokens that
// count, so that the mean of weight · x is Σ w x / Σ w, as the released token-mean has it. hard [B] bool or number; mask [B, T];
// factor ≥ 0. Where all w are alike: 1.
Tensor ceeh_entropy(const Tensor& hard, const Tensor& mask, double factor);

struct CeehRecord {
  static constexpr bool kGrowingState = true;
  int64_t prompts = 0;

  template <class Visitor>
  void visit_record(Visitor& v) {
    v("prompts", prompts,
      "Prompts of the data set, of which those not seen yet count as accuracy −1 in the mean (the released code); 0: "
      "the "
      "mean is over the prompts seen.",
      at_least(0));
  }
  Tensor initial_state() const;  // [3 n]: number of a prompt, a, L*; the first is of none
  // The step: hard [B] bool, which is also c.hard, and the reward [B]; state becomes that behind it.
  std::pair<Tensor, Tensor> step(Completions& c, double scale, Context& context) const;
};

struct CeehReward : CeehRecord {
  static constexpr const char* kKind = "ceeh";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "Adds max(-0.9, scale (L* - L) / L*) to the reward of right answers of L tokens where the prompt is answered at "
      "least as well as before, L* a running shortest right length of the prompt (CEEH, arXiv 2602.22642).";
  double scale = 0.5;

  template <class Visitor>
  void visit(Visitor& v) {
    v("scale", scale,
      "Weight of the relative length, in the unit of the first reward; 0.5 in the released configuration, 0.05 in its "
      "scripts; 0: no effect.",
      at_least(0));
    visit_record(v);
  }
  void apply(Completions& c, Context& context) const;
};

struct CeehAdvantage : CeehRecord {
  static constexpr const char* kKind = "ceeh";
  static constexpr const char* kScope = "group";
  static constexpr const char* kHelp =
      "A + min(alpha H, |A| / kappa) · scale on the tokens of prompts that are answered no better than the mean of "
      "what "
      "was recorded: hesitant tokens of hard prompts gain (CEEH, arXiv 2602.22642).";
  double alpha = 0.4;
  double kappa = 2.0;
  std::string scale = "constant";
  int64_t steps = 100;

  template <class Visitor>
  void visit(Visitor& v) {
    v("alpha", alpha, "Gain of a nat of entropy; 0: no effect.", at_least(0));
    v("kappa", kappa, "The gain is at most |A| / kappa.", above(1));
    v("scale", scale, "How the gain goes over steps: it stays, falls in a line to 0, or along half a cosine.",
      one_of({"constant", "linear", "cosine"}));
    v("steps", steps, "Steps of the way; not for constant.", at_least(1));
    visit_record(v);
  }
  void apply(Completions& c, Context& context) const;
};

struct CeehEntropy {
  static constexpr const char* kKind = "ceeh";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "An entropy bonus in which tokens of hard prompts weigh `factor` times as much as the others; which are hard, "
      "the "
      "record of a ceeh under reward or advantage says (CEEH's mode ME, arXiv 2602.22642).";
  double coef = 1e-3;
  double factor = 5;
  std::string scale = "constant";
  int64_t steps = 100;
  bool retain = false;

  template <class Visitor>
  void visit(Visitor& v) {
    v("coef", coef, "Weight of the bonus; 0: no effect.", at_least(0));
    v("factor", factor, "What a token of a hard prompt weighs, where another weighs 1, which is a plain bonus.",
      at_least(0));
    v("scale", scale, "How the bonus goes over steps: it stays, falls in a line to 0, or along half a cosine.",
      one_of({"constant", "linear", "cosine"}));
    v("steps", steps, "Steps of the way; not for constant.", at_least(1));
    v("retain", retain,
      "What scale is of: false, the bonus; true, the weight of hard prompts beyond 1, so that the others keep their "
      "bonus (retain_entropy_loss).");
  }
  Control at(int64_t, const Tensor&) const { return {.weighs = coef > 0}; }
  Bonus bonus(const Update& u, int64_t step, Context& context) const;
};

}  // namespace isentrope::methods
