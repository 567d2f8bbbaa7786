#include "csrc/data/sft_source.h"

#include "csrc/data/collate.h"

namespace isentrope::data {

SftSource::SftSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
                     int64_t context, const std::string& overlong)
    : examples_(std::move(examples)),
      tokenizer_(tokenizer),
      sequences_(sequences),
      context_(context),
      overlong_(overlong) {}

StepData SftSource::next(int64_t step) {
  return {{collate(examples_->take(step * sequences_, sequences_), tokenizer_, context_, overlong_)}, {}};
}

}  // namespace isentrope::data
