#include "csrc/train/bfloat16_ties.h"

namespace isentrope::train {

int64_t bfloat16_ties(const torch::Tensor& tensor) {
  constexpr int64_t kPiece = 1 << 20;  // 5 MB beside the weights
  const torch::NoGradGuard no_grad;
  int64_t ties = 0;
  for (const torch::Tensor& piece : tensor.detach().reshape({-1}).split(kPiece))
    ties += piece.view(torch::kInt32).bitwise_and(0xFFFF).eq(0x8000).sum().item<int64_t>();
  return ties;
}

}  // namespace isentrope::train
