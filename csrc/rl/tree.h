// Returns of sequences that branched (csrc/rl/rollout.h), without bias.
//
// A tree is a first sample y with its branches. Where a branch leaves at token t, y and the branch go on from the same tokens,
// y_<t. Both count in what those tokens, and all before them, led to:
//
//   value of a completion after its last branch    its reward
//   value before a branch                          the mean of the value behind it and the branch's value
//   return Q of a token                            the value at its place
//   weight of a token                              ½ for every branch between the first token of the tree and it
//
// Why this is right. y branches at t when its window of t is high and none was where it could have branched before; that, E(y),
// depends on tokens of y behind t. So a reward of y given E(y) says too little of y_<t, and a mean of it with the reward of any
// branch y' would be biased: for that only y' with E(y') may be taken. Then (y, y') and (y', y) are equally likely, as both are
// drawn from the policy independently and each has passed the same test; R(y) may be replaced by (R(y) + R(y'))/2 on the event
// E(y)E(y'), which keeps the mean and lowers the variance. Where E(y') fails, R(y) stands alone. That is the only linear estimate
// that is right whatever the probability of E: with weights a for a lone y without E, b for a pair, c and d for y and y' of a
// failed pair, its mean is right for all rewards and all P(E) if and only if a = b = c = 1 and d = 0. Hence the trial, after
// which such a branch is dropped. Values of deeper branches are right for the same reason, and by induction all are. The
// log-probabilities of tokens behind t enter the gradient from both sequences, each with half the weight: the same exchange, of
// the terms of the gradient.
//
// A decision to branch must not depend on rewards, nor on what is drawn behind the window: the rollout takes the threshold
// from earlier steps and fixes beforehand how many branches a sample may have.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "csrc/rl/rollout.h"

namespace isentrope::rl {

// Tokens begin … end − 1 of a completion, of its own.
struct Segment {
  int64_t begin, end;
  double value;   // the return of its tokens
  double weight;  // of its tokens; 1 in a tree without branches
};

// Of each completion of a call, in order; rewards [completions].
std::vector<std::vector<Segment>> segments(std::span<const Completion> completions, std::span<const double> rewards);

}  // namespace isentrope::rl
