// The kinds of mixers there are, one a file pair.
#pragma once
#include "csrc/model/mixer.h"

namespace isentrope::model {

extern const MixerKind kSoftmax;     // softmax.h
extern const MixerKind kLinear;      // linear.h
extern const MixerKind kNormalized;  // normalized.h
extern const MixerKind kGatedDelta;  // gated_delta.h
extern const MixerKind kSsd;         // ssd.h

}  // namespace isentrope::model
