#include "csrc/ops/bfloat16_product.h"

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <bit>
#include <cstdlib>
#include <exception>
#include <string_view>

namespace isentrope::ops {
namespace {

enum class Means { kNone, kPlain, kBrgemm };

void brgemm(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, float* c,
            int64_t ldc, bool add) {
  at::native::cpublas::brgemm(M, N, K, lda, ldb, ldc, add, reinterpret_cast<const c10::BFloat16*>(a),
                              reinterpret_cast<const c10::BFloat16*>(b), c, /*is_vnni=*/true);
}

// brgemm throws where the processor lacks the instructions, and also where it says that it has some of them: it is tried.
Means means() {
  static const Means found = [] {
    const char* wanted = std::getenv("ISENTROPE_BFLOAT16_PRODUCTS");
    if (wanted != nullptr && std::string_view(wanted) == "off") return Means::kNone;
    if (wanted != nullptr && std::string_view(wanted) == "plain") return Means::kPlain;
    const uint16_t one = 0x3f80, a[2] = {one, one}, b[64] = {one, one};
    float c[32] = {};
    try {
      brgemm(1, 32, 2, a, 2, b, 32, c, 32, false);
      at::native::cpublas::brgemm_release();
      return c[0] == 2 && c[1] == 0 ? Means::kBrgemm : Means::kNone;
    } catch (const std::exception&) {
      return Means::kNone;
    }
  }();
  return found;
}

float widen(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

}  // namespace

bool has_bfloat16_products() {
  return means() == Means::kPlain || (means() == Means::kBrgemm && at::globalContext().userEnabledMkldnn());
}

void bfloat16_product(int64_t M, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb,
                      float* c, int64_t ldc, bool add) {
  if (means() == Means::kBrgemm) return brgemm(M, N, K, a, lda, b, ldb, c, ldc, add);
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += widen(a[m * lda + k]) * widen(b[(k / 2 * ldb + n) * 2 + k % 2]);
      c[m * ldc + n] = add ? c[m * ldc + n] + sum : sum;
    }
}

void end_bfloat16_products() {
  if (means() == Means::kBrgemm) at::native::cpublas::brgemm_release();
}

}  // namespace isentrope::ops
