#include "csrc/data/questions.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace isentrope::data {

size_t QuestionTable::find(const std::string& name) const {
  return static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
}

double entropy_of(const std::vector<double>& belief) {
  double H = 0;
  for (const double b : belief)
    if (b > 0) H -= b * std::log(b);
  return H;
}

size_t likeliest(const std::vector<double>& belief) {
  return static_cast<size_t>(std::max_element(belief.begin(), belief.end()) - belief.begin());
}

std::vector<double> believe(const std::vector<double>& belief, const std::vector<double>& likelihood) {
  std::vector<double> after = belief;
  double sum = 0;
  for (size_t i = 0; i < after.size(); ++i) sum += after[i] *= likelihood[i];
  if (!(sum > 0)) throw std::invalid_argument("no object is left that would be answered so");
  for (double& b : after) b /= sum;
  return after;
}

double probability_of(const std::vector<double>& belief, const std::vector<double>& likelihood) {
  double probability = 0;
  for (size_t i = 0; i < belief.size(); ++i) probability += belief[i] * likelihood[i];
  return probability;
}

double expected_gain(const std::vector<double>& belief, const Question& question) {
  double gain = entropy_of(belief);
  for (const bool answer : {false, true}) {
    const std::vector<double>& likelihood = question.likelihood(answer);
    const double probability = probability_of(belief, likelihood);
    if (probability > 0) gain -= probability * entropy_of(believe(belief, likelihood));
  }
  return std::max(gain, 0.0);
}

}  // namespace isentrope::data
