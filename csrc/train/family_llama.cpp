// Llama 1 to 3.x, and what is built like it: SmolLM2, TinyLlama and others whose model_type is llama.
#include "csrc/train/family.h"

namespace isentrope::train {

const Family kLlama{.type = "llama",
                    .architecture = "LlamaForCausalLM",
                    .biases = Biases::kKey,
                    .mlp_bias = true,
                    .max_position_embeddings = 2048};

}  // namespace isentrope::train
