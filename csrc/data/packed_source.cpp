#include "csrc/data/packed_source.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include "csrc/data/shuffle.h"

namespace isentrope::data {

Windows::Windows(std::shared_ptr<const TokenShard> tokens, int64_t context, uint64_t seed, const std::string& name,
                 const std::optional<Masking>& masking)
    : tokens_(std::move(tokens)), context_(context), size_(0), seed_(seed), masking_(masking) {
  const auto n = static_cast<int64_t>(tokens_->tokens().size());
  if (n <= context)
    throw std::runtime_error("corpus: the " + name + " tokens are " + std::to_string(n) +
                             ", and a window of the context takes " + std::to_string(context + 1) +
                             "; give it more text, or lower model.max_position_embeddings");
  size_ = (n + context - 1) / context;
}

Batch Windows::take(int64_t first, int64_t count) const {
  if (first < 0 || count < 0)
    throw std::invalid_argument("windows: take(" + std::to_string(first) + ", " + std::to_string(count) +
                                ") is negative");
  const Tokens& ring = tokens_->tokens();  // [n]
  const auto n = static_cast<int64_t>(ring.size());
  Batch batch;
  batch.tokens = torch::empty({count, context_}, torch::kInt64);
  batch.target = torch::empty({count, context_}, torch::kInt64);
  int64_t* tokens = batch.tokens.data_ptr<int64_t>();  // [count, T]
  int64_t* target = batch.target.data_ptr<int64_t>();  // [count, T]
  std::optional<Shuffle> order;
  int64_t offset = 0;
  for (int64_t w = first; w < first + count; ++w, tokens += context_, target += context_) {
    const auto epoch = static_cast<uint64_t>(w / size_);
    if (!order || w % size_ == 0) {
      order.emplace(seed_, epoch, static_cast<uint64_t>(size_));
      offset = Stream(seed_, Purpose::window, epoch).below(static_cast<uint32_t>(context_));
    }
    const int64_t start = static_cast<int64_t>((*order)(static_cast<uint64_t>(w % size_))) * context_;
    for (int64_t t = 0; t < context_; ++t) {
      tokens[t] = ring[static_cast<size_t>((offset + start + t) % n)];
      target[t] = start + t < n ? ring[static_cast<size_t>((offset + start + t + 1) % n)] : kIgnore;
    }
    if (!masking_) continue;
    Stream draws(seed_, Purpose::mask, static_cast<uint64_t>(w));
    mask_tokens(*masking_, draws, context_, tokens, target);
    for (int64_t t = n - start; t < context_; ++t) target[t] = kIgnore;
  }
  return batch;
}

PackedSource::PackedSource(std::shared_ptr<const TokenShard> tokens, int64_t sequences, int64_t context, uint64_t seed,
                           const std::optional<Masking>& masking)
    : windows_(std::move(tokens), context, seed, "training", masking), sequences_(sequences) {}

StepData PackedSource::next(int64_t) {
  next_taken_ = taken_ + sequences_;
  return {{windows_.take(taken_, sequences_)}, {}};
}

std::map<std::string, torch::Tensor> PackedSource::state() const {
  return {{"taken", torch::tensor(taken_)},
          {"tokens", torch::tensor(static_cast<int64_t>(windows_.shard().tokens().size()))},
          {"digest", torch::tensor(static_cast<int64_t>(windows_.shard().digest()))}};
}

void PackedSource::restore(const std::map<std::string, torch::Tensor>& state) {
  const auto own = this->state();
  for (const auto& [name, value] : own)
    if (name == "taken")
      continue;
    else if (const auto found = state.find(name); found == state.end() || !torch::equal(found->second, value))
      throw std::runtime_error("corpus: it is not the one that this run began with (now " +
                               std::to_string(own.at("tokens").item<int64_t>()) + " tokens, " + name +
                               " differs), so it cannot go on as it would have; put the files back as they were, or "
                               "begin a new run");
  taken_ = taken_of(state, "windows");
}

}  // namespace isentrope::data
