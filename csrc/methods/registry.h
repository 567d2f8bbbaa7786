// Every method of policy learning, by place. A new one is one line here.
#pragma once
#include "csrc/methods/ares.h"
#include "csrc/methods/filter_groups.h"
#include "csrc/methods/group_advantage.h"
#include "csrc/methods/overlong.h"
#include "csrc/methods/top_entropy.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

// Behind the scores of the rewards themselves, More (csrc/rl/reward.h).
template <class... More>
using RewardOf = OneOf<  //
    More...,
    Overlong,      // arXiv 2503.14476
    FilterGroups,  // arXiv 2503.14476
    AresConfig     // arXiv 2510.08457
    >;

using Advantage = OneOf<      //
    Grpo,            // arXiv 2402.03300
    DrGrpo,                   // arXiv 2503.20783
    Rloo,                     // arXiv 2402.14740
    Opo,                      // arXiv 2505.23585
    ReinforcePlusPlusBaseline // arXiv 2501.03262
    >;

using Weight = OneOf<  //
    TopEntropy         // arXiv 2506.01939
    >;

}  // namespace isentrope::methods
