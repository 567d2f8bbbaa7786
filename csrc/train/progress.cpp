#include "csrc/train/progress.h"

#include <algorithm>
#include <cstdio>

namespace isentrope::train {
namespace {

// One row a phase, below the names of what was measured; of pass@k the largest k.
std::string table_of(const std::vector<std::pair<std::string, Evaluation>>& results) {
  std::string table, shown;  // shown: the names that stand above
  char cell[32];
  const auto in_column = [&](const std::string& text) {
    std::snprintf(cell, sizeof(cell), " %13s", text.c_str());
    return std::string(cell);
  };
  const auto row_of = [](std::string head, const std::string& cells) {
    constexpr size_t kWidth = 14;
    head.resize(std::max(head.size(), kWidth), ' ');
    return head.append(cells).append("\n");
  };
  for (const auto& [phase, evaluation] : results) {
    std::string names, row;
    for (const auto& [name, value] : evaluation_figures(evaluation)) {
      names += in_column(name);
      row += in_column(value);
    }
    if (names != shown) table.append("\n").append(row_of("after phase", names));
    table += row_of(phase, row);
    shown = names;
  }
  return table;
}

// What the steps of a grpo phase say of reward and entropy, or why they say nothing. last: the last step of the phase.
std::string law_of(const PhaseConfig& phase, const Record& last) {
  if (phase.objective.kind != "grpo" || last.phase != phase.name) return "";
  const std::string head = "\nReward over entropy, phase " + phase.name + ": ";
  if (const std::string reason = phase.holds_entropy(); !reason.empty())
    return head + "no law fitted, since " + reason + "\n";
  if (!last.values.contains("law/a"))
    return head + "no law fitted, since it takes three steps with entropies that differ\n";
  const auto at = [&](const char* name) { return last.values.at(std::string("law/") + name); };
  char text[160];
  std::snprintf(text, sizeof(text), "R = %.3g - %.3g exp(H), ceiling %.3g at H = 0 (R2 %.2f, RMSE %.3g)", at("b"),
                at("a"), at("ceiling"), at("r2"), at("rmse"));
  return head + text + (at("a") > 0 ? "" : ". It rose with the entropy: the law does not hold here") + "\n";
}

}  // namespace

Progress::Progress(const Trainer& trainer, Console& console) : trainer_(trainer), console_(console) {
  if (!trainer.finished()) console.print(to_text(trainer.header()));
}

void Progress::before_step() {
  if (trainer_.finished() || in_phase_) return;
  phase_ = trainer_.phase();
  const PhaseConfig& phase = trainer_.config().phases[phase_];
  console_.begin_phase(phase.name, phase.steps, trainer_.steps_done());
  in_phase_ = true;
}

void Progress::after_step(const std::vector<Record>& records) {
  for (const Record& record : records) {
    console_.step(record);
    if (record.split.empty()) last_ = record;
  }
  if (trainer_.finished() || trainer_.phase() != phase_) end_phase();
}

void Progress::end_phase() {
  if (in_phase_) console_.end_phase();
  in_phase_ = false;
}

std::string Progress::results() const {
  return table_of(trainer_.results()) + law_of(trainer_.config().phases.back(), last_);
}

}  // namespace isentrope::train
