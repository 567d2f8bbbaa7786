// The weights of a model's folder as `transformers` lays them out: model.safetensors, or shards that
// model.safetensors.index.json lists, in float32, bfloat16 or float16.
#pragma once
#include <string>

#include "csrc/model/decoder.h"

namespace isentrope::train {

// Copies them into decoder, converted to its type. Tensors that carry nothing are passed over: rotary_emb.inv_freq, and the
// lm_head.weight of a decoder whose head is the embedding. Throws std::runtime_error, and copies nothing, where a file is missing
// or damaged (csrc/train/safetensors.h), or the weights are of another model: what is missing, what has no place, what has another
// shape or is no floating-point number, each with the first names.
void read_weights(const std::string& dir, model::Decoder& decoder);

}  // namespace isentrope::train
