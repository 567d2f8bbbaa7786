// The products of bfloat16 (csrc/ops/bfloat16_product.h) in every size that callers take, against sums of doubles.
#include "csrc/ops/bfloat16_product.h"

#include <c10/util/BFloat16.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

namespace isentrope::ops {
namespace ISENTROPE_UNIT {

std::vector<float> draws(int64_t n, int64_t seed) {
  const torch::Tensor x = torch::randn({n}, at::detail::createCPUGenerator(seed), torch::TensorOptions());
  return {x.data_ptr<float>(), x.data_ptr<float>() + n};
}

TEST(Bfloat16Product, OfRowsAndOfPairsAreTheSameBits) {
  if (!has_bfloat16_products()) GTEST_SKIP() << "no such products here";
  for (const int64_t M : {1, 5, 64, 70})
    for (const int64_t N : {32, 64, 128})
      for (const int64_t K : {2, 64, 96}) {
        const std::vector<float> a = draws(M * K, M + K), b = draws(K * N, N + 7);
        std::vector<uint16_t> rows(M * K), pairs(M * K), right(K * N);
        bfloat16_round(M * K, a.data(), rows.data());
        for (int64_t k = 0; k < K; k += 2) bfloat16_pairs(N, &b[k * N], &b[(k + 1) * N], &right[k * N]);
        for (int64_t k = 0; k < K; ++k)
          for (int64_t m = 0; m < M; ++m) pairs[(k / 2 * M + m) * 2 + k % 2] = rows[m * K + k];
        for (const bool add : {false, true}) {
          const std::vector<float> before(M * N, 0.5f);
          std::vector<float> c = before, d = before;
          bfloat16_product(M, N, K, rows.data(), K, right.data(), N, c.data(), N, add);
          bfloat16_product_of_pairs(M, N, K, pairs.data(), M, right.data(), N, d.data(), N, add);
          EXPECT_EQ(c, d) << M << " " << N << " " << K;
          for (int64_t m = 0; m < M; ++m)
            for (int64_t n = 0; n < N; ++n) {
              double sum = add ? 0.5 : 0, size = 0.5;
              for (int64_t k = 0; k < K; ++k) {
                const double term = double{c10::BFloat16(a[m * K + k])} * double{c10::BFloat16(b[k * N + n])};
                sum += term;
                size += std::abs(term);
              }
              // K sums in float, each within half a unit of its last place.
              ASSERT_NEAR(c[m * N + n], sum, (K + 1) * 0x1p-24 * size) << M << " " << N << " " << K;
            }
        }
      }
}

TEST(Bfloat16Product, RoundsToEvenAndKeepsWhatIsNoNumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> x = draws(37, 3);  // two vectors and a rest
  for (const size_t at : {size_t{0}, size_t{33}}) {
    x[at] = kInfinity;
    x[at + 1] = std::nanf("");
    x[at + 2] = 0x1.01p0f;  // between 1 and the next number of bfloat16
  }
  std::vector<uint16_t> rounded(x.size()), pairs(2 * x.size()), single(2 * x.size());
  bfloat16_round(x.size(), x.data(), rounded.data());
  bfloat16_pairs(x.size(), x.data(), x.data(), pairs.data());
  bfloat16_pairs(x.size(), x.data(), nullptr, single.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const c10::BFloat16 wanted(x[i]), got(rounded[i], c10::BFloat16::from_bits());
    if (std::isnan(x[i])) {
      EXPECT_TRUE(std::isnan(static_cast<float>(got)));
    } else {
      EXPECT_EQ(got.x, wanted.x) << i;
    }
    EXPECT_TRUE(pairs[2 * i] == rounded[i] && pairs[2 * i + 1] == rounded[i]) << i;
    EXPECT_TRUE(single[2 * i] == rounded[i] && single[2 * i + 1] == 0) << i;
  }
  bfloat16_round(x.size(), x.data(), reinterpret_cast<uint16_t*>(x.data()));
  EXPECT_TRUE(std::equal(rounded.begin(), rounded.end(), reinterpret_cast<const uint16_t*>(x.data())));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::ops
