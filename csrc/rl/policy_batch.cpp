#include "csrc/rl/policy_batch.h"

#include <algorithm>
#include <cmath>

#include "csrc/rl/tree.h"

namespace isentrope::rl {
namespace {

using data::Batch;
using methods::Completions;
using torch::Tensor;

// The trees of the completions: one each where none branches.
struct Trees {
  std::vector<std::vector<Segment>> segments;  // of each completion
  std::vector<int64_t> of;                     // of each completion: its tree
  methods::Rewarded rewarded;                  // of each tree its value, and the length of its first sample

  Trees(const Kept& kept, const std::vector<double>& rewards) : segments(rl::segments(kept.completions, rewards)) {
    rewarded.groups = {0};
    rewarded.greedy = kept.greedy;
    rewarded.weights = kept.weights;
    for (int64_t g = 0; g < kept.size(); ++g) {
      for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
        const Completion& c = kept.completions[i];
        if (c.parent < 0) {
          rewarded.reward.push_back(segments[i].front().value);
          rewarded.length.push_back(static_cast<int64_t>(c.tokens.size()));
        }
        of.push_back(static_cast<int64_t>(rewarded.reward.size()) - 1);
      }
      rewarded.groups.push_back(static_cast<int64_t>(rewarded.reward.size()));
    }
    for (const std::vector<double>& scores : kept.scores) {
      const auto found = rl::segments(kept.completions, scores);
      std::vector<double>& of_trees = rewarded.scores.emplace_back();
      for (size_t i = 0; i < found.size(); ++i)
        if (kept.completions[i].parent < 0) of_trees.push_back(found[i].front().value);
    }
  }

  // Advantages of trees → [B, T] of tokens, the weights of branches included.
  Tensor spread(const methods::Advantages& a, const Tensor& mask) const {
    Tensor advantage = torch::zeros_like(mask, torch::kFloat32);
    auto rows = advantage.accessor<float, 2>();
    for (size_t i = 0; i < segments.size(); ++i)
      for (const Segment& s : segments[i]) {
        const int64_t j = of[i];
        const double value = s.weight * (a.value[j] + a.slope[j] * (s.value - rewarded.reward[j]));
        std::fill(rows[i].data() + s.begin, rows[i].data() + s.end, static_cast<float>(value));
      }
    return advantage.masked_fill_(mask.logical_not(), 0);
  }
};

// FNV-1a of a prompt's tokens, of 53 bits, which a double holds.
int64_t number_of(const std::vector<int64_t>& tokens) {
  uint64_t hash = 14695981039346656037ull;
  for (const int64_t token : tokens)
    for (int byte = 0; byte < 8; ++byte)
      hash = (hash ^ ((static_cast<uint64_t>(token) >> (8 * byte)) & 255)) * 1099511628211ull;
  return static_cast<int64_t>(hash >> 11);
}

// Rows of a policy update from groups first … last − 1: prompt and completion padded on the right; target and statistics where
// the completion's own tokens are, at the positions whose logits predict them.
Batch collate(const Kept& kept, int64_t first, int64_t last, const Completions& c) {
  const int64_t begin = kept.groups[first], B = kept.groups[last] - begin;
  int64_t T = 1;
  for (int64_t g = first; g < last; ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i)
      T = std::max<int64_t>(T, std::ssize(kept.prompts[g]) + kept.completions[i].size());
  Batch batch{torch::zeros({B, T}, torch::kInt64), torch::full({B, T}, data::kIgnore, torch::kInt64),
              torch::zeros({B, T}, torch::kFloat32), torch::zeros({B, T}, torch::kFloat32)};
  batch.old_entropy = torch::zeros({B, T}, torch::kFloat32);
  if (c.sum_p2.defined()) batch.old_sum_p2 = torch::zeros({B, T}, torch::kFloat32);
  if (c.sampling_logprob.defined()) batch.sampling_logprob = torch::zeros({B, T}, torch::kFloat32);
  if (c.ref_logprob.defined()) batch.ref_logprob = torch::zeros({B, T}, torch::kFloat32);
  batch.lengths = torch::empty({B}, torch::kInt64);
  batch.prefix = torch::zeros({B, T}, torch::kBool);
  if (c.ref_kl_weight.defined()) batch.ref_kl_weight = torch::ones({B, T}, torch::kFloat32);
  if (c.ref_kl_part.defined()) {
    batch.ref_kl_part = c.ref_kl_part.slice(0, begin, begin + B);
    batch.ref_kl_parts = c.ref_kl_parts;
  }
  if (c.hard.defined()) batch.hard = c.hard.slice(0, begin, begin + B);
  const int64_t drawn = c.mask.size(1);
  const bool* mask = c.mask.const_data_ptr<bool>();
  std::vector<int64_t> places;  // of the drawn tokens of the completion in hand, behind its prompt
  // Of a completion's own tokens: from[i][t] to the position of the row that predicts token t.
  const auto put = [&]<class X>(X, Tensor& to, const Tensor& from, int64_t row, int64_t i, int64_t start) {
    const X* x = from.const_data_ptr<X>() + i * drawn;
    X* y = to.mutable_data_ptr<X>() + row * T + start - 1;
    for (int64_t t = 0; t < std::ssize(places); ++t)
      if (mask[i * drawn + t]) y[places[t]] = x[t];
  };
  for (int64_t g = first; g < last; ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      places.clear();
      const std::vector<int64_t>&prompt = kept.prompts[g], tokens = kept.completions[i].said(&places);
      const int64_t row = i - begin, start = std::ssize(prompt);
      int64_t* own = batch.tokens.mutable_data_ptr<int64_t>() + row * T;
      std::copy(tokens.begin(), tokens.end(), std::copy(prompt.begin(), prompt.end(), own));
      batch.lengths.mutable_data_ptr<int64_t>()[row] = start + std::ssize(tokens);
      std::fill_n(batch.prefix.mutable_data_ptr<bool>() + row * T, start, true);
      put(int64_t{}, batch.target, c.token, row, i, start);
      put(float{}, batch.old_logprob, c.logprob, row, i, start);
      put(float{}, batch.old_entropy, c.entropy, row, i, start);
      put(float{}, batch.advantage, c.advantage, row, i, start);
      if (batch.old_sum_p2.defined()) put(float{}, batch.old_sum_p2, c.sum_p2, row, i, start);
      if (batch.sampling_logprob.defined()) put(float{}, batch.sampling_logprob, c.sampling_logprob, row, i, start);
      if (batch.ref_logprob.defined()) put(float{}, batch.ref_logprob, c.ref_logprob, row, i, start);
      if (batch.ref_kl_weight.defined()) put(float{}, batch.ref_kl_weight, c.ref_kl_weight, row, i, start);
    }
  return batch;
}

// Turns of the tokens, and what each added to the environment's scores, of which one that a turn does not tell is as it was. What was drawn
// behind the last answer is a turn that added nothing.
void add_turns(const std::vector<Completion>& completions, Completions& c) {
  const auto turns_of = [](const Completion& one) {
    const int64_t answered = std::ssize(one.turns);
    return answered + (std::ssize(one.tokens) > (answered > 0 ? one.turns.back().end : 0) ? 1 : 0);
  };
  int64_t K = 0;
  bool any = false;
  for (const Completion& one : completions) {
    K = std::max(K, turns_of(one));
    for (const Exchange& turn : one.turns) {
      any = true;
      for (const auto& [name, score] : turn.scores) c.turn_reward.emplace(name, Tensor());
    }
  }
  if (!any) return;
  const int64_t B = std::ssize(completions), T = c.token.size(1);
  c.turn = torch::zeros({B, T}, torch::kInt64);
  auto turn = c.turn.accessor<int64_t, 2>();
  for (int64_t i = 0; i < B; ++i) {
    const Completion& one = completions[i];
    for (size_t k = 0; k < one.turns.size(); ++k)
      std::fill(turn[i].data() + one.turns[k].end, turn[i].data() + std::ssize(one.tokens),
                static_cast<int64_t>(k) + 1);
  }
  for (auto& [name, reward] : c.turn_reward) {
    reward = torch::full({B, K}, std::nan(""), torch::kFloat64);
    auto added = reward.accessor<double, 2>();
    for (int64_t i = 0; i < B; ++i) {
      double before = 0;
      for (int64_t k = 0; k < turns_of(completions[i]); ++k) {
        added[i][k] = 0;
        if (k >= std::ssize(completions[i].turns)) continue;
        const auto& scores = completions[i].turns[k].scores;
        if (const auto found = scores.find(name); found != scores.end()) {
          added[i][k] = found->second - before;
          before = found->second;
        }
      }
    }
  }
}

}  // namespace

Completions completions_of(const Kept& kept, double unit, int64_t longest, bool mask_truncated) {
  const auto B = static_cast<int64_t>(kept.completions.size());
  int64_t T = 0;
  for (const Completion& one : kept.completions) T = std::max<int64_t>(T, std::ssize(one.tokens));
  Completions c;
  c.mask = torch::zeros({B, T}, torch::kBool);
  c.token = torch::zeros({B, T}, torch::kInt64);
  c.logprob = torch::zeros({B, T}, torch::kFloat32);
  c.entropy = torch::zeros({B, T}, torch::kFloat32);
  if (B > 0 && !kept.completions.front().sum_p2.empty()) c.sum_p2 = torch::zeros({B, T}, torch::kFloat32);
  if (B > 0 && !kept.completions.front().sampling_logprob.empty())
    c.sampling_logprob = torch::zeros({B, T}, torch::kFloat32);
  for (Tensor* of : {&c.length, &c.group, &c.prompt}) *of = torch::zeros({B}, torch::kInt64);
  for (Tensor* of : {&c.stopped, &c.right}) *of = torch::zeros({B}, torch::kBool);
  c.scores = torch::empty({B, std::ssize(kept.scores)}, torch::kFloat64);
  c.reward = torch::tensor(kept.rewards, torch::kFloat64);
  c.unit = unit;
  c.longest = longest;
  for (int64_t g = 0; g < kept.size(); ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      const Completion& one = kept.completions[i];
      const int64_t n = std::ssize(one.tokens);
      std::copy(one.tokens.begin(), one.tokens.end(), c.token.mutable_data_ptr<int64_t>() + i * T);
      std::copy(one.logprob.begin(), one.logprob.end(), c.logprob.mutable_data_ptr<float>() + i * T);
      std::copy(one.entropy.begin(), one.entropy.end(), c.entropy.mutable_data_ptr<float>() + i * T);
      if (c.sum_p2.defined())
        std::copy(one.sum_p2.begin(), one.sum_p2.end(), c.sum_p2.mutable_data_ptr<float>() + i * T);
      if (c.sampling_logprob.defined())
        std::copy(one.sampling_logprob.begin(), one.sampling_logprob.end(),
                  c.sampling_logprob.mutable_data_ptr<float>() + i * T);
      bool* mask = c.mask.mutable_data_ptr<bool>() + i * T;
      if (!mask_truncated || one.stopped) std::fill(mask + one.begin, mask + n, true);
      c.length.mutable_data_ptr<int64_t>()[i] = n;
      c.group.mutable_data_ptr<int64_t>()[i] = g;
      c.prompt.mutable_data_ptr<int64_t>()[i] = number_of(kept.prompts[g]);
      c.stopped.mutable_data_ptr<bool>()[i] = one.stopped;
      c.right.mutable_data_ptr<bool>()[i] = kept.right[i];
      for (size_t r = 0; r < kept.scores.size(); ++r)
        c.scores.mutable_data_ptr<double>()[i * c.scores.size(1) + static_cast<int64_t>(r)] = kept.scores[r][i];
    }
  add_turns(kept.completions, c);
  return c;
}

void estimate(Completions& c, const Kept& kept, methods::Chain<methods::Advantage>& chain,
              std::map<std::string, double>& stats) {
  const double* reward = c.reward.const_data_ptr<double>();
  const Trees trees(kept, {reward, reward + c.reward.numel()});
  chain.each(stats, [&](const auto& method, methods::Context context) {
    if constexpr (requires { method.estimate_tokens(c); })
      c.advantage = method.estimate_tokens(c);
    else if constexpr (requires { method.estimate(trees.rewarded); })
      c.advantage = trees.spread(method.estimate(trees.rewarded), c.mask);
    else
      method.apply(c, context);
  });
}

std::vector<Batch> policy_batches(const Kept& kept, const Completions& c, int64_t updates, int64_t epochs) {
  std::vector<Batch> batches;
  for (int64_t u = 0; u < updates; ++u)
    batches.push_back(collate(kept, kept.size() * u / updates, kept.size() * (u + 1) / updates, c));
  for (int64_t more = (epochs - 1) * updates, u = 0; u < more; ++u) batches.push_back(batches[u]);
  return batches;
}

void tell_health(const std::vector<Batch>& updates, std::map<std::string, double>& stats) {
  double tokens = 0, zero = 0, count[2] = {}, entropy[2] = {};
  for (const Batch& update : updates) {
    const int64_t n = update.target.numel();
    const int64_t* target = update.target.const_data_ptr<int64_t>();
    const float *advantage = update.advantage.const_data_ptr<float>(), *H = update.old_entropy.const_data_ptr<float>();
    for (int64_t i = 0; i < n; ++i) {
      if (target[i] == data::kIgnore) continue;
      ++tokens;
      zero += advantage[i] == 0;
      if (advantage[i] != 0) ++count[advantage[i] > 0], entropy[advantage[i] > 0] += H[i];
    }
  }
  if (tokens > 0) stats["advantage/zero"] = zero / tokens;
  if (count[1] > 0) stats["entropy/positive"] = entropy[1] / count[1];
  if (count[0] > 0) stats["entropy/negative"] = entropy[0] / count[0];
}

}  // namespace isentrope::rl
