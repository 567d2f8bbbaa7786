// A run as a sequence of tasks, of which each phase is one: what optimizer.consolidation passes from phase to phase, and what was
// forgotten of the phases before (test.tasks).
#include <algorithm>
#include <cmath>

#include "csrc/train/composition.h"
#include "csrc/train/data_check.h"
#include "csrc/train/phase.h"

namespace isentrope::train {

std::vector<std::pair<std::string, std::unique_ptr<HeldOut>>> Trainer::tasks() const {
  std::vector<std::pair<std::string, std::unique_ptr<HeldOut>>> found;
  if (!config_.test.tasks || config_.test.skip) return found;
  for (size_t i = 0; i <= phase_; ++i)
    found.emplace_back(config_.phases[i].name,
                       i + 1 == config_.phases.size()
                           ? nullptr  // that of every test
                           : held_out_of(config_, config_.phases[i], tokenizer_, data::Split::test, rewards_));
  return found;
}

// task/<phase>/<figure>, and of loss and greedy forgetting/<figure>: how much worse it is than the best that a phase's end has told,
// mean over the phases before this one.
void Trainer::tell_tasks(Evaluation& found) const {
  const Evaluation of_last = found;
  for (const auto& [name, held_out] : open_->tasks)
    for (const auto& [key, value] :
         held_out ? held_out->evaluate(model_, config_.test, nullptr, nullptr, nullptr, *ranks_) : of_last)
      if (const std::string figure = key.substr(key.find('/') + 1); figure.find('/') == std::string::npos)
        found["task/" + name + "/" + figure] = value;
  for (const auto& [figure, sign] : {std::pair{std::string("loss"), 1.0}, {std::string("greedy"), -1.0}}) {
    double worse = 0, tasks = 0;
    for (const auto& [name, held_out] : open_->tasks) {
      const std::string key = "task/" + name + "/" + figure;
      std::optional<double> best;  // sign times it, the least
      for (const auto& [phase, result] : results_)
        if (const auto then = result.find(key); then != result.end() && phase != open_->config.name)
          best = std::min(best.value_or(sign * then->second), sign * then->second);
      if (!best || !found.contains(key) || name == open_->config.name) continue;
      worse += sign * found.at(key) - *best, tasks += 1;
    }
    if (tasks > 0) found["forgetting/" + figure] = worse / tasks;
  }
}

void Trainer::begin_task(Phase& opened) {
  const auto& consolidation = opened.config.optimizer.consolidation;
  if (!consolidation || left_.empty()) return;
  opened.optimizer.begin_task(left_);
  left_.clear();
  if (consolidation->restart != "slow") return;
  if (composition_) composition_->apply();
  if (opened.reference && !opened.own_reference()) mix_into(*opened.reference, 1);
}

void Trainer::leave_task() {
  if (phase_ + 1 < config_.phases.size() && config_.phases[phase_ + 1].optimizer.consolidation)
    ranks_->together([&] { left_ = open_->optimizer.left(); });
}

}  // namespace isentrope::train
