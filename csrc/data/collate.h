// From examples to a batch for supervised learning.
#pragma once
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

// Sequence i is prompt + completion of examples[i], then the end of sequence where the completion does not
// end with it. Its last token is only a target, so T = longest sequence − 1:
//   tokens [B, T]: the sequence without its last token, then padding
//   target [B, T]: the token after each; −100 where that token belongs to the prompt, and on padding
//   lengths [B]:   tokens of each row before its padding
// A sequence of more than `context` tokens: "error" throws std::invalid_argument that names the example,
// "drop" leaves it out (so B may be less than the number of examples; none left is an error), "truncate" cuts
// its completion (a prompt that leaves no room is an error).
Batch collate(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
              const std::string& truncation = "error");

}  // namespace isentrope::data
