// A line of data.jsonl, one JSON object, as an example; and of a file of prompts.
#pragma once
#include <string>

#include "csrc/data/jsonl.h"

namespace isentrope::data {

// Of a line; rejected: of the worse completion of a pair. "" where the line has none.
struct Conversations {
  Conversation own, rejected;
};

// where: FILE:LINE, which every error begins with; all are std::runtime_error. columns: Example::columns is kept. conversations: where
// a chat template is to render messages; they are left empty where the line has none, and until they are rendered the example holds the
// messages of its prompt, by which it is split, as JSON. null: messages are rendered plainly.
// positives: the line has texts that match its prompt, and need have no completion.
Example example_of(const JsonlConfig& config, const std::string& line, bool columns, bool positives,
                   Conversations* conversations, const std::string& where);

// messages: the line may have a conversation in place of its prompt.
Prompt prompt_at(const std::string& line, bool messages, const std::string& where);

}  // namespace isentrope::data
