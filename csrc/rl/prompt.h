// A prompt as the model reads it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::rl {

// Throws std::runtime_error that shows the prompt where it is empty, has what the tokenizer does not know, or leaves no room for an
// answer in a context of so many tokens.
std::vector<int64_t> encode_prompt(const data::Example& example, const data::Tokenizer& tokenizer, int64_t context);

// The example with its prompt twice, a line break between (JRT-Prompt: Arora et al., arXiv 2407.05483). Throws std::runtime_error that
// shows the prompt where it is a conversation.
data::Example read_twice(data::Example example);

}  // namespace isentrope::rl
