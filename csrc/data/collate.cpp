#include "csrc/data/collate.h"

#include <algorithm>
#include <stdexcept>

#include "csrc/data/sequence.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

std::string described(size_t index, const Example& example) {
  return "example " + std::to_string(index) + " (prompt \"" + excerpt(example.prompt) + "\")";
}

Sequence encode(size_t index, const Example& example, const Tokenizer& tokenizer) {
  if (example.completion.empty())
    throw std::invalid_argument(described(index, example) + " has no completion to learn");
  Sequence sequence = sequence_of(example, tokenizer);
  if (sequence.prompt == 0) throw std::invalid_argument(described(index, example) + " has an empty prompt");
  return sequence;
}

}  // namespace

Batch collate(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
              const std::string& truncation) {
  if (truncation != "error" && truncation != "drop" && truncation != "truncate")
    throw std::invalid_argument("truncation is \"" + truncation + "\"; it can be error, drop, truncate");
  if (examples.empty()) throw std::invalid_argument("collate: no examples");
  std::vector<Sequence> sequences;
  int64_t longest = 0;
  for (size_t i = 0; i < examples.size(); ++i) {
    Sequence sequence = encode(i, examples[i], tokenizer);
    const auto length = static_cast<int64_t>(sequence.ids.size());
    if (length > context) {
      if (truncation == "drop") continue;
      if (truncation == "error" || sequence.prompt >= context)
        throw std::invalid_argument(
            described(i, examples[i]) + " has " + std::to_string(length) + " tokens (" +
            std::to_string(sequence.prompt) + " of prompt), the context holds " + std::to_string(context) +
            "; raise model.max_position_embeddings, shorten it, or set data.truncation to drop or truncate");
      sequence.ids.resize(static_cast<size_t>(context));
    }
    const auto kept = static_cast<int64_t>(sequence.ids.size());
    longest = std::max(longest, kept);
    sequences.push_back(std::move(sequence));
  }
  if (sequences.empty())
    throw std::invalid_argument("collate: all " + std::to_string(examples.size()) +
                                " examples are longer than the context (" + std::to_string(context) +
                                " tokens); raise model.max_position_embeddings");

  const auto rows = static_cast<int64_t>(sequences.size());
  Batch batch;
  batch.tokens = torch::full({rows, longest - 1}, tokenizer.pad_id(), torch::kInt64);
  batch.target = torch::full({rows, longest - 1}, kIgnore, torch::kInt64);
  batch.lengths = torch::empty({rows}, torch::kInt64);
  int64_t* tokens = batch.tokens.data_ptr<int64_t>();    // [B, T]
  int64_t* target = batch.target.data_ptr<int64_t>();    // [B, T]
  int64_t* lengths = batch.lengths.data_ptr<int64_t>();  // [B]
  for (const Sequence& sequence : sequences) {
    const auto last = static_cast<int64_t>(sequence.ids.size()) - 1;
    std::copy_n(sequence.ids.begin(), last, tokens);
    *lengths++ = last;
    for (int64_t t = 0; t < last; ++t)
      if (sequence.learnt[t + 1]) target[t] = sequence.ids[t + 1];
    tokens += longest - 1;
    target += longest - 1;
  }
  return batch;
}

}  // namespace isentrope::data
