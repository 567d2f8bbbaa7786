// Σ x² of a tensor whose bits do not depend on the number of threads.
#pragma once
#include <torch/types.h>

namespace isentrope::train {

// On the CPU in pieces of fixed size that are added up in their order: torch's own reduction is cut by the number of threads, and its
// last bits change with it. On another device torch's, in double.
double sum_of_squares(const torch::Tensor& tensor);

}  // namespace isentrope::train
