#include "csrc/rl/prompt.h"

#include <stdexcept>

#include "csrc/data/sequence.h"
#include "csrc/message.h"

namespace isentrope::rl {

std::vector<int64_t> encode_prompt(const data::Example& example, const data::Tokenizer& tokenizer, int64_t context) {
  const auto name = [&] { return "the prompt " + quoted(example.prompt); };
  std::vector<int64_t> tokens;
  try {
    tokens = data::prompt_ids(example, tokenizer);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(name() + ": " + error.what());
  }
  if (tokens.empty()) throw std::runtime_error(name() + " is empty; it needs at least one token");
  if (static_cast<int64_t>(tokens.size()) >= context)
    throw std::runtime_error(name() + " has " + std::to_string(tokens.size()) +
                             " tokens and leaves no room for an answer in model.max_position_embeddings (" +
                             std::to_string(context) +
                             "); raise model.max_position_embeddings, shorten it, or set data.truncation to drop");
  return tokens;
}

data::Example read_twice(data::Example example) {
  if (example.templated || !example.turns.empty())
    throw std::runtime_error("repeat_prompt: the prompt " + quoted(example.prompt) +
                             " is a conversation, whose turns stand once; it takes prompts that are one text");
  example.prompt += "\n" + std::string(example.prompt);
  return example;
}

}  // namespace isentrope::rl
