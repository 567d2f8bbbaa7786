#include "csrc/rl/advantage.h"

#include <algorithm>
#include <stdexcept>

#include "csrc/methods/group_advantage.h"

namespace isentrope::rl {

Advantages advantages(std::span<const double> rewards, std::span<const int64_t> lengths, const Groups& groups,
                      const AdvantageConfig& config) {
  const methods::Rewarded r{{rewards.begin(), rewards.end()}, {lengths.begin(), lengths.end()}, groups};
  if (config.kind == "grpo") return methods::Grpo{.eps = config.eps}.estimate(r);
  if (config.kind == "dr_grpo") return methods::DrGrpo().estimate(r);
  if (config.kind == "rloo") return methods::Rloo().estimate(r);
  if (config.kind == "opo") return methods::Opo().estimate(r);
  if (config.kind == "reinforce_plus_plus_baseline") return methods::ReinforcePlusPlusBaseline().estimate(r);
  throw std::invalid_argument("advantage kind \"" + config.kind +
                              "\" is unknown; known: grpo, dr_grpo, rloo, reinforce_plus_plus_baseline, opo");
}

double overlong_penalty(int64_t length, const OverlongConfig& config, int64_t max_len) {
  if (config.len < 1 || config.len > max_len)
    throw std::invalid_argument("overlong_buffer.len is " + std::to_string(config.len) +
                                " tokens; wanted 1 to the length limit, " + std::to_string(max_len));
  return std::min(0.0, -config.penalty_factor * static_cast<double>(length - (max_len - config.len)) /
                           static_cast<double>(config.len));
}

}  // namespace isentrope::rl
