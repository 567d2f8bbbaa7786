#include "csrc/data/tag_source.h"

#include <algorithm>
#include <cstdio>

namespace isentrope::data {

Batch tag_batch(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
                const TagConfig& config) {
  const auto B = static_cast<int64_t>(examples.size());
  std::vector<std::vector<int64_t>> ids, labels;
  int64_t longest = 1;
  for (const Example& example : examples) {
    const Alignment found = align_words(example.prompt, example.completion, config);
    TokenWords of = token_words(example.prompt, words_of(example.prompt), tokenizer);
    of.ids.resize(std::min<size_t>(of.ids.size(), static_cast<size_t>(context)));
    longest = std::max(longest, std::ssize(of.ids));
    std::vector<int64_t>& row = labels.emplace_back();
    for (size_t t = 0; t < of.ids.size(); ++t)
      row.push_back(of.word[t] < 0 ? kIgnore : found.kept[static_cast<size_t>(of.word[t])]);
    ids.push_back(std::move(of.ids));
  }
  Batch batch;
  batch.tokens = torch::full({B, longest}, tokenizer.pad_id(), torch::kInt64);
  batch.target = torch::full({B, longest}, kIgnore, torch::kInt64);
  batch.lengths = torch::empty({B}, torch::kInt64);
  for (int64_t b = 0; b < B; ++b) {
    std::copy(ids[b].begin(), ids[b].end(), batch.tokens.data_ptr<int64_t>() + b * longest);
    std::copy(labels[b].begin(), labels[b].end(), batch.target.data_ptr<int64_t>() + b * longest);
    batch.lengths.data_ptr<int64_t>()[b] = std::ssize(ids[b]);
  }
  return batch;
}

std::string unaligned_note(const ExampleSource& source, const TagConfig& config) {
  constexpr int64_t kLooked = 4096;
  int64_t words = 0, unaligned = 0;
  for (const Example& example : source.take(0, source.size() > 0 ? std::min(source.size(), kLooked) : kLooked)) {
    const Alignment found = align_words(example.prompt, example.completion, config);
    words += found.compressed, unaligned += found.unaligned;
  }
  char share[32];
  std::snprintf(share, sizeof share, "%.2g %%",
                100 * static_cast<double>(unaligned) / static_cast<double>(std::max<int64_t>(words, 1)));
  return std::to_string(unaligned) + " of " + std::to_string(words) + " words of the compressions (" + share +
         ") are not in their texts within objective.tag.window, and label nothing";
}

TagSource::TagSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
                     int64_t context, const TagConfig& config)
    : examples_(std::move(examples)),
      tokenizer_(tokenizer),
      sequences_(sequences),
      context_(context),
      config_(config) {}

StepData TagSource::next(int64_t) {
  next_taken_ = taken_ + sequences_;
  return {{tag_batch(examples_->take(taken_, sequences_), tokenizer_, context_, config_)}, {}};
}

std::map<std::string, torch::Tensor> TagSource::state() const { return {{"taken", torch::tensor(taken_)}}; }

void TagSource::restore(const std::map<std::string, torch::Tensor>& state) { taken_ = taken_of(state, "examples"); }

}  // namespace isentrope::data
