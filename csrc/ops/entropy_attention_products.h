// The products of a block of rows with a strip of keys, for the CPU backend of entropy_attention, in two kinds: multiply-adds of
// Real, into which bfloat16 and half are widened (PlainProducts), or the processor's own for bfloat16 (PairProducts).
#pragma once
#include "csrc/ops/bfloat16_product.h"
#include "csrc/ops/entropy_attention_rows.h"

namespace isentrope::ops::CPU_CAPABILITY::attention {

// The products of a block with a strip of keys, and the operands that they take. Plain: multiply-adds of Real.
template <class R>
struct PlainProducts {
  using Real = R;
  using Operand = R;
  static constexpr int64_t kPanelKeys = kPanel<R>;
  static constexpr bool kWholePanels = false;  // what is summed over queries may be any span of keys

  // to [D, kPanelKeys] = x [kPanelKeys, width] transposed.
  static void pack_columns(int64_t D, const Real* x, int64_t width, Real* to) {
    CPU_CAPABILITY::pack_columns(D, x, width, to);
  }
  // Rows first … first + n - 1 of to [⌈D/kPanel⌉, length, kPanel] = x [n, width]. Returns whether they are finite.
  static bool pack_rows(int64_t n, int64_t D, const Real* x, int64_t width, Real* to, int64_t length, int64_t first) {
    return CPU_CAPABILITY::pack_rows(n, D, x, width, to + first * kPanel<Real>, length);
  }
  static int64_t row_offset(int64_t rows, int64_t) { return rows * kPanel<R>; }  // of packed rows
  // A block's rows [count, row] as operands, in place.
  static const Real* narrow(int64_t, int64_t, Real* rows) { return rows; }
  static void end_task() {}

  // to [count, strip + kPad] = rows · columns, in the panels of `panels`; first is the strip's first key.
  static void scores(const Sights<>& block, int64_t first, int64_t strip, Span panels, int64_t D, const Real* rows,
                     const Real* columns, Real* to) {
    product<false, false>(block.count, panels.to - panels.from, kTile, rows, Widths<Real>(D).row,
                          columns + panels.from * D, D * kPanel<Real>, to + panels.from, strip + kPad,
                          [&](int64_t m, int64_t n) {
                            const int64_t j = first + panels.from + n;
                            return overlap(block.seen(m, kTile), {j, j + kPanel<Real>}).empty() ? Span{} : Span{0, D};
                          });
  }

  // to [count, row] += weights [count, strip + kPad] · packed rows of the strip. The weights are lost.
  static void sum_over_keys(const Sights<>& block, int64_t first, int64_t strip, Span, int64_t D, bool finite,
                            Real* weights, const Real* rows, Real* to) {
    const int64_t height = finite ? kTile : 1;
    const Widths<Real> width(D);
    product<false, true>(block.count, width.columns, height, weights, strip + kPad, rows, strip * kPanel<Real>, to,
                         width.row,
                         [&](int64_t m, int64_t) { return within_strip(block.seen(m, height), first, strip); });
  }

  // to [strip, row] += transposed weights · packed rows of the block, for the keys of `panels`.
  static void sum_over_queries(const Sights<>& block, int64_t first, int64_t strip, Span panels, int64_t D, bool finite,
                               const Real* weights, const Real* rows, Real* to, Real*) {
    const Widths<Real> width(D);
    auto add = [&](Span keys, const auto& span_of) {
      product<true, true>(keys.to - keys.from, width.columns, kTile, weights + keys.from, strip + kPad, rows,
                          kRows * kPanel<Real>, to + keys.from * width.row, width.row, span_of);
    };
    if (!finite) {
      for (int64_t r = 0; r < block.count; ++r)
        add(within_strip(block.keys[r], first, strip), [&](int64_t, int64_t) { return Span{r, r + 1}; });
      return;
    }
    Span rows_of[kBackwardStrip / kTile + 1];  // that see a tile of keys
    for (int64_t j = panels.from; j < panels.to; j += kTile) {
      Span& seen_by = rows_of[(j - panels.from) / kTile] = {};
      for (int64_t m = 0; m < block.count; m += kTile)
        if (!overlap(block.seen(m, kTile), {first + j, first + j + kTile}).empty())
          seen_by = join(seen_by, {m, smaller(m + kTile, block.count)});
    }
    add(panels, [&](int64_t m, int64_t) { return rows_of[m / kTile]; });
  }
};

// The processor's products of bfloat16 (csrc/ops/bfloat16_product.h): operands are rounded to it, p and ds among them, sums are
// float. Few sizes: 64 keys, 32 rows. What a row does not see it takes 0 times, so all that is summed has to be finite.
struct PairProducts {
  using Real = float;
  using Operand = uint16_t;
  static constexpr int64_t kPanelKeys = 64, kGroup = 32;
  static constexpr bool kWholePanels = true;
  static_assert(kForwardStrip % kPanelKeys == 0 && kBackwardStrip % kPanelKeys == 0 && kRows % kGroup == 0);

  static uint16_t bits(float x) { return to_bfloat16(x).bits; }
  static void end_task() { end_bfloat16_products(); }

  // to [D / 2, kPanelKeys, 2] = x [kPanelKeys, width] transposed.
  static void pack_columns(int64_t D, const float* x, int64_t width, uint16_t* to) {
    for (int64_t d = 0; d < D; d += 2)
      for (int64_t j = 0; j < kPanelKeys; ++j)
        for (int64_t i = 0; i < 2; ++i) *to++ = bits(x[j * width + d + i]);
  }
  // Rows first … of to [length / 2, D, 2] = x [n, width], then zeros to a whole panel; first is even.
  static bool pack_rows(int64_t n, int64_t D, const float* x, int64_t width, uint16_t* to, int64_t, int64_t first) {
    to += first * D;
    for (int64_t j = 0; j < n; j += 2)
      for (int64_t d = 0; d < D; ++d, to += 2) {
        to[0] = bits(x[j * width + d]);
        to[1] = j + 1 < n ? bits(x[(j + 1) * width + d]) : 0;
      }
    std::memset(to, 0, (round_up(n, kPanelKeys) - round_up(n, 2)) * D * sizeof(uint16_t));
    return true;
  }
  static int64_t row_offset(int64_t rows, int64_t D) { return rows * D; }
  // Row r stays where it began: rows of operands are 2 · row apart.
  static const uint16_t* narrow(int64_t count, int64_t row, float* rows) {
    for (int64_t r = 0; r < count; ++r)
      bfloat16_round(row, rows + r * row, reinterpret_cast<uint16_t*>(rows + r * row));
    return reinterpret_cast<const uint16_t*>(rows);
  }

  // The keys of the strip that rows m … m + kGroup - 1 see, in whole panels.
  static Span panels_of(const Sights<>& block, int64_t m, int64_t first, int64_t strip) {
    Span keys{};
    for (int64_t r = m; r < smaller(m + kGroup, block.count); ++r) keys = join(keys, block.keys[r]);
    const Span part = within_strip(keys, first, strip);
    if (part.empty()) return {};
    return {part.from / kPanelKeys * kPanelKeys, round_up(part.to, kPanelKeys)};
  }

  static void scores(const Sights<>& block, int64_t first, int64_t strip, Span, int64_t D, const uint16_t* rows,
                     const uint16_t* columns, float* to) {
    const int64_t ld = 2 * Widths<float>(D).row, width = strip + kPad;
    for (int64_t m = 0; m < block.count; m += kGroup) {
      const Span panels = panels_of(block, m, first, strip);
      for (int64_t j = panels.from; j < panels.to; j += kPanelKeys)
        bfloat16_product(smaller(kGroup, block.count - m), kPanelKeys, D, rows + m * ld, ld, columns + j * D,
                         kPanelKeys, to + m * width + j, width, false);
    }
  }

  static void sum_over_keys(const Sights<>& block, int64_t first, int64_t strip, Span panels, int64_t D, bool,
                            float* weights, const uint16_t* rows, float* to) {
    const int64_t width = strip + kPad, row = Widths<float>(D).row;
    for (int64_t r = 0; r < block.count; ++r) narrow(1, panels.to - panels.from, weights + r * width + panels.from);
    for (int64_t m = 0; m < block.count; m += kGroup) {
      const Span keys = panels_of(block, m, first, strip);
      if (keys.empty()) continue;
      const uint16_t* from = reinterpret_cast<const uint16_t*>(weights + m * width + panels.from);
      bfloat16_product(smaller(kGroup, block.count - m), D, keys.to - keys.from, from + keys.from - panels.from,
                       2 * width, rows + keys.from * D, D, to + m * row, row, true);
    }
  }

  // staging: [kRows, strip] of operands.
  static void sum_over_queries(const Sights<>& block, int64_t first, int64_t strip, Span panels, int64_t D, bool,
                               const float* weights, const uint16_t* rows, float* to, float* staging) {
    const int64_t width = strip + kPad, row = Widths<float>(D).row, keys = panels.to - panels.from;
    const int64_t count = round_up(block.count, kGroup);
    uint16_t* pairs = reinterpret_cast<uint16_t*>(staging);
    for (int64_t m = 0; m < block.count; m += 2) {
      const float* even = weights + m * width + panels.from;
      bfloat16_pairs(keys, even, m + 1 < block.count ? even + width : nullptr, pairs + m * keys);
    }
    const int64_t filled = round_up(block.count, 2);  // rows that the block does not have
    std::memset(pairs + filled * keys, 0, (count - filled) * keys * sizeof(uint16_t));
    for (int64_t j = 0; j < keys; j += kPanelKeys) {
      Span seeing{};  // the rows that see something of the panel, in whole groups
      for (int64_t m = 0; m < block.count; m += kGroup)
        if (!overlap(panels_of(block, m, first, strip), {panels.from + j, panels.from + j + kPanelKeys}).empty())
          seeing = join(seeing, {m, m + kGroup});
      if (seeing.empty()) continue;
      bfloat16_product_of_pairs(kPanelKeys, D, seeing.to - seeing.from, pairs + 2 * j + seeing.from * keys, keys,
                                rows + seeing.from * D, D, to + (panels.from + j) * row, row, true);
    }
  }
};

// Packs keys [first, first + count) of x: transposed into columns and as they are into rows, as Products takes them; either may
// be null. staging: [kPanelKeys, row]. Returns whether the rows are finite.
template <class Products>
bool pack_keys(DType dtype, const void* x, const HeadStrides& strides, const Group& group, int64_t D, int64_t first,
               int64_t count, int64_t strip, typename Products::Operand* columns, typename Products::Operand* rows,
               typename Products::Real* staging) {
  using Real = typename Products::Real;
  constexpr int64_t P = Products::kPanelKeys;
  const int64_t width = Widths<Real>(D).row;
  bool finite = true;
  std::memset(staging, 0, P * width * sizeof(Real));
  for (int64_t j = 0; j < count; j += P) {
    const int64_t n = smaller(P, count - j);
    for (int64_t i = 0; i < n; ++i) {
      prefetch_row(dtype, x, group.key(strides, smaller(first + j + i + P, group.sequence.keys - 1)), D);
      load_row(dtype, x, group.key(strides, first + j + i), D, staging + i * width);
    }
    for (int64_t i = n; i < P; ++i) std::memset(staging + i * width, 0, D * sizeof(Real));
    if (columns != nullptr) Products::pack_columns(D, staging, width, columns + j * D);
    if (rows != nullptr) finite &= Products::pack_rows(n, D, staging, width, rows, strip, j);
  }
  return finite;
}

// ---- which kind -----------------------------------------------------------------------------------------------------

// No processor with such products is served by the narrowest build: there they need not be compiled.
constexpr bool kPairs = kVectorBytes > 16;
template <class Parameters>
bool takes_pairs(const Parameters& p) {
  const bool whole_panels = p.shape.block_mask == nullptr || p.shape.block_size % PairProducts::kPanelKeys == 0;
  return kPairs && p.dtype == DType::kBFloat16 && whole_panels && has_bfloat16_products();
}

// x [D] of bfloat16 at an offset of base.
inline bool row_is_finite(const void* base, int64_t at, int64_t D) {
  const BFloat16* x = static_cast<const BFloat16*>(base) + at;
  int infinite = 0;
  for (int64_t d = 0; d < D; ++d) infinite |= (x[d].bits & 0x7f80) == 0x7f80;
  return infinite == 0;
}
inline bool keys_are_finite(const void* x, const HeadStrides& strides, const Group& group, int64_t D) {
  for (int64_t j = 0; j < group.sequence.keys; ++j)
    if (!row_is_finite(x, group.key(strides, j), D)) return false;
  return true;
}
inline bool rows_are_finite(const void* x, const HeadStrides& strides, const Group& group, int64_t D) {
  for (int64_t r = 0; r < group.rows(); ++r)
    if (!row_is_finite(x, group.at(strides, r), D)) return false;
  return true;
}

}  // namespace isentrope::ops::CPU_CAPABILITY::attention
