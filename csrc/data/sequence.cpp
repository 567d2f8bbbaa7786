#include "csrc/data/sequence.h"

namespace isentrope::data {
namespace {

void add(Sequence& sequence, const std::string& text, bool learnt, const Tokenizer& tokenizer) {
  const bool first = sequence.ids.empty();
  for (const int64_t id : first ? tokenizer.encode_prompt(text) : tokenizer.encode(text)) sequence.ids.push_back(id);
  if (learnt && (sequence.ids.empty() || sequence.ids.back() != tokenizer.eos_id()))
    sequence.ids.push_back(tokenizer.eos_id());
  sequence.learnt.resize(sequence.ids.size(), learnt);
}

Sequence prompt_of(const Example& example, const Tokenizer& tokenizer) {
  Sequence sequence;
  for (const Turn& turn : example.turns) add(sequence, turn.text, turn.learnt, tokenizer);
  if (example.turns.empty()) add(sequence, example.prompt, false, tokenizer);
  sequence.prompt = static_cast<int64_t>(sequence.ids.size());
  return sequence;
}

}  // namespace

std::vector<int64_t> prompt_ids(const Example& example, const Tokenizer& tokenizer) {
  return prompt_of(example, tokenizer).ids;
}

Sequence sequence_of(const Example& example, const Tokenizer& tokenizer) {
  Sequence sequence = prompt_of(example, tokenizer);
  add(sequence, example.completion, true, tokenizer);
  return sequence;
}

}  // namespace isentrope::data
