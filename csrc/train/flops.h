// How much arithmetic a training step asks for, and how much of it the machine can do: mfu in metrics.jsonl (docs/metrics.md).
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "csrc/model/decoder.h"

namespace isentrope::train {

// What a step computed on.
struct StepWork {
  double tokens = 0;       // that went through the updates, padding left out
  double learnt = 0;       // of them, those with a target: the head sees no others
  double mixing = 0;       // FLOPs of a forward pass between the projections of the mixers, over sequences and layers
  double generated = 0;    // tokens drawn in rollouts
  bool reference = false;  // whether the tokens of the updates went forward through a reference model too

  StepWork& operator+=(const StepWork& update) {
    tokens += update.tokens, learnt += update.learnt, mixing += update.mixing, generated += update.generated;
    return *this;
  }
};

// Pairs of query and key of a causal sequence of `length` tokens; window: of the layer, 0 for none.
double attention_pairs(int64_t length, int64_t window);
// The same of rows that hold several sequences: position [B, T] of each token in its own; counts [B, T] bool.
double packed_pairs(const torch::Tensor& position, const torch::Tensor& counts, int64_t window);

// FLOPs of a forward pass between the projections of all mixers: by pair of query and key where a mixer has such, of which there are
// pairs_of_window(window) in a layer of that window, else by token.
double attention_flops(const model::DecoderConfig& model, const std::function<double(int64_t)>& pairs_of_window,
                       double tokens);

// Model FLOPs of a step, a multiply-add counted as two: 6·N a token of an update (2 forward, 4 backward), 2·N more where there is
// a reference, 2·N a token drawn, and 12·C a pair of a layer of softmax attention (PaLM, arXiv 2204.02311, appendix B, which takes all T keys of a sequence for
// every token, where here only those in sight count), or what the state of a recurrence takes a token. N: weights of the layers' matrices; the head's count at learnt and drawn
// tokens. C = heads · head size. With model.lora no gradient of these weights is computed: 4·N a token, and 6 times the adapter. Left
// out: prompts of rollouts, attention in them, norms, the optimiser.
double model_flops(const model::DecoderConfig& model, const StepWork& work);

// How many numbers the adapter of model.lora has; 0 without.
int64_t numbers_of_adapter(const model::DecoderConfig& model);

// FLOP/s of a product on the device in the type of model.compute (float32 where the processor has none in bfloat16), with the threads of the process: the best of those that fit into 30 ms, the first
// one, which warms up, left out. Square matrices of 512, or 4096 on a GPU, of ones: nothing is drawn.
double measured_product_rate(torch::Device device, const std::string& compute);

}  // namespace isentrope::train
