// Results as files and people have them.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "csrc/train/evaluation.h"

namespace isentrope::train {

// "eval/pass@8" → "pass@8"
std::string short_name(const std::string& name);

// One object on a line: phase, split, then the figures without "eval/". Numbers read back to the same double.
std::string evaluation_json(const std::string& phase, const std::string& split, const Evaluation& evaluation,
                            const Intervals& intervals);

// summary.json: a list with such an object for each phase that was evaluated on test data.
std::string summary_json(const std::vector<std::pair<std::string, Evaluation>>& results);

// A row a figure: four digits, its 95 % interval, and what it was measured on.
std::string evaluation_table(const std::string& phase, const std::string& split, const Evaluation& evaluation,
                             const Intervals& intervals);

}  // namespace isentrope::train
