// Token shards that are written once into a folder and used again: of a corpus, of generated text.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "csrc/data/example.h"
#include "csrc/data/token_shard.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

struct TokenCache {
  std::string kind;    // of data: corpus, hmm
  std::string folder;  // data.KIND.cache
};

// The shard of that split, called by the hash of its configuration. write(file) makes it where there is none with that fingerprint, or a
// damaged one; processes that want the same at once wait for the first. Throws std::runtime_error for a folder that
// cannot be used, and for a shard with tokens that the tokenizer has not.
std::shared_ptr<const TokenShard> cached_tokens(const TokenCache& cache, const Hash& name, Split split,
                                                uint64_t fingerprint, const Tokenizer& tokenizer,
                                                const std::function<void(const std::string& file)>& write);

}  // namespace isentrope::data
