// The batch source of tag phases: texts with a label a token, whether their compression kept its word.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/data/keep_labels.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

// Row i is the text examples[i].prompt, cut behind context tokens, then padding:
//   tokens [B, T]; target [B, T]: 1 of the tokens of a word that examples[i].completion kept, 0 of other words', −100 of what begins a
//   sequence and of padding; lengths [B]
Batch tag_batch(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
                const TagConfig& config);

// "…: 12 of 3400 words of the compressions (0.4 %) are not in their texts …", of the first 4096 examples.
std::string unaligned_note(const ExampleSource& source, const TagConfig& config);

class TagSource : public BatchSource {
 public:
  TagSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
            int64_t context, const TagConfig& config);
  StepData next(int64_t step) override;
  void commit() override { taken_ = next_taken_; }
  std::map<std::string, torch::Tensor> state() const override;  // {"taken": examples}
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  std::shared_ptr<const ExampleSource> examples_;
  const Tokenizer& tokenizer_;
  int64_t sequences_, context_;
  TagConfig config_;
  int64_t taken_ = 0, next_taken_ = 0;
};

}  // namespace isentrope::data
