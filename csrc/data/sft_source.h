// The batch source of examples that are given, for sft and dpo: the next ones of a data set, one update a step.
#pragma once
#include <map>
#include <memory>
#include <string>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

class SftSource : public BatchSource {
 public:
  // truncation, packed: as csrc/data/collate.h. pairs: of the update two rows an example, the better completion and the worse.
  SftSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
            int64_t context, const std::string& truncation, int64_t packed = 0, bool pairs = false);

  // The examples that follow those taken so far, whatever sequences was when they were taken.
  StepData next(int64_t step) override;
  void commit() override { taken_ = next_taken_; }
  std::map<std::string, torch::Tensor> state() const override;  // {"taken": examples}
  // Throws std::runtime_error where state does not say how many were taken.
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  std::shared_ptr<const ExampleSource> examples_;
  const Tokenizer& tokenizer_;
  int64_t sequences_, context_;
  std::string truncation_;
  int64_t packed_;
  bool pairs_;
  int64_t taken_ = 0, next_taken_ = 0;  // examples; the second with those of the step that is not whole yet
};

}  // namespace isentrope::data
