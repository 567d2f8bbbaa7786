// What every data set is made of, and how it is read: examples, in an order fixed by (seed, epoch).
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace isentrope::data {

// Which part of a data set: training never sees the prompts of the two others. Settings are tuned on validation,
// results are reported on test.
enum class Split { train, validation, test };
inline const char* name_of(Split split) {
  return split == Split::train ? "train" : split == Split::validation ? "validation" : "test";
}

// A piece of a conversation before the completion. One that is learnt ends a sequence, with the token for that where the text has it not
// and no template wrote it.
struct Turn {
  std::string text;
  bool learnt = false;
};

// An example as the tokens that a model reads and learns.
struct Sequence {
  std::vector<int64_t> ids;
  std::vector<bool> learnt;  // a token of a completion, or of an earlier turn that is learnt, or the end of one
  int64_t prompt = 0;        // tokens before the completion
};

struct Example {
  std::string prompt;
  std::string completion;    // what SFT learns; empty where there is none
  std::string answer;        // what verifiable rewards compare with; empty where there is none
  std::string columns = {};  // the whole JSON object that it was read from, where the use asks for it; else empty
  Split split = Split::train;
  std::vector<Turn> turns = {};  // what the prompt is made of, where that is more than its text (csrc/data/sequence.h)
  // Of a chat template, which writes every special token itself: none is put before the prompt or behind a turn.
  bool templated = false;
  std::string end = {};  // what the template writes behind the completion to end it; empty: the end of sequence
  std::shared_ptr<Example> rejected =
      {};  // of a pair: the same prompt with the completion that is worse; null: no pair
  std::vector<std::string> positives = {};  // texts that match the prompt, where the use asks for them
  // Its tokens, where a model drew them: read and learnt as they are, whatever its texts would be encoded as; null: its texts count.
  std::shared_ptr<const Sequence> drawn = {};
};

class ExampleSource {
 public:
  virtual ~ExampleSource() = default;
  // Examples first … first + count − 1 of the endless stream (a finite set starts its next epoch, newly shuffled).
  // A pure function of (source, first, count): the only state of a reader is the number of examples it has taken.
  virtual std::vector<Example> take(int64_t first, int64_t count) const = 0;
  // Examples in one epoch; 0: the stream has no end.
  virtual int64_t size() const { return 0; }
  // Examples that were left out when the source was made, since they are too long.
  virtual int64_t left_out() const { return 0; }
  // Lines that were left out, since they are broken.
  virtual int64_t skipped() const { return 0; }
  // What a person should know of how it was made, a sentence each.
  virtual std::vector<std::string> notes() const { return {}; }
};

}  // namespace isentrope::data
