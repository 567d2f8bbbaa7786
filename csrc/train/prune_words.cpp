#include "csrc/train/prune_words.h"

#include "csrc/train/key_words.h"

namespace isentrope::train {

model::PruneConfig parse_prune(const std::string& text) {
  return parse_keys<model::PruneConfig>("prune", text, "layer=2,keep=0.5");
}

std::string to_yaml(const model::PruneConfig& config) {
  return "{layer: " + (config.layer ? std::to_string(*config.layer) : "null") +
         ", keep: " + shortest_text(config.keep) + ", matrix: " + config.matrix + ", form: " + config.form +
         ", first: " + std::to_string(config.first) + "}";
}

}  // namespace isentrope::train
