// The file config.json of a model's folder: a decoder as `transformers` 4 and 5 name it.
#pragma once
#include <string>

#include "csrc/data/tokenizer.h"
#include "csrc/model/decoder.h"

namespace isentrope::train {

// Of the family that family_of() gives (csrc/train/family.h). Keys that versions 4 and 5 spell differently stand in both
// spellings.
std::string model_config_json(const model::DecoderConfig& config, const data::Tokenizer& tokenizer);

// Whether transformers has a model that computes what this one does.
bool opens_in_transformers(const model::DecoderConfig& config);

// What model_config_json() wrote, or `transformers` for the same families. Throws std::runtime_error with the file and the key
// that the decoder has no place for.
model::DecoderConfig parse_model_config(const std::string& file);

}  // namespace isentrope::train
