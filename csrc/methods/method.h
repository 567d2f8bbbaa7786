// Methods of policy learning: what a published method does to rewards, advantages, token weights or a coefficient of the objective,
// as a pure function of tensors in one of these four places. A method is one file pair here, one line in csrc/methods/registry.h, one
// torch op (method_<name>) and one function in python/isentrope/methods.
//
//   place       struct has                                              what it makes
//   reward      void apply(Completions&, Context&) const                changed rewards of the completions of a step
//   advantage   Advantages estimate(const Rewarded&) const              the first of the list: advantages of the rewards
//               void apply(Completions&, Context&) const                the others: changed advantages [B, T]
//   weight      Weighted apply(const Update&, Context&) const           a factor [B, T] of each token's policy term
//               or Tensor choose(selected, mask, seed) const            [B, T] bool, in the place of what the loss selects
//   controller  Control at(step, state) const, see control.h            coefficients of the step
//               Bonus bonus(const Update&, step, Context&) const        a weight of each token's entropy in the bonus, where it has one
//
// A weight has kOfTargets where mask, logprob and entropy of an update are all that it looks at: then an sft phase has it too, whose policy
// is the model and whose tokens are the targets.
//
// A reward method has observe(seen, context) where it follows what updates saw, and selection() where it says which groups a step learns
// from. A method of rewards or advantages has bind(tokens_called)
// where its keys name tokens, bind(token_text) where they name texts; needs_turns() says whether it looks at the turns of conversations.
//
// A method's struct is its configuration (csrc/one_of.h): kKind, kHelp, members with visit(), maybe problem(). What passes from step
// to step is a tensor of doubles, in and out: Tensor initial_state() const says how it begins, and a method without it has none; its size
// stays, but for a method that has kGrowingState.
//
// Scope: a method declares over what the statistics go that a token's, or a completion's, result depends on beside itself, kScope:
//
//   token, completion     of that alone
//   group                 the completions of one prompt
//   step                  all completions of the step, on all ranks
//   update                all tokens of an update that count, on all ranks, however it is cut into micro-batches
//
// A weight whose published code takes them over a micro-batch has the key scope, update by default (visit_scope).
#pragma once
#include <torch/types.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "csrc/field.h"

namespace isentrope::methods {

using torch::Tensor;

// Completions of a step, B of them, their own tokens from the first on, padded on the right to T. Natural logarithms, nats.
// Groups, the completions of one prompt, stand one behind the other.
struct Completions {
  Tensor mask;              // [B, T] bool: tokens that are learnt
  Tensor token;             // [B, T] int64
  Tensor logprob;           // [B, T] float, under the policy that drew them
  Tensor entropy;           // [B, T] float, of that policy
  Tensor sum_p2;            // [B, T] float, Σ p² of that policy; undefined where no method asks (kNeedsSumP2)
  Tensor sampling_logprob;  // [B, T] float, as in Update
  Tensor ref_logprob;       // [B, T] float, under the reference; undefined where no method asks (kNeedsReference)
  Tensor length;            // [B] int64, tokens drawn, the end of sequence included
  Tensor stopped;           // [B] bool; false: cut at the length limit
  Tensor group;             // [B] int64, rising from 0
  Tensor right;             // [B] bool, by the first reward
  Tensor scores;            // [B, R] double, of each reward, not weighted; NaN where it does not apply
  double unit = 1;          // what a right answer is worth: the weight of the first reward
  int64_t longest = 0;      // length limit of completions, 0: that of the context
  int64_t step = 0;         // of the phase, from 0
  Tensor prompt = {};       // [B] int64 of the prompt, the same whenever it comes again; below 2^53

  // Of conversations: [B, T] int64, the turn of each token, from 0; and, by the name of an environment's score, what each turn added to
  // it, [B, K] double, NaN behind a row's last turn. Undefined and empty where no turn was answered.
  Tensor turn = {};
  std::map<std::string, Tensor> turn_reward = {};

  Tensor reward;                                           // [B] double
  std::vector<std::pair<std::string, Tensor>> added = {};  // by kind, what a method added to it: [B] double
  Tensor advantage;  // [B, T] float, 0 where mask is false; undefined before the estimator

  Tensor ref_kl_weight = {};  // [B, T] float factor of the divergence from the reference; undefined: 1
  Tensor ref_kl_part =
      {};  // [B] int64, which of ref_kl_parts the divergence is counted in; undefined where nobody asks
  std::vector<std::string> ref_kl_parts = {};  // names: ref_kl/<name> of csrc/train/metrics.h
  Tensor hard = {};  // [B] bool, of a prompt that a record calls hard; undefined where no method has one

  // A reward method of that kind adds to the rewards.
  void add(const std::string& kind, const Tensor& amount) {
    reward = reward + amount;
    added.emplace_back(kind, amount);
  }
};

// Tokens of an update, B rows of T positions (csrc/data/batch.h); where mask is false nothing of them is used.
struct Update {
  Tensor mask;         // [B, T] bool
  Tensor advantage;    // [B, T] float
  Tensor logprob;      // [B, T] float, of the policy that learns, without gradient
  Tensor old_logprob;  // [B, T] float, of the policy that drew them
  Tensor entropy;      // [B, T] float, of the policy that learns
  Tensor old_entropy;  // [B, T] float, of the policy that drew them
  Tensor rescored =
      {};  // [B, T] float, log-probs of the policy before the update; where a method asks (kNeedsRescored)
  Tensor attention_entropy = {};  // [B, T] float, of a token's attention row, normalised to [0, 1]; where a method asks
                                  // (kNeedsAttentionEntropy, of its layer)
  Tensor sum_p2 = {}, sum_p2_logp = {};  // [B, T] float, Σ p² and Σ p² log p of the policy that learns; where a method
                                         // asks (kNeedsMoments)
  Tensor old_sum_p2 = {};                // [B, T] float, Σ p² of the one that drew; likewise (kNeedsOldSumP2)
  Tensor sampling_logprob =
      {};            // [B, T] float, under the distribution that the tokens were drawn from, after top_k, top_p
                     // and what else cuts or changes the policy's own; undefined where nothing does
  Tensor kept = {};  // [B, T] float, entropy of what objective.entropy_keep keeps, else entropy; for controllers
  Tensor hard = {};  // [B] bool, of a prompt that a reward's or advantage's record calls hard; where one does

  // Log-probs by which the tokens were drawn.
  const Tensor& drawn_by() const { return sampling_logprob.defined() ? sampling_logprob : old_logprob; }

  Update rows(int64_t begin, int64_t end) const {
    const auto of = [&](const Tensor& x) { return x.defined() ? x.slice(0, begin, end) : x; };
    return {of(mask),    of(advantage),   of(logprob),    of(old_logprob),
            of(entropy), of(old_entropy), of(rescored),   of(attention_entropy),
            of(sum_p2),  of(sum_p2_logp), of(old_sum_p2), of(sampling_logprob),
            of(kept),    of(hard)};
  }
};

// The key of a weight whose statistics are over an update: update, or micro for each micro-batch by itself.
template <class Visitor>
void visit_scope(Visitor& v, std::string& scope) {
  v("scope", scope,
    "What the statistics are over: update, all of its tokens on all ranks, however it is cut; micro, each micro-batch "
    "by "
    "itself (batch.micro_tokens), as code that is released has it: then the cut changes what is learnt.",
    one_of({"update", "micro"}));
}

struct Weighted {
  Tensor factor;        // [B, T] float ≥ 0, of the policy term; 1 changes nothing
  Tensor removed = {};  // [B, T] bool: tokens that no longer count, in denominators either; undefined: none
};

// Values in groups, one group behind the other: those of group g are number groups[g] … groups[g + 1] − 1.
using Groups = std::vector<int64_t>;

// What a reward method that chooses groups sees: one entry a completion of a batch of prompts.
struct Judged {
  const std::vector<double>& reward;  // the weighted sum of the scores
  const std::vector<double>& right;   // 1 or 0
  const Groups& groups;
};

// Which groups a step learns from. It draws other prompts in place of those that are left out.
struct Selection {
  std::string kind;                                      // of the method that chooses
  std::function<std::vector<bool>(const Judged&)> keep;  // of each group
  int64_t draws = 1;                                     // most batches of prompts drawn in a step
  int64_t empty_steps = 0;  // so many steps in a row that find fewer groups than updates stop the run
  std::string wanted;       // of the groups, in a message
  std::string advice;       // on what to change then
};

// What an estimator sees: one entry a tree of csrc/rl/tree.h, which without branches is a completion.
struct Rewarded {
  std::vector<double> reward;
  std::vector<int64_t> length;  // tokens
  Groups groups;
  std::vector<std::vector<double>> scores = {};  // [reward][completion], not weighted, NaN where it does not apply
  std::vector<double> weights = {};              // [reward] of the scores in reward; empty: 1 each
  std::vector<double> greedy = {};               // [group] reward of the greedy completion, where kNeedsGreedy
};

// Where each completion's advantage comes from.
struct Advantages {
  std::vector<double> value;  // of each completion, all of whose tokens have it
  std::vector<double>
      slope;  // by how much it grows with the completion's own reward where the others' stay, baseline and scale
              // held: a token with a return of its own has value + slope · (return − reward)
};

// For each token of the vocabulary whether its text is that one, upper and lower case alike.
using TokensCalled = std::function<std::vector<bool>(const std::string& text)>;

// The text that a token stands for, as the first of a text or behind another.
using TextOf = std::function<const std::string&(int64_t token, bool first)>;

// A text that a method looks for, and where it belongs together with others of one meaning.
struct Gram {
  std::string text;
  int64_t cluster = 0;
};

// What methods that look into texts are given of the tokenizer.
struct TokenText {
  TextOf of;
  std::function<bool(const std::string& text)> writes;                   // whether it can be written in tokens
  std::function<std::vector<Gram>(const std::string& path)> read_grams;  // of a file of `isentrope grams`
};

// What a method is given beside its input.
struct Context {
  Tensor& state;                         // [n] double, of its initial_state(); assigned anew, never written into
  std::map<std::string, double>& stats;  // of csrc/train/metrics.h
};

// What a weight makes of an update: of all of it or, with scope micro, of one micro-batch after the other. micros: rows, one micro-batch
// behind the other; one rank's, which has all.
template <class Weight>
Weighted weigh(const Weight& method, const Update& update, Context& context, const Groups& micros) {
  if constexpr (requires { method.scope; })
    if (method.scope == "micro") {
      std::vector<Tensor> factors, removed;
      const double all = std::max(update.mask.sum().item<double>(), 1.0);
      for (size_t i = 0; i + 1 < micros.size(); ++i) {
        const Update micro = update.rows(micros[i], micros[i + 1]);
        std::map<std::string, double> stats;
        Context own{context.state, stats};
        Weighted one = method.apply(micro, own);
        factors.push_back(std::move(one.factor));
        if (one.removed.defined()) removed.push_back(std::move(one.removed));
        const double share = micro.mask.sum().item<double>() / all;
        for (const auto& [name, value] : stats) context.stats[name] += share * value;  // means over tokens
      }
      return {torch::cat(factors), removed.empty() ? Tensor() : torch::cat(removed)};
    }
  return method.apply(update, context);
}

// Offsets of groups from the numbers of their groups, [B] rising from 0.
Groups groups_of(const Tensor& group);

}  // namespace isentrope::methods
