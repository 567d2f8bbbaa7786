#include "csrc/model/bfloat16_kernels.h"

#include "csrc/ops/cpu_pairs.h"
#include "csrc/ops/cpu_rows.h"

namespace isentrope::model::CPU_CAPABILITY {
namespace {

using namespace ops::CPU_CAPABILITY;

void round(int64_t rows, int64_t K, int64_t depth, const float* x, const float* scale, uint16_t* to) {
  for (int64_t i = 0; i < rows; ++i, x += K, to += depth) {
    const float factor = scale != nullptr ? scale[i] : 1.0f;
    for (int64_t k = 0; k < K; ++k) to[k] = to_bfloat16(x[k] * factor).bits;
    for (int64_t k = K; k < depth; ++k) to[k] = 0;
  }
}

void pack_columns(int64_t count, int64_t K, const uint16_t* x, int64_t ld, uint16_t* to) {
  pack_pair_columns<kPairPanel>(count, K, x, ld, to);
}

void pack_rows(int64_t rows, int64_t width, const uint16_t* x, int64_t ld, uint16_t* to) {
  pack_pair_rows(
      round_up(rows, 2), width, kPairPanel, [&](int64_t i) { return i < rows ? x + i * ld : nullptr; }, to);
}

constexpr Bfloat16Kernels kTable = {
    .round = round, .pack_columns = pack_columns, .pack_rows = pack_rows, .transpose = ops::CPU_CAPABILITY::transpose};

}  // namespace

const Bfloat16Kernels& bfloat16_kernels() { return kTable; }

}  // namespace isentrope::model::CPU_CAPABILITY
