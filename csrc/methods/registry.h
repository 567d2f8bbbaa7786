// Every method of policy learning, by place. A new one is one line here.
#pragma once
#include "csrc/methods/attention_entropy.h"
#include "csrc/methods/correction.h"
#include "csrc/methods/entropy_ratio_band.h"
#include "csrc/methods/soft_window.h"
#include "csrc/methods/stare.h"
#include "csrc/methods/steer.h"
#include "csrc/methods/surprisal_band.h"
#include "csrc/methods/top_entropy.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

using Weight = OneOf<  //
    TopEntropy,        // arXiv 2506.01939
    SurprisalBand,     // arXiv 2606.31575
    EntropyRatioBand,  // arXiv 2512.05591
    Steer,             // arXiv 2510.10150
    Stare,             // arXiv 2606.19236
    SoftWindow,        // arXiv 2609.39402
    AttentionEntropy,  // arXiv 2605.07660
    Correction         // truncated importance sampling, IcePop, DeepSeek-V3.2
    >;

}  // namespace isentrope::methods
