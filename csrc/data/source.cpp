#include "csrc/data/source.h"

#include <stdexcept>

namespace isentrope::data {

std::string DataConfig::problem() const {
  const int written = tint.has_value() + jsonl.has_value() + corpus.has_value();
  if (written > 1) return "more than one of tint, jsonl, corpus is written; a phase has one source";
  if (written == 0) return "no source is written; add tint:, jsonl: or corpus:";
  const std::string kind = tint ? "tint: " : jsonl ? "jsonl: " : "corpus: ";
  const std::string wrong = tint ? tint->problem() : jsonl ? jsonl->problem() : corpus->problem();
  return wrong.empty() ? "" : kind + wrong;
}

bool DataConfig::has(Split split) const { return jsonl ? jsonl->has(split) : corpus ? corpus->has(split) : true; }

std::unique_ptr<ExampleSource> make_source(const DataConfig& config, uint64_t seed, Split split, const Use* use) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("data: " + wrong);
  if (config.tint) return std::make_unique<Tint>(*config.tint, seed, split, use);
  if (config.jsonl) return std::make_unique<Jsonl>(*config.jsonl, seed, split, use);
  throw std::invalid_argument("data: a corpus has no prompts and completions; write tint: or jsonl:");
}

}  // namespace isentrope::data
