// The recurrence of a layer of kind natsl (natsl.h) by the configuration.
#pragma once
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

RecurrenceOptions natsl_options(const DecoderConfig& config);

}  // namespace isentrope::model
