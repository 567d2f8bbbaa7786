#include "csrc/train/policy_watch.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <stdexcept>
#include <utility>

namespace isentrope::train {
namespace {

enum Kind : int64_t { kFlat = 1, kAllZero = 2, kAllOne = 4, kAllEqual = 8, kMismatch = 16, kNoise = 32, kAwait = 64 };

// A text that a method waits for, and the value of a metric where no completion of a step has it.
struct Awaited {
  const char* metric;
  double none;
  const char* what;    // it means
  const char* advice;  // behind the phase's key
};
constexpr Awaited kAwaited[] = {
    {"pear/tagged", 0, "no completion had the tag that ends the thinking",
     ".reward, pear: tag: write the text that the answers have (samples.jsonl), or train an sft phase before whose "
     "answers have it; all of an answer is thinking till then"},
    {"empg/steps", 1, "every completion was a single step",
     ".advantage, empg: marker: write a text that the answers have (samples.jsonl), or steps: turns for conversations; "
     "no step has a next one till then"},
    {"hicra/planning", 0, "no completion had one of the strategic grams",
     ".advantage, hicra: grams: mine them of right answers of this model with isentrope grams; no advantage is changed "
     "till then"},
};
static_assert(std::size(kAwaited) == 3, "PolicyWatch::without_ counts them");

}  // namespace

std::vector<std::string> PolicyWatch::look(const std::string& phase, const std::map<std::string, double>& values) {
  std::vector<std::string> texts = of_rewards(phase, values);
  for (std::string& text : of_texts(phase, values)) texts.push_back(std::move(text));
  if (const auto noise = values.find("added_noise/ratio");
      noise != values.end() && noise->second > kMostNoise && !(told_ & kNoise)) {
    told_ |= kNoise;
    char ratio[32];
    std::snprintf(ratio, sizeof(ratio), "%.3g", noise->second);
    texts.push_back("the noise on the gradient is " + std::string(ratio) +
                    " times as large as the clipped gradient (added_noise/ratio). phases." + phase +
                    ".optimizer.noise.eta: lower it by the square of that for noise as large as the gradient");
  }
  const auto k3 = values.find("mismatch/k3");
  if (k3 == values.end() || k3->second <= kMostMismatch || (told_ & kMismatch)) return texts;
  told_ |= kMismatch;
  char figure[32];
  std::snprintf(figure, sizeof(figure), "%.2g", k3->second);
  texts.push_back("the policy that draws is not the one that is trained: before anything was learnt they were " +
                  std::string(figure) + " nats a token apart (mismatch/k3). phases." + phase +
                  ".rollout: dtype: model and no top_k, top_p, min_p, repetition_penalty or bad_words make them one; " +
                  "phases." + phase + ".weight: [{kind: correction}] weighs tokens for it");
  return texts;
}

std::vector<std::string> PolicyWatch::of_texts(const std::string& phase, const std::map<std::string, double>& values) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < without_.size(); ++i) {
    const Awaited& one = kAwaited[i];
    const auto found = values.find(one.metric);
    if (found == values.end()) continue;
    without_[i] = found->second == one.none ? without_[i] + 1 : 0;
    const int64_t kind = kAwait << i;
    if (without_[i] < kSteps || (told_ & kind)) continue;
    told_ |= kind;
    char value[32];
    std::snprintf(value, sizeof(value), "%g", one.none);
    texts.push_back("in the last " + std::to_string(kSteps) + " steps " + one.what + " (" + one.metric + " " + value +
                    "). phases." + phase + one.advice);
  }
  return texts;
}

std::vector<std::string> PolicyWatch::of_rewards(const std::string& phase,
                                                 const std::map<std::string, double>& values) {
  const auto flat = values.find("groups/flat"), mean = values.find("reward/mean"),
             deviation = values.find("reward/std");
  if (flat == values.end() || mean == values.end() || deviation == values.end()) return {};
  const bool equal = deviation->second == 0;
  flat_ = flat->second == 1 ? flat_ + 1 : 0;
  equal_ = !equal ? 0 : equal_ > 0 && mean->second == reward_ ? equal_ + 1 : 1;
  reward_ = mean->second;
  if (flat_ < kSteps) return {};

  const std::string key = "phases." + phase, steps = std::to_string(kSteps);
  Kind kind = kFlat;
  std::string text = "the completions of every prompt had equal rewards in the last " + steps +
                     " steps (groups/flat 1): nothing is learnt from them. " + key +
                     ".rollout.temperature or rollout.num_generations: raise it, or give prompts in " + key +
                     ".data that are answered right now and then";
  if (equal_ >= kSteps && reward_ == 0) {
    kind = kAllZero;
    text = "the policy never answers right: every reward of the last " + steps +
           " steps was 0, and nothing is learnt. " + key +
           ".data: give easier prompts, train an sft phase before, or "
           "see what " +
           key + ".reward asks for (samples.jsonl has answers)";
  } else if (equal_ >= kSteps && reward_ == 1) {
    kind = kAllOne;
    text = "the policy always answers right: every reward of the last " + steps +
           " steps was 1, and nothing is learnt. " + key + ".data: give harder prompts, or end the phase: " + key +
           ".steps";
  } else if (equal_ >= kSteps) {
    kind = kAllEqual;
    char reward[32];
    std::snprintf(reward, sizeof(reward), "%.6g", reward_);
    text = "every reward of the last " + steps + " steps was " + reward + ", and nothing is learnt. " + key +
           ".reward: it tells no completions apart; give one that does";
  }
  if (told_ & kind) return {};
  told_ |= kind;
  return {text};
}

std::vector<double> PolicyWatch::state() const {
  const bool waits = std::any_of(without_.begin(), without_.end(), [](int64_t steps) { return steps > 0; });
  if (flat_ == 0 && equal_ == 0 && told_ == 0 && !waits) return {};
  std::vector<double> state{static_cast<double>(flat_), static_cast<double>(equal_), reward_,
                            static_cast<double>(told_)};
  if (waits) state.insert(state.end(), without_.begin(), without_.end());
  return state;
}

void PolicyWatch::restore(const std::vector<double>& state) {
  if (state.size() != 4 && state.size() != 4 + without_.size())
    throw std::runtime_error("the checkpoint's policy_watch has " + std::to_string(state.size()) +
                             " numbers, wanted 4 or " + std::to_string(4 + without_.size()) + "; it is damaged");
  flat_ = std::llround(state[0]), equal_ = std::llround(state[1]);
  reward_ = state[2];
  told_ = std::llround(state[3]);
  without_ = {};
  for (size_t i = 0; 4 + i < state.size(); ++i) without_[i] = std::llround(state[4 + i]);
}

}  // namespace isentrope::train
