// The weights of a model's folder as `transformers` lays them out: model.safetensors, or shards that
// model.safetensors.index.json lists, in float32, bfloat16 or float16.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "csrc/model/decoder.h"

namespace isentrope::train {

// A number of the weights by which they are known again: Σ over tensors of hash(name) · Σ_i (b_i + 1)(2 i + 1) modulo 2^64, with b_i the bits of
// element i as float32, and the FNV-1a hash of the name's bytes. In any order: python/isentrope/merge.py has it too. No guard against people.
int64_t weights_digest(const std::vector<std::pair<std::string, torch::Tensor>>& weights);

// Every tensor of these files by name, as it stands in them: the files are mapped, not read. Files that change meanwhile change it.
std::map<std::string, torch::Tensor> map_weights(const std::string& dir);

// Copies them into decoder, converted to its type. Tensors that carry nothing are passed over: rotary_emb.inv_freq, and the
// lm_head.weight of a decoder whose head is the embedding. Throws std::runtime_error, and copies nothing, where a file is missing
// or damaged (csrc/train/safetensors.h), or the weights are of another model: what is missing, what has no place, what has another
// shape or is no floating-point number, each with the first names.
void read_weights(const std::string& dir, model::Decoder& decoder);

}  // namespace isentrope::train
