#include "csrc/data/contrastive_source.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/message.h"

namespace isentrope::data {

Batch rows_of_texts(const std::vector<std::string>& texts, const Tokenizer& tokenizer, int64_t context, int64_t least) {
  const auto B = static_cast<int64_t>(texts.size());
  std::vector<std::vector<int64_t>> ids;
  int64_t longest = std::max<int64_t>(least, 1);
  for (const std::string& text : texts) {
    ids.push_back(tokenizer.encode_prompt(text));
    const auto length = static_cast<int64_t>(ids.back().size());
    if (length == 0 || length > context)
      throw std::invalid_argument("the text \"" + excerpt(text) + "\" has " + std::to_string(length) +
                                  " tokens; wanted 1 to " + std::to_string(context) +
                                  " (model.max_position_embeddings)");
    longest = std::max(longest, length);
  }
  Batch batch;
  batch.tokens = torch::full({B, longest}, tokenizer.pad_id(), torch::kInt64);
  batch.target = torch::full({B, longest}, kIgnore, torch::kInt64);
  batch.lengths = torch::empty({B}, torch::kInt64);
  for (int64_t b = 0; b < B; ++b) {
    std::copy(ids[b].begin(), ids[b].end(), batch.tokens.data_ptr<int64_t>() + b * longest);
    batch.lengths.data_ptr<int64_t>()[b] = std::ssize(ids[b]);
  }
  return batch;
}

Batch contrastive_batch(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
                        const ContrastiveConfig& config, uint64_t seed, int64_t first) {
  std::vector<std::string> texts;
  for (const Example& example : examples) texts.push_back(example.prompt);
  const auto Q = static_cast<int64_t>(texts.size());
  std::map<std::string, int64_t> row_of;  // of texts that match
  for (int64_t q = 0; q < Q; ++q) {
    std::vector<std::string> drawn = examples[q].positives;
    Stream stream(seed, Purpose::selection, static_cast<uint64_t>(first + q));
    const auto all = static_cast<int64_t>(drawn.size()), wanted = std::min(config.positives, all);
    for (int64_t i = 0; i < wanted; ++i) {
      std::swap(drawn[i], drawn[i + stream.below(static_cast<uint32_t>(all - i))]);
      if (row_of.emplace(drawn[i], std::ssize(texts)).second) texts.push_back(drawn[i]);
    }
  }
  std::vector<std::set<int64_t>> matches(Q);
  size_t most = 1;
  for (int64_t q = 0; q < Q; ++q) {
    for (const std::string& text : examples[q].positives)
      if (const auto found = row_of.find(text); found != row_of.end()) matches[q].insert(found->second);
    most = std::max(most, matches[q].size());
  }
  Batch batch = rows_of_texts(texts, tokenizer, context, static_cast<int64_t>(most));
  for (int64_t q = 0; q < Q; ++q)
    std::copy(matches[q].begin(), matches[q].end(), batch.target.data_ptr<int64_t>() + q * batch.target.size(1));
  return batch;
}

ContrastiveSource::ContrastiveSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer,
                                     int64_t sequences, int64_t context, const ContrastiveConfig& config, uint64_t seed)
    : examples_(std::move(examples)),
      tokenizer_(tokenizer),
      sequences_(sequences),
      context_(context),
      config_(config),
      seed_(seed) {}

StepData ContrastiveSource::next(int64_t) {
  next_taken_ = taken_ + sequences_;
  return {
      {contrastive_batch(examples_->take(taken_, sequences_), tokenizer_, context_, config_, seed_, taken_)}, {}, {}};
}

std::map<std::string, torch::Tensor> ContrastiveSource::state() const { return {{"taken", torch::tensor(taken_)}}; }

void ContrastiveSource::restore(const std::map<std::string, torch::Tensor>& state) {
  taken_ = taken_of(state, "examples");
}

}  // namespace isentrope::data
