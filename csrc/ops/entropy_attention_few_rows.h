// Groups of a few rows, for the CPU backend of entropy_attention: products with keys where they lie. static, since functions of
// external linkage are not inlined into their only caller, and a step of decoding takes a third longer.
#pragma once
#include <type_traits>
#include <utility>

#include "csrc/ops/entropy_attention_rows.h"

namespace isentrope::ops::CPU_CAPABILITY::attention {

// Groups of at most so many rows, one query of a decoder above all, read their keys where they lie: packing is worth its time
// from about a tile of rows on. The backward pass packs all the same, but forms s as the forward pass did.
constexpr int64_t kFewRows = 4;
inline bool few_rows(const AttentionShape& s) { return s.heads / s.kv_heads * s.queries <= kFewRows; }

template <class Real>
struct PlacesOf {
  typedef typename std::conditional<sizeof(Real) == 4, int32_t, int64_t>::type Index;
  typedef Index type __attribute__((vector_size(kVectorBytes)));
};

// x[i] and x[i + kStep] folded onto each other: places without kStep keep the first, the others the second.
template <int kStep, class Real, int... i>
static void fold(Lanes<Real>* x, std::integer_sequence<int, i...>) {
  using Places = typename PlacesOf<Real>::type;
  constexpr int kCount = sizeof...(i);
  constexpr Places straight = {(i & kStep ? kCount + i : i)...},
                   crossed = {(i & kStep ? kCount + (i ^ kStep) : i ^ kStep)...};
#pragma GCC unroll 16
  for (int n = 0; n < kCount; n += 2 * kStep)
    x[n] = __builtin_shuffle(x[n], x[n + kStep], straight) + __builtin_shuffle(x[n], x[n + kStep], crossed);
}

// Element i is the sum of x[i].
template <class Real>
static Lanes<Real> sums_of(Lanes<Real>* x) {
  constexpr int kCount = kLanes<Real>;
  constexpr std::make_integer_sequence<int, kCount> all{};
  fold<1, Real>(x, all);
  if constexpr (kCount > 2) fold<2, Real>(x, all);
  if constexpr (kCount > 4) fold<4, Real>(x, all);
  if constexpr (kCount > 8) fold<8, Real>(x, all);
  return x[0];
}

// The keys [first, …) of a group as rows of Real, ld apart: where they lie, if that is what they are, else copied into memory.
template <class Real>
struct KeyRows {
  const Real* data;
  int64_t ld;
  KeyRows(DType dtype, const void* x, const HeadStrides& strides, const Group& group, int64_t D, Span keys,
          Real* memory)
      : data(memory), ld(Widths<Real>(D).row) {
    if (kernels::size_of(dtype) == sizeof(Real) && D % kLanes<Real> == 0) {
      ld = strides.row;
      data = static_cast<const Real*>(x) + group.key(strides, keys.from);
      return;
    }
    for (int64_t j = keys.from; j < keys.to; ++j, memory += ld) {
      load_row(dtype, x, group.key(strides, j), D, memory);
      for (int64_t d = D; d < ld; ++d) memory[d] = 0;
    }
  }
};

// s[j] = q · row j of k for the keys of `seen`, which k begins with; whole vectors around them are filled with anything. Row by
// row, so that memory is read in its order: with a column of many rows at a time its rate halves. kColumns: vectors of a row, or 0
// for any number of them.
template <int64_t kColumns, class Real>
static void dot_products(Span seen, Span vectors, int64_t columns, const Real* q, const KeyRows<Real>& k, Real* s) {
  using V = Lanes<Real>;
  constexpr int64_t W = kLanes<Real>;
  const int64_t count = kColumns > 0 ? kColumns * W : columns;
  for (int64_t j = vectors.from; j < vectors.to; j += W) {
    V sum[W] = {};
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; ++i) {
      const Real* row = k.data + (within(j + i, seen.from, seen.to - 1) - seen.from) * k.ld;
#pragma GCC unroll 8
      for (int64_t d = 0; d < count; d += W)
        sum[i] += *reinterpret_cast<const V*>(q + d) * *reinterpret_cast<const V*>(row + d);
    }
    *reinterpret_cast<V*>(s + j) = sums_of<Real>(sum);
  }
}

// PlainProducts::scores of keys where they lie; k begins with the strip's first key in sight.
template <class Real, int64_t kMost>
static void few_scores(const Sights<kMost>& block, int64_t first, int64_t strip, Span panels, int64_t D, const Real* q,
                       const KeyRows<Real>& k, Real* to) {
  const Widths<Real> width(D);
  const auto dots = width.columns == 4 * kLanes<Real>   ? dot_products<4, Real>
                    : width.columns == 8 * kLanes<Real> ? dot_products<8, Real>
                                                        : dot_products<0, Real>;
  for (int64_t r = 0; r < block.count; ++r)
    dots(within_strip(block.all, first, strip), whole_vectors<Real>(within_strip(block.keys[r], first, strip), panels),
         width.columns, q + r * width.row, k, to + r * (strip + kPad));
}

// to [columns] += Σ p[j] · row j of v: kVectors vectors of columns at a time, each as kChains sums over j mod kChains.
template <int64_t kVectors, class Real>
static void weighted_rows(int64_t count, const Real* p, const Real* v, int64_t ld, Real* to) {
  using V = Lanes<Real>;
  constexpr int64_t kChains = 8 / kVectors;
  V sum[kChains][kVectors] = {};
  auto add = [&](int64_t j, int64_t chain) {
#pragma GCC unroll 8
    for (int64_t n = 0; n < kVectors; ++n)
      sum[chain][n] += p[j] * *reinterpret_cast<const V*>(v + j * ld + n * kLanes<Real>);
  };
  int64_t j = 0;
  for (; j + kChains <= count; j += kChains)
#pragma GCC unroll 8
    for (int64_t chain = 0; chain < kChains; ++chain) add(j + chain, chain);
  for (; j < count; ++j) add(j, 0);
#pragma GCC unroll 8
  for (int64_t n = 0; n < kVectors; ++n) {
    for (int64_t chain = 1; chain < kChains; ++chain) sum[0][n] += sum[chain][n];
    *reinterpret_cast<V*>(to + n * kLanes<Real>) += sum[0][n];
  }
}

template <class Real>
static void weighted_sum(int64_t count, int64_t columns, const Real* p, const KeyRows<Real>& v, Real* to) {
  constexpr int64_t W = kLanes<Real>;
  int64_t d = 0;
  for (; d + 8 * W <= columns; d += 8 * W) weighted_rows<8>(count, p, v.data + d, v.ld, to + d);
  for (; d + 4 * W <= columns; d += 4 * W) weighted_rows<4>(count, p, v.data + d, v.ld, to + d);
  for (; d + 2 * W <= columns; d += 2 * W) weighted_rows<2>(count, p, v.data + d, v.ld, to + d);
  for (; d < columns; d += W) weighted_rows<1>(count, p, v.data + d, v.ld, to + d);
}

}  // namespace isentrope::ops::CPU_CAPABILITY::attention
