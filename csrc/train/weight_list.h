// The weights of a model by name and size, of its configuration alone: what plans count, without a model.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/model/decoder_config.h"

namespace isentrope::train {

struct WeightSize {
  std::string name;  // as Decoder::named_weights() has it
  std::string
      parameter;  // what it is stored joined in: its own name, or one for q, k, v of a block, or for gate and up
  int64_t rows, columns;   // columns 1: a vector
  std::string layer = {};  // of model.lora.targets: q, gate, …; "" for none
  int64_t numbers() const { return rows * columns; }
};

// Of all blocks, embedding and head of `vocabulary` rows. What a mixer has beside its projections is one vector,
// "….self_attn.others", but for the norms of attention.qk_norm.
std::vector<WeightSize> weight_list(const model::DecoderConfig& config, int64_t vocabulary);

// What model.freeze, model.train_only and model.compose leave of it.
struct TrainedNumbers {
  double all = 0;        // that are trained: have moments, and a copy before an update
  double gradients = 0;  // that gradients have: of a weight that is stored joined with others those of all
  double embedding = 0;  // trained ones of embedding and head
  double largest = 0;    // of one trained weight
};
// With model.lora of the adapters of what is chosen. With train_only.condition_number, which takes weights to tell, the largest matrices that
// could be meant; with names that fit nothing here, all.
TrainedNumbers trained_numbers(const model::DecoderConfig& config, int64_t vocabulary);

}  // namespace isentrope::train
