#include "csrc/train/sum_of_squares.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace isentrope::train {

double sum_of_squares(const torch::Tensor& tensor) {
  if (!tensor.is_cpu()) return tensor.to(torch::kFloat64).square().sum().item<double>();
  const torch::Tensor x = tensor.to(torch::kFloat32).contiguous();
  const float* data = x.const_data_ptr<float>();
  constexpr int64_t kPiece = 4096,
                    kLanes = 16;  // a lane adds 256 squares in float before the sum goes on in double
  const int64_t size = x.numel(), pieces = (size + kPiece - 1) / kPiece;
  std::vector<double> sums(pieces);
  at::parallel_for(0, pieces, /*grain_size=*/8, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece, last = std::min(first + kPiece, size);
      float lanes[kLanes] = {};
      int64_t i = first;
      for (; i + kLanes <= last; i += kLanes)
        for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += data[i + lane] * data[i + lane];
      for (int64_t lane = 0; i < last; ++i, ++lane) lanes[lane] += data[i] * data[i];
      for (const float lane : lanes) sums[piece] += lane;
    }
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace isentrope::train
