// From examples to a batch for supervised learning.
#pragma once
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

// Sequence i is that of examples[i] (csrc/data/sequence.h): prompt, completion and its end. Its last token is only a target, so T = longest sequence − 1:
//   tokens [B, T]: the sequence without its last token, then padding
//   target [B, T]: the token after each; −100 where that token is not learnt, and on padding
//   lengths [B]:   tokens of each row before its padding
// A sequence of more than `context` tokens: "error" throws std::invalid_argument that names the example,
// "drop" leaves it out (so B may be less than the number of examples; none left is an error), "truncate" cuts
// its completion (a prompt that leaves no room is an error).
// packed > 0: a row holds as many sequences as fit into that many tokens, or the longest one; position [B, T] is that of a token in
// its sequence, and of padding behind the last of a row as if that were one more.
Batch collate(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
              const std::string& truncation = "error", int64_t packed = 0);

// Of pairs: each example, and behind it its rejected one, which must be there.
std::vector<Example> with_rejected(const std::vector<Example>& examples);

}  // namespace isentrope::data
