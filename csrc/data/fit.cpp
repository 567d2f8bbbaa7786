#include "csrc/data/fit.h"

#include <stdexcept>

#include "csrc/data/sequence.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

// What is learnt ends at the first end of sequence: nothing behind it would ever be drawn.
void end_is_last(const std::string& completion, const Tokenizer& tokenizer) {
  for (const int64_t id : tokenizer.end_ids()) {
    const std::string& eos = tokenizer.text_of(id, false);
    const size_t at = completion.find(eos);
    if (at != std::string::npos && at + eos.size() < completion.size())
      throw std::invalid_argument("the completion \"" + excerpt(completion) + "\" goes on behind \"" + excerpt(eos) +
                                  "\", which ends a sequence (tokenizer.eos); what follows can never be drawn");
  }
}

}  // namespace

bool fits(const Example& example, const Use& use, bool* cut) {
  if (use.pairs) {
    if (!example.rejected)
      throw std::invalid_argument(
          "there is no pair; a dpo phase learns from the two completions of a prompt under the keys that "
          "data.jsonl.chosen_key and rejected_key name (chosen, rejected)");
    Use each = use;
    each.pairs = false;
    bool cut_one = false;
    const bool all = fits(*example.rejected, each, &cut_one) && fits(example, each, &cut_one);
    if (cut) *cut = cut_one;
    return all;
  }
  const Tokenizer& tokenizer = *use.tokenizer;
  const std::string truncation = ", the context holds " + std::to_string(use.context) +
                                 "; raise model.max_position_embeddings, shorten it, or set data.truncation to drop";
  const auto prompt = static_cast<int64_t>(prompt_ids(example, tokenizer).size());
  if (prompt == 0) throw std::invalid_argument("the prompt is empty; it needs at least one token");
  if (use.also)
    if (const std::string wrong = use.also(example); !wrong.empty()) throw std::invalid_argument(wrong);
  if (!use.learnt) {
    if (prompt < use.context) return true;
    if (use.truncation == "drop") return false;
    throw TooLong("the prompt has " + std::to_string(prompt) + " tokens and leaves no room for a completion" +
                  truncation);
  }
  if (example.completion.empty()) throw std::invalid_argument("the completion is empty, and it is what is learnt");
  end_is_last(example.completion, tokenizer);
  for (const Turn& turn : example.turns)
    if (turn.learnt) end_is_last(turn.text, tokenizer);
  const auto length = static_cast<int64_t>(sequence_of(example, tokenizer).ids.size());
  if (length <= use.context) return true;
  if (use.truncation == "drop") return false;
  if (use.truncation == "error" || prompt >= use.context)
    throw TooLong("prompt and completion have " + std::to_string(length) + " tokens (" + std::to_string(prompt) +
                  " of prompt)" + truncation + (prompt < use.context ? " or truncate" : ""));
  if (cut) *cut = true;
  return true;
}

}  // namespace isentrope::data
