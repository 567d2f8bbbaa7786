// Mistral 7B and Mistral Small: a window in every layer, or, with sliding_window null, in none.
#include "csrc/train/family.h"

namespace isentrope::train {

const Family kMistral{.type = "mistral",
                      .architecture = "MistralForCausalLM",
                      .windows = Windows::kAll,
                      .num_key_value_heads = 8,
                      .max_position_embeddings = 131072};

}  // namespace isentrope::train
