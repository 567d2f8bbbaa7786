#include "csrc/rl/question_policy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "csrc/message.h"

namespace isentrope::rl {
namespace {

constexpr double kTie = 1e-12;  // questions whose scores differ by less tell the same, and the first is asked

// Asks the environment; the belief goes on.
bool ask(QuestionTask& task, size_t question, std::vector<double>& belief) {
  const std::string said = "?" + std::to_string(question) + "\n";
  const Reply reply = task.episode->step(said);
  if (reply.text != "y\n" && reply.text != "n\n")
    throw std::runtime_error("the environment answers " + isentrope::quoted(said) + " by " +
                             isentrope::quoted(reply.text) + ", wanted y or n");
  const bool answer = reply.text == "y\n";
  belief = data::believe(belief, task.table.questions[question].likelihood(answer));
  return answer;
}

size_t random_question(const std::vector<bool>& asked, data::Stream& stream) {
  const auto open = static_cast<uint32_t>(std::count(asked.begin(), asked.end(), false));
  uint32_t left = stream.below(open);
  for (size_t q = 0;; ++q)
    if (!asked[q] && left-- == 0) return q;
}

size_t draw(const std::vector<double>& p, data::Stream& stream) {
  double u = stream.uniform();
  for (size_t i = 0; i + 1 < p.size(); ++i)
    if ((u -= p[i]) < 0) return i;
  return p.size() - 1;
}

// Mean of −ln p̂(true) over beliefs, as a function of the power.
double surprise(const std::vector<std::vector<double>>& beliefs, const std::vector<size_t>& hidden, double power) {
  double sum = 0;
  for (size_t i = 0; i < beliefs.size(); ++i) {
    const double top = beliefs[i][data::likeliest(beliefs[i])];
    double all = 0;
    for (const double b : beliefs[i])
      if (b > 0) all += std::pow(b / top, power);
    sum += std::log(all) - power * std::log(beliefs[i][hidden[i]] / top);
  }
  return sum / static_cast<double>(beliefs.size());
}

// The power of least surprise. The surprise is convex in it (the beliefs are an exponential family), and the search in its logarithm
// keeps to a side of the least: golden section, to a thousandth.
double fitted_power(const std::vector<std::vector<double>>& beliefs, const std::vector<size_t>& hidden) {
  const double ratio = (std::sqrt(5.0) - 1) / 2;
  double low = std::log(1e-3), high = std::log(1e3);
  const auto at = [&](double x) { return surprise(beliefs, hidden, std::exp(x)); };
  double left = high - ratio * (high - low), right = low + ratio * (high - low), f = at(left), g = at(right);
  while (high - low > 1e-3) {
    if (f <= g) {
      high = right, right = left, g = f;
      left = high - ratio * (high - low), f = at(left);
    } else {
      low = left, left = right, f = g;
      right = low + ratio * (high - low), g = at(right);
    }
  }
  return std::exp((low + high) / 2);
}

}  // namespace

double conformal_threshold(std::vector<double> scores, double alpha, bool released) {
  const auto n = static_cast<double>(scores.size());
  // (n + 1)(1 − α) is a whole number for many α that binary fractions only come near to.
  const double rank = released ? std::ceil((n - 1) * (1 - alpha) - 1e-9) + 1 : std::ceil((n + 1) * (1 - alpha) - 1e-9);
  if (rank > n) return std::numeric_limits<double>::infinity();
  const auto kth = scores.begin() + static_cast<int64_t>(std::max(rank, 1.0)) - 1;
  std::nth_element(scores.begin(), kth, scores.end());
  return *kth;
}

std::vector<double> tempered(const std::vector<double>& belief, double power) {
  if (power == 1) return belief;
  const double top = belief[data::likeliest(belief)];
  std::vector<double> p;
  double sum = 0;
  for (const double b : belief) sum += p.emplace_back(b > 0 ? std::pow(b / top, power) : 0);
  for (double& x : p) x /= sum;
  return p;
}

std::vector<size_t> conformal_set(const std::vector<double>& believed, double threshold) {
  std::vector<size_t> set;
  for (size_t y = 0; y < believed.size(); ++y)
    if (-believed[y] <= threshold) set.push_back(y);
  return set;
}

double conformal_bound(double alpha, double alpha_n, double covered, double uncovered) {
  return data::entropy_of({alpha, 1 - alpha}) + (1 - alpha_n) * covered + alpha * uncovered;
}

QuestionPlayer::QuestionPlayer(const QuestionPolicy& policy, std::vector<QuestionTask> calibration, int64_t questions,
                               uint64_t seed)
    : policy_(policy), questions_(questions), seed_(seed), power_(policy.temper) {
  if (calibration.empty()) throw std::invalid_argument("there is no calibration conversation; wanted one at least");
  std::vector<std::vector<double>> beliefs;  // of all conversations behind 0 … T questions
  std::vector<size_t> hidden;
  for (size_t i = 0; i < calibration.size(); ++i) {
    QuestionTask& task = calibration[i];
    data::Stream stream(seed_, data::Purpose::noise, i, /*b=*/24);
    std::vector<bool> asked(task.table.questions.size(), false);
    std::vector<double> belief = task.table.prior;
    for (int64_t t = 0; t <= questions_; ++t) {
      beliefs.push_back(belief);
      hidden.push_back(task.hidden);
      if (t == questions_) break;
      const size_t q = random_question(asked, stream);
      asked[q] = true;
      ask(task, q, belief);
    }
  }
  if (policy_.scale) {
    std::vector<std::vector<double>> believed;
    believed.reserve(beliefs.size());
    for (const auto& belief : beliefs) believed.push_back(tempered(belief, policy_.temper));
    power_ *= fitted_power(believed, hidden);
  }
  for (int64_t t = 0; t <= questions_; ++t) {
    std::vector<double> scores;
    for (size_t i = static_cast<size_t>(t); i < beliefs.size(); i += static_cast<size_t>(questions_ + 1))
      scores.push_back(-tempered(beliefs[i], power_)[hidden[i]]);
    thresholds_.push_back(conformal_threshold(std::move(scores), policy_.alpha, policy_.released));
  }
}

double QuestionPlayer::score(const std::vector<double>& belief, const data::Question& question, double threshold,
                             data::Stream& stream) const {
  const size_t objects = belief.size();
  std::vector<double> label(objects, 1.0 / static_cast<double>(objects));
  if (policy_.labels == "belief") label = tempered(belief, power_);
  // weight[a][y]: of the answer a to an object y that has it.
  std::array<std::vector<double>, 2> weight{std::vector<double>(objects), std::vector<double>(objects)};
  if (policy_.simulations == 0)
    for (size_t y = 0; y < objects; ++y) {
      weight[0][y] = label[y] * question.no[y];
      weight[1][y] = label[y] * question.yes[y];
    }
  for (int64_t i = 0; i < policy_.simulations; ++i) {
    const size_t y = draw(label, stream);
    weight[stream.uniform() < question.yes[y]][y] += 1.0 / static_cast<double>(policy_.simulations);
  }
  double entropy = 0, all = 0, covered = 0, of_covered = 0, uncovered = 0, of_uncovered = 0;
  for (const bool answer : {false, true}) {
    double of_answer = 0;
    for (const double w : weight[answer]) of_answer += w;
    // An object that is ruled out may be alone in answering so.
    if (!(of_answer > 0) || !(data::probability_of(belief, question.likelihood(answer)) > 0)) continue;
    const std::vector<double> believed = tempered(data::believe(belief, question.likelihood(answer)), power_);
    all += of_answer;
    entropy += of_answer * data::entropy_of(believed);
    const std::vector<size_t> set = conformal_set(believed, threshold);
    double in = 0;
    for (const size_t y : set) in += weight[answer][y];
    covered += in;
    of_covered += in * std::log(static_cast<double>(std::max<size_t>(set.size(), 1)));
    uncovered += of_answer - in;
    of_uncovered += (of_answer - in) * std::log(static_cast<double>(std::max<size_t>(objects - set.size(), 1)));
  }
  if (policy_.kind == "information") return all > 0 ? entropy / all : 0;
  return conformal_bound(policy_.alpha, policy_.alpha - 1.0 / static_cast<double>(policy_.calibration + 1),
                         covered > kTie ? of_covered / covered : 0, uncovered > kTie ? of_uncovered / uncovered : 0);
}

size_t QuestionPlayer::choose(const data::QuestionTable& table, const std::vector<double>& belief,
                              const std::vector<bool>& asked, size_t before, data::Stream& stream) const {
  if (policy_.kind == "random") return random_question(asked, stream);
  size_t best = asked.size();
  double least = std::numeric_limits<double>::infinity();
  for (size_t q = 0; q < asked.size(); ++q) {
    if (asked[q]) continue;
    const double found = score(belief, table.questions[q], thresholds_[before + 1], stream);
    if (best == asked.size() || found < least - kTie) best = q, least = found;
  }
  return best;
}

QuestionRecord QuestionPlayer::play(QuestionTask& task, uint64_t number) const {
  QuestionRecord record;
  data::Stream stream(seed_, data::Purpose::selection, number, /*b=*/24);
  std::vector<bool> asked(task.table.questions.size(), false);
  std::vector<double> belief = task.table.prior;
  std::vector<size_t> last;
  int64_t same = 0;
  bool stopped = false;
  for (int64_t t = 0;; ++t) {
    const std::vector<double> believed = tempered(belief, power_);
    const std::vector<size_t> set = conformal_set(believed, thresholds_[static_cast<size_t>(t)]);
    record.named.push_back(data::likeliest(belief));
    record.right.push_back(record.named.back() == task.hidden);
    record.covered.push_back(std::find(set.begin(), set.end(), task.hidden) != set.end());
    record.size.push_back(static_cast<double>(set.size()));
    record.entropy.push_back(data::entropy_of(believed));
    same = t > 0 && set == last ? same + 1 : 0;
    last = set;
    if (!stopped && (set.size() == 1 || same >= policy_.unchanged || t == questions_)) {
      stopped = true;
      record.stopped = static_cast<size_t>(t);
    }
    if (t == questions_) return record;
    const size_t q = choose(task.table, belief, asked, static_cast<size_t>(t), stream);
    asked[q] = true;
    record.asked.push_back(q);
    record.answers.push_back(ask(task, q, belief));
  }
}

}  // namespace isentrope::rl
