#include "csrc/rl/twenty_questions.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/json_object.h"
#include "csrc/data/random.h"
#include "csrc/message.h"

namespace isentrope::rl {
namespace {

double likelihood(const std::string& row, int64_t attribute, char answer, double noise) {
  return row[attribute] == answer ? 1 - noise : noise;
}

class Game : public Episode {
 public:
  Game(const TwentyQuestions& config, const data::Example& example, uint64_t seed) : config_(config), seed_(seed) {
    const auto columns = data::parse_json_object(example.columns);
    for (const auto& [name, row] : columns.at("table").items()) {
      if (name == example.answer) hidden_ = rows_.size();
      names_.push_back(name);
      rows_.push_back(row.get<std::string>());
    }
    if (hidden_ == names_.size())
      throw std::runtime_error("the table has no object " + isentrope::quoted(example.answer));
    belief_.assign(rows_.size(), 1.0 / static_cast<double>(rows_.size()));
    scores = {{"answer", 0}, {"information_gain", 0}, {"turns", 0}};
  }

  Reply step(const std::string& said) override {
    std::string text = said;
    while (!text.empty() && text.back() == '\n') text.pop_back();
    if (text.starts_with('!')) {
      scores["answer"] = text.substr(1) == names_[hidden_] ? 1 : 0;
      return {.done = true};
    }
    const auto turn = static_cast<uint64_t>(scores["turns"]++);
    const auto attributes = static_cast<int64_t>(rows_.front().size());
    const int64_t asked = text.size() == 2 && text[0] == '?' ? text[1] - '0' : -1;
    if (asked < 0 || asked >= attributes) return {.text = "e\n", .error = true};
    data::Stream stream(seed_, data::Purpose::noise, turn);
    const bool flips = config_.noise > 0 && stream.uniform() < config_.noise;
    const char answer = (rows_[hidden_][asked] == '1') != flips ? '1' : '0';
    const std::vector<double> after = believe(belief_, rows_, asked, answer, config_.noise);
    const double gain = config_.gain == "expected" ? expected_gain(belief_, rows_, asked, config_.noise)
                                                   : entropy_of(belief_) - entropy_of(after);
    scores["information_gain"] += gain / std::log(static_cast<double>(rows_.size()));
    belief_ = after;
    return {.text = answer == '1' ? "y\n" : "n\n"};
  }

 private:
  TwentyQuestions config_;
  uint64_t seed_;
  size_t hidden_ = static_cast<size_t>(-1);
  std::vector<std::string> names_, rows_;
  std::vector<double> belief_;
};

class Games : public Environment {
 public:
  explicit Games(const TwentyQuestions& config) : config_(config) {}
  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t seed, std::string*) const override {
    try {
      return std::make_unique<Game>(config_, example, seed);
    } catch (const std::exception& error) {
      throw std::runtime_error("environment, twenty_questions: the example " + isentrope::quoted(example.prompt) +
                               ": " + error.what() + "; it wants those of data.episodes");
    }
  }

 private:
  TwentyQuestions config_;
};

}  // namespace

std::shared_ptr<const Environment> TwentyQuestions::make() const { return std::make_shared<Games>(*this); }

double entropy_of(const std::vector<double>& belief) {
  double H = 0;
  for (const double b : belief)
    if (b > 0) H -= b * std::log(b);
  return H;
}

std::vector<double> believe(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                            char answer, double noise) {
  std::vector<double> after = belief;
  double sum = 0;
  for (size_t i = 0; i < rows.size(); ++i) sum += after[i] *= likelihood(rows[i], attribute, answer, noise);
  if (!(sum > 0)) throw std::invalid_argument("no object is left that would be answered so");
  for (double& b : after) b /= sum;
  return after;
}

double expected_gain(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                     double noise) {
  double gain = entropy_of(belief);
  for (const char answer : {'0', '1'}) {
    double probability = 0;
    for (size_t i = 0; i < rows.size(); ++i) probability += belief[i] * likelihood(rows[i], attribute, answer, noise);
    if (probability > 0) gain -= probability * entropy_of(believe(belief, rows, attribute, answer, noise));
  }
  return std::max(gain, 0.0);
}

}  // namespace isentrope::rl
