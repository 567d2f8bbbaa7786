// Yes-or-no questions about an object of a table, with known probabilities of the answers: what environments ask (csrc/rl/question_game.h),
// what teachers of data.episodes ask, and what policies reckon with (csrc/rl/question_policy.h).
//
// The belief b over the N objects begins as the prior; an answer multiplies it by its likelihoods and it is scaled to 1. It is the joint
// belief: were it the product of beliefs about single questions, questions that depend on each other would count twice.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace isentrope::data {

// P(yes | object) and P(no | object), [objects]. Both are kept, since 1 − (1 − x) is not x in floating point.
struct Question {
  std::vector<double> yes, no;
  const std::vector<double>& likelihood(bool answer) const { return answer ? yes : no; }
};

struct QuestionTable {
  std::vector<std::string> names;   // [objects]
  std::vector<double> prior;        // [objects], adds up to 1
  std::vector<Question> questions;  // [questions]
  bool forgets =
      false;  // whether a question that is asked again is answered by a new draw; else as before, which tells nothing
  // Place of a name; names.size() where there is none.
  size_t find(const std::string& name) const;
};

// H = −Σ b ln b of a belief, nats.
double entropy_of(const std::vector<double>& belief);

// Place of the likeliest object, of equals the first.
size_t likeliest(const std::vector<double>& belief);

// The belief behind an answer of these likelihoods, [objects]. Throws std::invalid_argument where no object is left.
std::vector<double> believe(const std::vector<double>& belief, const std::vector<double>& likelihood);

// P(answer) under a belief.
double probability_of(const std::vector<double>& belief, const std::vector<double>& likelihood);

// Mutual information of the object and the answer to the question, nats: H less the mean of H behind the answers.
double expected_gain(const std::vector<double>& belief, const Question& question);

}  // namespace isentrope::data
