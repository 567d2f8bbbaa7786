// Held-out texts of a tag phase: how often the label of a token is foretold.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/keep_labels.h"
#include "csrc/train/evaluation.h"

namespace isentrope::train {

// Of the first `prompts` texts: eval/loss, nats a token; eval/accuracy, the share of tokens whose likelier label is right; eval/f1, of the
// label kept, 2 · right / (foretold + true).
class HeldOutTags : public HeldOut {
 public:
  // rows: texts that are computed together.
  HeldOutTags(std::unique_ptr<data::ExampleSource> source, const data::Tokenizer& tokenizer, int64_t context,
              int64_t rows, const data::TagConfig& config, data::Split split)
      : source_(std::move(source)),
        tokenizer_(tokenizer),
        context_(context),
        rows_(rows),
        config_(config),
        split_(split) {}
  HeldOutSize size() const override;
  std::vector<std::string> shortages(const EvaluationConfig& config, const std::string& section) const override;
  Evaluation evaluate(const model::Decoder& model, const EvaluationConfig& config, std::vector<Sample>* shown,
                      std::vector<Answer>* answers, Intervals* intervals, const rl::Peers& peers) const override;

 private:
  std::unique_ptr<data::ExampleSource> source_;
  const data::Tokenizer& tokenizer_;
  int64_t context_, rows_;
  data::TagConfig config_;
  data::Split split_;
};

}  // namespace isentrope::train
