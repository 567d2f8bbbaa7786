#include "csrc/data/messages.h"

#include <utility>

namespace isentrope::data {

Example render(const std::vector<Message>& messages) {
  const bool answered = !messages.empty() && messages.back().role == "assistant";
  Example example;
  std::string text;  // since the last piece that was learnt
  for (const Message& message : messages) {
    text += message.role + ": ";
    if (answered && &message == &messages.back()) break;
    if (message.role == "assistant") {
      example.turns.push_back({.text = text, .learnt = false});
      example.turns.push_back({.text = message.content, .learnt = true});
      example.prompt += text + message.content;
      text = "\n";
    } else {
      text += message.content + "\n";
    }
  }
  if (!answered) text += "assistant: ";
  example.prompt += text;
  if (!example.turns.empty()) example.turns.push_back({.text = text, .learnt = false});
  if (answered) example.completion = messages.back().content;
  return example;
}

void apply(Rendering rendering, Example& example) {
  example.templated = true;
  example.prompt.clear();
  for (const Turn& turn : rendering.turns) example.prompt += turn.text;
  example.turns = rendering.turns.size() > 1 ? std::move(rendering.turns) : std::vector<Turn>{};
  example.completion = std::move(rendering.completion);
  example.end = std::move(rendering.end);
}

}  // namespace isentrope::data
