// Normalised attention (Sieber et al., arXiv 2405.15731): weights q·k as they are, of either sign, over a denominator that the token
// sets, or a norm in its place.
#pragma once
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

RecurrenceOptions normalized_options(const DecoderConfig& config);

}  // namespace isentrope::model
