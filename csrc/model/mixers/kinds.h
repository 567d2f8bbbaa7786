// The kinds of mixers there are, one a file pair.
#pragma once
#include "csrc/model/mixers/gated_delta.h"
#include "csrc/model/mixers/linear.h"
#include "csrc/model/mixers/normalized.h"
#include "csrc/model/mixers/prefix_linear.h"
#include "csrc/model/mixers/ssd.h"

namespace isentrope::model {

extern const MixerKind kSoftmax;
extern const MixerKind kSoftmaxRnn;
extern const MixerKind kRouted;
extern const MixerKind kLinear;
extern const MixerKind kPrefixLinear;
extern const MixerKind kNormalized;
extern const MixerKind kGatedDelta;
extern const MixerKind kSsd;
extern const MixerKind kNatsl;
extern const MixerKind kEstimated;
extern const MixerKind kHierarchical;

}  // namespace isentrope::model
