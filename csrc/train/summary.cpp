#include "csrc/train/summary.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "csrc/train/metrics.h"

namespace isentrope::train {
namespace {

nlohmann::ordered_json to_json(const std::string& phase, const std::string& split, const Evaluation& evaluation) {
  nlohmann::ordered_json line{{"phase", phase}, {"split", split}};
  for (const auto& [name, value] : in_order(evaluation)) line[short_name(name)] = value;
  return line;
}

}  // namespace

std::string short_name(const std::string& name) { return name.starts_with("eval/") ? name.substr(5) : name; }

std::string evaluation_json(const std::string& phase, const std::string& split, const Evaluation& evaluation,
                            const Intervals& intervals) {
  nlohmann::ordered_json line = to_json(phase, split, evaluation);
  for (const auto& [name, interval] : intervals)
    if (std::isfinite(interval.low))
      line["intervals"][short_name(name)] = {{"low", interval.low}, {"high", interval.high}, {"of", interval.n}};
  return line.dump();
}

std::string summary_json(const std::vector<std::pair<std::string, Evaluation>>& results) {
  nlohmann::ordered_json summary = nlohmann::ordered_json::array();
  for (const auto& [phase, result] : results) summary.push_back(to_json(phase, "test", result));
  return summary.dump(2) + "\n";
}

std::string evaluation_table(const std::string& phase, const std::string& split, const Evaluation& evaluation,
                             const Intervals& intervals) {
  std::string table = split + " data of phase " + phase + "\n";
  for (const auto& [name, value] : in_order(evaluation)) {
    char text[128];
    std::snprintf(text, sizeof(text), "%-14s %8.4g", short_name(name).c_str(), value);
    table += text;
    if (const auto found = intervals.find(name); found != intervals.end()) {
      const Interval& interval = found->second;
      if (std::isfinite(interval.low)) {
        std::snprintf(text, sizeof(text), "  [%.4g, %.4g]", interval.low, interval.high);
        table += text;
      }
      table += "  " + interval.n;
    }
    table += "\n";
  }
  const bool shares = evaluation.contains("eval/greedy");
  return table + "[ ]: 95 % interval of the measurement alone, " +
         (shares ? "Wilson's of shares, normal of means" : "normal") + "; runs of other seeds differ by more\n";
}

}  // namespace isentrope::train
