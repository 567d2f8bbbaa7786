// Qwen 3, the dense models.
#include "csrc/train/family.h"

namespace isentrope::train {

const Family kQwen3{.type = "qwen3",
                    .architecture = "Qwen3ForCausalLM",
                    .qk_norm = true,
                    .biases = Biases::kKey,
                    .windows = Windows::kByLayer,
                    .num_key_value_heads = 32,
                    .head_dim = 128,
                    .max_position_embeddings = 32768};

}  // namespace isentrope::train
