#include "csrc/rl/allocation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "csrc/data/split.h"

namespace isentrope::rl {
namespace {

constexpr double kPrior = 2;  // answers that the mean counts as

}  // namespace

double PassRecord::mean() const { return (all_.right + kPrior / 2) / (all_.answers + kPrior); }

double PassRecord::share(std::string_view prompt) const {
  const auto found = counts_.find(data::prompt_hash(prompt));
  const Count c = found == counts_.end() ? Count() : found->second;
  return (c.right + kPrior * mean()) / (c.answers + kPrior);
}

void PassRecord::add(std::string_view prompt, int64_t right, int64_t answers, double decay) {
  for (Count* c : {&counts_[data::prompt_hash(prompt)], &all_}) {
    // The mean is over many prompts, so that it forgets over as many answers more.
    const double kept = c == &all_ ? std::pow(decay, 1 / static_cast<double>(counts_.size())) : decay;
    c->right = kept * c->right + static_cast<double>(right);
    c->answers = kept * c->answers + static_cast<double>(answers);
  }
}

PassRecord::State PassRecord::state() const {
  State state{{0}, {all_.right}, {all_.answers}};  // the sum of all first
  for (const auto& [prompt, count] : counts_) {
    state.prompt.push_back(static_cast<int64_t>(prompt));
    state.right.push_back(count.right);
    state.answers.push_back(count.answers);
  }
  return state;
}

void PassRecord::restore(const State& state) {
  counts_.clear();
  all_ = {state.right.at(0), state.answers.at(0)};
  for (size_t i = 1; i < state.prompt.size(); ++i)
    counts_[static_cast<uint64_t>(state.prompt[i])] = {state.right.at(i), state.answers.at(i)};
}

std::vector<int64_t> allocate(const std::vector<double>& shares, int64_t total, int64_t least, int64_t most) {
  const auto P = static_cast<int64_t>(shares.size());
  if (total < P * least || total > P * most)
    throw std::invalid_argument("allocate: " + std::to_string(total) + " samples for " + std::to_string(P) +
                                " prompts; wanted " + std::to_string(least) + " to " + std::to_string(most) + " each");
  std::vector<double> wanted(P);
  for (int64_t i = 0; i < P; ++i)
    wanted[i] = std::sqrt(std::max(shares[i] * (1 - shares[i]), 0.0)) + 1e-9;  // never all 0
  // The factor at which the bounded counts add up: they grow with it, so it is found by halving. 64 halvings leave less than the
  // rounding of a double.
  const auto bounded = [&](double factor, int64_t i) {
    return std::clamp(factor * wanted[i], static_cast<double>(least), static_cast<double>(most));
  };
  double low = 0, high = static_cast<double>(most) / *std::min_element(wanted.begin(), wanted.end());
  for (int step = 0; step < 64; ++step) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (int64_t i = 0; i < P; ++i) sum += bounded(middle, i);
    (sum < static_cast<double>(total) ? low : high) = middle;
  }
  std::vector<int64_t> samples(P), order(P);
  int64_t left = total;
  for (int64_t i = 0; i < P; ++i) left -= samples[i] = static_cast<int64_t>(bounded(low, i));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return bounded(low, a) - static_cast<double>(samples[a]) > bounded(low, b) - static_cast<double>(samples[b]);
  });
  for (size_t k = 0; left > 0; k = (k + 1) % order.size())
    if (samples[order[k]] < most) ++samples[order[k]], --left;
  return samples;
}

}  // namespace isentrope::rl
