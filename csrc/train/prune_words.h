// The words of --prune.
#pragma once
#include <string>

#include "csrc/model/prune.h"

namespace isentrope::train {

// "layer=12,keep=0.5,matrix=query,form=raw,first=4", each left out or once, layer=auto for the default. Throws std::invalid_argument that
// begins with the key and says what is wrong.
model::PruneConfig parse_prune(const std::string& text);

// As a value of a configuration: "{layer: 12, keep: 0.5, …}".
std::string to_yaml(const model::PruneConfig& config);

}  // namespace isentrope::train
