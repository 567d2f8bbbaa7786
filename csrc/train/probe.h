// A probe of how hard a prompt is, read off the model's hidden state before the first token is drawn, and how to draw then (DiffAdapt,
// ICLR 2026; its code is not public).
//
//   logits = W2 ReLU(W1 h + b1) + b2,   h [C]: hidden state of the prompt's last token, behind the last norm
//
// Classes, and what completions of their prompts are drawn with:
//
//            temperature   length, of the most tokens
//   easy         0.5          0.4
//   normal       0.8          1
//   hard         0.4          0.5       what is too hard fails soon
//
// A prompt of whose class the probe is less sure than `least` (a rule of ours) is normal. Labels, of samples of a prompt with the share acc
// right and mean entropy H a token: normal where acc ≥ accuracy and H ≤ entropy, hard where acc < hard, else easy. The paper tunes
// these three and tells no values; `isentrope probe` takes 0.5, the median H, and 0.25.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/model/decoder.h"
#include "csrc/rl/rollout.h"

namespace isentrope::train {

constexpr const char* kProbeClasses[] = {"easy", "normal", "hard"};
constexpr int64_t kProbeEasy = 0, kProbeNormal = 1, kProbeHard = 2;

struct Probe {
  torch::Tensor w1, b1, w2, b2;                                                 // [K, C], [K], [3, K], [3] float
  std::vector<double> temperature = {0.5, 0.8, 0.4}, length = {0.4, 1.0, 0.5};  // of each class
  double least = 0.5;

  int64_t width() const { return w1.size(1); }  // C
  // [N, C] float, C = width() → [N, 3] probabilities of the classes.
  torch::Tensor probabilities(const torch::Tensor& hidden) const;
  std::vector<int64_t> classes(const torch::Tensor& hidden) const;  // of each, normal where it is not sure
};

struct ProbeLabels {
  double accuracy = 0.5, entropy = 0, hard = 0.25;
  int64_t of(double acc, double H) const {
    return acc >= accuracy && H <= entropy ? kProbeNormal : acc < hard ? kProbeHard : kProbeEasy;
  }
};

struct ProbeTraining {
  int64_t width = 256;  // K
  int64_t epochs = 100;
  double lr = 1e-3;
  uint64_t seed = 1;
};
// By cross-entropy and AdamW, 32 prompts at a time, in an order that seed fixes. hidden [N, C] float, N ≥ 1; label [N].
Probe train_probe(const torch::Tensor& hidden, const std::vector<int64_t>& label, const ProbeTraining& training);

// A file of safetensors. Where it is none, or reads hidden states of another width than the model has: std::runtime_error that says so.
void save_probe(const std::string& file, const Probe& probe);
Probe load_probe(const std::string& file, int64_t width);

// [N, C] float on the CPU: of each prompt's last token.
torch::Tensor hidden_of(const model::Decoder& model, const std::vector<std::vector<int64_t>>& prompts);

// As rl::rollout(), the completions of each prompt at the temperature and, of the most tokens there, the length of its class.
std::vector<rl::Completion> rollout_by_class(const Probe& probe, const std::vector<int64_t>& classes,
                                             const model::Decoder& model,
                                             const std::vector<std::vector<int64_t>>& prompts, int64_t samples,
                                             const rl::SamplingConfig& sampling,
                                             const std::vector<int64_t>& stop_tokens, const rl::RolloutKey& key,
                                             const rl::CacheConfig& cache = {}, rl::RolloutCounts* counts = nullptr,
                                             const rl::Peers& peers = rl::Peers());

}  // namespace isentrope::train
