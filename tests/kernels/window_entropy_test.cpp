// window_entropy's kernels against a plain loop over the tokens of each window, in long double.
#include "kernels/window_entropy.h"

#include <algorithm>

#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

using kernels::DType;
using kernels::WindowSums;

struct Case {
  int64_t rows, length, before, after;
  bool shrink, places;
};

class WindowEntropy : public ::testing::TestWithParam<Case> {};

// Ragged rows with holes; a NaN where nothing counts.
std::vector<unsigned char> flags(int64_t count, double share, uint64_t seed) {
  std::vector<unsigned char> set(count);
  const std::vector<double> draws = uniform(count, seed, 0, 1);
  for (int64_t i = 0; i < count; ++i) set[i] = draws[i] < share;
  return set;
}

template <class T>
void run(const Case& c) {
  const int64_t n = c.rows * c.length, w = c.before + c.after + 1;
  std::vector<double> x = to_doubles(convert<T>(uniform(n, 1, 0, 4))),
                      dmean = to_doubles(convert<T>(uniform(n, 2, -1, 1)));
  const std::vector<unsigned char> mask = flags(n, 0.9, 3), at = flags(n, 0.7, 4);
  std::vector<double> mean(n), dx(n);
  std::vector<int32_t> count(n);
  for (int64_t row = 0; row < c.rows; ++row)
    for (int64_t t = 0; t < c.length; ++t) {
      const int64_t i = row * c.length + t, first = std::max<int64_t>(0, t - c.before),
                    last = std::min(c.length - 1, t + c.after);
      long double sum = 0;
      if (mask[i] && (!c.places || at[i]))
        for (int64_t s = first; s <= last; ++s)
          if (mask[row * c.length + s]) sum += x[row * c.length + s], ++count[i];
      if (!c.shrink && count[i] < w) count[i] = 0;
      if (count[i] == 0) continue;
      mean[i] = static_cast<double>(sum / count[i]);
      for (int64_t s = first; s <= last; ++s)
        if (mask[row * c.length + s]) dx[row * c.length + s] += dmean[i] / count[i];
    }
  for (int64_t i = 0; i < n; ++i)
    if (!mask[i]) x[i] = std::nan("");

  DeviceBuffer<T> xs(n, "x"), means(n, "mean"), dmeans(n, "dmean"), dxs(n, "dx");
  DeviceBuffer<unsigned char> masks(mask, "mask"), places(at, "at");
  DeviceBuffer<int32_t> counts(n, "count");
  DeviceBuffer<WindowSums> workspace(2 * n, "workspace");
  xs.write(convert<T>(x));
  dmeans.write(convert<T>(dmean));

  kernels::WindowEntropyForward f;
  f.dtype = sizeof(T) == 8 ? DType::kDouble : DType::kFloat;
  f.rows = c.rows, f.length = c.length, f.before = c.before, f.after = c.after, f.shrink = c.shrink;
  f.x = xs.data(), f.mask = reinterpret_cast<const bool*>(masks.data());
  f.at = c.places ? reinterpret_cast<const bool*>(places.data()) : nullptr;
  f.mean = means.data(), f.count = counts.data(), f.workspace = workspace.data();
  kernels::window_entropy_forward_cuda(f, nullptr);

  kernels::WindowEntropyBackward b;
  b.dtype = f.dtype;
  b.rows = c.rows, b.length = c.length, b.before = c.before, b.after = c.after;
  b.dmean = dmeans.data(), b.count = counts.data(), b.mask = reinterpret_cast<const bool*>(masks.data());
  b.dx = dxs.data(), b.workspace = workspace.data();
  kernels::window_entropy_backward_cuda(b, nullptr);

  EXPECT_EQ(counts.read(), count);
  // Sums are in double: one rounding to T is left, of means up to 4 and gradients up to the window's share of each of its means.
  const double eps = sizeof(T) == 8 ? 1e-15 : 0x1p-24;
  EXPECT_TRUE(close("mean", means.read(), mean, 4 * eps + 1e-13));
  EXPECT_TRUE(close("dx", dxs.read(), dx, static_cast<double>(w) * (eps + 1e-15)));
}

TEST_P(WindowEntropy, MeansAndGradients) {
  run<float>(GetParam());
  run<double>(GetParam());
}

INSTANTIATE_TEST_SUITE_P(Shapes, WindowEntropy,
                         ::testing::Values(Case{1, 1, 0, 0, false, false}, Case{3, 97, 0, 3, false, false},
                                           Case{2, 97, 0, 3, true, true}, Case{2, 300, -1, 4, false, true},
                                           Case{2, 257, 3, 4, true, false}, Case{2, 513, 7, 0, false, false},
                                           Case{1, 700, 0, 299, true, false}, Case{1, 300, 150, 149, false, false},
                                           Case{2, 31, 40, 40, true, false}, Case{1, 520, 0, 255, true, true}));

}  // namespace
}  // namespace isentrope::testing
