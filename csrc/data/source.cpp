#include "csrc/data/source.h"

#include <stdexcept>

namespace isentrope::data {

std::string DataConfig::problem() const {
  if (tint && jsonl) return "both tint and jsonl are written; a phase has one source";
  if (!tint && !jsonl) return "no source is written; add tint: or jsonl:";
  if (tint) {
    const std::string wrong = tint->problem();
    return wrong.empty() ? "" : "tint: " + wrong;
  }
  const std::string wrong = jsonl->problem();
  return wrong.empty() ? "" : "jsonl: " + wrong;
}

std::unique_ptr<ExampleSource> make_source(const DataConfig& config, uint64_t seed, Split split) {
  if (const std::string wrong = config.problem(); !wrong.empty())
    throw std::invalid_argument("data: " + wrong);
  if (config.tint) return std::make_unique<Tint>(*config.tint, seed, split);
  return std::make_unique<Jsonl>(*config.jsonl, seed, split);
}

}  // namespace isentrope::data
