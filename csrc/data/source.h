// The data of a phase: one of the kinds of source, chosen by which key is written.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "csrc/data/corpus.h"
#include "csrc/data/episodes.h"
#include "csrc/data/example.h"
#include "csrc/data/fit.h"
#include "csrc/data/hmm.h"
#include "csrc/data/jsonl.h"
#include "csrc/data/reasoning_gym.h"
#include "csrc/data/tint.h"
#include "csrc/field.h"

namespace isentrope::data {

struct DataConfig {
  std::optional<TintConfig> tint;
  std::optional<EpisodesConfig> episodes;
  std::optional<JsonlConfig> jsonl;
  std::optional<ReasoningGymConfig> reasoning_gym;
  std::optional<CorpusConfig> corpus;
  std::optional<HmmConfig> hmm;
  std::string truncation = "error";
  std::string on_error = "stop";
  bool packing = false;

  template <class Visitor>
  void visit(Visitor& v) {
    v("tint", tint, "Generated integer problems with traces.");
    v("episodes", episodes, "Generated tasks for conversations (docs/environments.md).");
    v("jsonl", jsonl, "Files of prompts and completions, an object a line.");
    v("reasoning_gym", reasoning_gym, "Generated problems of a task of the Python package reasoning-gym.");
    v("corpus", corpus, "Text files, learnt whole; pretrain phases.");
    v("hmm", hmm, "Text of a hidden Markov model, the least loss on which is known; pretrain phases.");
    v("truncation", truncation,
      "An example longer than the context: stop the run, leave it out, or cut its completion.",
      one_of({"error", "drop", "truncate"}));
    v("on_error", on_error,
      "A line of data.jsonl that cannot be read, or is no example for this phase: stop the run, or skip it; how many "
      "were "
      "skipped is said at the start.",
      one_of({"stop", "skip"}));
    v("packing", packing,
      "Whether several examples of an sft update stand in one row, none of which attends to another; the loss is the "
      "same "
      "but for rounding. Rows have up to model.max_position_embeddings tokens, or batch.micro_tokens where that is "
      "less.");
  }
  std::string problem() const;
  bool has(Split split) const;                 // whether the keys leave anything for it
  bool text() const { return corpus || hmm; }  // it is learnt whole: there are no prompts and completions
};

// The source of tint, episodes, jsonl or the files of reasoning_gym; text has no examples. Throws as the constructors do.
// use: what is asked of every example (csrc/data/fit.h).
std::unique_ptr<ExampleSource> make_source(const DataConfig& config, uint64_t seed, Split split,
                                           const Use* use = nullptr);

// The tokens of a split of text. Throws as open_corpus() and open_hmm() do.
std::shared_ptr<const TokenShard> open_text(const DataConfig& config, const Tokenizer& tokenizer, Split split);

// What tells one stream of examples from another: a digest of its first epoch, or of the first 1024 examples of one without
// end. A run that is resumed asks whether its data is what it was.
uint64_t stream_digest(const ExampleSource& source);

}  // namespace isentrope::data
