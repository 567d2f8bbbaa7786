#include "csrc/data/source.h"

#include <algorithm>
#include <stdexcept>

#include "csrc/data/token_shard.h"

namespace isentrope::data {

std::string DataConfig::problem() const {
  const int written = tint.has_value() + episodes.has_value() + jsonl.has_value() + reasoning_gym.has_value() +
                      corpus.has_value() + hmm.has_value();
  if (written > 1)
    return "more than one of tint, episodes, jsonl, reasoning_gym, corpus, hmm is written; a phase has one source";
  if (written == 0) return "no source is written; add tint:, episodes:, jsonl:, reasoning_gym:, corpus: or hmm:";
  if (episodes) {
    const std::string wrong = episodes->problem();
    return wrong.empty() ? "" : "episodes: " + wrong;
  }
  if (reasoning_gym) {
    const std::string wrong = reasoning_gym->problem();
    return wrong.empty() ? "" : "reasoning_gym: " + wrong;
  }
  const std::string kind = tint ? "tint: " : jsonl ? "jsonl: " : hmm ? "hmm: " : "corpus: ";
  const std::string wrong = tint    ? tint->problem()
                            : jsonl ? jsonl->problem()
                            : hmm   ? hmm->problem()
                                    : corpus->problem();
  return wrong.empty() ? "" : kind + wrong;
}

bool DataConfig::has(Split split) const {
  if (reasoning_gym) return reasoning_gym->has(split);
  return jsonl ? jsonl->has(split) : corpus ? corpus->has(split) : hmm ? hmm->has(split) : true;
}

std::unique_ptr<ExampleSource> make_source(const DataConfig& config, uint64_t seed, Split split, const Use* use) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("data: " + wrong);
  if (config.tint) return std::make_unique<Tint>(*config.tint, seed, split, use);
  if (config.episodes) return std::make_unique<Episodes>(*config.episodes, seed, split, use);
  if (config.jsonl) return std::make_unique<Jsonl>(*config.jsonl, seed, split, use, config.on_error == "skip");
  if (config.reasoning_gym)
    return std::make_unique<Jsonl>(config.reasoning_gym->files(), seed, split, use, config.on_error == "skip");
  throw std::invalid_argument(
      "data: text has no prompts and completions; write tint:, episodes:, jsonl: or reasoning_gym:");
}

uint64_t stream_digest(const ExampleSource& source) {
  constexpr int64_t kEndless = 1024, kPiece = 4096;
  const int64_t count = source.size() > 0 ? source.size() : kEndless;
  Hash hash;
  for (int64_t first = 0; first < count; first += kPiece)
    for (const Example& example : source.take(first, std::min(kPiece, count - first))) {
      for (const std::string* text : {&example.prompt, &example.completion, &example.answer, &example.columns})
        if (text != &example.columns || !text->empty()) hash.add(*text);
      if (example.rejected) hash.add(example.rejected->completion);
      for (const Example* one : {&example, static_cast<const Example*>(example.rejected.get())})
        if (one && one->drawn) {
          for (const int64_t id : one->drawn->ids) hash.add(static_cast<uint64_t>(id));
          for (const bool learnt : one->drawn->learnt) hash.add(static_cast<uint64_t>(learnt));
          hash.add(static_cast<uint64_t>(one->drawn->prompt));
        }
    }
  return hash.value;
}

}  // namespace isentrope::data
