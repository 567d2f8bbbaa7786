#include "csrc/train/contrastive_evaluation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "csrc/data/contrastive_source.h"
#include "csrc/train/contrastive_objective.h"
#include "csrc/train/match_scores.h"

namespace isentrope::train {

Ranked judged_ranking(const std::vector<bool>& relevant) {
  const auto R = static_cast<double>(std::count(relevant.begin(), relevant.end(), true));
  Ranked found;
  double hits = 0, ideal = 0;
  for (size_t i = 0; i < relevant.size(); ++i) {
    const double place = static_cast<double>(i + 1), gain = 1 / std::log2(place + 1);
    if (i < 10 && place <= R) ideal += gain;
    if (!relevant[i]) continue;
    ++hits;
    found.average_precision += hits / place / R;
    if (hits == 1) found.reciprocal_rank = 1 / place;
    if (i < 10) found.rp10 += 1 / std::min(10.0, R), found.ndcg10 += gain;
    if (i < 100) found.recall100 += 1 / R;
  }
  found.ndcg10 /= ideal;
  return found;
}

HeldOutMatches::HeldOutMatches(std::unique_ptr<data::ExampleSource> source, const data::ExampleSource& training,
                               const data::Tokenizer& tokenizer, int64_t context, int64_t rows,
                               const data::ContrastiveConfig& config, data::Split split)
    : source_(std::move(source)),
      tokenizer_(tokenizer),
      context_(context),
      rows_(rows),
      config_(config),
      split_(split) {
  std::set<std::string> seen;
  // The order of the training examples is that of a shuffle: texts are sorted, so that it decides no tie.
  for (const data::Example& example : training.take(0, training.size()))
    seen.insert(example.positives.begin(), example.positives.end());
  for (const data::Example& example : source_->take(0, source_->size()))
    seen.insert(example.positives.begin(), example.positives.end());
  texts_.assign(seen.begin(), seen.end());
}

HeldOutSize HeldOutMatches::size() const {
  return {.examples = source_->size(),
          .left_out = source_->left_out(),
          .skipped = source_->skipped(),
          .notes = source_->notes()};
}

std::vector<std::string> HeldOutMatches::shortages(const EvaluationConfig& config, const std::string& section) const {
  if (config.prompts <= source_->size()) return {};
  return {section + ".prompts: " + std::to_string(config.prompts) + " are asked for, and the " + data::name_of(split_) +
          " data have " + std::to_string(source_->size()) + ", which are all used"};
}

// Every rank computes all, the same bit for bit.
Evaluation HeldOutMatches::evaluate(const model::Decoder& model, const EvaluationConfig& config, std::vector<Sample>*,
                                    std::vector<Answer>*, Intervals*, const rl::Peers&) const {
  const torch::NoGradGuard no_grad;
  model::Decoder decoder = model;
  const torch::Device device = model->embedding().device();
  const int64_t count = std::min(config.prompts, source_->size());
  const std::vector<data::Example> examples = source_->take(0, count);
  std::vector<torch::Tensor> scores(static_cast<size_t>((count + rows_ - 1) / rows_));  // [rows, texts up to here]
  std::vector<torch::Tensor> vectors, lengths;                                          // of the prompts
  const auto rows_of = [&](const std::vector<std::string>& texts) {
    return data::rows_of_texts(texts, tokenizer_, context_).to(device);
  };
  for (int64_t first = 0; first < count; first += rows_) {
    std::vector<std::string> prompts;
    for (int64_t q = first; q < std::min(first + rows_, count); ++q) prompts.push_back(examples[q].prompt);
    const data::Batch batch = rows_of(prompts);
    vectors.push_back(vectors_of(decoder, batch)), lengths.push_back(batch.lengths);
  }
  const auto N = static_cast<int64_t>(texts_.size());
  for (int64_t first = 0; first < N; first += rows_) {
    const data::Batch batch = rows_of({texts_.begin() + first, texts_.begin() + std::min(first + rows_, N)});
    const torch::Tensor found = vectors_of(decoder, batch);
    for (size_t i = 0; i < vectors.size(); ++i) {
      const torch::Tensor part = match_scores(config_, vectors[i], lengths[i], found, batch.lengths).to(torch::kCPU);
      scores[i] = scores[i].defined() ? torch::cat({scores[i], part}, 1) : part;
    }
  }
  Ranked sum;
  for (int64_t q = 0; q < count; ++q) {
    const torch::Tensor row = scores[static_cast<size_t>(q / rows_)][q % rows_].contiguous();
    const float* s = row.const_data_ptr<float>();
    std::vector<int64_t> order(texts_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s[a] > s[b]; });
    const std::set<std::string> positives(examples[q].positives.begin(), examples[q].positives.end());
    std::vector<bool> relevant;
    for (const int64_t text : order) relevant.push_back(positives.contains(texts_[text]));
    const Ranked one = judged_ranking(relevant);
    sum.average_precision += one.average_precision, sum.rp10 += one.rp10, sum.ndcg10 += one.ndcg10;
    sum.recall100 += one.recall100, sum.reciprocal_rank += one.reciprocal_rank;
  }
  const double prompts = std::max(static_cast<double>(count), 1.0);
  return {{"eval/map", sum.average_precision / prompts},
          {"eval/rp@10", sum.rp10 / prompts},
          {"eval/ndcg@10", sum.ndcg10 / prompts},
          {"eval/recall@100", sum.recall100 / prompts},
          {"eval/mrr", sum.reciprocal_rank / prompts}};
}

}  // namespace isentrope::train
