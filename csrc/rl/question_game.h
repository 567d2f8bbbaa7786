// A conversation of questions about an object of a table (csrc/data/questions.h): what the environments twenty_questions and diagnosis have
// in common.
//
//   turn           answer          what it means
//   ?NUMBER\n      y\n or n\n      the question of that number, from 0 on
//   !NAME          (over)          the guess
//   another        e\n             an error
//
// Scores:
//   answer            1 where the guess is the object, else 0
//   information_gain  Σ over questions of what they tell, over `scale`. realised: H before less H behind the answer, below 0 where an
//                     unlikely answer makes the object less certain; expected: the mutual information of answer and object before the
//                     answer, never below 0
//   turns             questions asked, and turns that were errors
//   likeliest         where it is counted: 1 where no object is likelier than the guess, by the belief behind the answers
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "csrc/data/questions.h"
#include "csrc/rl/environment.h"

namespace isentrope::rl {

class QuestionGame : public Episode {
 public:
  // Answers to a question, in a turn of that number from 0 on.
  using Respond = std::function<bool(size_t question, uint64_t turn)>;
  struct Counting {
    std::string gain = "realised";  // or expected
    double scale = 1;               // nats
    bool likeliest = false;
  };
  QuestionGame(data::QuestionTable table, size_t hidden, Respond respond, const Counting& counting);

  Reply step(const std::string& said) override;

 private:
  data::QuestionTable table_;
  size_t hidden_;
  Respond respond_;
  Counting counting_;
  std::vector<double> belief_;
  std::vector<bool> asked_;
};

// "?NUMBER" as a number below `questions`, written as std::to_string() writes it; -1 where it is none.
int64_t question_of(const std::string& text, size_t questions);

}  // namespace isentrope::rl
