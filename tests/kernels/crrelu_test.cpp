// crrelu's kernels against the formulas in long double.
#include "kernels/crrelu.h"

#include <cmath>

#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

using kernels::DType;

template <class T>
constexpr DType kType = sizeof(T) == 8   ? DType::kDouble
                        : sizeof(T) == 4 ? DType::kFloat
                                         : DType::kBFloat16;

class Crrelu : public ::testing::TestWithParam<int64_t> {};

template <class T, class A>
void run(int64_t n, int64_t shift) {
  std::vector<double> x = to_doubles(convert<T>(uniform(n + shift, 1, -4, 4))),
                      dy = to_doubles(convert<T>(uniform(n + shift, 2, -1, 1)));
  const double epsilon = 0.625;
  std::vector<double> y(n), dx(n);
  long double sum = 0, size = 0;
  for (int64_t i = 0; i < n; ++i) {
    const long double v = x[i + shift], bell = std::exp(-v * v / 2), d = dy[i + shift];
    y[i] = static_cast<double>((v > 0 ? v : 0) + epsilon * v * bell);
    dx[i] = static_cast<double>(d * ((v > 0 ? 1 : 0) + epsilon * (1 - v * v) * bell));
    sum += d * v * bell;
    size += std::abs(d * v * bell);
  }
  DeviceBuffer<T> xs(n + shift, "x"), ys(n + shift, "y"), dys(n + shift, "dy"), dxs(n + shift, "dx");
  DeviceBuffer<A> epsilons(1, "epsilon"), depsilons(1, "depsilon");
  DeviceBuffer<double> parts(kernels::crrelu_parts(n), "parts");
  xs.write(convert<T>(x));
  dys.write(convert<T>(dy));
  epsilons.write(convert<A>(std::vector<double>{epsilon}));
  ys.write(convert<T>(std::vector<double>(n + shift)));
  dxs.write(convert<T>(std::vector<double>(n + shift)));

  kernels::CrreluForward f;
  f.dtype = kType<T>, f.count = n;
  f.x = xs.data() + shift, f.epsilon = epsilons.data(), f.y = ys.data() + shift;
  kernels::crrelu_forward_cuda(f, nullptr);
  kernels::CrreluBackward b;
  b.dtype = kType<T>, b.count = n;
  b.x = f.x, b.epsilon = f.epsilon, b.dy = dys.data() + shift, b.dx = dxs.data() + shift;
  b.parts = parts.data(), b.depsilon = depsilons.data();
  kernels::crrelu_backward_cuda(b, nullptr);

  // A rounding to T, and a few of the exponential's in A.
  const double eps = sizeof(T) == 8 ? 1e-15 : sizeof(T) == 4 ? 1e-6 : 0x1p-7;
  const std::vector<double> found = to_doubles(ys.read()), gradient = to_doubles(dxs.read());
  for (int64_t i = 0; i < n; ++i) {
    ASSERT_NEAR(found[i + shift], y[i], eps * 4) << "y " << i << " of " << n;
    ASSERT_NEAR(gradient[i + shift], dx[i], eps * 2) << "dx " << i << " of " << n;
  }
  EXPECT_NEAR(to_doubles(depsilons.read())[0], static_cast<double>(sum),
              (sizeof(A) == 8 ? 1e-14 : 1e-6) * static_cast<double>(size) + 1e-300)
      << n;
}

TEST_P(Crrelu, ValuesAndGradients) {
  for (const int64_t shift : {0, 1}) {  // on sixteen bytes, and not
    run<float, float>(GetParam(), shift);
    run<double, double>(GetParam(), shift);
    run<gpu::bfloat16, float>(GetParam(), shift);
  }
}

INSTANTIATE_TEST_SUITE_P(Counts, Crrelu, ::testing::Values(0, 1, 31, 97, 256, 5003));

TEST(Crrelu, InfinityAndNan) {
  DeviceBuffer<float> x(3, "x"), y(3, "y"), epsilon(1, "epsilon");
  x.write({INFINITY, -INFINITY, NAN});
  epsilon.write({0.5f});
  kernels::CrreluForward f;
  f.count = 3, f.x = x.data(), f.epsilon = epsilon.data(), f.y = y.data();
  kernels::crrelu_forward_cuda(f, nullptr);
  const std::vector<float> found = y.read();
  EXPECT_EQ(found[0], INFINITY);
  EXPECT_EQ(found[1], 0);
  EXPECT_TRUE(std::isnan(found[2]));
}

}  // namespace
}  // namespace isentrope::testing
