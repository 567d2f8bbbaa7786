// The modes of grpo_loss by name, and the numbers that each stands for.
#pragma once
#include "csrc/ops/entries.h"
#include "kernels/grpo_loss.h"

namespace isentrope::ops {

// a, with its numbers, where there are any, in the place of its floats.
GrpoLossArguments with_grpo_numbers(GrpoLossArguments a);
constexpr size_t kGrpoEntropyCoef = 5;  // the place of entropy_coef among them

// Errors where a name is unknown, a number out of range, or two arguments do not go together.
kernels::GrpoLossRule grpo_rule(const GrpoLossArguments& a);

}  // namespace isentrope::ops
