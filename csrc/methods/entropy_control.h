// Controllers of the policy's entropy: what an update adds for it, from the number of the step and the entropies of the updates
// before. The key objective.entropy takes some of them, in order: bonuses add up, factors of advantages multiply. H: mean entropy of an update's learnt tokens, nats; H* the target.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/field.h"
#include "csrc/methods/ceeh.h"
#include "csrc/methods/control.h"
#include "csrc/methods/own.h"
#include "csrc/methods/tea.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

// ---- pure functions -------------------------------------------------------------------------------------------------

// From `from` at step 0 to `to` at step `steps` and after it, in a straight line or along half a cosine.
double entropy_schedule(int64_t step, std::string_view shape, double from, double to, int64_t steps);

// Of each of step [...] int64, from 0, as [...] double: coef; the schedule above; the one of coefs whose stretch, that begins at the one of
// steps, holds it (steps rise from 0).
Tensor constant_coef(const Tensor& step, double coef);
Tensor scheduled_coef(const Tensor& step, std::string_view shape, double start, double end, int64_t steps);
Tensor table_of_coef(const Tensor& step, at::IntArrayRef steps, at::ArrayRef<double> coefs);

// state [1] double: the entropy H of the update before, NaN: none. [2] double: factors of advantages above 0 and below 0 at that step,
// 0 and 1 below the band, 1 and 0 above it, 1 and 1 within or without an H. start, end: lower and upper end at step 0 and from step
// `steps` on; between them as the schedule goes.
Tensor band_factors(const Tensor& state, int64_t step, std::string_view shape, at::ArrayRef<double> start,
                    at::ArrayRef<double> end, int64_t steps);

// state [2]: the coefficient, and the last H (NaN: none). After an update of entropy H: coefficient + delta where H ≤ target, else
// − delta, within [least, most].
Tensor adaptive_entropy(const Tensor& state, double entropy, double target, double delta, double least, double most);

// state [2]: the integral I and α. After an update of entropy H: I += k_i (H − H*), α = I + k_p (H − H*), within ±1.
Tensor entropic(const Tensor& state, double entropy, double target, double proportional, double integral);

// state [2]: the coefficient, and how many updates have been. After an update of entropy H, behind the first `warmup` of them:
// coefficient −= rate (min(0, H − low) + max(0, H − high)), within [least, most].
Tensor entropy_band_coef(const Tensor& state, double entropy, double low, double high, double rate, double least,
                         double most, int64_t warmup);

// ---- what objective.entropy may be ----------------------------------------------------------------------------------

struct ConstantEntropy {
  static constexpr const char* kKind = "constant";
  static constexpr const char* kHelp = "An entropy bonus of one coefficient (A3C, arXiv 1602.01783).";
  double coef = 0.01;

  template <class Visitor>
  void visit(Visitor& v) {
    v("coef", coef, "Weight of the entropy, nats, which is subtracted from each token's loss.", at_least(0));
  }
  Control at(int64_t step, const Tensor&) const;
};

struct ScheduledEntropy {
  static constexpr const char* kKind = "schedule";
  static constexpr const char* kHelp =
      "An entropy bonus (A3C, arXiv 1602.01783) whose coefficient goes from one value to another over steps; the "
      "cosine is that of learning rates (arXiv 1608.03983).";
  std::string shape = "linear";
  double from = 0.01;
  double to = 0.0;
  int64_t steps = 100;

  template <class Visitor>
  void visit(Visitor& v) {
    v("shape", shape, "A straight line, or half a cosine.", one_of({"linear", "cosine"}));
    v("from", from, "Coefficient of the first step.", at_least(0));
    v("to", to, "Coefficient from step `steps` on.", at_least(0));
    v("steps", steps, "Steps of the way.", at_least(1));
  }
  Control at(int64_t step, const Tensor&) const;
};

struct TableOfEntropy {
  static constexpr const char* kKind = "table";
  static constexpr const char* kHelp =
      "An entropy bonus (A3C, arXiv 1602.01783) whose coefficient is told for stretches of steps.";
  std::vector<int64_t> steps = {0};
  std::vector<double> coefs = {0.01};

  std::string problem() const;
  template <class Visitor>
  void visit(Visitor& v) {
    v("steps", steps, "First steps of the stretches, rising from 0.", at_least(0));
    v("coefs", coefs, "Coefficient of each stretch.", at_least(0));
  }
  Control at(int64_t step, const Tensor&) const;
};

struct AdaptiveEntropy {
  static constexpr const char* kKind = "adaptive";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "An entropy bonus whose coefficient rises by delta after an update whose entropy was at most the target, and "
      "falls "
      "by it after another; it is in force only where the entropy of the update before was at most the target "
      "(Skywork-OR1, arXiv 2505.22312; as TRL 1.16's use_adaptive_entropy).";
  double target = 0.2;
  double coef = 0.0;
  double delta = 0.005;
  double least = 0.0;
  double most = 1.0;

  std::string problem() const;
  template <class Visitor>
  void visit(Visitor& v) {
    v("target", target, "Mean entropy of a token, nats, that is steered to.", above(0));
    v("coef", coef, "Coefficient of the first update.", at_least(0));
    v("delta", delta, "What the coefficient changes by after an update.", above(0));
    v("least", least, "Least coefficient.", at_least(0));
    v("most", most, "Largest coefficient.", at_least(0));
  }
  Tensor initial_state() const;
  Control at(int64_t step, const Tensor& state) const;
  void observe(const std::map<std::string, double>& seen, Context& context) const;
};

struct EntroPic {
  static constexpr const char* kKind = "entropic";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Weighs advantages above 0 by 1 + a and those below by 1 - a, with a = I + proportional (H - target) and "
      "I += integral (H - target) after each update, a within -1 and 1: a PI controller that lowers the entropy "
      "through "
      "right answers and raises it through wrong ones (EntroPIC, arXiv 2511.15248; gains as a port has them).";
  double target = 0.3;
  double proportional = 1.0;
  double integral = 0.01;

  template <class Visitor>
  void visit(Visitor& v) {
    v("target", target, "Mean entropy of a token, nats, that is steered to.", above(0));
    v("proportional", proportional, "Gain of the error.", at_least(0));
    v("integral", integral, "Gain of the error's sum over updates.", at_least(0));
  }
  Tensor initial_state() const;
  Control at(int64_t step, const Tensor& state) const;
  void observe(const std::map<std::string, double>& seen, Context& context) const;
};

struct EntropyBand {
  static constexpr const char* kKind = "band";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Above the band the policy learns from advantages above 0 alone, below it from those below 0 alone, and within "
      "it from both; the band moves over steps (Entrocraft, arXiv 2604.26326, whose text rejects samples where this, "
      "as "
      "its code, takes their gradient away).";
  std::string shape = "linear";
  std::vector<double> from = {0.6, 0.7};
  std::vector<double> to = {0.4, 0.5};
  int64_t steps = 100;

  std::string problem() const;
  template <class Visitor>
  void visit(Visitor& v) {
    v("shape", shape, "How the band moves: a straight line, or half a cosine.", one_of({"linear", "cosine"}));
    v("from", from, "Lower and upper end at the first step, nats.", at_least(0));
    v("to", to, "Lower and upper end from step `steps` on, nats.", at_least(0));
    v("steps", steps, "Steps of the way.", at_least(1));
  }
  Tensor initial_state() const;  // the last H
  Control at(int64_t step, const Tensor& state) const;
  void observe(const std::map<std::string, double>& seen, Context& context) const;
};

struct AEnt {
  static constexpr const char* kKind = "aent";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "An entropy bonus whose coefficient rises by rate (low - H) after an update whose entropy was below the band, "
      "and "
      "falls by rate (H - high) after one above it. H is the entropy of what objective.entropy_keep keeps, as the "
      "bonus "
      "is; AEnt's keeps all but the lowest share of the vocabulary (arXiv 2509.03493; AReaL's recipe, which steers "
      "once "
      "a step by the mean of its updates).";
  double low = 0.05;
  double high = 0.23;
  double coef = 2e-4;
  double rate = 1e-3;
  double least = 1e-5;
  double most = 3e-3;
  int64_t warmup = 0;

  std::string problem() const;
  template <class Visitor>
  void visit(Visitor& v) {
    v("low", low, "Lower end of the band, nats.", at_least(0));
    v("high", high, "Its upper end, nats.", at_least(0));
    v("coef", coef, "Coefficient of the first update.", above(0));
    v("rate", rate, "What it changes by for a nat outside the band.", at_least(0));
    v("least", least, "Least coefficient, above 0: without a bonus no kept entropy is measured.", above(0));
    v("most", most, "Largest coefficient.", above(0));
    v("warmup", warmup, "Updates before the coefficient changes; 29 steps in the recipe.", at_least(0));
  }
  Tensor initial_state() const;
  Control at(int64_t step, const Tensor& state) const;
  void observe(const std::map<std::string, double>& seen, Context& context) const;
};

struct Siren {
  static constexpr const char* kKind = "siren";
  static constexpr const char* kScope = "update";
  static constexpr const char* kHelp =
      "Adds coef (m - m at the start)² to the loss, with m the mean, over the tokens of highest entropy, of the "
      "entropy "
      "of what objective.entropy_keep keeps: SIREN's keeps the fewest likeliest tokens that reach 0.8 (arXiv "
      "2509.25133, "
      "aggregate token-mean). It holds the entropy of the forks where it was, and that of the others is free.";
  double coef = 0.005;
  double share = 0.2;
  std::optional<double> anchor = {};

  template <class Visitor>
  void visit(Visitor& v) {
    v("coef", coef, "Weight of the squared distance; 0: no effect.", at_least(0));
    v("share", share, "Share of the update's tokens whose entropy is held, those of highest entropy.", above_to(0, 1));
    v("anchor", anchor, "Mean entropy, nats, that they are held at; absent: that of the phase's first update.",
      at_least(0));
  }
  Tensor initial_state() const;
  Control at(int64_t, const Tensor&) const { return {.weighs = coef > 0}; }
  Bonus bonus(const Update& u, int64_t step, Context& context) const;  // of csrc/methods/siren.h
  void observe(const std::map<std::string, double>& seen, Context& context) const;
};

using EntropyControl = OneOf<  //
    ConstantEntropy,           //
    ScheduledEntropy,          //
    TableOfEntropy,            //
    AdaptiveEntropy,           // arXiv 2505.22312
    AEnt,                      // arXiv 2509.03493
    Siren,                     // arXiv 2509.25133
    EntroPic,                  // arXiv 2511.15248
    EntropyBand,               // arXiv 2604.26326
    Tea,                       // arXiv 2508.03178
    CeehEntropy,               // arXiv 2602.22642
    OwnEntropy                 // one's own
    >;

}  // namespace isentrope::methods
