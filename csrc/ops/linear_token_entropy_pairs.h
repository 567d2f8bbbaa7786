// linear_token_entropy in bfloat16 by the processor's own products of it (csrc/ops/bfloat16_product.h). Operands are bfloat16, sums
// float:
//
//   z     of h and W as they are
//   dz    in float from z, then rounded to bfloat16 as the operand of the two products that follow; dbias sums it unrounded
//   dh    Σ over blocks of the vocabulary in float, rounded once, after the last
//   dW    of a block in one sum over all rows, in float, rounded once
//
// So that float sums of dhidden need no second [N, C] of floats, their upper halves lie where dhidden is to be and their lower halves
// beside it.
#pragma once
#include "csrc/ops/bfloat16_product.h"
#include "csrc/ops/cpu_pairs.h"
#include "csrc/ops/linear_token_entropy_rows.h"

namespace isentrope::ops::CPU_CAPABILITY {

// No processor with such products is served by the narrowest build: there they need not be compiled.
constexpr bool kPairs = kVectorBytes > 16;

constexpr int64_t kPairPanel = 32;    // columns of a packed panel of logits or of dweight
constexpr int64_t kHiddenPanel = 64;  // columns of dhidden that are summed at a time
constexpr int64_t kHiddenRows = 512;  // and rows that share one packing for that
constexpr int64_t kRowsOfTail = 32;   // products of fewer rows than a chunk come in few sizes, each made once a thread

inline int64_t even(int64_t n) { return round_up(n, 2); }

inline void rows_product(int64_t count, int64_t N, int64_t K, const uint16_t* a, int64_t lda, const uint16_t* b,
                         float* c, int64_t ldc, bool add) {
  if (count == kPairChunk) return bfloat16_product(count, N, K, a, lda, b, N, c, ldc, add);
  for (int64_t m = 0; m < count; m += kRowsOfTail)
    bfloat16_product(smaller(kRowsOfTail, count - m), N, K, a + m * lda, lda, b, N, c + m * ldc, ldc, add);
}

inline const uint16_t* row_of(const void* x, int64_t row, int64_t stride) {
  return static_cast<const uint16_t*>(x) + row * stride;
}

// ---- logits ---------------------------------------------------------------------------------------------------------

struct PairLogits {
  using Real = float;
  using Operand = uint16_t;
  static constexpr int64_t kPanel = kPairPanel, kChunk = kPairChunk;

  static int64_t panel_size(const LinearLogits& p) { return even(p.width) * kPanel; }
  static int64_t packed_size(const LinearLogits& p) { return vocab_block(p.vocab) / kPanel * panel_size(p); }
  static int64_t copy_size(const LinearLogits& p) { return kChunk * even(p.width); }
  static void pack(const LinearLogits& p, int64_t first, uint16_t* to) {
    pack_pair_columns<kPanel>(smaller(kPanel, p.vocab - first), p.width, row_of(p.weight, first, p.weight_stride),
                              p.weight_stride, to);
  }
  static void logits_of(const LinearLogits& p, int64_t m, int64_t count, uint16_t* copy, int64_t panels,
                        const uint16_t* packed, float* z, int64_t ldz) {
    const int64_t C = p.width, K = even(C);
    const uint16_t* rows = row_of(p.hidden, p.row[m], p.hidden_stride);
    int64_t stride = p.hidden_stride;
    if (C != K || p.row[m + count - 1] - p.row[m] != count - 1) {  // they do not lie as a product takes them
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(copy + i * K, row_of(p.hidden, p.row[m + i], p.hidden_stride), C * sizeof(uint16_t));
        if (C != K) copy[i * K + C] = 0;
      }
      rows = copy;
      stride = K;
    }
    for (int64_t i = 0; i < panels; ++i)
      rows_product(count, kPanel, K, rows, stride, packed + i * panel_size(p), z + i * kPanel, ldz, false);
  }
  static void end_task() { end_bfloat16_products(); }
};

// ---- backward -------------------------------------------------------------------------------------------------------

class PairBackward {
 public:
  explicit PairBackward(const LinearTokenEntropyCpuBackward& p) : p_(p) {
    row_ = shared_scratch.get<RowOf>(M + parts(chunks * width * sizeof(double), sizeof(RowOf)) +
                                     parts(PairLogits::panel_size(logits) * sizeof(uint16_t), sizeof(RowOf)));
    bias_ = reinterpret_cast<double*>(row_ + M);
    panel_ = reinterpret_cast<uint16_t*>(bias_ + chunks * width);
    for (int64_t m = 0; m < M; ++m) {
      const auto g = RowGradient<float>(p, logits.row[m]).template coefficients<Scalar>(true, logits.temperature);
      row_[m] = {g.anchor.v, g.minus_log2_sum.v, g.A.v, g.B.v};
    }
  }

  void run() {
    for (first_ = 0; first_ < logits.vocab; first_ += width) {
      columns_ = smaller(width, logits.vocab - first_);
      if (p_.dbias != nullptr) std::memset(bias_, 0, chunks * width * sizeof(double));
      for (int64_t n = 0; n < columns_; n += kPairPanel) {
        PairLogits::pack(logits, first_ + n, panel_);
        for_tasks(chunks, [&](int64_t i) { gradient_panel(i, n); });
      }
      if (p_.dbias != nullptr) write_bias();
      const int64_t groups = parts(M, kHiddenRows);
      if (p_.dhidden != nullptr)
        for_tasks(parts(C, kHiddenPanel) * groups,
                  [&](int64_t i) { hidden_panel(i / groups, i % groups * kHiddenRows); });
      if (p_.dweight == nullptr) continue;
      for_tasks(chunks, [&](int64_t i) {
        uint16_t* copy = own_scratch.get<uint16_t>(kPairChunk * width);
        std::memcpy(copy, dlogits(i), kPairChunk * width * sizeof(uint16_t));
        transpose(kPairChunk, width, copy, width, dlogits(i), kPairChunk);
      });
      for_tasks(parts(C, kPairPanel), [&](int64_t i) { weight_panel(i); });
    }
  }

 private:
  struct Scalar {  // a vector of one
    float v;
  };
  struct RowOf {
    float anchor, minus_log2_sum, A, B;
  };

  uint16_t* dlogits(int64_t chunk) const { return static_cast<uint16_t*>(p_.dlogits) + chunk * kPairChunk * width; }
  int64_t count_of(int64_t chunk) const { return smaller(kPairChunk, M - chunk * kPairChunk); }
  int64_t whole_panels() const { return round_up(columns_, kPairPanel); }

  // dz of a chunk's rows in columns n … n + kPairPanel - 1 of the block, 0 beyond the vocabulary and the last row.
  void gradient_panel(int64_t chunk, int64_t n) {
    const int64_t m = chunk * kPairChunk, count = count_of(chunk), real = smaller(kPairPanel, columns_ - n);
    float *z = own_scratch.get<float>(kPairChunk * kPairPanel + 2 * kPairPanel +
                                      parts(PairLogits::copy_size(logits), 2)),
          *slope = z + kPairChunk * kPairPanel, *bias = slope + kPairPanel;
    PairLogits::logits_of(logits, m, count, reinterpret_cast<uint16_t*>(bias + kPairPanel), 1, panel_, z, kPairPanel);
    uint16_t* to = dlogits(chunk) + n;
    for (int64_t i = 0; i < count; ++i, to += width) {
      float* row = z + i * kPairPanel;
      gradient_row(m + i, n, real, row, slope, bias);
      if (p_.dbias != nullptr)
        for (int64_t v = 0; v < real; ++v) bias_[chunk * width + n + v] += row[v];
      for (int64_t v = real; v < kPairPanel; ++v) row[v] = 0;
      for (int64_t v = 0; v < kPairPanel; ++v) to[v] = to_bfloat16(row[v]).bits;
    }
    for (int64_t i = count; i < kPairChunk; ++i, to += width) std::memset(to, 0, kPairPanel * sizeof(uint16_t));
    end_bfloat16_products();
  }

  void gradient_row(int64_t m, int64_t n, int64_t count, float* z, float* slope, float* bias) {
    finish_logits(logits, first_ + n, count, z, bias, logits.softcap != 0 ? slope : nullptr);
    const int64_t y = logits.target[logits.row[m]] - first_ - n;
    if ((y >= 0 && y < count) || p_.dkept != nullptr) {
      RowGradient<float>(p_, logits.row[m]).write(z, z, first_ + n, count, y, true, logits.temperature, false);
    } else {
      const RowOf& g = row_[m];
      const Gradient<Float> gradient{g.anchor, static_cast<float>(kLog2e / logits.temperature), g.minus_log2_sum, g.A,
                                     g.B};
      span_gradients(z, z, count, gradient, false);
    }
    if (logits.softcap != 0)
      for (int64_t i = 0; i < count; ++i) z[i] *= slope[i];
  }

  void write_bias() {
    for (int64_t v = 0; v < columns_; ++v) {
      double sum = 0;
      for (int64_t i = 0; i < chunks; ++i) sum += bias_[i * width + v];
      static_cast<uint16_t*>(p_.dbias)[first_ + v] = to_bfloat16(static_cast<float>(sum)).bits;
    }
  }

  // dhidden += dz · W, in the columns of panel c and kHiddenRows rows from m on.
  void hidden_panel(int64_t c, int64_t m) {
    constexpr int64_t N = kHiddenPanel;
    const int64_t K = whole_panels(), at = c * N, real = smaller(N, C - at);
    float* sum = own_scratch.get<float>(kPairChunk * N + parts(K * N, 2));
    uint16_t* packed = reinterpret_cast<uint16_t*>(sum + kPairChunk * N);
    const auto weight_row = [&](int64_t v) {
      return v < columns_ ? row_of(logits.weight, first_ + v, logits.weight_stride) + at : nullptr;
    };
    pack_pair_rows(K, real, N, weight_row, packed);
    const bool last = first_ + columns_ == logits.vocab;
    for (int64_t end = smaller(M, m + kHiddenRows); m < end; m += kPairChunk) {
      const int64_t count = smaller(kPairChunk, end - m);
      rows_product(count, N, K, dlogits(m / kPairChunk), width, packed, sum, N, false);
      for (int64_t i = 0; i < count; ++i)
        add_row(real, sum + i * N, static_cast<uint16_t*>(p_.dhidden) + logits.row[m + i] * C + at,
                p_.dhidden_low + (m + i) * C + at, first_ == 0, last);
    }
    end_bfloat16_products();
  }

  static void add_row(int64_t n, const float* x, uint16_t* high, uint16_t* low, bool first, bool last) {
    const uint32_t kept = first ? 0 : 0xffffffffu;  // 0 is what the first is added to
    float sum[kHiddenPanel];
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = (static_cast<uint32_t>(high[i]) << 16 | low[i]) & kept;
      float before;
      std::memcpy(&before, &bits, sizeof bits);
      sum[i] = before + x[i];
    }
    if (last) {
      for (int64_t i = 0; i < n; ++i) high[i] = to_bfloat16(sum[i]).bits;
      return;
    }
    for (int64_t i = 0; i < n; ++i) {
      uint32_t bits;
      std::memcpy(&bits, sum + i, sizeof bits);
      high[i] = static_cast<uint16_t>(bits >> 16);
      low[i] = static_cast<uint16_t>(bits);
    }
  }

  // dweight of the block in the columns of panel c: dzᵀ · h over all rows.
  void weight_panel(int64_t c) {
    constexpr int64_t N = kPairPanel;
    const int64_t at = c * N, real = smaller(N, C - at), rows = whole_panels(), depth = round_up(M, kRowsOfTail);
    float* sum = own_scratch.get<float>(rows * N + parts(depth * N, 2));
    uint16_t* packed = reinterpret_cast<uint16_t*>(sum + rows * N);
    const auto hidden_row = [&](int64_t m) {
      return m < M ? row_of(logits.hidden, logits.row[m], logits.hidden_stride) + at : nullptr;
    };
    pack_pair_rows(depth, real, N, hidden_row, packed);
    for (int64_t m = 0; m < depth; m += kPairChunk)
      bfloat16_product(rows, N, smaller(kPairChunk, depth - m), dlogits(m / kPairChunk), kPairChunk, packed + m * N, N,
                       sum, N, m > 0);
    for (int64_t v = 0; v < columns_; ++v)
      store_row(DType::kBFloat16, sum + v * N, real, p_.dweight, (first_ + v) * C + at);
    end_bfloat16_products();
  }

  const LinearTokenEntropyCpuBackward& p_;
  const LinearLogits& logits = p_.logits;
  const int64_t M = logits.rows, C = logits.width, width = pair_block(logits.vocab), chunks = parts(M, kPairChunk);
  RowOf* row_;                       // [M]
  double* bias_;                     // [chunks, width]: dbias of the block by chunks of rows
  uint16_t* panel_;                  // of weight
  int64_t first_ = 0, columns_ = 0;  // of the block
};

inline void backward_of_pairs(const LinearTokenEntropyCpuBackward& p) { PairBackward(p).run(); }

}  // namespace isentrope::ops::CPU_CAPABILITY
