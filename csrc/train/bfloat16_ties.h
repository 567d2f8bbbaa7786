// How many weights lie halfway between two values of bfloat16.
#pragma once
#include <torch/types.h>

namespace isentrope::train {

// Of float32 numbers. Every eighth on float16's grid does: its bfloat16 copy goes over to the other value at the first update that
// points there, however small (findings/torch_float16_ties.sh). Of numbers that were trained, one in 2¹⁶.
int64_t bfloat16_ties(const torch::Tensor& tensor);

// The share from which it is told. Of SmolLM2-135M, dequantised from 4 bits, 8 % do; of a float16 file 12 %.
constexpr double kManyTies = 0.01;

}  // namespace isentrope::train
