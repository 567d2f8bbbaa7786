// Conversations: a list of messages as the pieces of a sequence, plainly or by a model's chat template.
#pragma once
#include <functional>
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

// A conversation as a chat template is given it: the object {"messages": [{"role": …, …}, …]} as JSON in one line, with "tools",
// "chat_template_kwargs" and "learnt_from" (the number of messages that are not learnt, whoever says them) where it has such.
using Conversation = std::string;
// What a template made of it: `problem` says what is wrong, "" where nothing is. Else the turns before the completion, not one of
// them empty, the completion ("" where the last message is not an assistant's), and what ends it ("" where the template writes nothing).
struct Rendering {
  std::string problem;
  std::vector<Turn> turns = {};
  std::string completion = {}, end = {};
};
// Renders many at once, in their order. Throws std::runtime_error where there is nothing to render with.
using Renderer = std::function<std::vector<Rendering>(const std::vector<Conversation>&)>;

// Puts what was rendered in the place of the example's prompt and completion.
void apply(Rendering rendering, Example& example);

}  // namespace isentrope::data
