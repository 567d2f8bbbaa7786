// Pairs of completions that the policy draws itself, for the loss of a dpo phase (Tool-Light, arXiv 2509.23285).
//
//   samples      whole completions a prompt, drawn from its beginning; the first is the main chain
//   trees        of the main chain, the `steps` steps that begin with the most entropy: a step is what the policy says behind an answer of
//                the environment, and its value the largest of the mean entropies of its first 10, 20, 30, 40 and 50 tokens; from the
//                beginning of each `branches` more conversations go on
//   pairs        of all completions of a prompt by a rule:
//
//     rule         better                                              worse
//     short        a right one of the fewest calls, of these the one   wrong ones of more calls, the most first
//                  of the least mean entropy
//     long         a right one of the most calls, of these that of     wrong ones of fewer or as many calls, the fewest first
//                  the most tokens
//     difficulty   short where at least `easy` of the prompt's completions are right, else long
//
// A call is a turn that a text of the environment follows; without an environment tokens count in the place of calls. A completion that was
// cut at the length limit is never the better one. What is drawn is a function of the weights, the examples and the seed: of no thread
// and no number of processes.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/peers.h"
#include "csrc/rl/reward.h"
#include "csrc/rl/rollout.h"

namespace isentrope::rl {

struct PairsConfig {
  int64_t prompts = 256;
  int64_t samples = 4;
  int64_t steps = 3;
  int64_t branches = 3;
  std::string rule = "short";
  double easy = 0.5;
  std::optional<double> hard_share = {};
  int64_t per_prompt = 1;
  SamplingConfig sampling;
  CacheConfig cache;

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("prompts", prompts, "Prompts of the phase's training data that pairs are looked for, the first of their stream.",
      between(1, 1 << 20));
    v("samples", samples, "Whole completions a prompt, of which the first may branch.", between(1, 1 << 16));
    v("steps", steps,
      "Of the first conversation of a prompt, the steps behind an answer of the environment that branch: those that "
      "begin with the most entropy; 0 for none.",
      between(0, 4096));
    v("branches", branches, "Conversations that go on from the beginning of each of these steps.", between(1, 1 << 10));
    v("rule", rule,
      "Which two completions of a prompt make a pair. short: a right one of the fewest calls, and of the least "
      "entropy, with "
      "a wrong one of more; long: a right one of the most calls with a wrong one of no more; difficulty: short for "
      "easy prompts, long for hard ones (docs/environments.md).",
      one_of({"short", "long", "difficulty"}));
    v("easy", easy, "difficulty: least share of right completions of an easy prompt.", between(0, 1));
    v("hard_share", hard_share,
      "difficulty: share of the pairs that are of hard prompts; what there is too many of is left out, the last first. "
      "Tool-Light: 2/3. Absent: all pairs are taken.",
      above_to(0, 1));
    v("per_prompt", per_prompt, "Pairs of a prompt, at most.", between(1, 1 << 10));
    sampling.visit(v);
    cache.visit(v);
  }
};

// What a rule looks at of a completion.
struct PairCandidate {
  bool right;       // by the first reward
  bool finished;    // it was not cut at the length limit
  int64_t calls;    // or without an environment tokens
  int64_t tokens;   // drawn
  double entropy;   // mean over its tokens, nats
  size_t text = 0;  // number of what it says: two of one number say the same
};

// Pairs of the completions of one prompt, better and worse, at most `most`, each worse text once. long_rule: long, else short. Ties go to the first.
std::vector<std::pair<size_t, size_t>> pairs_of(std::span<const PairCandidate> candidates, bool long_rule,
                                                int64_t most);

// Of a conversation, the turns that branch: at most `steps` numbers of turns, that of the highest value first, of equal ones the first.
std::vector<size_t> branching_turns(const Completion& chain, int64_t steps);

struct MinedPair {
  int64_t prompt;  // place among the examples
  bool hard;       // of the rule difficulty
  Completion better, worse;
};

struct MinedPairs {
  std::vector<MinedPair> pairs;               // in the order of the prompts
  std::vector<std::vector<int64_t>> prompts;  // tokens of each example's prompt
  std::map<std::string, double> stats = {};   // pairs/…, docs/metrics.md
};

// reward: its first says what is right. peers: call this alike, draw together, and return the same. Throws as rollout() and RewardSum.
MinedPairs mine_pairs(const PairsConfig& config, const model::Decoder& model, const data::Tokenizer& tokenizer,
                      const std::vector<data::Example>& examples, const RewardSum& reward, uint64_t seed,
                      const Peers& peers = Peers());

// A completion as an example whose tokens were drawn: those that were given are read, and not learnt.
data::Example drawn_example(const std::string& prompt, const std::vector<int64_t>& prompt_tokens,
                            const Completion& completion, const data::Tokenizer& tokenizer);

}  // namespace isentrope::rl
