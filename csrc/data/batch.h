// The value that moves from a source to an objective. Nothing in it points back at the source.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace isentrope::data {

// B sequences padded on the right to T. Position t of target, old_logprob and advantage speaks of the token that
// follows tokens[:, t], as the logits of position t do. Which positions are padding, lengths alone tell: what stands there
// is a token that a text may hold as well.
struct Batch {
  torch::Tensor tokens;              // [B, T] int64
  torch::Tensor target;              // [B, T] int64; −100 where nothing is learnt (prompt, padding)
  torch::Tensor old_logprob;         // [B, T] float, 0 where target is −100; policy batches only
  torch::Tensor advantage;           // [B, T] float, 0 where target is −100; policy batches only
  torch::Tensor ref_kl_weight = {};  // [B, T] float, of the divergence from the reference; undefined: 1 everywhere
  torch::Tensor ref_kl_part =
      {};  // [B] int64, which of ref_kl_parts a row's divergence from the reference is of; undefined: none
  torch::Tensor lengths = {};  // [B] int64, tokens of each row before its padding; undefined: T everywhere
  torch::Tensor old_entropy =
      {};  // [B, T] float, nats, of the policy that drew, 0 where target is −100; policy batches only
  torch::Tensor rescored =
      {};  // [B, T] float, log-probability under the policy at the step's beginning; where methods ask
  torch::Tensor old_sum_p2 = {};        // [B, T] float, Σ p² of the policy that drew; where methods ask
  torch::Tensor sampling_logprob = {};  // [B, T] float, under the distribution that the tokens were drawn from, where
                                        // keys of sampling cut or change the policy's own; else undefined
  torch::Tensor ref_logprob = {};       // [B, T] float, under the reference, where a reward has asked for it
  torch::Tensor hard = {};      // [B] bool, of a prompt that a method's record calls hard; undefined where none says
  torch::Tensor position = {};  // [B, T] int64, of each token in its sequence, where rows hold several; else undefined
  torch::Tensor prefix = {};    // [B, T] bool, of tokens of a prompt; undefined: the source has none
  int64_t together = 1;         // rows, one behind the other, that no cut parts: 2 of a pair
  std::vector<std::string> ref_kl_parts = {};  // by which that divergence is told
  // Of policy batches: completions of a second set, advantage [B, T] the weight of each token's log-probability; null: none.
  std::shared_ptr<const Batch> second = {};

  int64_t size() const { return tokens.size(0); }
  // [B, T] bool: true where no padding is.
  torch::Tensor real() const {
    if (!lengths.defined()) return torch::ones_like(tokens, torch::kBool);
    return torch::arange(tokens.size(1), tokens.options()) < lengths.unsqueeze(1);
  }
  Batch to(torch::Device device) const {
    Batch moved = each([&](const torch::Tensor& x) { return x.to(device); });
    if (second) moved.second = std::make_shared<const Batch>(second->to(device));
    return moved;
  }
  // Without the second set, which no cut of the rows cuts.
  Batch rows(int64_t begin, int64_t end) const {
    return each([&](const torch::Tensor& x) { return x.slice(0, begin, end); });
  }

 private:
  template <class Function>
  Batch each(Function function) const {
    auto of = [&](const torch::Tensor& x) { return x.defined() ? function(x) : x; };
    return {of(tokens),  of(target),      of(old_logprob), of(advantage),  of(ref_kl_weight),    of(ref_kl_part),
            of(lengths), of(old_entropy), of(rescored),    of(old_sum_p2), of(sampling_logprob), of(ref_logprob),
            of(hard),    of(position),    of(prefix),      together,       ref_kl_parts};
  }
};

inline constexpr int64_t kIgnore = -100;  // torch's own value for "no target here"

// What one step of the trainer consumes: a batch for each optimiser update. SFT makes one update a step; a policy may make
// several from one set of rollouts. stats: what the source saw while it made them (reward/mean, length/mean, …). warnings: what a
// person should know of it; each begins with a key of the phase.
struct StepData {
  std::vector<Batch> updates;
  std::map<std::string, double> stats;
  std::vector<std::string> warnings = {};
};

// "taken" of a source's state: how far into its stream it is. Throws std::runtime_error where it is not there.
inline int64_t taken_of(const std::map<std::string, torch::Tensor>& state, const char* what) {
  const auto found = state.find("taken");
  if (found == state.end() || found->second.numel() != 1 || found->second.scalar_type() != torch::kInt64)
    throw std::runtime_error(std::string("the checkpoint does not say how many ") + what +
                             " were taken; it is of another kind of phase, or damaged");
  return found->second.item<int64_t>();
}

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // What the next step learns from. Works on a copy of what passes from step to step: until commit() is called state() tells
  // what it told before, and next() may be called again.
  virtual StepData next(int64_t step) = 0;
  // After each update of a step: what the objective saw in it, by the names of csrc/train/metrics.h.
  virtual void observe(const std::map<std::string, double>&) {}
  // The step that next() began is whole: its state is taken over.
  virtual void commit() {}
  // All that a resumed run needs beside the step, by name; restore() takes what state() gave.
  virtual std::map<std::string, torch::Tensor> state() const { return {}; }
  virtual void restore(const std::map<std::string, torch::Tensor>&) {}
};

}  // namespace isentrope::data
