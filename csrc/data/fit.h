// What a use of examples asks of each of them. A source asks once, when it is made, so that nothing of its data can stop a
// run later.
#pragma once
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "csrc/data/example.h"
#include "csrc/data/messages.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

struct Use {
  const Tokenizer* tokenizer;
  int64_t context;  // tokens that a sequence may have
  // true: prompt, completion and the end are learnt as one sequence; false: a completion is drawn behind the prompt.
  bool learnt;
  std::string truncation = "error";                      // data.truncation
  std::function<std::string(const Example&)> also = {};  // further rules, of rewards: what is wrong, or ""
  bool columns = false;                                  // Example::columns is read, by rewards
  Renderer chat = {};                                    // of conversations; none: plainly (csrc/data/messages.h)
  bool pairs = false;                                    // Example::rejected is learnt from, and must be there
  bool positives = false;                                // Example::positives is learnt from, and must be there
};

struct TooLong : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Whether the example fits into the context; false: it is to be left out, as truncation says. cut, where given: whether its
// completion is to be cut. Throws TooLong, or std::invalid_argument with what else is wrong: characters outside the alphabet, a
// prompt or completion without tokens, text behind an end of sequence.
bool fits(const Example& example, const Use& use, bool* cut = nullptr);

}  // namespace isentrope::data
