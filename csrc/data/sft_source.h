// The batch source of supervised learning: the next examples of a data set, one update a step.
#pragma once
#include <memory>
#include <string>

#include "csrc/data/batch.h"
#include "csrc/data/example.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::data {

class SftSource : public BatchSource {
 public:
  // overlong: as csrc/data/collate.h.
  SftSource(std::shared_ptr<const ExampleSource> examples, const Tokenizer& tokenizer, int64_t sequences,
            int64_t context, const std::string& overlong);

  // Step s takes examples s · sequences … of the stream: there is nothing to save.
  StepData next(int64_t step) override;

 private:
  std::shared_ptr<const ExampleSource> examples_;
  const Tokenizer& tokenizer_;
  int64_t sequences_, context_;
  std::string overlong_;
};

}  // namespace isentrope::data
