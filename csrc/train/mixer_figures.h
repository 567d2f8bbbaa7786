// Figures that mixers have of the last update.
#pragma once
#include <map>
#include <string>

#include "csrc/model/decoder.h"

namespace isentrope::train {

// What chunks of the last update were routed to, over all layers and heads that route some, and how far estimates were off, likewise.
// Empty where no layer has any (docs/metrics.md).
std::map<std::string, double> mixer_figures(const model::Decoder& model);

}  // namespace isentrope::train
