#include <stdexcept>

#include "csrc/data/source.h"

namespace isentrope::data {

std::shared_ptr<const TokenShard> open_text(const DataConfig& config, const Tokenizer& tokenizer, Split split) {
  if (config.corpus) return open_corpus(*config.corpus, tokenizer, split);
  if (config.hmm) return open_hmm(*config.hmm, tokenizer, split);
  throw std::invalid_argument("data: there is no text; write corpus: or hmm:");
}

}  // namespace isentrope::data
