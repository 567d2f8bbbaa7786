// The file config.json of a checkpoint: the model as `transformers` names it.
#pragma once
#include <string>

#include "csrc/data/tokenizer.h"
#include "csrc/model/decoder.h"

namespace isentrope::train {

// Llama, Mistral (window) or Qwen3 (qk_norm), whose models there compute what this one does; a model type of its own, isentrope,
// where there is none.
std::string model_config_json(const model::DecoderConfig& config, const data::Tokenizer& tokenizer);

// Whether it is one of those: transformers opens the checkpoint.
bool opens_in_transformers(const model::DecoderConfig& config);

// What model_config_json() wrote, or `transformers` for the same models. Throws std::runtime_error with the file and the key
// that the decoder has no place for.
model::DecoderConfig parse_model_config(const std::string& file);

}  // namespace isentrope::train
