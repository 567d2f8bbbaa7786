// From an example to the tokens that a model reads and learns.
#pragma once
#include <cstdint>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

// Its parts are encoded one by one: no token holds a part of two. What a completion follows: the prompt, or the turns of a
// conversation, each that is learnt with its end of sequence. Of an example whose tokens were drawn, those.
// Both throw std::invalid_argument as Tokenizer::encode.
std::vector<int64_t> prompt_ids(const Example& example, const Tokenizer& tokenizer);
// Prompt, completion, and the end of sequence where the completion does not end with it; tokens that were drawn get none.
Sequence sequence_of(const Example& example, const Tokenizer& tokenizer);

}  // namespace isentrope::data
