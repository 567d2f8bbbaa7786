#include "csrc/data/sequence.h"

namespace isentrope::data {
namespace {

// Appends what the text becomes where it stands.
void add(Sequence& sequence, const std::string& text, bool learnt, bool templated, const Tokenizer& tokenizer) {
  const bool first = sequence.ids.empty();
  for (const int64_t id : !templated ? first ? tokenizer.encode_prompt(text) : tokenizer.encode(text)
                          : first ? tokenizer.encode(text)
                                     : tokenizer.encode_behind(sequence.ids.back(), text))
    sequence.ids.push_back(id);
  sequence.learnt.resize(sequence.ids.size(), learnt);
}

void end(Sequence& sequence, const Tokenizer& tokenizer) {
  if (!sequence.ids.empty() && tokenizer.ends(sequence.ids.back())) return;
  sequence.ids.push_back(tokenizer.eos_id());
  sequence.learnt.push_back(true);
}

Sequence prompt_of(const Example& example, const Tokenizer& tokenizer) {
  Sequence sequence;
  for (const Turn& turn : example.turns) {
    add(sequence, turn.text, turn.learnt, example.templated, tokenizer);
    if (turn.learnt && !example.templated) end(sequence, tokenizer);
  }
  if (example.turns.empty()) add(sequence, example.prompt, false, example.templated, tokenizer);
  sequence.prompt = static_cast<int64_t>(sequence.ids.size());
  return sequence;
}

}  // namespace

std::vector<int64_t> prompt_ids(const Example& example, const Tokenizer& tokenizer) {
  if (example.drawn) return {example.drawn->ids.begin(), example.drawn->ids.begin() + example.drawn->prompt};
  return prompt_of(example, tokenizer).ids;
}

Sequence sequence_of(const Example& example, const Tokenizer& tokenizer) {
  if (example.drawn) return *example.drawn;
  Sequence sequence = prompt_of(example, tokenizer);
  add(sequence, example.completion + example.end, true, example.templated, tokenizer);
  end(sequence, tokenizer);
  return sequence;
}

}  // namespace isentrope::data
