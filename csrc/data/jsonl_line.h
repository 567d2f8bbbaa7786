// A line of data.jsonl, one JSON object, as an example; and of a file of prompts.
#pragma once
#include <string>

#include "csrc/data/jsonl.h"

namespace isentrope::data {

// where: FILE:LINE, which every error begins with; all are std::runtime_error. columns: Example::columns is kept. conversation: where
// a chat template is to render messages; it is left empty where the line has none, and until it is rendered the example holds the
// messages of its prompt, by which it is split, as JSON. null: messages are rendered plainly.
Example example_of(const JsonlConfig& config, const std::string& line, bool columns, Conversation* conversation,
                   const std::string& where);

// messages: the line may have a conversation in place of its prompt.
Prompt prompt_at(const std::string& line, bool messages, const std::string& where);

}  // namespace isentrope::data
