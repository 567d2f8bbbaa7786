#include "csrc/data/masking.h"

#include <stdexcept>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/message.h"

namespace isentrope::data {

namespace {

// The id of a special token by its name, or -1.
int64_t special_id(const Tokenizer& tokenizer, const std::string& name) {
  if (tokenizer.kind() != "pretrained") return -1;  // these have padding and an end alone
  const std::vector<int64_t> ids = tokenizer.encode(name);
  return ids.size() == 1 && tokenizer.bytes_of(ids[0]) == 0 ? ids[0] : -1;
}

}  // namespace

std::string MaskingConfig::problem() const {
  if (mask_replace_prob + random_replace_prob <= 1) return "";
  return "mask_replace_prob: it and random_replace_prob add up to " +
         std::to_string(mask_replace_prob + random_replace_prob) + "; wanted at most 1";
}

Masking masking_of(const MaskingConfig& config, const Tokenizer& tokenizer) {
  Masking masking{.config = config, .mask_id = -1, .vocabulary = tokenizer.size()};
  if (!config.mask_token.empty()) {
    masking.mask_id = special_id(tokenizer, config.mask_token);
    if (masking.mask_id < 0)
      throw std::invalid_argument("masking.mask_token: '" + excerpt(config.mask_token) +
                                  "' is no special token of the tokenizer; name one that is, or leave the key out");
    return masking;
  }
  for (const char* name : {"<mask>", "[MASK]", "<|mask|>"})
    if (masking.mask_id < 0) masking.mask_id = special_id(tokenizer, name);
  if (masking.mask_id < 0 && !tokenizer.ends(tokenizer.pad_id())) masking.mask_id = tokenizer.pad_id();
  if (masking.mask_id < 0)
    throw std::invalid_argument(
        "masking.mask_token: the tokenizer has neither a mask token nor a padding that is no end of sequence; name one "
        "of its special tokens");
  return masking;
}

void mask_tokens(const Masking& masking, Stream& stream, int64_t count, int64_t* tokens, int64_t* target) {
  const MaskingConfig& c = masking.config;
  for (int64_t t = 0; t < count; ++t) {
    target[t] = kIgnore;
    if (stream.uniform() >= c.mlm_probability) continue;
    target[t] = tokens[t];
    const double replaced = stream.uniform();
    if (replaced < c.mask_replace_prob) {
      tokens[t] = masking.mask_id;
    } else if (replaced < c.mask_replace_prob + c.random_replace_prob && masking.vocabulary > 1) {
      const int64_t drawn = stream.below(static_cast<uint32_t>(masking.vocabulary - 1));
      tokens[t] = drawn + (drawn >= masking.mask_id);
    }
  }
}

}  // namespace isentrope::data
