// What the kernel tests share: buffers on the device (the SIMT machine's memory, or a GPU's), seeded values, and
// comparisons that name the worst element.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/gpu/check.h"
#include "kernels/gpu/dtype.h"
#include "kernels/gpu/philox.h"
#include "kernels/gpu/platform.h"

namespace isentrope::testing {

template <class T>
constexpr kernels::DType kDTypeOf = sizeof(T) == 8                 ? kernels::DType::kDouble
                                    : sizeof(T) == 4               ? kernels::DType::kFloat
                                    : std::is_same_v<T, gpu::half> ? kernels::DType::kHalf
                                                                   : kernels::DType::kBFloat16;

// count elements of T that a kernel can reach. offset: elements by which data() is past a 256-byte boundary, for odd
// alignments. New memory is NaN (all bits one). On the SIMT machine there are red zones around it.
template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t count, const char* name = "buffer", int64_t offset = 0)
      : count_(count), offset_(offset) {
    const size_t bytes = static_cast<size_t>(count + offset) * sizeof(T);
#if defined(__CUDACC__)
    (void)name;
    GPU_CHECK(cudaMalloc(&base_, bytes ? bytes : 1));
    GPU_CHECK(cudaMemset(base_, 0xff, bytes));
#else
    base_ = simt::device_malloc(bytes, name);
#endif
  }
  explicit DeviceBuffer(const std::vector<T>& values, const char* name = "buffer", int64_t offset = 0)
      : DeviceBuffer(static_cast<int64_t>(values.size()), name, offset) {
    write(values);
  }
  ~DeviceBuffer() {
#if defined(__CUDACC__)
    cudaFree(base_);
#else
    simt::device_free(base_);
#endif
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  T* data() { return static_cast<T*>(base_) + offset_; }
  int64_t size() const { return count_; }

  void write(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
#if defined(__CUDACC__)
    GPU_CHECK(cudaMemcpy(data(), values.data(), bytes, cudaMemcpyHostToDevice));
#else
    if (bytes) std::memcpy(static_cast<void*>(data()), values.data(), bytes);
    simt::mark_initialised(data(), bytes);
#endif
  }

  // Waits for the kernels before it. On the SIMT machine throws simt::Failure where one wrote outside the buffer.
  std::vector<T> read() {
    std::vector<T> values(static_cast<size_t>(count_));
#if defined(__CUDACC__)
    GPU_CHECK(cudaMemcpy(values.data(), data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost));
#else
    simt::check_red_zones(base_);
    if (count_) std::memcpy(static_cast<void*>(values.data()), data(), values.size() * sizeof(T));
#endif
    return values;
  }

 private:
  int64_t count_, offset_;
  void* base_ = nullptr;
};

// ---- values ----------------------------------------------------------------------------------------------------------

// count numbers, uniform in [low, high); the n-th is a pure function of (seed, n).
inline std::vector<double> uniform(int64_t count, uint64_t seed, double low, double high) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const PhiloxBlock block = philox(seed, static_cast<uint64_t>(i), 0);
    values[i] = low + (high - low) * ((block.word[0] + 0.5) * 0x1p-32);
  }
  return values;
}

// The same, normal with mean 0 (Box and Muller).
inline std::vector<double> normal(int64_t count, uint64_t seed, double deviation = 1.0) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const PhiloxBlock block = philox(seed, static_cast<uint64_t>(i), 1);
    const double radius = std::sqrt(-2 * std::log((block.word[0] + 0.5) * 0x1p-32));
    values[i] = deviation * radius * std::cos(6.283185307179586 * ((block.word[1] + 0.5) * 0x1p-32));
  }
  return values;
}

inline double to_double(double x) { return x; }
inline double to_double(float x) { return x; }
inline double to_double(gpu::bfloat16 x) { return gpu::to_float(x); }
inline double to_double(gpu::half x) { return gpu::to_float(x); }

// Rounded to T, and back to exact doubles: what a reference in double must be given.
template <class T>
std::vector<T> convert(const std::vector<double>& values) {
  std::vector<T> out;
  out.reserve(values.size());
  for (const double v : values) out.push_back(gpu::narrow<T>(static_cast<gpu::Accumulator<T>>(v)));
  return out;
}
template <class T>
std::vector<double> to_doubles(const std::vector<T>& values) {
  std::vector<double> out;
  out.reserve(values.size());
  for (const T v : values) out.push_back(to_double(v));
  return out;
}

// ---- comparisons -----------------------------------------------------------------------------------------------------

struct Worst {
  int64_t index = -1;  // −1: nothing differs
  double error = 0, actual = 0, expected = 0;
};

// The element furthest from expected. Equal infinities, and two NaNs, are no error; one of a pair alone is an infinite one.
inline Worst worst(const std::vector<double>& actual, const std::vector<double>& expected) {
  Worst w;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double a = i < actual.size() ? actual[i] : std::nan(""), e = expected[i];
    if (a == e || (std::isnan(a) && std::isnan(e))) continue;
    double error = std::fabs(a - e);
    if (!std::isfinite(error)) error = std::numeric_limits<double>::infinity();
    if (error > w.error) w = {static_cast<int64_t>(i), error, a, e};
  }
  return w;
}

inline std::string describe(const char* name, const Worst& w) {
  std::ostringstream text;
  text.precision(9);
  text << name << "[" << w.index << "] is " << w.actual << ", expected " << w.expected << ", error " << w.error;
  return text.str();
}

// Every element within tolerance of expected.
template <class T>
::testing::AssertionResult close(const char* name, const std::vector<T>& actual, const std::vector<double>& expected,
                                 double tolerance) {
  if (actual.size() != expected.size())
    return ::testing::AssertionFailure() << name << " has " << actual.size() << " elements, expected "
                                         << expected.size();
  const Worst w = worst(to_doubles(actual), expected);
  if (w.error <= tolerance) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << describe(name, w) << ", allowed " << tolerance;
}

// The worst error against exact is at most twice that of plain: a plain loop in the same dtype. Below one rounding of
// the largest element (in T) both count as exact.
template <class T>
::testing::AssertionResult within_twice(const char* name, const std::vector<T>& actual, const std::vector<T>& plain,
                                        const std::vector<double>& exact) {
  double largest = 0;
  for (const double e : exact)
    if (std::isfinite(e)) largest = std::fmax(largest, std::fabs(e));
  const double step = sizeof(T) == 8                      ? 0x1p-53
                      : sizeof(T) == 4                    ? 0x1p-24
                      : std::is_same<T, gpu::half>::value ? 0x1p-11
                                                          : 0x1p-8;
  return close(name, actual, exact, 2 * std::fmax(worst(to_doubles(plain), exact).error, step * largest));
}

}  // namespace isentrope::testing
