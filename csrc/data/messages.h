// Conversations: a list of messages as the pieces of a sequence. render() is the place where a chat template would stand.
#pragma once
#include <string>
#include <vector>

#include "csrc/data/example.h"

namespace isentrope::data {

struct Message {
  std::string role, content;  // system, user, assistant or tool
};

// The plain rendering, of any tokenizer: a line "role: content" a message; the content of an assistant's is learnt, and behind it
// stands the end of sequence, so that a turn ends as a completion does:
//   user: 2+2=⏎assistant: 4<end>⏎user: 3+3=⏎assistant: 6<end>
// What the last message completes is prompt and turns of the example, its content the completion; where it is not an assistant's,
// the completion is empty and the prompt ends in "assistant: ".
Example render(const std::vector<Message>& messages);

}  // namespace isentrope::data
