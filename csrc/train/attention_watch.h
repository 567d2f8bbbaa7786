// What is watched of attention while a model trains, and the alarm that it raises.
//
// L layers that attend, H heads. A row is one query of one sequence with n keys in sight; rows of one key are left out, since their
// entropy is 0 whatever the weights. What the figures are: AttentionStatistics, csrc/train/metrics.h.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/model/decoder.h"
#include "csrc/train/distributed.h"
#include "csrc/train/metrics.h"

namespace isentrope::train {

// Sums over the micro-batches of an update. Only sizes are known on the host until statistics(), which waits for a device.
class AttentionWatch {
 public:
  explicit AttentionWatch(bool with_bound = false, bool with_states = false)
      : with_bound_(with_bound), with_states_(with_states) {}
  // What the next forward pass is to fill in.
  model::AttentionRecord record() const {
    return {.entropy = {},
            .max_logit = {},
            .layer = {},
            .window = {},
            .position = {},
            .with_bound = with_bound_,
            .bound = {},
            .with_states = with_states_};
  }
  // rows [B, T] bool: the tokens that are no padding.
  void add(const model::AttentionRecord& record, const torch::Tensor& rows);
  void over(const Ranks& ranks);  // sums and maxima of all ranks
  bool empty() const { return !entropy_.defined(); }
  AttentionStatistics statistics() const;  // of a watch that is not empty
  StateStatistics states() const;          // without layers where no layer has a state

 private:
  void add_attention(const model::AttentionRecord& record, const torch::Tensor& rows);
  void add_states(const model::AttentionRecord& record, const torch::Tensor& rows);

  // Of a layer with a state.
  struct States {
    int64_t layer;
    torch::Tensor entropy, normalized;  // [H] double: sums over rows; undefined where the entropy is
    torch::Tensor rank;                 // [states] double: sum over sequences
    torch::Tensor rows, sequences;      // [] double
  };

  bool with_bound_, with_states_;
  std::vector<States> states_;
  torch::Tensor entropy_, normalized_, max_logit_, bound_, certified_;  // [L, H] double, max_logit_ float
  std::vector<int64_t> layers_;                                         // L
  torch::Tensor count_;                                                 // [L] double: rows
};

// A head has collapsed below this normalized entropy: a choice. The paper on entropy collapse (arXiv 2303.06296) gives no
// threshold; at 0.05 a row of 256 keys has an entropy of 0.28 nats, as if 1.3 keys had all the weight.
inline constexpr double kCollapsed = 0.05;
// Or: the normalized entropy of at least this share of a layer's heads fell to less than half of what it was at most within
// the last kAlarmSteps steps, and below kLow. Heads that begin to attend to something fall as fast in every healthy start, to 0.3,
// some to 0.15; those that collapse go on. docs/stability.md compares thresholds: a higher one warns earlier, and of healthy runs too.
inline constexpr double kLow = 0.1;
inline constexpr double kAlarmShare = 0.25;
inline constexpr int64_t kAlarmSteps = 100;
// A row is certified where the bound on its entropy promises more than this share of log n.
inline constexpr double kCertified = 0.1;

class AttentionAlarm {
 public:
  // "layer 2: 3 of 4 heads have collapsed (entropy / log n below 0.05)", one text a layer and kind; steps rise.
  std::vector<std::string> look(int64_t step, const AttentionStatistics& statistics);
  // What a resumed run goes on from: {"attention_alarm": [looks, 1 + L · H]}, nothing before the first look.
  std::map<std::string, torch::Tensor> state() const;
  void restore(const std::map<std::string, torch::Tensor>& state);

 private:
  struct Look {
    int64_t step;
    std::vector<double> normalized;  // [L · H]
  };
  std::vector<Look> looks_;  // of the last kAlarmSteps steps
};

}  // namespace isentrope::train
