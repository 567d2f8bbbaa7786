// What a model with layers of kind prefix_linear learns from: a prefix, whose tokens are no targets of their own but where they are hidden
// (JRT-RNN, arXiv 2407.05483). For other models these give back what they got.
#pragma once
#include <cstdint>

#include "csrc/data/batch.h"
#include "csrc/model/decoder.h"

namespace isentrope::train {

// Tokens of the prefix of a text of so many: prefix_linear.prefix. Throws std::invalid_argument where it leaves none behind it.
int64_t prefix_tokens(const model::DecoderConfig& model, int64_t tokens);

// Text gets its prefix, and its targets begin with the token behind that. A batch that has a prefix stays as it is.
data::Batch with_prefix(const data::Batch& batch, const model::DecoderConfig& model);

// with_prefix, and a share mask_share of each prefix's tokens, but for the last, become model::kHidden in tokens, and the targets of
// their places. Row i draws from the stream (seed, prefix, i), whatever the batch is cut into later.
data::Batch with_hidden(const data::Batch& batch, const model::DecoderConfig& model, uint64_t seed);

// Decoder::token_entropy of a batch as it stands.
inline ops::TokenEntropy judged(model::Decoder& model, const data::Batch& batch) {
  return model->token_entropy(batch.tokens, batch.target, 1.0, nullptr, {batch.position, batch.prefix});
}

}  // namespace isentrope::train
