#include "csrc/data/sft_source.h"

#include "csrc/data/collate.h"

namespace isentrope::data {

SftSource::SftSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
                     int64_t context, const std::string& truncation, int64_t packed, bool pairs)
    : examples_(std::move(examples)),
      tokenizer_(tokenizer),
      sequences_(sequences),
      context_(context),
      truncation_(truncation),
      packed_(packed),
      pairs_(pairs) {}

StepData SftSource::next(int64_t) {
  next_taken_ = taken_ + sequences_;
  const std::vector<Example> examples = examples_->take(taken_, sequences_);
  Batch update = collate(pairs_ ? with_rejected(examples) : examples, tokenizer_, context_, truncation_, packed_);
  if (pairs_) update.together = 2;
  return {{std::move(update)}, {}};
}

std::map<std::string, torch::Tensor> SftSource::state() const { return {{"taken", torch::tensor(taken_)}}; }

void SftSource::restore(const std::map<std::string, torch::Tensor>& state) { taken_ = taken_of(state, "examples"); }

}  // namespace isentrope::data
