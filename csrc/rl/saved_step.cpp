#include "csrc/rl/saved_step.h"

#include <algorithm>
#include <cmath>

namespace isentrope::rl {

void SavedStep::add(int64_t group, const std::string& prompt, const std::vector<Completion>& completions, int64_t begin,
                    int64_t end, const Rewards& rewards, bool branches) {
  for (int64_t i = begin; i < end; ++i) {
    SavedRollout one{.group = group,
                     .prompt = prompt,
                     .completion = completions[i],
                     .branches = branches,
                     .reward = rewards.total[i]};
    if (one.completion.parent >= 0) one.completion.parent -= begin;
    for (const auto& [name, scores] : rewards.scores) one.scores.emplace_back(name, scores[i]);
    rollouts.push_back(std::move(one));
  }
}

void SavedStep::learnt(const methods::Completions& kept, const std::vector<data::Batch>& updates) {
  std::vector<torch::Tensor> advantages;
  for (const data::Batch& update : updates) advantages.push_back(update.advantage);
  take_rows(updates, advantages, rollouts, &SavedRollout::advantages);
  for (SavedRollout& one : rollouts) {
    if (one.row < 0 || updates.empty()) continue;
    one.reward = kept.reward[one.row].item<double>();
    for (const auto& [kind, amount] : kept.added) one.added.emplace_back(kind, amount[one.row].item<double>());
    double sum = 0, tokens = 0;
    std::optional<float> first;
    bool differ = false;
    for (const float a : one.advantages) {
      if (std::isnan(a)) continue;
      sum += a, ++tokens;
      differ = differ || a != first.value_or(a);
      first = first.value_or(a);
    }
    if (tokens > 0) one.advantage = sum / tokens;
    if (!differ) one.advantages.clear();
  }
}

void take_rows(const std::vector<data::Batch>& updates, const std::vector<torch::Tensor>& values,
               std::vector<SavedRollout>& rollouts, std::vector<float> SavedRollout::*to) {
  std::vector<std::vector<float>> rows;
  for (size_t u = 0; u < values.size(); ++u) {
    const torch::Tensor target = updates[u].target.to(torch::kCPU).contiguous();
    const torch::Tensor own = values[u].to(torch::kCPU, torch::kFloat32).contiguous();
    const int64_t T = target.size(1);
    for (int64_t row = 0; row < target.size(0); ++row) {
      std::vector<float>& found = rows.emplace_back();
      for (int64_t t = 0; t < T; ++t)
        if (target.const_data_ptr<int64_t>()[row * T + t] != data::kIgnore)
          found.push_back(own.const_data_ptr<float>()[row * T + t]);
    }
  }
  for (SavedRollout& one : rollouts) {
    if (one.row < 0 || one.row >= std::ssize(rows)) continue;
    const std::vector<float>& learnt = rows[one.row];  // its last tokens: those before are its parent's
    std::vector<float>& all = one.*to;
    all.assign(one.completion.tokens.size(), NAN);
    std::copy(learnt.begin(), learnt.end(), all.end() - std::ssize(learnt));
  }
}

}  // namespace isentrope::rl
