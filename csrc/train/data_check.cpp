#include "csrc/train/data_check.h"

#include <torch/cuda.h>

#include <algorithm>
#include <stdexcept>

#include "csrc/data/collate.h"
#include "csrc/data/corpus.h"
#include "csrc/data/packed_source.h"
#include "csrc/data/sequence.h"
#include "csrc/data/tag_source.h"
#include "csrc/message.h"
#include "csrc/model/page_table.h"
#include "csrc/train/chat_template.h"
#include "csrc/train/evaluation.h"
#include "csrc/train/machine_memory.h"
#include "csrc/train/plan.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {
namespace {

// Most tokens behind a prompt of the rollouts, where a key says it; else 0.
int64_t longest_of(const PhaseConfig& phase) {
  return phase.environment ? rl::limits_of(*phase.environment).tokens
         : phase.rollout   ? phase.rollout->sampling.max_new_tokens
                           : phase.pairs->sampling.max_new_tokens;
}

// What the prompts leave for completions, and what rollout() asks of the cache for the longest of them.
void check_room(const PhaseConfig& phase, const data::ExampleSource& source, int64_t context,
                const data::Tokenizer& tokenizer) {
  const std::string section = phase.rollout ? "rollout" : "pairs";
  const rl::SamplingConfig& sampling = phase.rollout ? phase.rollout->sampling : phase.pairs->sampling;
  const int64_t cache = (phase.rollout ? phase.rollout->cache : phase.pairs->cache).cache_tokens,
                most = longest_of(phase);
  if (cache == 0 && sampling.min_new_tokens == 0) return;
  constexpr int64_t kLooked = 1024;  // of a stream without end
  int64_t longest = 0, room = 0;     // of a whole sequence; of a completion, at most
  for (const data::Example& example : source.take(0, source.size() > 0 ? source.size() : kLooked)) {
    const auto prompt = static_cast<int64_t>(data::prompt_ids(example, tokenizer).size());
    const int64_t left = context - prompt;
    room = std::max(room, left);
    longest = std::max(longest, prompt + (most > 0 ? std::min(most, left) : left));
  }
  if (sampling.min_new_tokens >= room)
    throw std::runtime_error(section + ".min_new_tokens: " + std::to_string(sampling.min_new_tokens) +
                             ", and the shortest prompt leaves " + std::to_string(room) +
                             " tokens of model.max_position_embeddings: no completion could ever end");
  const int64_t least = (model::pages_of(longest) + 2) * model::kPagePositions;
  if (cache > 0 && cache < least)
    throw std::runtime_error(section + ".cache_tokens: " + std::to_string(cache) + " cannot hold a sequence of " +
                             std::to_string(longest) + " tokens; wanted at least " + std::to_string(least) +
                             ", or 0 for as many as are generated at a time");
}

const char* const kBroken = "broken (data.on_error: skip)";
const char* const kTooLong = "too long for model.max_position_embeddings (data.truncation: drop)";

std::string note_of(const std::string& phase, int64_t left_out, int64_t kept, const std::string& what,
                    int64_t context) {
  return "phase " + phase + ": " + std::to_string(left_out) + " of " + std::to_string(left_out + kept) + " " + what +
         " are too long for model.max_position_embeddings (" + std::to_string(context) +
         ") and are left out (data.truncation: drop)";
}

// What of a corpus counts, and a note of what of its folders does not.
void check_files(const std::string& phase, const data::CorpusConfig& corpus, SplitSize& size,
                 std::vector<std::string>& notes) {
  data::LeftOutFiles left_out;
  const std::vector<data::CorpusFile> files = data::find_files(corpus, &left_out);
  const auto told = [&](int64_t count, const std::string& reason, const std::string& such_as) {
    if (count == 0) return;
    size.left_out.push_back({count, reason});
    notes.push_back(
        "phase " + phase + ": " + std::to_string(count) +
        (count == 1 ? " file in the folders of data.corpus is " : " files in the folders of data.corpus are ") +
        reason + (count == 1 ? ", and is left out: " : ", and are left out: ") + such_as);
  };
  told(left_out.by_suffix(), "none of data.corpus.suffixes", left_out.told());
  told(static_cast<int64_t>(left_out.irregular.size()), "no regular files",
       left_out.irregular.empty() ? "" : "such as " + excerpt(left_out.irregular.front()));
  size.files = data::count_files(files, corpus, data::Split::train);
}

SplitSize check_text(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                     std::vector<std::string>& notes) {
  SplitSize size{.split = data::Split::train, .examples = 0};
  if (phase.data.corpus) check_files(phase.name, *phase.data.corpus, size, notes);
  const auto tokens = data::open_text(phase.data, tokenizer, data::Split::train);
  size.tokens = static_cast<int64_t>(tokens->tokens().size());
  size.examples = data::Windows(tokens, config.model.max_position_embeddings, /*seed=*/0, "training").size();
  return size;
}

Lengths lengths_of(const data::ExampleSource& source, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                   int64_t context) {
  constexpr int64_t kLooked = 4096, kEndless = 1024;
  auto examples = source.take(0, source.size() > 0 ? std::min(source.size(), kLooked) : kEndless);
  if (phase.objective.kind == "dpo" && !phase.pairs) examples = data::with_rejected(examples);
  Lengths lengths;
  if (phase.objective.of_matches()) {  // each prompt with the texts that are drawn for it, as rows of the same update
    std::vector<data::Example> texts;
    for (const data::Example& example : examples)
      for (const std::string& text : example.positives) texts.push_back({.prompt = text});
    examples.insert(examples.end(), texts.begin(), texts.end());
  }
  for (const data::Example& example : examples) {
    const auto prompt = static_cast<int64_t>(data::prompt_ids(example, tokenizer).size());
    int64_t length = 0;
    if (phase.draws()) {
      const int64_t drawn = longest_of(phase);
      length = std::min(context, drawn > 0 ? prompt + drawn : context);
    } else {
      length = std::min(context, static_cast<int64_t>(data::sequence_of(example, tokenizer).ids.size()));
    }
    lengths.longest = std::max(lengths.longest, static_cast<double>(length));
    lengths.mean += static_cast<double>(length) / static_cast<double>(examples.size());
    lengths.prompt += static_cast<double>(std::min(prompt, length)) / static_cast<double>(examples.size());
  }
  return lengths;
}

// The examples of the phase as its use of them wants them.
SplitSize check_training(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                         std::vector<std::string>& notes, Lengths& lengths) {
  const auto context = static_cast<double>(config.model.max_position_embeddings);
  lengths = {.longest = context, .mean = context};
  if (phase.data.text()) return check_text(config, phase, tokenizer, notes);
  const data::Use use = use_of(config, phase, tokenizer);
  const auto source = data::make_source(phase.data, /*seed=*/0, data::Split::train, &use);
  lengths = lengths_of(*source, phase, tokenizer, config.model.max_position_embeddings);
  SplitSize size{.split = data::Split::train, .examples = source->size()};
  if (source->left_out() > 0) {
    size.left_out.push_back({source->left_out(), kTooLong});
    notes.push_back(note_of(phase.name, source->left_out(), source->size(), "training examples",
                            config.model.max_position_embeddings));
  }
  if (source->skipped() > 0) size.left_out.push_back({source->skipped(), kBroken});
  for (const std::string& note : source->notes()) notes.push_back("phase " + phase.name + ": " + note);
  if (phase.objective.kind == "tag")
    notes.push_back("phase " + phase.name + ": " + data::unaligned_note(*source, phase.objective.tag));
  if (phase.draws()) check_room(phase, *source, config.model.max_position_embeddings, tokenizer);
  return size;
}

SplitSize check_held_out(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer,
                         const std::map<std::string, rl::RewardFunction>& rewards, data::Split split,
                         DataReport& found) {
  const bool test = split == data::Split::test;
  const auto held_out = held_out_of(config, phase, tokenizer, split, rewards);
  for (const std::string& text : held_out->shortages(test ? config.test : phase.evaluation,
                                                     test ? "test" : "phases." + phase.name + ".evaluation"))
    found.warnings.push_back(text);
  const HeldOutSize has = held_out->size();
  SplitSize size{.split = split, .examples = has.examples, .tokens = has.tokens};
  if (phase.data.corpus)
    size.files = data::count_files(data::find_files(*phase.data.corpus), *phase.data.corpus, split);
  if (has.left_out > 0) {
    size.left_out.push_back({has.left_out, kTooLong});
    found.notes.push_back(note_of(phase.name, has.left_out, has.examples,
                                  std::string(data::name_of(split)) + " prompts",
                                  config.model.max_position_embeddings));
  }
  if (has.skipped > 0) size.left_out.push_back({has.skipped, kBroken});
  for (const std::string& note : has.notes) found.notes.push_back("phase " + phase.name + ": " + note);
  return size;
}

}  // namespace

data::Use use_of(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer) {
  data::Use use{.tokenizer = &tokenizer,
                .context = config.model.max_position_embeddings,
                .learnt = !phase.draws() && phase.objective.kind != "tag" && !phase.objective.of_matches(),
                .truncation = phase.data.truncation,
                .columns = phase.environment.has_value() || rl::reads_columns(phase.judging()),
                .chat = renderer_of(phase.data, tokenizer),
                .pairs = phase.objective.kind == "dpo" && !phase.pairs,
                .positives = phase.objective.of_matches()};
  if (use.positives)
    use.also = [&tokenizer, context = use.context](const data::Example& example) {
      for (const std::string& text : example.positives)
        if (const size_t tokens = tokenizer.encode_prompt(text).size();
            tokens == 0 || static_cast<int64_t>(tokens) > context)
          return "the text \"" + excerpt(text) + "\" among the positives has " + std::to_string(tokens) +
                 " tokens; wanted 1 to " + std::to_string(context) + " (model.max_position_embeddings)";
      return std::string();
    };
  if (phase.objective.kind == "tag")
    use.also = [](const data::Example& example) {
      return std::string(example.completion.empty() ? "there is no completion, the compression of the prompt" : "");
    };
  if (phase.draws())
    use.also = [rewards = phase.judging(), stop = tokenizer.eos()](const data::Example& example) {
      for (const rl::RewardConfig& reward : rewards)
        if (const std::string wrong = rl::example_problem(reward, example, stop); !wrong.empty()) return wrong;
      return std::string();
    };
  return use;
}

bool evaluates(const TrainConfig& config, const PhaseConfig& phase, data::Split split) {
  if (split == data::Split::validation) return phase.evaluates();
  return !config.test.skip && config.phases.back().data.has(data::Split::test);
}

void check_machine(const TrainConfig& config, const RankCounts& ranks) {
  if (config.run.device == "cuda" && !torch::cuda::is_available())
    throw std::runtime_error(
        "run.device: cuda is asked for, and this machine has no GPU that PyTorch can use (see `isentrope "
        "version`); write run.device=cpu, or auto for a GPU where there is one");
  const bool gpu = config.run.device != "cpu" && torch::cuda::is_available();
  if (gpu) return;  // its memory is another, and what overflows it is told by PyTorch
  std::vector<PhaseData> phases;
  for (const PhaseConfig& phase : config.phases) {
    // A sequence of text has the whole context; of others no more is known yet than a prompt and an answer of one token each.
    const double length = phase.data.text() ? static_cast<double>(config.model.max_position_embeddings) : 2;
    phases.push_back({.phase = phase.name, .splits = {}, .lengths = {.longest = length, .mean = length}});
  }
  check_memory(config, phases, machine_memory(), resident_memory(), ranks);
}

DataReport check_data(const TrainConfig& config, const data::Tokenizer& tokenizer,
                      const std::map<std::string, rl::RewardFunction>& rewards, size_t first) {
  DataReport found;
  for (size_t i = first; i < config.phases.size(); ++i) {
    const PhaseConfig& phase = config.phases[i];
    std::vector<SplitSize> splits;
    Lengths lengths;
    const size_t notes = found.notes.size();
    try {
      if (phase.draws()) rl::RewardSum(phase.judging(), tokenizer.eos(), rewards);
      splits.push_back(check_training(config, phase, tokenizer, found.notes, lengths));
      if (evaluates(config, phase, data::Split::validation))
        splits.push_back(check_held_out(config, phase, tokenizer, rewards, data::Split::validation, found));
      if ((i + 1 == config.phases.size() || config.test.tasks) && evaluates(config, phase, data::Split::test))
        splits.push_back(check_held_out(config, phase, tokenizer, rewards, data::Split::test, found));
    } catch (const std::exception&) {
      std::string text = "phase " + phase.name + ": " + message_of();
      // What of a corpus was passed over may be why the rest does not suffice.
      for (size_t n = notes; phase.data.text() && n < found.notes.size(); ++n) text += "\n" + found.notes[n];
      throw std::runtime_error(text);
    }
    found.phases.push_back({phase.name, splits, lengths});
  }
  if (first < config.phases.size() && !evaluates(config, config.phases.back(), data::Split::test))
    found.notes.emplace_back(config.test.skip ? "no evaluation on test data (test.skip)"
                                              : "no evaluation on test data: the data of the last phase have none");
  return found;
}

}  // namespace isentrope::train
