// Qwen 2 and 2.5.
#include "csrc/train/family.h"

namespace isentrope::train {

const Family kQwen2{.type = "qwen2",
                    .architecture = "Qwen2ForCausalLM",
                    .biases = Biases::kQkv,
                    .windows = Windows::kByLayer,
                    .num_key_value_heads = 32,
                    .max_position_embeddings = 32768};

}  // namespace isentrope::train
