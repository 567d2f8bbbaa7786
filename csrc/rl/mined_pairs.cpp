#include "csrc/rl/mined_pairs.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <stdexcept>

#include "csrc/rl/conversation.h"
#include "csrc/rl/prompt.h"
#include "csrc/rl/shared_rollout.h"

namespace isentrope::rl {
namespace {

constexpr int64_t kPrefixes[] = {10, 20, 30, 40, 50};  // tokens, of Tool-Light's code

double mean_of(std::span<const float> x) {
  return x.empty() ? 0 : std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

// The largest mean entropy of the first tokens of a step.
double value_of_step(std::span<const float> entropy) {
  double most = 0;
  for (const int64_t count : kPrefixes) {
    most = std::max(most, mean_of(entropy.first(std::min<size_t>(static_cast<size_t>(count), entropy.size()))));
    if (std::ssize(entropy) <= count) break;
  }
  return most;
}

int64_t calls_of(const Completion& c) {
  return std::count_if(c.turns.begin(), c.turns.end(), [](const Exchange& turn) { return !turn.given.empty(); });
}

// Of a conversation, what was said up to the answer to turn number `turn`.
Completion up_to(const Completion& chain, size_t turn) {
  Completion c;
  c.prompt = chain.prompt;
  const int64_t end = chain.turns[turn].end;
  c.tokens.assign(chain.tokens.begin(), chain.tokens.begin() + end);
  c.logprob.assign(chain.logprob.begin(), chain.logprob.begin() + end);
  c.entropy.assign(chain.entropy.begin(), chain.entropy.begin() + end);
  if (!chain.sampling_logprob.empty())
    c.sampling_logprob.assign(chain.sampling_logprob.begin(), chain.sampling_logprob.begin() + end);
  c.turns.assign(chain.turns.begin(), chain.turns.begin() + static_cast<std::ptrdiff_t>(turn) + 1);
  return c;
}

// What several calls drew, by prompt: in the order of the calls.
struct DrawnAnswer {
  Completion completion;
  bool right;
};

// Scores completions by the first reward, and brings together those of all processes.
void judge(std::vector<Completion> completions, const std::vector<data::Example>& all, const RewardSum& reward,
           const data::Tokenizer& tokenizer, const Peers& peers, RolloutCounts counts,
           std::vector<std::vector<DrawnAnswer>>& found, RolloutCounts& sum) {
  std::vector<Answer> answers;
  std::vector<std::string> prompts;
  std::vector<data::Example> examples;
  for (const Completion& c : completions) {
    answers.push_back(answer_of(c, tokenizer));
    examples.push_back(all[c.prompt]);
    prompts.push_back(examples.back().prompt);
  }
  Rewards rewards = reward(prompts, answers, examples);
  if (peers.size() > 1) gather(peers, completions, rewards, counts);
  for (size_t i = 0; i < completions.size(); ++i) {
    const int64_t prompt = completions[i].prompt;
    found[prompt].push_back({std::move(completions[i]), is_right(rewards.first[i])});
  }
  sum += counts;
}

PairCandidate candidate_of(const DrawnAnswer& one, bool converses, std::vector<std::vector<int64_t>>& texts) {
  const Completion& c = one.completion;
  std::vector<int64_t> said = c.said();
  const auto known = std::find(texts.begin(), texts.end(), said);
  const auto text = static_cast<size_t>(known - texts.begin());
  if (known == texts.end()) texts.push_back(std::move(said));
  return {.right = one.right,
          .finished = c.stopped,
          .calls = converses ? calls_of(c) : std::ssize(c.tokens),
          .tokens = std::ssize(c.tokens),
          .entropy = mean_of(c.entropy),
          .text = text};
}

// Leaves out of the class that is too large the last pairs.
void balance(std::vector<MinedPair>& pairs, double hard_share) {
  const auto hard = std::count_if(pairs.begin(), pairs.end(), [](const MinedPair& one) { return one.hard; });
  const auto easy = std::ssize(pairs) - hard;
  if (hard == 0 || easy == 0) return;                               // there is nothing to balance the other by
  const double odds = hard_share / std::max(1 - hard_share, 1e-9);  // hard pairs an easy one
  const auto most_hard = std::min<int64_t>(hard, std::llround(static_cast<double>(easy) * odds));
  const auto most_easy = std::min<int64_t>(easy, std::llround(static_cast<double>(hard) / odds));
  int64_t of_hard = 0, of_easy = 0;
  std::erase_if(pairs, [&](const MinedPair& one) { return one.hard ? ++of_hard > most_hard : ++of_easy > most_easy; });
}

}  // namespace

std::string PairsConfig::problem() const {
  if (sampling.max_new_tokens > 0 && sampling.min_new_tokens > sampling.max_new_tokens)
    return "min_new_tokens: " + std::to_string(sampling.min_new_tokens) + " is above max_new_tokens (" +
           std::to_string(sampling.max_new_tokens) + ")";
  // As of rollouts: two logits that differ by 0.01 have odds of 22000 : 1.
  if (sampling.temperature < 1e-3 || sampling.top_k == 1 || sampling.top_p == 0)
    return std::string(sampling.temperature < 1e-3 ? "temperature: at less than 0.001"
                       : sampling.top_k == 1       ? "top_k: at 1"
                                                   : "top_p: at 0") +
           " the completions of a prompt are all the same, and a pair is of two that differ";
  if (samples == 1 && steps == 0)
    return "samples: 1, and no step branches (steps: 0); a prompt of one completion has no pair";
  if (hard_share && rule != "difficulty")
    return "hard_share: tells hard pairs from easy ones, and rule is " + rule + "; write rule: difficulty";
  return "";
}

std::vector<std::pair<size_t, size_t>> pairs_of(std::span<const PairCandidate> candidates, bool long_rule,
                                                int64_t most) {
  const auto better = [&](const PairCandidate& a, const PairCandidate& b) {
    if (a.calls != b.calls) return long_rule ? a.calls > b.calls : a.calls < b.calls;
    return long_rule ? a.tokens > b.tokens : a.entropy < b.entropy;
  };
  std::optional<size_t> best;
  for (size_t i = 0; i < candidates.size(); ++i)
    if (candidates[i].right && candidates[i].finished && (!best || better(candidates[i], candidates[*best]))) best = i;
  if (!best) return {};
  std::vector<size_t> wrong;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const PairCandidate& one = candidates[i];
    if (!one.right && (long_rule ? one.calls <= candidates[*best].calls : one.calls > candidates[*best].calls))
      wrong.push_back(i);
  }
  std::stable_sort(wrong.begin(), wrong.end(), [&](size_t a, size_t b) {
    const PairCandidate &x = candidates[a], &y = candidates[b];
    if (x.calls != y.calls) return long_rule ? x.calls < y.calls : x.calls > y.calls;
    return long_rule ? x.tokens < y.tokens : x.tokens > y.tokens;
  });
  std::vector<std::pair<size_t, size_t>> pairs;
  std::set<size_t> texts;
  for (const size_t i : wrong)
    if (std::ssize(pairs) < most && texts.insert(candidates[i].text).second) pairs.emplace_back(*best, i);
  return pairs;
}

std::vector<size_t> branching_turns(const Completion& chain, int64_t steps) {
  std::vector<std::pair<double, size_t>> values;
  for (size_t i = 0; i < chain.turns.size(); ++i) {
    const int64_t begin = chain.turns[i].end;
    const int64_t end = i + 1 < chain.turns.size() ? chain.turns[i + 1].end : std::ssize(chain.tokens);
    if (chain.turns[i].given.empty() || begin == end) continue;
    values.emplace_back(value_of_step(std::span(chain.entropy).subspan(begin, end - begin)), i);
  }
  std::stable_sort(values.begin(), values.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<size_t> turns;
  for (const auto& [value, turn] : values)
    if (std::ssize(turns) < steps) turns.push_back(turn);
  return turns;
}

MinedPairs mine_pairs(const PairsConfig& config, const model::Decoder& model, const data::Tokenizer& tokenizer,
                      const std::vector<data::Example>& examples, const RewardSum& reward, uint64_t seed,
                      const Peers& peers) {
  const bool converses = config.sampling.conversing != nullptr;
  const RolloutKey key{.seed = seed};
  MinedPairs mined;
  for (const data::Example& example : examples)
    mined.prompts.push_back(encode_prompt(opened(example, config.sampling, key, std::ssize(mined.prompts)), tokenizer,
                                          model->config().max_position_embeddings));
  std::vector<std::vector<DrawnAnswer>> found(examples.size());
  RolloutCounts sum;
  const auto draw = [&](const std::vector<int64_t>& samples, std::span<const Completion> begun) {
    RolloutCounts counts;
    auto drawn = rollout(model, mined.prompts, samples, config.sampling, tokenizer.end_ids(), key, config.cache, {},
                         &counts, peers, examples, begun);
    judge(std::move(drawn), examples, reward, tokenizer, peers, counts, found, sum);
  };
  draw(std::vector<int64_t>(examples.size(), config.samples), {});
  if (converses && config.steps > 0) {
    std::vector<int64_t> samples;
    std::vector<Completion> begun;
    for (const auto& of_prompt : found) {
      const size_t before = begun.size();
      for (const size_t turn : branching_turns(of_prompt.front().completion, config.steps))
        begun.insert(begun.end(), config.branches, up_to(of_prompt.front().completion, turn));
      samples.push_back(static_cast<int64_t>(begun.size() - before));
    }
    if (!begun.empty()) draw(samples, begun);
  }

  double right = 0, all = 0, better_calls = 0, worse_calls = 0, with_pair = 0;
  for (size_t p = 0; p < found.size(); ++p) {
    std::vector<std::vector<int64_t>> texts;
    std::vector<PairCandidate> candidates;
    double right_here = 0;
    for (const DrawnAnswer& one : found[p]) {
      candidates.push_back(candidate_of(one, converses, texts));
      right_here += one.right;
    }
    const auto here = static_cast<double>(candidates.size());
    right += right_here, all += here;
    const bool hard = config.rule == "difficulty" && right_here < config.easy * here;
    const auto pairs = pairs_of(candidates, hard || config.rule == "long", config.per_prompt);
    with_pair += !pairs.empty();
    for (const auto& [better, worse] : pairs)
      mined.pairs.push_back({static_cast<int64_t>(p), hard, found[p][better].completion, found[p][worse].completion});
  }
  if (config.hard_share) balance(mined.pairs, *config.hard_share);
  double hard = 0;
  for (const MinedPair& one : mined.pairs) {
    hard += one.hard;
    better_calls += static_cast<double>(calls_of(one.better)), worse_calls += static_cast<double>(calls_of(one.worse));
  }
  const auto count = static_cast<double>(mined.pairs.size());
  mined.stats = {{"pairs/found", count},
                 {"pairs/prompts", with_pair / static_cast<double>(examples.size())},
                 {"pairs/completions", all},
                 {"pairs/right", right / all},
                 {"pairs/drawn", static_cast<double>(sum.drawn)}};
  if (count > 0 && config.rule == "difficulty") mined.stats["pairs/hard"] = hard / count;
  if (count > 0 && converses) {
    mined.stats["pairs/calls_better"] = better_calls / count;
    mined.stats["pairs/calls_worse"] = worse_calls / count;
  }
  return mined;
}

data::Example drawn_example(const std::string& prompt, const std::vector<int64_t>& prompt_tokens,
                            const Completion& completion, const data::Tokenizer& tokenizer) {
  std::vector<int64_t> places;
  const std::vector<int64_t> said = completion.said(&places);
  data::Sequence sequence{.ids = prompt_tokens, .learnt = {}, .prompt = std::ssize(prompt_tokens)};
  sequence.ids.insert(sequence.ids.end(), said.begin(), said.end());
  sequence.learnt.resize(sequence.ids.size(), false);
  for (const int64_t place : places) sequence.learnt[prompt_tokens.size() + place] = true;
  return {.prompt = prompt,
          .completion = tokenizer.decode(said),
          .answer = "",
          .drawn = std::make_shared<const data::Sequence>(std::move(sequence))};
}

}  // namespace isentrope::rl
