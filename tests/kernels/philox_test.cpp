#include "kernels/gpu/philox.h"

#include "kernels/gpu/launch.h"
#include "tests/kernels/testing.h"

namespace isentrope {
namespace {

struct Known {
  uint64_t key, low, high;
  uint32_t word[4];
};
// The known answers of philox4x32-10 that its authors publish with Random123.
const Known kKnown[] = {
    {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

TEST(Philox, KnownAnswers) {
  for (const Known& k : kKnown) {
    const PhiloxBlock block = philox(k.key, k.low, k.high);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(block.word[i], k.word[i]) << "word " << i << " of key " << k.key;
  }
}

template <class Word>
__global__ void philox_kernel(Word* out, uint64_t key) {
  const PhiloxBlock block = philox(key, threadIdx.x, 7);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = block.word[i];
}

TEST(Philox, DeviceDrawsWhatTheHostDraws) {
  testing::DeviceBuffer<uint32_t> out(4 * 64, "out");
  gpu::launch(philox_kernel<uint32_t>, dim3(1), dim3(64), 0, nullptr, out.data(), 12345ull);
  const std::vector<uint32_t> words = out.read();
  for (int t = 0; t < 64; ++t)
    for (int i = 0; i < 4; ++i)
      ASSERT_EQ(words[4 * t + i], philox(12345, t, 7).word[i]) << "thread " << t << " word " << i;
}

}  // namespace
}  // namespace isentrope
