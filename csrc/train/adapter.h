// A low-rank adapter in a folder, as PEFT lays it out: adapter_config.json and adapter_model.safetensors beside no weights of a model,
// which lie in the folder that base_model_name_or_path names.
#pragma once
#include <string>

#include "csrc/model/decoder.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {

// What all of these throw is std::runtime_error that names the file, the key or the tensor, and what was wanted.

bool is_adapter(const std::string& dir);  // whether the folder has an adapter_config.json

// Rank, alpha, rslora, and the layers that its tensors are of. Refused: what changes the result and is not here, such as DoRA, a bias
// or a rank of its own, layers of another kind (embedding, head), and terms in some blocks alone.
model::LoraConfig read_adapter_config(const std::string& dir);

// The folder of the model that the adapter belongs to, as the file names it; a relative path is of the working folder, as for PEFT.
std::string name_of_base(const std::string& dir);     // whether it is there or not
std::string base_of_adapter(const std::string& dir);  // refused where it is not

// Copies A and B into the adapter of decoder, converted to its type. Nothing is copied where one is missing, has another shape or
// has no place.
void read_adapter(const std::string& dir, model::Decoder& decoder);

// Writes both files. weights: Decoder::adapter(). base: absolute.
void write_adapter(const std::string& dir, const NamedTensors& weights, const model::LoraConfig& lora,
                   const std::string& base);

// A number of all weights of a decoder but its adapter, by which it is known again; not the same for other bits.
int64_t digest_of_base(const model::Decoder& decoder);

}  // namespace isentrope::train
