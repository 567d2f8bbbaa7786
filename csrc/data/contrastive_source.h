// The batch source of contrastive phases: prompts, and texts that match them.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/data/contrastive_config.h"
#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

// The tokens of texts, one behind the other: tokens [B, T], lengths [B], T at least `least`; target is −100 everywhere. Throws
// std::invalid_argument for a text of more than context tokens, or of none.
Batch rows_of_texts(const std::vector<std::string>& texts, const Tokenizer& tokenizer, int64_t context,
                    int64_t least = 1);

// Q rows of prompts, then N of the distinct texts that are drawn for them: of each prompt at most config.positives of its positives,
// by (seed, number of the example from `first` on). target[q]: the rows of all texts among the N that match prompt q, drawn for it or for
// another, in their order, then −100; those of texts have −100 alone.
Batch contrastive_batch(const std::vector<Example>& examples, const Tokenizer& tokenizer, int64_t context,
                        const ContrastiveConfig& config, uint64_t seed, int64_t first);

class ContrastiveSource : public BatchSource {
 public:
  ContrastiveSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
                    int64_t context, const ContrastiveConfig& config, uint64_t seed);
  StepData next(int64_t step) override;
  void commit() override { taken_ = next_taken_; }
  std::map<std::string, torch::Tensor> state() const override;  // {"taken": examples}
  void restore(const std::map<std::string, torch::Tensor>& state) override;

 private:
  std::shared_ptr<const ExampleSource> examples_;
  const Tokenizer& tokenizer_;
  int64_t sequences_, context_;
  ContrastiveConfig config_;
  uint64_t seed_;
  int64_t taken_ = 0, next_taken_ = 0;
};

}  // namespace isentrope::data
