// What an evaluation shows of itself: the first few answers to held-out prompts, or windows of held-out text, token by
// token. One JSON object a line in samples.jsonl (docs/metrics.md), beside metrics.jsonl and cut with it when a run is resumed.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace isentrope::train {

struct Sample {
  std::string prompt;
  std::vector<std::string> tokens;
  std::vector<double> entropy;  // of each token
  std::optional<bool> right = {};
};

// The line above, without its end of line.
std::string to_json(const std::string& phase, int64_t step, const std::string& split,
                    const std::vector<Sample>& samples);

}  // namespace isentrope::train
