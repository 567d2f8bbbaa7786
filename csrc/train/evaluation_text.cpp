// The loss on held-out text.
#include <algorithm>
#include <cmath>

#include "csrc/data/text_stream.h"
#include "csrc/train/evaluation.h"
#include "csrc/train/prefix.h"

namespace isentrope::train {
namespace {

constexpr int64_t kShownTokens = 256;  // of a window

}  // namespace

HeldOutText::HeldOutText(std::shared_ptr<const data::TokenShard> tokens, const data::Tokenizer& tokenizer,
                         int64_t context, int64_t rows, const std::string& name,
                         const std::optional<data::Masking>& masking, const std::optional<data::HmmConfig>& hmm)
    : tokenizer_(tokenizer),
      floor_(hmm ? std::optional(data::HmmFloor(*hmm, tokenizer)) : std::nullopt),
      name_(name),
      windows_(std::move(tokens), context, /*seed=*/0, name, masking),
      bytes_of_(torch::empty({tokenizer.size()}, torch::kInt64)),
      rows_(rows) {
  int64_t* bytes = bytes_of_.data_ptr<int64_t>();  // [V]
  for (int64_t id = 0; id < tokenizer.size(); ++id) bytes[id] = tokenizer.bytes_of(id);
}

HeldOutSize HeldOutText::size() const {
  return {.examples = windows_.size(), .tokens = static_cast<int64_t>(windows_.shard().tokens().size())};
}

std::vector<std::string> HeldOutText::shortages(const EvaluationConfig& config, const std::string& section) const {
  if (config.windows <= windows_.size()) return {};
  return {section + ".windows: " + std::to_string(config.windows) + " are asked for, and the " + name_ + " text has " +
          std::to_string(windows_.size()) + ", which are all used"};
}

Evaluation HeldOutText::evaluate(const model::Decoder& model, const EvaluationConfig& config,
                                 std::vector<Sample>* shown, std::vector<Answer>* /*answers*/, Intervals* intervals,
                                 const rl::Peers& peers) const {
  torch::NoGradGuard no_grad;
  model::Decoder decoder = model;
  // The first windows of one order: spread over the text, and always the same.
  const int64_t count = std::min(config.windows, windows_.size());
  double tokens = 0, bytes = 0, floor = 0;
  std::vector<double> nats;                          // of a batch
  std::vector<double> nats_of, tokens_of, bytes_of;  // a window
  for (int64_t first = 0; first < count; first += rows_) {
    const data::Batch batch = with_prefix(windows_.take(first, std::min(rows_, count - first)), model->config());
    const torch::Tensor learnt = batch.target.masked_select(batch.target != data::kIgnore);
    tokens += static_cast<double>(learnt.numel());
    bytes += bytes_of_.index_select(0, learnt).sum().item<double>();
    for (int64_t row = 0; floor_ && row < batch.size(); ++row)
      floor += floor_->nats(batch.tokens[row].const_data_ptr<int64_t>(), batch.target[row].const_data_ptr<int64_t>(),
                            batch.tokens.size(1));
    const bool shows = shown && first < config.show;
    const auto number = static_cast<int64_t>(nats.size());
    nats.push_back(0);
    if (number % peers.size() != peers.rank() && !shows && !intervals) continue;
    const data::Batch moved = batch.to(model->embedding().device());
    const ops::TokenEntropy found = judged(decoder, moved);
    nats.back() = found.logprob.sum(torch::kFloat64).item<double>();
    for (int64_t row = 0; intervals && row < batch.size(); ++row) {
      const torch::Tensor own = batch.target[row].masked_select(batch.target[row] != data::kIgnore);
      nats_of.push_back(-found.logprob[row].sum(torch::kFloat64).item<double>());
      tokens_of.push_back(static_cast<double>(own.numel()));
      bytes_of.push_back(bytes_of_.index_select(0, own).sum().item<double>() * std::log(2.0));
    }
    for (int64_t row = 0; shown && row < batch.size() && first + row < config.show; ++row) {
      const auto counts = (batch.target[row] != data::kIgnore).nonzero().flatten().slice(0, 0, kShownTokens);
      const auto ids = batch.target[row].index_select(0, counts);                                 // [n]
      const auto entropy = found.entropy[row].cpu().index_select(0, counts).to(torch::kFloat64);  // [n]
      const int64_t* id = ids.const_data_ptr<int64_t>();
      const double* H = entropy.const_data_ptr<double>();
      shown->push_back({.prompt = "",
                        .tokens = data::texts_of(tokenizer_, {id, id + ids.numel()}),
                        .entropy = {H, H + ids.numel()}});
    }
  }
  const double sum = -peers.sum_of_turns(nats);
  if (intervals) *intervals = {{"eval/loss", normal_of_ratio(nats_of, tokens_of, "windows")}};
  if (windows_.masked()) return {{"eval/loss", sum / std::max(tokens, 1.0)}};
  if (intervals) (*intervals)["eval/bits_per_byte"] = normal_of_ratio(nats_of, bytes_of, "windows");
  Evaluation figures{{"eval/loss", sum / tokens}, {"eval/bits_per_byte", sum / (std::max(bytes, 1.0) * std::log(2.0))}};
  if (floor_) figures["eval/floor"] = floor / tokens, figures["eval/excess"] = (sum - floor) / tokens;
  return figures;
}

}  // namespace isentrope::train
