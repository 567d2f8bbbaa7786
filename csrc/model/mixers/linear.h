// Linear attention (Katharopoulos et al., arXiv 2006.16236): the layer of isentrope.nn.LinearAttention.
#pragma once
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

RecurrenceOptions linear_options(const DecoderConfig& config);

}  // namespace isentrope::model
