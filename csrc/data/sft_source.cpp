#include "csrc/data/sft_source.h"

#include "csrc/data/collate.h"

namespace isentrope::data {

SftSource::SftSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
                     int64_t context, const std::string& truncation, int64_t packed)
    : examples_(std::move(examples)),
      tokenizer_(tokenizer),
      sequences_(sequences),
      context_(context),
      truncation_(truncation),
      packed_(packed) {}

StepData SftSource::next(int64_t) {
  next_taken_ = taken_ + sequences_;
  return {{collate(examples_->take(taken_, sequences_), tokenizer_, context_, truncation_, packed_)}, {}};
}

std::map<std::string, torch::Tensor> SftSource::state() const { return {{"taken", torch::tensor(taken_)}}; }

void SftSource::restore(const std::map<std::string, torch::Tensor>& state) { taken_ = taken_of(state, "examples"); }

}  // namespace isentrope::data
