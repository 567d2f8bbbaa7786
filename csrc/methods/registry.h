// Every method of policy learning, by place. A new one is one line here.
#pragma once
#include "csrc/methods/ares.h"
#include "csrc/methods/attention_entropy.h"
#include "csrc/methods/ceeh.h"
#include "csrc/methods/correction.h"
#include "csrc/methods/divergence_mask.h"
#include "csrc/methods/empg.h"
#include "csrc/methods/entropy_advantage.h"
#include "csrc/methods/entropy_discriminator.h"
#include "csrc/methods/entropy_ratio_band.h"
#include "csrc/methods/filter_groups.h"
#include "csrc/methods/gdpo.h"
#include "csrc/methods/gepo.h"
#include "csrc/methods/group_advantage.h"
#include "csrc/methods/gtpo.h"
#include "csrc/methods/hicra.h"
#include "csrc/methods/kl.h"
#include "csrc/methods/maxrl.h"
#include "csrc/methods/optimal_token_baseline.h"
#include "csrc/methods/overlong.h"
#include "csrc/methods/own.h"
#include "csrc/methods/pass_at_k.h"
#include "csrc/methods/pear.h"
#include "csrc/methods/perplexity.h"
#include "csrc/methods/position.h"
#include "csrc/methods/quantile.h"
#include "csrc/methods/random.h"
#include "csrc/methods/random_tokens.h"
#include "csrc/methods/reinforce_plus_plus.h"
#include "csrc/methods/remax.h"
#include "csrc/methods/repo.h"
#include "csrc/methods/soft_window.h"
#include "csrc/methods/stare.h"
#include "csrc/methods/steer.h"
#include "csrc/methods/surprisal_band.h"
#include "csrc/methods/top_entropy.h"
#include "csrc/methods/turn_credit.h"
#include "csrc/one_of.h"

namespace isentrope::methods {

// Behind the scores of the rewards themselves, More (csrc/rl/reward.h).
template <class... More>
using RewardOf = OneOf<  //
    More...,
    Overlong,      // arXiv 2503.14476
    FilterGroups,  // arXiv 2503.14476
    AresConfig,    // arXiv 2510.08457
    KlReward,      // arXiv 1909.08593
    Pear,          // arXiv 2510.08026
    CeehReward,    // arXiv 2602.22642
    OwnReward      // one's own
    >;

// Those that make advantages of rewards, which stand first; then those that change them, which stand behind one.
using Advantage = OneOf<        //
    Grpo,                       // arXiv 2402.03300
    DrGrpo,                     // arXiv 2503.20783
    Rloo,                       // arXiv 2402.14740
    Opo,                        // arXiv 2505.23585
    ReinforcePlusPlusBaseline,  // arXiv 2501.03262
    ReinforcePlusPlus,          // arXiv 2501.03262
    Gdpo,                       // arXiv 2601.05242
    PassAtK,                    // arXiv 2508.10751
    Remax,                      // arXiv 2310.10505
    MaxRl,                      // arXiv 2602.02710
    Quantile,                   // arXiv 2509.22611
    OptimalTokenBaseline,       // verl 0.9.1
    Gtpo,                       // arXiv 2508.04349
    EntropyAdvantage,           // arXiv 2506.14758
    Perplexity,                 // arXiv 2508.02260
    Position,                   // arXiv 2508.02260
    Repo,                       // arXiv 2603.11682
    Gepo,                       // arXiv 2607.16850
    Empg,                       // arXiv 2509.09265
    Hicra,                      // arXiv 2509.03646
    CeehAdvantage,              // arXiv 2602.22642
    TurnCredit,                 // arXiv 2505.11821
    OwnAdvantage                // one's own, behind one of those
    >;

using Weight = OneOf<  //
    TopEntropy,        // arXiv 2506.01939
    RandomTokens,      // the control
    SurprisalBand,     // arXiv 2606.31575
    EntropyRatioBand,  // arXiv 2512.05591
    Steer,             // arXiv 2510.10150
    Stare,             // arXiv 2606.19236
    SoftWindow,        // arXiv 2609.39402
    AttentionEntropy,  // arXiv 2605.07660
    ClipB,             // arXiv 2602.03392
    ClipV,             // arXiv 2602.03392
    DivergenceMask,    // after arXiv 2607.10848
    EntropySft,        // arXiv 2508.03178
    Correction,        // truncated importance sampling, IcePop, DeepSeek-V3.2
    Random,            // the control of clip_cov and kl_cov
    OwnWeight          // one's own
    >;

}  // namespace isentrope::methods
