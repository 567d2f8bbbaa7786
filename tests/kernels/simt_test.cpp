// The SIMT machine itself: that its results do not depend on its schedule, and that it catches what is broken.
#include "kernels/simt/simt.h"

#include <fstream>
#include <random>

#include "kernels/gpu/launch.h"
#include "kernels/gpu/mma.h"
#include "kernels/gpu/reduce.h"
#include "tests/kernels/broken_kernels.h"
#include "tests/kernels/testing.h"

namespace isentrope {
namespace {

using testing::Defect;
using testing::DeviceBuffer;

// Restores the machine's configuration.
class SimtTest : public ::testing::Test {
 protected:
  ~SimtTest() override { simt::config() = before_; }
  const simt::Config before_ = simt::config();
};

// ---- defects ---------------------------------------------------------------------------------------------------------

class Defects : public ::testing::TestWithParam<Defect> {};

int marked_line(const std::string& name) {
  std::ifstream source(BROKEN_KERNELS_SOURCE);
  std::string line;
  for (int number = 1; std::getline(source, line); ++number)
    if (line.ends_with("// defect: " + name)) return number;
  return -1;
}

std::string report_of(const Defect& defect, bool repaired) {
  try {
    defect.run(repaired);
  } catch (const simt::Failure& failure) {
    return failure.what();
  }
  return "";
}

TEST_P(Defects, IsCaughtWithFileAndLine) {
  const Defect& defect = GetParam();
  if (!defect.always && !simt::kInstrumented) GTEST_SKIP() << "seen by the checker alone: kernel_tests_checked";
  const std::string report = report_of(defect, false);
  EXPECT_NE(("\n" + report).find(std::string("\n") + defect.report), std::string::npos)
      << "wanted " << defect.report << ", got: " << report;
  const std::string place = "kernels/broken_kernels.cu:" + std::to_string(marked_line(defect.name));
  EXPECT_NE(report.find(place), std::string::npos) << "wanted " << place << ", got: " << report;
}

TEST_P(Defects, IsSilentOnceRepaired) { EXPECT_EQ(report_of(GetParam(), true), ""); }

INSTANTIATE_TEST_SUITE_P(Simt, Defects, ::testing::ValuesIn(testing::defects()),
                         [](const auto& test) { return std::string(test.param.name); });

// ---- schedules -------------------------------------------------------------------------------------------------------

template <int kThreads>
__global__ void mixed_kernel(float* out) {
  GPU_SHARED(float, scratch, kThreads / 32);
  const int i = blockIdx.x * kThreads + threadIdx.x;
  float x = ::sinf(static_cast<float>(i));
  for (int round = 0; round < 3; ++round) x = ::cosf(x + gpu::block_reduce<kThreads>(x, gpu::Sum(), scratch));
  out[i] = x + __shfl_up_sync(gpu::kAllLanes, x, 3);
}

std::vector<float> run_mixed() {
  DeviceBuffer<float> out(7 * 128, "out");
  gpu::launch(mixed_kernel<128>, dim3(7), dim3(128), 0, nullptr, out.data());
  return out.read();
}

TEST_F(SimtTest, SameBitsInEverySchedule) {
  simt::config().order = simt::Order::kFifo;
  simt::config().os_threads = 1;
  const std::vector<float> expected = run_mixed();
  for (const auto order : {simt::Order::kFifo, simt::Order::kLifo, simt::Order::kRandom})
    for (const int os_threads : {1, 2, 4}) {
      simt::config().order = order;
      simt::config().os_threads = os_threads;
      simt::config().seed += 1;
      EXPECT_EQ(run_mixed(), expected) << "order " << static_cast<int>(order) << ", " << os_threads << " OS threads";
    }
}

// Which thread of a block comes first: fifo 0, lifo the last, random another for another seed.
template <class T>
__global__ void first_kernel(T* count, T* place) {
  place[threadIdx.x] = atomicAdd(count, 1);
}

std::vector<int> places() {
  DeviceBuffer<int> count(std::vector<int>{0}, "count"), place(64, "place");
  gpu::launch(first_kernel<int>, dim3(1), dim3(64), 0, nullptr, count.data(), place.data());
  return place.read();
}

TEST_F(SimtTest, OrdersDiffer) {
  simt::config().order = simt::Order::kFifo;
  EXPECT_EQ(places()[0], 0);
  simt::config().order = simt::Order::kLifo;
  EXPECT_EQ(places()[63], 0);
  simt::config().order = simt::Order::kRandom;
  simt::config().seed = 1;
  const std::vector<int> first = places();
  EXPECT_EQ(places(), first);
  simt::config().seed = 2;
  EXPECT_NE(places(), first);
}

// ---- votes, partial warps, atomics -----------------------------------------------------------------------------------

template <class T>
__global__ void vote_kernel(T* out) {
  const int t = threadIdx.x;
  const int any = __syncthreads_or(t == 37), all = __syncthreads_and(t < 40), count = __syncthreads_count(t % 3 == 0);
  const unsigned even = __ballot_sync(gpu::kAllLanes, t % 2 == 0);
  out[t] = any * 1000000 + all * 100000 + count * 1000 + __popc(even);
}

TEST_F(SimtTest, VotesOfABlockWhoseLastWarpIsShort) {
  DeviceBuffer<int> out(40, "out");
  gpu::launch(vote_kernel<int>, dim3(1), dim3(40), 0, nullptr, out.data());
  const std::vector<int> got = out.read();
  for (int t = 0; t < 40; ++t) EXPECT_EQ(got[t], 1100000 + 14 * 1000 + (t < 32 ? 16 : 4)) << "thread " << t;
}

template <class T>
__global__ void early_exit_kernel(T* out) {
  if (threadIdx.x % 4 == 1) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

TEST_F(SimtTest, BarriersCountTheThreadsThatHaveNotExited) {
  DeviceBuffer<int> out(std::vector<int>(64, 0), "out");
  gpu::launch(early_exit_kernel<int>, dim3(1), dim3(64), 0, nullptr, out.data());
  int sum = 0;
  for (const int v : out.read()) sum += v;
  EXPECT_EQ(sum, 48);
}

template <class T>
__global__ void atomics_kernel(T* sum, T* largest, T* smallest) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(sum, i);
  atomicMax(largest, i);
  atomicMin(smallest, -i);
}

TEST_F(SimtTest, AtomicsOfManyBlocks) {
  simt::config().os_threads = 4;
  DeviceBuffer<int> sum(std::vector<int>{0}), largest(std::vector<int>{0}), smallest(std::vector<int>{0});
  gpu::launch(atomics_kernel<int>, dim3(8), dim3(64), 0, nullptr, sum.data(), largest.data(), smallest.data());
  EXPECT_EQ(sum.read()[0], 511 * 512 / 2);
  EXPECT_EQ(largest.read()[0], 511);
  EXPECT_EQ(smallest.read()[0], -511);
}

// ---- what it counts --------------------------------------------------------------------------------------------------

template <class T>
__global__ void ldmatrix_kernel(int row_bytes, bool swizzled, T* out) {
  GPU_DYNAMIC_SHARED(unsigned char, tile);
  const int lane = threadIdx.x, row = lane % 16, chunk = lane / 16;
  for (int i = lane; i < 8192; i += 32) tile[i] = 0;
  __syncwarp();
  uint32_t fragment[4];
  gpu::ldmatrix_x4(fragment, tile + row * row_bytes + (swizzled ? chunk ^ row % 8 : chunk) * 16);
  out[lane] = fragment[0];
}

TEST_F(SimtTest, BankConflictsOfLdmatrix) {
  const auto conflicts = [](int row_bytes, bool swizzled) {
    DeviceBuffer<uint32_t> out(32);
    gpu::launch(ldmatrix_kernel<uint32_t>, dim3(1), dim3(32), 8192, nullptr, row_bytes, swizzled, out.data());
    EXPECT_EQ(simt::statistics().ldmatrix, 1u);
    return simt::statistics().bank_conflicts;
  };
  EXPECT_EQ(conflicts(128, false), 28u);  // eight rows in one group of banks, four matrices
  EXPECT_EQ(conflicts(128, true), 0u);
  EXPECT_EQ(conflicts(144, false), 0u);  // padded rows
}

// ---- failures --------------------------------------------------------------------------------------------------------

TEST_F(SimtTest, RunsOnAfterAFailure) {
  const std::vector<float> expected = run_mixed();
  for (const Defect& defect : testing::defects())
    if (defect.always) {
      EXPECT_NE(report_of(defect, false), "");
    }
  EXPECT_EQ(run_mixed(), expected);
}

template <class T>
__global__ void large_shared_kernel(T* out) {
  GPU_SHARED(T, tile, 50 * 1024 / sizeof(T));
  tile[threadIdx.x] = 0;
  out[threadIdx.x] = tile[threadIdx.x];
}

TEST_F(SimtTest, RefusesStaticSharedMemoryAbove48KB) {
  DeviceBuffer<float> out(32);
  try {
    gpu::launch(large_shared_kernel<float>, dim3(1), dim3(32), 0, nullptr, out.data());
    FAIL() << "nothing thrown";
  } catch (const simt::Failure& failure) {
    EXPECT_EQ(std::string(failure.what()).rfind("TOO MUCH SHARED MEMORY", 0), 0u) << failure.what();
  }
}

TEST_F(SimtTest, RedZonesShowWritesOfUncheckedCode) {
  DeviceBuffer<char> buffer(5, "five");
  // Through a pointer the compiler cannot follow; address sanitizer builds stop at the write itself.
#if !defined(__SANITIZE_ADDRESS__)
  volatile char* p = buffer.data();
  p[5] = 1;
  EXPECT_THROW(buffer.read(), simt::Failure);
#endif
}

// ---- 16-bit floats ---------------------------------------------------------------------------------------------------

// Rounds x to the nearest of the finite values of T, ties to the even bit pattern, by search among all of them.
template <class T>
void test_conversion(uint16_t infinity, T (*narrow)(float)) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const T value{static_cast<uint16_t>(bits)};
    const float wide = simt::to_float(value);
    if ((bits & 0x7fff) > infinity) {
      EXPECT_TRUE(std::isnan(wide) && std::isnan(simt::to_float(narrow(wide)))) << bits;
    } else {
      ASSERT_EQ(narrow(wide).bits, bits);
    }
  }
  for (uint16_t bits = 0; bits + 1 < infinity; ++bits) {
    const float low = simt::to_float(T{bits}), high = simt::to_float(T{static_cast<uint16_t>(bits + 1)});
    const float middle = low + (high - low) / 2;  // exact: one bit more than T has
    ASSERT_EQ(narrow(middle).bits, bits % 2 ? bits + 1 : bits) << "tie above " << bits;
    ASSERT_EQ(narrow(std::nextafterf(middle, 0)).bits, bits);
    ASSERT_EQ(narrow(std::nextafterf(middle, INFINITY)).bits, bits + 1);
    ASSERT_EQ(narrow(-middle).bits, narrow(middle).bits | 0x8000);
  }
  EXPECT_EQ(narrow(INFINITY).bits, infinity);
  EXPECT_EQ(narrow(std::numeric_limits<float>::max()).bits, infinity);
}

TEST(Conversions, Half) { test_conversion<simt::half>(0x7c00, simt::to_half); }
TEST(Conversions, BFloat16) { test_conversion<simt::bfloat16>(0x7f80, simt::to_bfloat16); }

}  // namespace
}  // namespace isentrope
