// The families of models that `transformers` has and the decoder can be: which of its options each has, and what config.json means
// where it says nothing. A family is data, one small file each; csrc/train/model_config.h reads and writes config.json by it, and
// the decoder knows none. All of them give their tensors the same names (Decoder::named_weights).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/model/decoder.h"

namespace isentrope::train {

// Which layers have the window, and who says so.
enum class Windows {
  kNone,     // no layer
  kAll,      // every layer, where sliding_window is a number
  kByLayer,  // layer_types, or all from max_window_layers on, where use_sliding_window is true
};

enum class Biases {
  kKey,  // attention_bias: of all linear layers of attention or of none
  kQkv,  // always of query, key and value
  kNone,
};

struct Family {
  const char* type;          // model_type
  const char* architecture;  // the model with its head
  bool qk_norm = false;
  Biases biases = Biases::kNone;
  bool mlp_bias = false;  // whether it has the key mlp_bias
  Windows windows = Windows::kNone;
  bool own = false;  // of this program alone: every option, under keys that transformers does not know

  // What it takes where config.json lacks the key.
  std::optional<int64_t> num_key_value_heads = {};  // else as many as there are query heads
  std::optional<int64_t> head_dim = {};             // else hidden_size / num_attention_heads
  int64_t max_position_embeddings = 2048;
  int64_t sliding_window = 4096;

  // The first option of config that the family does not have; "" where it computes what the decoder does.
  std::string misfit(const model::DecoderConfig& config) const;
};

extern const Family kLlama, kQwen2, kQwen3, kMistral, kIsentrope;

// Throws std::runtime_error that lists the families there are.
const Family& family_named(const std::string& file, const std::string& type);
// That of model.family, or the first that computes what config does; kIsentrope where there is none.
const Family& family_of(const model::DecoderConfig& config);

}  // namespace isentrope::train
