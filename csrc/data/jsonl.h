// Examples from files with one JSON object a line: {"prompt": "2+2=", "completion": "4.", "answer": "4"}; or pairs, the better completion
// beside the worse: {"prompt": "2+2=", "chosen": "4.", "rejected": "5."}.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/fit.h"
#include "csrc/data/split.h"
#include "csrc/field.h"

namespace isentrope::data {

struct JsonlConfig {
  std::vector<std::string> path = {};
  std::string validation_path = "";
  std::string test_path = "";
  std::optional<double> validation_fraction = {};
  std::optional<double> test_fraction = {};
  std::string messages_key = "messages";
  std::string prompt_key = "prompt";
  std::string completion_key = "completion";
  std::string chosen_key = "chosen";
  std::string rejected_key = "rejected";
  std::string positives_key = "positives";
  std::string answer_key = "answer";
  std::string chat_template = "default";

  template <class Visitor>
  void visit(Visitor& v) {
    v("path", path,
      "Files of the training examples, .jsonl or .jsonl.gz; patterns such as part-*.jsonl.gz; folders, of which files "
      "count by the split that their names say (docs/data.md).");
    v("validation_path", validation_path,
      "File, pattern or folder of the validation examples; empty to take a share of path. What a pattern or folder of "
      "path finds of it is not trained on.");
    v("test_path", test_path, "The same for test.");
    v("validation_fraction", validation_fraction,
      "Share of path held out for validation where validation_path is empty; 0.05 where it is not written. A hash of "
      "the "
      "prompt chooses, and where it chooses none, the prompt that is nearest. 0: no validation.",
      between(0, 1));
    v("test_fraction", test_fraction, "The same for test, where test_path is empty.", between(0, 1));
    v("messages_key", messages_key,
      "Key of a conversation, a list of {role, content}, of which an assistant's contents are learnt; in place of "
      "prompt "
      "and completion.");
    v("prompt_key", prompt_key, "Key of the prompt, a string; required in each object without a conversation.");
    v("completion_key", completion_key, "Key of the completion, a string; may be missing where there is an answer.");
    v("chosen_key", chosen_key,
      "Key of the better completion of a pair, in the place of a completion: a string, or the messages of a "
      "conversation. Phases but dpo learn it as any other completion.");
    v("rejected_key", rejected_key, "Key of the worse completion, of the same kind; dpo phases.");
    v("positives_key", positives_key,
      "Key of the texts that match the prompt, a list of strings; contrastive phases, which need no completion.");
    v("answer_key", answer_key, "Key of the answer that rewards compare with, a string or an integer; may be missing.");
    v("chat_template", chat_template,
      "What conversations are rendered by. default: the template in the folder of tokenizer.pretrained, or plain lines "
      "where it "
      "has none; none: plain lines; else a file of Jinja, or the name of one of the folder's several (docs/data.md).");
  }
  HeldOutKeys validation() const { return {"validation", validation_path, validation_fraction}; }
  HeldOutKeys test() const { return {"test", test_path, test_fraction}; }
  std::string problem() const;
  bool has(Split split) const;  // whether the keys leave anything for it
};

// A prompt to be completed, and where it was read: FILE:LINE.
struct Prompt {
  std::string where, text;
  std::string columns = {};        // the JSON object that it was read from; empty where there is none
  Conversation conversation = {};  // with `messages`: in place of text
};

// The prompts of a file: .jsonl with an object a line whose "prompt" is a string (other keys are left alone), .txt with a prompt a
// line. messages: an object may have a conversation in place of the prompt. "-" is standard input, of objects where its first line begins with {, else of lines. Empty lines are passed over; an end of
// line may be \r\n, and a byte order mark is no part of the first. Throws std::runtime_error with file and line: a file that cannot
// be read, of another suffix, without a prompt, or malformed.
std::vector<Prompt> read_prompts(const std::string& path, bool messages = false);

// The files (csrc/data/jsonl_files.h) are read and checked at once and kept in memory.
// Training: each epoch is a permutation of the split, fixed by (seed, epoch). Validation and test: the order
// of the files. To share a stream among W ranks with n examples each a step, rank r takes (step · W + r) · n …
// + n − 1: the union is what one rank with W · n would take.
class Jsonl : public ExampleSource {
 public:
  // Throws std::invalid_argument for a config with a problem() and std::runtime_error with file:line for a
  // file that is missing, empty or malformed, has nothing for the split, or an example of it that does not fit the use.
  // skip: lines that are malformed, or that the use refuses otherwise than as too long, are counted and left out instead.
  Jsonl(const JsonlConfig& config, uint64_t seed, Split split, const Use* use = nullptr, bool skip = false);

  std::vector<Example> take(int64_t first, int64_t count) const override;
  int64_t size() const override { return static_cast<int64_t>(examples_.size()); }
  int64_t left_out() const override { return left_out_; }
  int64_t skipped() const override { return skipped_; }
  std::vector<std::string> notes() const override;

 private:
  uint64_t seed_;
  Split split_;
  std::vector<Example> examples_;
  int64_t left_out_ = 0, skipped_ = 0, cut_ = 0;
  std::string first_skipped_, files_;  // of notes()
};

}  // namespace isentrope::data
