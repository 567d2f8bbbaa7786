#include "csrc/rl/conversation.h"

#include <algorithm>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/message.h"

namespace isentrope::rl {
namespace {

constexpr int64_t kNear =
    10;  // tokens beside a text of the environment (Tool-Light, arXiv 2509.23285, looks at 10 to 50)

}  // namespace

int64_t Completion::size() const {
  auto size = static_cast<int64_t>(tokens.size());
  for (const Exchange& turn : turns) size += std::ssize(turn.given);
  return size;
}

std::vector<int64_t> Completion::said(std::vector<int64_t>* places) const {
  std::vector<int64_t> all;
  all.reserve(static_cast<size_t>(size()));
  const auto draw = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      if (places) places->push_back(std::ssize(all));
      all.push_back(tokens[t]);
    }
  };
  int64_t begin = 0;
  for (const Exchange& turn : turns) {
    draw(begin, turn.end);
    all.insert(all.end(), turn.given.begin(), turn.given.end());
    begin = turn.end;
  }
  draw(begin, std::ssize(tokens));
  return all;
}

std::vector<int64_t> Conversing::tokens_of(const std::string& text, int64_t last) const {
  if (text.empty()) return {};
  try {
    return tokenizer.encode_behind(last, text);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error("environment: its answer " + isentrope::quoted(text) + ": " + error.what());
  }
}

uint64_t conversation_seed(const RolloutKey& key, int64_t prompt) {
  data::Stream seed(key.seed, key.evaluation ? data::Purpose::evaluation : data::Purpose::rollout,
                    static_cast<uint64_t>(key.step), static_cast<uint64_t>(key.first_prompt + prompt),
                    /*c: no number of a sample=*/~uint64_t{0});
  const uint64_t high = seed.bits();
  return high << 32 | seed.bits();
}

data::Example opened(const data::Example& example, const SamplingConfig& sampling, const RolloutKey& key,
                     int64_t prompt) {
  data::Example begun = example;
  if (!sampling.conversing) return begun;
  std::string text;
  sampling.conversing->environment->reset(example, conversation_seed(key, prompt), &text);
  if (text.empty()) return begun;
  begun.prompt = text;
  begun.turns.clear();
  begun.templated = false;
  return begun;
}

Answer answer_of(const Completion& completion, const data::Tokenizer& tokenizer) {
  Answer answer = answer_of(completion.tokens, completion.stopped, tokenizer);
  answer.scores = completion.scores;
  return answer;
}

void TurnTally::add(const Completion& c) {
  ++conversations_;
  limits_ += c.at_limit;
  drawn_ += static_cast<double>(c.tokens.size());
  turns_ += static_cast<double>(c.turns.size());
  const auto all = std::ssize(c.tokens);
  if (c.turns.empty() || c.turns.back().end < all) ++turns_;  // one that a limit cut
  int64_t begin = 0;
  for (size_t i = 0; i < c.turns.size(); ++i) {
    const Exchange& turn = c.turns[i];
    ++answered_;
    errors_ += turn.error;
    given_ += static_cast<double>(turn.given.size());
    calls_ += !turn.given.empty();
    if (!turn.given.empty()) {
      for (int64_t t = std::max(begin, turn.end - kNear); t < turn.end; ++t) before_ += c.entropy[t], ++before_tokens_;
      const int64_t next = i + 1 < c.turns.size() ? c.turns[i + 1].end : all;
      for (int64_t t = turn.end; t < std::min(next, turn.end + kNear); ++t) after_ += c.entropy[t], ++after_tokens_;
    }
    begin = turn.end;
  }
}

void TurnTally::tell(std::map<std::string, double>& stats) const {
  if (conversations_ == 0) return;
  stats["turns/mean"] = turns_ / conversations_;
  stats["turns/calls"] = calls_ / conversations_;
  stats["turns/given"] = given_ / conversations_;
  stats["turns/limit"] = limits_ / conversations_;
  stats["turns/tokens"] = drawn_ / turns_;
  if (answered_ > 0) stats["turns/errors"] = errors_ / answered_;
  if (before_tokens_ > 0) stats["turns/entropy_before"] = before_ / before_tokens_;
  if (after_tokens_ > 0) stats["turns/entropy_after"] = after_ / after_tokens_;
}

}  // namespace isentrope::rl
