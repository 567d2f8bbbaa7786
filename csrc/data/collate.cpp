#include "csrc/data/collate.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "csrc/data/sequence.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

std::string described(size_t index, const Example& example) {
  return "example " + std::to_string(index) + " (prompt \"" + excerpt(example.prompt) + "\")";
}

Sequence encode(size_t index, const Example& example, const Tokenizer& tokenizer) {
  if (example.completion.empty() && !example.drawn)
    throw std::invalid_argument(described(index, example) + " has no completion to learn");
  Sequence sequence = sequence_of(example, tokenizer);
  if (sequence.prompt == 0) throw std::invalid_argument(described(index, example) + " has an empty prompt");
  return sequence;
}

// Without its last token, which is a target alone.
int64_t tokens_of(const std::vector<Sequence>& sequences, const std::vector<size_t>& row) {
  int64_t tokens = 0;
  for (const size_t i : row) tokens += static_cast<int64_t>(sequences[i].ids.size()) - 1;
  return tokens;
}

// Which sequences stand in each row: one, or packed as many as fit, the longest first, each into the first row with room for it
// (first-fit decreasing, which takes at most 11/9 of the fewest rows and one more).
std::vector<std::vector<size_t>> rows_of(const std::vector<Sequence>& sequences, int64_t room) {
  std::vector<std::vector<size_t>> rows;
  std::vector<size_t> order(sequences.size());
  std::iota(order.begin(), order.end(), 0);
  if (room > 0)
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return sequences[a].ids.size() > sequences[b].ids.size(); });
  for (const size_t i : order) {
    const auto fits = [&](const auto& row) { return tokens_of(sequences, row) + tokens_of(sequences, {i}) <= room; };
    const auto row = std::find_if(rows.begin(), rows.end(), fits);
    row == rows.end() ? rows.push_back({i}) : row->push_back(i);
  }
  return rows;
}

}  // namespace

Batch collate(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
              const std::string& truncation, int64_t packed) {
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

  const std::vector<std::vector<size_t>> rows = rows_of(sequences, packed > 0 ? std::max(packed, longest - 1) : 0);
  int64_t width = 0;
  for (const auto& row : rows) width = std::max(width, tokens_of(sequences, row));
  Batch batch;
  const auto B = static_cast<int64_t>(rows.size());
  batch.tokens = torch::full({B, width}, tokenizer.pad_id(), torch::kInt64);
  batch.target = torch::full({B, width}, kIgnore, torch::kInt64);
  batch.prefix = torch::zeros({B, width}, torch::kBool);
  batch.lengths = torch::empty({B}, torch::kInt64);
  if (packed > 0) batch.position = torch::empty({B, width}, torch::kInt64);
  for (int64_t b = 0; b < B; ++b) {
    int64_t* tokens = batch.tokens.data_ptr<int64_t>() + b * width;                             // [width]
    int64_t* target = batch.target.data_ptr<int64_t>() + b * width;                             // [width]
    int64_t* position = packed > 0 ? batch.position.data_ptr<int64_t>() + b * width : nullptr;  // [width]
    int64_t at = 0;
    for (const size_t i : rows[b]) {
      const Sequence& sequence = sequences[i];
      const auto last = static_cast<int64_t>(sequence.ids.size()) - 1;
      std::copy_n(sequence.ids.begin(), last, tokens + at);
      for (int64_t t = 0; t < last; ++t)
        if (sequence.learnt[t + 1]) target[at + t] = sequence.ids[t + 1];
      std::fill_n(batch.prefix.data_ptr<bool>() + b * width + at, std::min(sequence.prompt, last), true);
      batch.lengths.data_ptr<int64_t>()[b] = at;
      if (position) std::iota(position + at, position + at + last, 0);
      at += last;
    }
    batch.lengths.data_ptr<int64_t>()[b] = at;
    if (position) std::iota(position + at, position + width, 0);
  }
  return batch;
}

std::vector<Example> with_rejected(const std::vector<Example>& examples) {
  std::vector<Example> all;
  for (const Example& example : examples) {
    all.push_back(example);
    all.push_back(*example.rejected);
  }
  return all;
}

}  // namespace isentrope::data
