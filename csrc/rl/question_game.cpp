#include "csrc/rl/question_game.h"

#include <charconv>
#include <utility>

namespace isentrope::rl {

QuestionGame::QuestionGame(data::QuestionTable table, size_t hidden, Respond respond, const Counting& counting)
    : table_(std::move(table)),
      hidden_(hidden),
      respond_(std::move(respond)),
      counting_(counting),
      belief_(table_.prior),
      asked_(table_.questions.size(), false) {
  scores = {{"answer", 0}, {"information_gain", 0}, {"turns", 0}};
  if (counting_.likeliest) scores["likeliest"] = 0;
}

Reply QuestionGame::step(const std::string& said) {
  std::string text = said;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.starts_with('!')) {
    const size_t named = table_.find(text.substr(1));
    scores["answer"] = named == hidden_ ? 1 : 0;
    if (counting_.likeliest)
      scores["likeliest"] = named < belief_.size() && belief_[named] == belief_[data::likeliest(belief_)] ? 1 : 0;
    return {.done = true};
  }
  const auto turn = static_cast<uint64_t>(scores["turns"]++);
  const int64_t asked = question_of(text, table_.questions.size());
  if (asked < 0) return {.text = "e\n", .error = true};
  const auto question = static_cast<size_t>(asked);
  const bool answer = respond_(question, turn);
  if (table_.forgets || !asked_[question]) {
    const data::Question& of = table_.questions[question];
    const std::vector<double> after = data::believe(belief_, of.likelihood(answer));
    const double gain = counting_.gain == "expected" ? data::expected_gain(belief_, of)
                                                     : data::entropy_of(belief_) - data::entropy_of(after);
    scores["information_gain"] += gain / counting_.scale;
    belief_ = after;
  }
  asked_[question] = true;
  return {.text = answer ? "y\n" : "n\n"};
}

int64_t question_of(const std::string& text, size_t questions) {
  if (text.size() < 2 || text[0] != '?' || (text[1] == '0' && text.size() > 2)) return -1;
  uint32_t number = 0;
  const auto [end, problem] = std::from_chars(text.data() + 1, text.data() + text.size(), number);
  if (problem != std::errc() || end != text.data() + text.size() || number >= questions) return -1;
  return number;
}

}  // namespace isentrope::rl
