// Held-out prompts of a contrastive phase: how texts are ranked for them.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/contrastive_config.h"
#include "csrc/train/evaluation.h"

namespace isentrope::train {

// Of one ranking, best first, in which relevant[i] says whether the text in place i, from 1, matches; all texts are ranked, R of them match,
// R ≥ 1:
//
//   average precision    mean over places i of those that match of (those that match up to i) / i
//   RP@10                (those that match up to place 10) / min(10, R)
//   nDCG@10              Σ 1 / log2(i + 1) over places up to 10 of those that match, over the largest that it can be
//   R@100                (those that match up to place 100) / R
//   reciprocal rank      1 / the first place of one that matches
struct Ranked {
  double average_precision = 0, rp10 = 0, ndcg10 = 0, recall100 = 0, reciprocal_rank = 0;
};
Ranked judged_ranking(const std::vector<bool>& relevant);

// Of the first `prompts` prompts, each with all texts of the training and of these data ranked by csrc/train/match_scores.h, equal scores in
// the order of their bytes: means over prompts of the figures above, eval/map, eval/rp@10, eval/ndcg@10,
// eval/recall@100 and eval/mrr.
class HeldOutMatches : public HeldOut {
 public:
  // rows: texts that are computed together.
  HeldOutMatches(std::unique_ptr<data::ExampleSource> source, const data::ExampleSource& training,
                 const data::Tokenizer& tokenizer, int64_t context, int64_t rows, const data::ContrastiveConfig& config,
                 data::Split split);
  HeldOutSize size() const override;
  std::vector<std::string> shortages(const EvaluationConfig& config, const std::string& section) const override;
  Evaluation evaluate(const model::Decoder& model, const EvaluationConfig& config, std::vector<Sample>* shown,
                      std::vector<Answer>* answers, Intervals* intervals, const rl::Peers& peers) const override;

 private:
  std::unique_ptr<data::ExampleSource> source_;
  const data::Tokenizer& tokenizer_;
  int64_t context_, rows_;
  data::ContrastiveConfig config_;
  data::Split split_;
  std::vector<std::string> texts_;  // that are ranked
};

}  // namespace isentrope::train
