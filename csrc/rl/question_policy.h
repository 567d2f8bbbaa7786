// Policies that ask questions by what they know of a table (csrc/data/questions.h), without a model: at random, by information, and conformal
// information pursuit (Chan et al., "Conformal Information Pursuit for Interactively Guiding Large Language Models", arXiv 2507.03279).
//
// What a policy believes is p̂ ∝ b^temper, b being the right belief: with temper 1 it is calibrated, below it is too unsure, above too sure,
// as a language model's probabilities are. Guesses are the likeliest object, which temper does not change; questions are what it changes.
//
//   information  the question behind which the mean entropy of p̂ is least
//   conformal    the question with the least bound on the conditional entropy by the size of prediction sets C (Correia et al., "An
//                Information Theoretic Perspective on Conformal Prediction", arXiv 2405.02140), nats:
//                  h(α) + (1 − α_n) · E[ln |C| given that C has the object] + α · E[ln(K − |C|) given that it has not]
//                K objects, h the entropy of a coin, α_n = α − 1/(n + 1) of n calibration conversations
//
// C_k = {y : −p̂(y) ≤ q_k} behind k questions; q_k is the ⌈(n + 1)(1 − α)⌉-th smallest score −p̂(true) of the calibration conversations, whose
// questions are asked at random, +∞ where that is beyond n. So C_k has the object with probability 1 − α at least where questions are asked at
// random; of questions that a policy chooses nothing is promised, and coverage is measured.
//
// What is averaged over, the object and the answer of its likelihoods, has every object alike likely (labels: uniform, as the paper's
// code), or as p̂ has it (belief). Either exactly, or of that many draws.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/questions.h"
#include "csrc/data/random.h"
#include "csrc/field.h"
#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct QuestionPolicy {
  std::string kind = "conformal";
  double alpha = 0.1;
  double temper = 1;
  bool scale = false;
  std::string labels = "uniform";
  int64_t simulations = 32;
  int64_t calibration = 200;
  bool released = false;
  int64_t unchanged = 3;
  int64_t questions = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind, "How questions are chosen.", one_of({"conformal", "information", "random"}));
    v("alpha", alpha, "Share of prediction sets that may lack the object.", between(0.001, 0.5));
    v("temper", temper, "Power that the belief is raised to: below 1 it is too unsure, above too sure.",
      between(0.01, 100));
    v("scale", scale,
      "Whether a further power is fitted to the calibration conversations, by their likelihood (temperature scaling).");
    v("labels", labels, "What objects a question is judged over: all alike, or as they are believed.",
      one_of({"uniform", "belief"}));
    v("simulations", simulations, "Draws that judge a question; 0: exactly.", between(0, 1 << 16));
    v("calibration", calibration, "Calibration conversations.", between(1, 1 << 20));
    v("released", released, "Whether thresholds are as the paper's code has them, without the n + 1 correction.");
    v("unchanged", unchanged,
      "The policy stops where one object is left in the set, or the set is the same for that many questions.",
      between(1, 1 << 16));
    v("questions", questions, "Most questions; 0 for what the turns of the environment and the table leave.",
      between(0, 1 << 16));
  }
};

// The ⌈(n + 1)(1 − α)⌉-th smallest of n scores, +∞ where that is beyond n; released: the quantile 1 − α of n, of two the higher.
double conformal_threshold(std::vector<double> scores, double alpha, bool released = false);

// p̂, [objects].
std::vector<double> tempered(const std::vector<double>& belief, double power);

// C: the places of the objects with −p̂ ≤ threshold.
std::vector<size_t> conformal_set(const std::vector<double>& believed, double threshold);

// The bound, nats. covered, uncovered: means of ln |C| and ln(K − |C|) over the sets that have the object and that have it not. It can be
// above ln K, which is a bound too; questions are told apart there all the same.
double conformal_bound(double alpha, double alpha_n, double covered, double uncovered);

// What a conversation came to, each behind t = 0 … T questions.
struct QuestionRecord {
  std::vector<size_t> asked;          // [T]
  std::vector<bool> answers;          // [T]
  std::vector<size_t> named;          // [T + 1] the likeliest object
  std::vector<bool> right, covered;   // [T + 1] named is the object; C has it
  std::vector<double> size, entropy;  // [T + 1] |C|; H of p̂, nats
  size_t stopped = 0;                 // t where the rule stops
};

// A conversation to be held: the environment's side, and what the policy knows of it.
struct QuestionTask {
  data::QuestionTable table;
  size_t hidden = 0;  // for the record alone
  std::unique_ptr<Episode> episode = {};
};

class QuestionPlayer {
 public:
  // Holds the calibration conversations, of as many questions. Throws std::invalid_argument where there are fewer than one, and
  // std::runtime_error where the environment answers other than y or n.
  QuestionPlayer(const QuestionPolicy& policy, std::vector<QuestionTask> calibration, int64_t questions, uint64_t seed);

  // Asks all questions; number: of the conversation, for its draws.
  QuestionRecord play(QuestionTask& task, uint64_t number) const;

  double power() const { return power_; }                                // temper, times what was fitted
  const std::vector<double>& thresholds() const { return thresholds_; }  // q_t, [T + 1]

 private:
  size_t choose(const data::QuestionTable& table, const std::vector<double>& belief, const std::vector<bool>& asked,
                size_t before, data::Stream& stream) const;
  double score(const std::vector<double>& belief, const data::Question& question, double threshold,
               data::Stream& stream) const;

  QuestionPolicy policy_;
  int64_t questions_;
  uint64_t seed_;
  double power_;
  std::vector<double> thresholds_;
};

}  // namespace isentrope::rl
