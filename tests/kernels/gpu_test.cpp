// The portability layer: the same kernels on the SIMT machine and on a GPU.
#include <algorithm>

#include "kernels/gpu/async_copy.h"
#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/mma.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"
#include "tests/kernels/testing.h"

namespace isentrope {
namespace {

using kernels::DType;
using testing::DeviceBuffer;

// ---- reductions ------------------------------------------------------------------------------------------------------

struct Extremes {
  int sum, smallest, largest;
};
struct MergeExtremes {
  GPU_DEVICE Extremes operator()(Extremes a, Extremes b) const {
    return {a.sum + b.sum, a.smallest < b.smallest ? a.smallest : b.smallest,
            a.largest < b.largest ? b.largest : a.largest};
  }
};

template <int kThreads>
__global__ void block_reduce_kernel(const int* in, Extremes* out) {
  GPU_SHARED(Extremes, scratch, kThreads / 32);
  const int x = in[threadIdx.x];
  Extremes e = gpu::block_reduce<kThreads>(Extremes{x, x, x}, MergeExtremes(), scratch);
  e = gpu::block_reduce<kThreads>(Extremes{e.sum, x, x}, MergeExtremes(), scratch);  // scratch is free for use again
  out[threadIdx.x] = e;
}

template <int kThreads>
void test_block_reduce() {
  std::vector<int> in;
  for (const double v : testing::uniform(kThreads, 5, -1000, 1000)) in.push_back(static_cast<int>(v));
  int sum = 0;
  for (const int v : in) sum += v;
  DeviceBuffer<int> device_in(in, "in");
  DeviceBuffer<Extremes> out(kThreads, "out");
  gpu::launch(block_reduce_kernel<kThreads>, dim3(1), dim3(kThreads), 0, nullptr, device_in.data(), out.data());
  for (const Extremes& e : out.read()) {
    ASSERT_EQ(e.sum, sum * kThreads);
    ASSERT_EQ(e.smallest, *std::min_element(in.begin(), in.end()));
    ASSERT_EQ(e.largest, *std::max_element(in.begin(), in.end()));
  }
}

TEST(Reduce, EveryThreadOfABlockGetsTheResult) {
  test_block_reduce<32>();
  test_block_reduce<128>();
  test_block_reduce<1024>();
}

template <int kLanes>
__global__ void warp_reduce_kernel(double* out) {
  out[threadIdx.x] = gpu::warp_reduce<kLanes>(static_cast<double>(threadIdx.x), gpu::Sum());
}

TEST(Reduce, GroupsOfLanes) {
  DeviceBuffer<double> out(32, "out");
  gpu::launch(warp_reduce_kernel<8>, dim3(1), dim3(32), 0, nullptr, out.data());
  const std::vector<double> sums = out.read();
  for (int t = 0; t < 32; ++t) EXPECT_EQ(sums[t], 8 * (t / 8 * 8) + 28) << "lane " << t;
}

// ---- vectors ---------------------------------------------------------------------------------------------------------

template <class T>
__global__ void negate_kernel(const T* in, T* out, int n) {
  const int head = gpu::elements_to_boundary(in, n);
  const int packs = (n - head) / gpu::Pack<T>::kSize, tail = head + packs * gpu::Pack<T>::kSize;
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    if (i < head || i >= tail) out[i] = gpu::narrow<T>(-gpu::widen(in[i]));
  for (int i = threadIdx.x; i < packs; i += blockDim.x) {
    const int at = head + i * gpu::Pack<T>::kSize;
    gpu::Pack<T> pack = i % 2 ? gpu::load_pack(in + at) : gpu::load_pack_once(in + at);
    GPU_UNROLL
    for (int k = 0; k < gpu::Pack<T>::kSize; ++k) pack.value[k] = gpu::narrow<T>(-gpu::widen(pack.value[k]));
    if (i % 2)
      gpu::store_pack(out + at, pack);
    else
      gpu::store_pack_once(out + at, pack);
  }
}

template <class T>
void test_negate(const char* name) {
  for (const int n : {0, 1, 7, 33, 97, 1000})
    for (const int offset : {0, 1, 3}) {
      const auto values = testing::convert<T>(testing::normal(n, 11));
      DeviceBuffer<T> in(values, "in", offset), out(n, "out", offset);
      gpu::launch(negate_kernel<T>, dim3(1), dim3(32), 0, nullptr, in.data(), out.data(), n);
      std::vector<double> expected = testing::to_doubles(values);
      for (double& e : expected) e = -e;
      EXPECT_TRUE(testing::close(name, out.read(), expected, 0)) << "n " << n << " offset " << offset;
    }
}

TEST(Vector, SixteenBytesAtAnyOffset) {
  test_negate<float>("float");
  test_negate<double>("double");
  test_negate<gpu::bfloat16>("bfloat16");
  test_negate<gpu::half>("half");
}

// ---- mathematics -----------------------------------------------------------------------------------------------------

template <class T>
__global__ void math_kernel(const T* x, T* exponentials, T* logarithms) {
  exponentials[threadIdx.x] = gpu::exp2_approx(x[threadIdx.x]);
  logarithms[threadIdx.x] = gpu::log2_approx(exponentials[threadIdx.x]);
}

TEST(Math, ExponentialAndLogarithm) {
  const auto x = testing::convert<float>(testing::uniform(256, 3, -100, 30));
  DeviceBuffer<float> in(x, "x"), exponentials(256, "exponentials"), logarithms(256, "logarithms");
  gpu::launch(math_kernel<float>, dim3(1), dim3(256), 0, nullptr, in.data(), exponentials.data(), logarithms.data());
  const auto got = exponentials.read();
  for (int i = 0; i < 256; ++i) {
    const double exact = std::exp2(static_cast<double>(x[i]));
    EXPECT_NEAR(got[i], exact, 0x1p-22 * exact)
        << x[i];  // PTX ISA: ex2.approx.f32 has a relative error of at most 2^-22
  }
  // The power's error read back as one of the exponent, 2^-22 / ln 2, and that of lg2.approx.f32, 2^-22 of the result.
  EXPECT_TRUE(testing::close("log2", logarithms.read(), testing::to_doubles(x), 0x1p-21 + 100 * 0x1p-22));
}

// ---- tensor cores ----------------------------------------------------------------------------------------------------

// Loads A [16, 16] and B [16, 8] with ldmatrix and multiplies. b_by_column: B is stored transposed, [8, 16].
template <class T>
__global__ void tile_product_kernel(const T* a, const T* b, float* d, bool b_by_column) {
  GPU_SHARED(T, a_tile, 256);
  GPU_SHARED(T, b_tile, 128);
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  for (int i = lane; i < 256; i += 32) a_tile[i] = a[i];
  for (int i = lane; i < 128; i += 32) b_tile[i] = b[i];
  __syncwarp();
  uint32_t fa[4], fb[4];
  gpu::ldmatrix_x4(fa, a_tile + lane % 16 * 16 + lane / 16 * 8);
  if (b_by_column)
    gpu::ldmatrix_x4(fb, b_tile + lane % 8 * 16 + lane / 8 % 2 * 8);
  else
    gpu::ldmatrix_x4_transposed(fb, b_tile + lane % 16 * 8);
  float sum[4] = {1, 2, 3, 4};
  gpu::mma_m16n8k16<T>(sum, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sum[i];
}

template <class T>
void test_tile_product(const char* name) {
  // Small integers: every product and sum is exact, so that any misplaced element shows.
  std::vector<double> a, b, by_column(128);
  for (const double v : testing::uniform(256, 1, -8, 9)) a.push_back(std::floor(v));
  for (const double v : testing::uniform(128, 2, -8, 9)) b.push_back(std::floor(v));
  for (int i = 0; i < 128; ++i) by_column[i % 8 * 16 + i / 8] = b[i];
  std::vector<double> expected(128);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = 1 + column % 2 + row / 8 * 2;
      for (int k = 0; k < 16; ++k) sum += a[row * 16 + k] * b[k * 8 + column];
      expected[row * 8 + column] = sum;
    }
  for (const bool transposed : {false, true}) {
    DeviceBuffer<T> device_a(testing::convert<T>(a), "a"),
        device_b(testing::convert<T>(transposed ? by_column : b), "b");
    DeviceBuffer<float> d(128, "d");
    gpu::launch(tile_product_kernel<T>, dim3(1), dim3(32), 0, nullptr, device_a.data(), device_b.data(), d.data(),
                transposed);
    EXPECT_TRUE(testing::close(name, d.read(), expected, 0)) << (transposed ? "B by column" : "B by row");
  }
}

TEST(Mma, ProductOfATile) {
  test_tile_product<gpu::bfloat16>("bfloat16");
  test_tile_product<gpu::half>("half");
}

// ---- asynchronous copies ---------------------------------------------------------------------------------------------

// Sums tiles of 32 * 4 floats, two buffers ahead; the last tile may be short and is filled with zeros.
template <class T>
__global__ void pipeline_kernel(const T* in, T* out, int n) {
  GPU_DYNAMIC_SHARED(T, tile);
  const int t = threadIdx.x, tiles = gpu::ceil_div(n, 128);
  const auto fetch = [&](int i) {
    const int at = i * 128 + t * 4;
    if (i < tiles) gpu::copy_async_16(tile + i % 2 * 128 + t * 4, at < n ? in + at : in, at < n);
    gpu::copy_async_commit();
  };
  T sum = 0;
  fetch(0);
  for (int i = 0; i < tiles; ++i) {
    fetch(i + 1);
    gpu::copy_async_wait<1>();
    __syncthreads();
    for (int k = 0; k < 4; ++k) sum += tile[i % 2 * 128 + t + 32 * k];
    __syncthreads();
  }
  out[t] = sum;
}

TEST(AsyncCopy, PipelineOfTwoBuffers) {
  for (const int n : {4, 128, 388}) {
    const auto x = testing::convert<float>(testing::uniform(n, 4, 0, 1));
    DeviceBuffer<float> in(x, "in"), out(32, "out");
    gpu::launch(pipeline_kernel<float>, dim3(1), dim3(32), 256 * sizeof(float), nullptr, in.data(), out.data(), n);
    std::vector<double> expected(32);
    for (int i = 0; i < n; ++i) expected[i % 32] += x[i];
    // At most 16 additions of numbers below 1: each rounds a sum below 16 by at most 2^-21.
    EXPECT_TRUE(testing::close("sums", out.read(), expected, 16 * 0x1p-21)) << "n " << n;
  }
}

template <class T>
__global__ void producer_consumer_kernel(T* out) {
  GPU_SHARED(T, tile, 32);
  const int t = threadIdx.x;
  if (t < 32) tile[t] = static_cast<T>(3 * t);
  if (t < 64) gpu::named_barrier(1, 64);
  if (t >= 32 && t < 64) out[t - 32] = tile[63 - t];
}

TEST(NamedBarrier, OrdersTwoWarpsOfThree) {
  DeviceBuffer<int> out(32, "out");
  gpu::launch(producer_consumer_kernel<int>, dim3(1), dim3(96), 0, nullptr, out.data());
  const std::vector<int> got = out.read();
  for (int t = 0; t < 32; ++t) EXPECT_EQ(got[t], 3 * (31 - t));
}

// ---- launches and dispatch -------------------------------------------------------------------------------------------

template <class T>
__global__ void where_kernel(T* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST(Launch, EveryThreadOfEveryBlockOnce) {
  DeviceBuffer<int> out(2 * 3 * 4 * 24, "out");
  gpu::launch(where_kernel<int>, dim3(2, 3, 4), dim3(4, 3, 2), 0, nullptr, out.data());
  const std::vector<int> got = out.read();
  for (int i = 0; i < 24 * 24; ++i) ASSERT_EQ(got[i], i / 24 * 1000 + i % 24);
}

TEST(Launch, RefusesWhatNoDeviceRuns) {
  int* none = nullptr;
  const auto launch = [&](dim3 grid, dim3 block, size_t shared) {
    gpu::launch(where_kernel<int>, grid, block, shared, nullptr, none);
  };
  EXPECT_THROW(launch(dim3(1), dim3(1025), 0), std::invalid_argument);
  EXPECT_THROW(launch(dim3(1), dim3(0), 0), std::invalid_argument);
  EXPECT_THROW(launch(dim3(1, 65536), dim3(32), 0), std::invalid_argument);
  EXPECT_THROW(launch(dim3(1), dim3(32), 227 * 1024 + 1), std::invalid_argument);
  EXPECT_NO_THROW(launch(dim3(0), dim3(32), 0));
}

TEST(Dispatch, FindsTheValueOrListsTheAllowed) {
  int found = -1;
  gpu::dispatch<1, 2, 4>("tiles", 4, [&](auto n) { found = n(); });
  EXPECT_EQ(found, 4);
  try {
    gpu::dispatch<DType::kFloat, DType::kHalf>("dtype", DType::kDouble, [](auto) {});
    FAIL() << "nothing thrown";
  } catch (const std::invalid_argument& e) {
    EXPECT_STREQ(e.what(), "dtype is double; wanted one of float, half");
  }
}

}  // namespace
}  // namespace isentrope
