// sigma_linear's and power_step's kernels against a plain loop in long double.
#include "kernels/sigma_linear.h"

#include <algorithm>
#include <memory>

#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

const double kNaN = std::nan("");

template <class A>
std::vector<double> doubles(const std::vector<A>& x) {
  return std::vector<double>(x.begin(), x.end());
}
// values as T holds them.
template <class T>
std::vector<double> rounded(const std::vector<double>& values) {
  return to_doubles(convert<T>(values));
}

// [rows, columns] on the device, rows stride apart and the first offset elements past a 256-byte boundary.
template <class T>
struct Matrix {
  int64_t rows, columns, stride;
  std::vector<double> values;  // [rows, columns] as T holds them
  DeviceBuffer<T> buffer;

  Matrix(int64_t rows, int64_t columns, const std::vector<double>& given, int64_t pad = 0, int64_t offset = 0)
      : rows(rows),
        columns(columns),
        stride(columns + pad),
        values(rounded<T>(given)),
        buffer((rows - 1) * stride + columns, "weight", offset) {
    std::vector<T> stored(buffer.size());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) stored[r * stride + c] = convert<T>({values[r * columns + c]})[0];
    buffer.write(stored);
  }
  double at(int64_t r, int64_t c) const { return values[r * columns + c]; }
  kernels::SigmaMatrix view() { return {buffer.data(), rows, columns, stride}; }
};

// W x [rows], or Wᵀ x [columns], in A.
template <class A, class T>
std::vector<A> product(const Matrix<T>& w, const std::vector<A>& x, bool transposed = false) {
  std::vector<A> y(transposed ? w.columns : w.rows, A(0));
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t c = 0; c < w.columns; ++c)
      (transposed ? y[c] : y[r]) += static_cast<A>(w.at(r, c)) * (transposed ? x[r] : x[c]);
  return y;
}
template <class A>
A length(const std::vector<A>& x) {
  A square = 0;
  for (const A e : x) square += e * e;
  return std::sqrt(square);
}
template <class A>
std::vector<A> cast(const std::vector<double>& x) {
  return std::vector<A>(x.begin(), x.end());
}

std::vector<double> unit(int64_t n, uint64_t seed) {
  std::vector<double> x = normal(n, seed);
  const double norm = length(x);
  for (double& e : x) e /= norm;
  return x;
}

struct Shape {
  int64_t out, in, pad, offset;
};
const Shape kShapes[] = {{1, 1, 0, 0},   {1, 33, 0, 0},   {33, 1, 0, 1},     {31, 97, 0, 0},
                         {97, 31, 1, 3}, {33, 128, 0, 0}, {130, 1032, 8, 0}, {65, 2048, 0, 1}};

template <class T>
class SigmaLinear : public ::testing::Test {};
using Types = ::testing::Types<float, gpu::bfloat16, gpu::half, double>;
TYPED_TEST_SUITE(SigmaLinear, Types);

// ---- σ ---------------------------------------------------------------------------------------------------------------

template <class A>
struct Norm {
  std::vector<A> v, sigma, factors;
};

template <class A, class T>
Norm<A> expected_norm(const Matrix<T>& w, const std::vector<double>& u, double gamma) {
  std::vector<A> p = product(w, cast<A>(u));
  const A sigma = length(p), c = sigma == 0 ? A(0) : static_cast<A>(gamma) / sigma;
  for (A& e : p) e = sigma == 0 ? A(0) : e / sigma;
  return {p, {sigma}, {c, c == 0 ? A(1) : c, A(0), A(1)}};
}

template <class T>
void run_norm(Matrix<T>& w, const std::vector<double>& given_u, double given_gamma) {
  using A = gpu::Accumulator<T>;
  const std::vector<double> u = rounded<A>(given_u), gamma = rounded<A>({given_gamma});
  DeviceBuffer<A> device_u(convert<A>(u), "u"), device_gamma(convert<A>(gamma), "gamma");
  DeviceBuffer<A> v(w.rows, "v"), sigma(1, "sigma"), factors(4, "factors");
  kernels::SigmaNorm p;
  p.dtype = kDTypeOf<T>;
  p.weight = w.view();
  p.u = device_u.data();
  p.gamma = device_gamma.data();
  p.v = v.data();
  p.sigma = sigma.data();
  p.factors = factors.data();
  kernels::sigma_norm_cuda(p, nullptr);
  const auto plain = expected_norm<A>(w, u, gamma[0]);
  const auto exact = expected_norm<long double>(w, u, gamma[0]);
  EXPECT_TRUE(within_twice("v", v.read(), plain.v, doubles(exact.v)));
  EXPECT_TRUE(within_twice("sigma", sigma.read(), plain.sigma, doubles(exact.sigma)));
  EXPECT_TRUE(within_twice("factors", factors.read(), plain.factors, doubles(exact.factors)));
}

TYPED_TEST(SigmaLinear, Norm) {
  for (const Shape& s : kShapes) {
    SCOPED_TRACE(std::to_string(s.out) + " x " + std::to_string(s.in));
    Matrix<TypeParam> w(s.out, s.in, normal(s.out * s.in, 1, 0.3), s.pad, s.offset);
    run_norm(w, unit(s.in, 2), 1.7);
  }
}

TYPED_TEST(SigmaLinear, NormOfSpecialWeights) {
  Matrix<TypeParam> zero(33, 40, std::vector<double>(33 * 40, 0.0)), ordinary(33, 40, normal(33 * 40, 1));
  run_norm(zero, unit(40, 2), 1.7);
  run_norm(ordinary, unit(40, 2), 0.0);  // γ = 0
  std::vector<double> values = normal(33 * 40, 1);
  values[77] = kNaN;
  Matrix<TypeParam> bad(33, 40, values);
  run_norm(bad, unit(40, 2), 1.7);
}

// ---- ⟨G, W⟩ ----------------------------------------------------------------------------------------------------------

struct Dot {
  double scale = 0.4, sigma = 1.5, dsigma = 0.3;
  bool through = true, clear = false, null_dsigma = false;
};

template <class A>
std::vector<A> expected_gradient(const std::vector<double>& a, const std::vector<double>& b, const Dot& t,
                                 double divisor) {
  A s = 0;
  for (size_t i = 0; i < a.size(); ++i) s += static_cast<A>(a[i]) * static_cast<A>(b[i]);
  s /= static_cast<A>(divisor);
  const A dgamma = t.sigma == 0 ? A(0) : s / static_cast<A>(t.sigma);
  const A r = static_cast<A>(t.null_dsigma ? 0 : t.dsigma) - static_cast<A>(t.scale) * dgamma;
  return {dgamma, t.through ? r : A(0)};
}

template <class T>
void run_dot(int64_t count, Dot t, int64_t offset = 0) {
  using A = gpu::Accumulator<T>;
  for (double* x : {&t.scale, &t.sigma, &t.dsigma}) *x = rounded<A>({*x})[0];
  const double divisor = t.scale == 0 ? 1 : t.scale;
  const std::vector<double> a = rounded<T>(normal(count, 3)), b = rounded<T>(normal(count, 4));
  DeviceBuffer<T> device_a(convert<T>(a), "a", offset), device_b(convert<T>(b), "b");
  DeviceBuffer<A> factors(convert<A>({t.scale, divisor, 0, 1}), "factors"), sigma(convert<A>({t.sigma}), "sigma"),
      dsigma(convert<A>({t.dsigma}), "dsigma"), dgamma(1, "dgamma"), rank_one(1, "rank_one");
  DeviceBuffer<double> partial(kernels::sigma_dot_parts(count), "partial");
  kernels::SigmaDot p;
  p.dtype = kDTypeOf<T>;
  p.count = count;
  p.a = device_a.data();
  p.b = device_b.data();
  p.clear = t.clear;
  p.divisor = factors.data() + kernels::kScaleOrOne;
  p.factors = factors.data();
  p.sigma = sigma.data();
  p.dsigma = t.null_dsigma ? nullptr : dsigma.data();
  p.through = t.through;
  p.partial = partial.data();
  p.dgamma = dgamma.data();
  p.rank_one = rank_one.data();
  kernels::sigma_dot_cuda(p, nullptr);
  const auto plain = expected_gradient<A>(a, b, t, divisor);
  const auto exact = doubles(expected_gradient<long double>(a, b, t, divisor));
  EXPECT_TRUE(within_twice("(dgamma, r)", std::vector<A>{dgamma.read()[0], rank_one.read()[0]}, plain, exact));
  const std::vector<double> left = to_doubles(device_a.read()),
                            wanted = t.clear && t.scale == 0 ? std::vector<double>(count, 0.0) : a;
  EXPECT_TRUE(close("a", convert<double>(left), wanted, 0));
}

TYPED_TEST(SigmaLinear, Dot) {
  for (const int64_t count : {1, 97, 8191, 8192, 8193, 30011})
    for (const int64_t offset : {0, 1}) {
      SCOPED_TRACE(std::to_string(count) + " elements, offset " + std::to_string(offset));
      run_dot<TypeParam>(count, {}, offset);
    }
  Dot t;
  t.clear = true;
  run_dot<TypeParam>(9001, t);
  t.scale = 0;
  run_dot<TypeParam>(9001, t);
  t.null_dsigma = true, t.scale = 0.4;
  run_dot<TypeParam>(9001, t);
  t.through = false;
  run_dot<TypeParam>(9001, t);
  t.sigma = t.scale = 0, t.through = true;
  run_dot<TypeParam>(9001, t);
}

// ---- the rank-one term -----------------------------------------------------------------------------------------------

template <class A>
std::vector<A> expected_rank_one(const std::vector<double>& old, const std::vector<double>& v,
                                 const std::vector<double>& u, double scale, double r) {
  std::vector<A> out;
  for (size_t o = 0; o < v.size(); ++o)
    for (size_t i = 0; i < u.size(); ++i)
      out.push_back(static_cast<A>(scale) * (scale == 0 ? A(0) : static_cast<A>(old[o * u.size() + i])) +
                    static_cast<A>(r) * static_cast<A>(v[o]) * static_cast<A>(u[i]));
  return out;
}

template <class T>
void run_rank_one(int64_t out, int64_t in, bool keep, int64_t offset) {
  using A = gpu::Accumulator<T>;
  const std::vector<double> old = rounded<T>(normal(out * in, 5)), v = rounded<A>(unit(out, 6)),
                            u = rounded<A>(unit(in, 7)), scale = rounded<A>({keep ? 0.7 : 0.0}), r = rounded<A>({-1.3});
  DeviceBuffer<T> dweight(out * in, "dweight", offset);
  if (keep) dweight.write(convert<T>(old));
  DeviceBuffer<A> device_v(convert<A>(v), "v"), device_u(convert<A>(u), "u"), device_scale(convert<A>(scale), "scale"),
      device_r(convert<A>(r), "r");
  kernels::SigmaRankOne p;
  p.dtype = kDTypeOf<T>;
  p.rows = out;
  p.columns = in;
  p.scale = keep ? device_scale.data() : nullptr;
  p.rank_one = device_r.data();
  p.v = device_v.data();
  p.u = device_u.data();
  p.dweight = dweight.data();
  kernels::sigma_rank_one_cuda(p, nullptr);
  const auto plain = convert<T>(doubles(expected_rank_one<A>(old, v, u, scale[0], r[0])));
  const auto exact = doubles(expected_rank_one<long double>(old, v, u, scale[0], r[0]));
  EXPECT_TRUE(within_twice("dweight", dweight.read(), plain, exact));
}

TYPED_TEST(SigmaLinear, RankOne) {
  for (const Shape& s : kShapes)
    for (const bool keep : {false, true}) {
      SCOPED_TRACE(std::to_string(s.out) + " x " + std::to_string(s.in) + (keep ? ", kept" : ""));
      run_rank_one<TypeParam>(s.out, s.in, keep, s.offset);
    }
}

// ---- power steps -----------------------------------------------------------------------------------------------------

template <class A>
struct Power {
  std::vector<A> u;
  A sigma = 0;
  int steps = 0;
};

template <class A, class T>
Power<A> expected_power(const Matrix<T>& w, const std::vector<double>& u, int64_t steps_max, double tolerance) {
  Power<A> x = {cast<A>(u)};
  while (x.steps < steps_max) {
    const std::vector<A> p = product(w, x.u);
    std::vector<A> q = product(w, p, true);
    const A before = length(p), norm = length(q);
    x.sigma = norm / before;
    if (!(norm > 0)) {
      x.sigma = before == 0 ? A(0) : A(kNaN);
      return x;
    }
    for (A& e : q) e /= norm;
    x.u = q;
    ++x.steps;
    if (tolerance > 0 && x.sigma - before <= static_cast<A>(tolerance) * x.sigma) return x;
  }
  return x;
}

// All the matrices as layers of one call.
template <class T>
void run_power(std::vector<std::unique_ptr<Matrix<T>>>& weights, int64_t steps_max, double tolerance) {
  using A = gpu::Accumulator<T>;
  const int64_t count = static_cast<int64_t>(weights.size());
  std::vector<std::vector<double>> start;
  std::vector<std::unique_ptr<DeviceBuffer<A>>> us;
  std::vector<kernels::PowerLayer> layers;
  for (int64_t i = 0; i < count; ++i) {
    start.push_back(rounded<A>(unit(weights[i]->columns, 50 + i)));
    us.push_back(std::make_unique<DeviceBuffer<A>>(convert<A>(start[i]), "u", i % 2));
    layers.push_back({weights[i]->view(), us[i]->data()});
  }
  DeviceBuffer<A> sigma(count, "sigma");
  DeviceBuffer<int32_t> steps(std::vector<int32_t>(count, 0), "steps"), done(std::vector<int32_t>(count, 0), "done");
  kernels::PowerStep p;
  p.dtype = kDTypeOf<T>;
  p.layers = layers.data();
  p.count = count;
  p.steps_max = steps_max;
  p.tolerance = tolerance;
  p.sigma = sigma.data();
  p.steps = steps.data();
  p.done = done.data();
  DeviceBuffer<char> workspace(kernels::power_step_workspace(p), "workspace");
  p.workspace = workspace.data();
  kernels::power_step_cuda(p, nullptr);
  // All layers together, so that the plain loop meets its usual error.
  std::vector<A> u, plain_u, plain_sigma;
  std::vector<double> exact_u, exact_sigma;
  for (int64_t i = 0; i < count; ++i) {
    const auto exact = expected_power<long double>(*weights[i], start[i], steps_max, tolerance);
    const auto plain = expected_power<A>(*weights[i], start[i], steps_max, tolerance);
    EXPECT_EQ(steps.read()[i], exact.steps)
        << "layer " << i << ", " << weights[i]->rows << " x " << weights[i]->columns;
    const std::vector<A> own = us[i]->read();
    u.insert(u.end(), own.begin(), own.end());
    plain_u.insert(plain_u.end(), plain.u.begin(), plain.u.end());
    exact_u.insert(exact_u.end(), exact.u.begin(), exact.u.end());
    plain_sigma.push_back(plain.sigma);
    exact_sigma.push_back(static_cast<double>(exact.sigma));
  }
  EXPECT_TRUE(within_twice("sigma", sigma.read(), plain_sigma, exact_sigma));
  EXPECT_TRUE(within_twice("u of all layers", u, plain_u, exact_u));
}

TYPED_TEST(SigmaLinear, PowerSteps) {
  for (const int64_t steps : {1, 3}) {
    std::vector<std::unique_ptr<Matrix<TypeParam>>> weights;
    for (const Shape& s : kShapes)
      weights.push_back(
          std::make_unique<Matrix<TypeParam>>(s.out, s.in, normal(s.out * s.in, 8, 0.3), s.pad, s.offset));
    run_power(weights, steps, 0.0);
  }
}

TYPED_TEST(SigmaLinear, EachLayerTakesItsOwnSteps) {
  std::vector<std::unique_ptr<Matrix<TypeParam>>> weights;
  for (const double gap : {0.2, 0.5, 0.8}) {  // second singular value / first: the larger, the more steps it takes
    std::vector<double> values(40 * 36, 0.0);
    for (int64_t i = 0; i < 36; ++i) values[i * 36 + (i + 5) % 36] = i ? gap / (1 + 0.1 * i) : 1.0;
    weights.push_back(std::make_unique<Matrix<TypeParam>>(40, 36, values));
  }
  weights.push_back(std::make_unique<Matrix<TypeParam>>(33, 40, std::vector<double>(33 * 40, 0.0)));
  std::vector<double> values = normal(33 * 40, 1);
  values[77] = kNaN;
  weights.push_back(std::make_unique<Matrix<TypeParam>>(33, 40, values));
  run_power(weights, 30, 1e-3);
}

TYPED_TEST(SigmaLinear, MoreLayersThanOneLaunchTakes) {
  std::vector<std::unique_ptr<Matrix<TypeParam>>> weights;
  for (int64_t i = 0; i < 131; ++i)
    weights.push_back(
        std::make_unique<Matrix<TypeParam>>(1 + i % 5, 3 + i % 7, normal((1 + i % 5) * (3 + i % 7), 9 + i)));
  run_power(weights, 2, 0.0);
}

TEST(SigmaLinearLaunch, NothingToDo) {
  kernels::PowerStep p;
  EXPECT_EQ(kernels::power_step_workspace(p), 0);
  EXPECT_NO_THROW(kernels::power_step_cuda(p, nullptr));
}

}  // namespace
}  // namespace isentrope::testing
