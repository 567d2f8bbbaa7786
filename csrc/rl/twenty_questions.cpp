#include "csrc/rl/twenty_questions.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/json_object.h"
#include "csrc/data/random.h"
#include "csrc/message.h"
#include "csrc/rl/question_game.h"

namespace isentrope::rl {
namespace {

data::Question question_about(const std::vector<std::string>& rows, int64_t attribute, double noise) {
  data::Question question;
  for (const std::string& row : rows) {
    const bool has = row.at(static_cast<size_t>(attribute)) == '1';
    question.yes.push_back(has ? 1 - noise : noise);
    question.no.push_back(has ? noise : 1 - noise);
  }
  return question;
}

class Games : public Environment {
 public:
  explicit Games(const TwentyQuestions& config) : config_(config) {}
  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t seed, std::string*) const override {
    try {
      data::QuestionTable table = questions_table(example.columns, config_.noise);
      const size_t hidden = table.find(example.answer), objects = table.names.size();
      if (hidden == objects) throw std::runtime_error("the table has no object " + isentrope::quoted(example.answer));
      std::vector<bool> has;
      for (const data::Question& question : questions_table(example.columns, /*noise=*/0).questions)
        has.push_back(question.yes[hidden] > 0);
      const auto respond = [has, seed, noise = config_.noise](size_t question, uint64_t turn) {
        data::Stream stream(seed, data::Purpose::noise, turn);
        const bool flips = noise > 0 && stream.uniform() < noise;
        return has[question] != flips;
      };
      return std::make_unique<QuestionGame>(
          std::move(table), hidden, respond,
          QuestionGame::Counting{.gain = config_.gain, .scale = std::log(static_cast<double>(objects))});
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

data::QuestionTable questions_table(const std::string& columns, double noise) {
  data::QuestionTable table;
  std::vector<std::string> rows;
  const auto object = data::parse_json_object(columns);
  for (const auto& [name, row] : object.at("table").items()) {
    table.names.push_back(name);
    rows.push_back(row.get<std::string>());
  }
  if (rows.empty()) throw std::invalid_argument("the table has no object");
  table.prior.assign(rows.size(), 1.0 / static_cast<double>(rows.size()));
  for (int64_t a = 0; a < std::ssize(rows.front()); ++a) table.questions.push_back(question_about(rows, a, noise));
  table.forgets = true;
  return table;
}

std::vector<double> believe(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                            char answer, double noise) {
  return data::believe(belief, question_about(rows, attribute, noise).likelihood(answer == '1'));
}

double expected_gain(const std::vector<double>& belief, const std::vector<std::string>& rows, int64_t attribute,
                     double noise) {
  return data::expected_gain(belief, question_about(rows, attribute, noise));
}

}  // namespace isentrope::rl
