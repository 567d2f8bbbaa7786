// The backward pass of entropy_attention on the CPU (csrc/ops/entropy_attention_rows.h).
#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/entropy_attention_cpu.h"
#include "csrc/ops/entropy_attention_few_rows.h"
#include "csrc/ops/entropy_attention_products.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace attention {
namespace {

using kernels::EntropyAttentionBackward;

// The backward pass is cut into so many tasks at least, where there are strips for it: each takes the keys of a range.
constexpr int64_t kRangeTasks = 16, kRangeKeys = 512;

// dot = dout·out, by the products that make dp = dout·v: where one key has nearly all the weight out is nearly its v, and
// what rounding does to dp it does to dot. memory: 2·kPanel rows and kPanel² elements.
template <class Real>
void add_dots(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block, const Real* dout,
              Real* memory, RowConstants<Real>* constants) {
  constexpr int64_t P = kPanel<Real>;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row;
  Real *out = memory, *columns = out + P * row, *dots = columns + P * row;
  for (int64_t r = 0; r < block.count; r += P) {
    const int64_t n = smaller(P, block.count - r);
    for (int64_t i = 0; i < n; ++i)
      load_row(p.dtype, p.out, group.at(p.out_strides, block.first + r + i), D, out + i * row);
    pack_columns(D, out, row, columns);
    product<false, false>(n, P, kTile, dout + r * row, row, columns, 0, dots, P, [&](int64_t, int64_t) {
      return Span{0, D};
    });
    for (int64_t i = 0; i < n; ++i) constants[r + i].dot = dots[i * P + i];
  }
}

// A task of the backward pass: the keys [first, last) of a group with all of the group's rows. dk and dv of the range are its
// own; dq and dτ are sums over ranges, which a second step adds up in their order.
struct Ranges {
  int64_t count, keys;  // keys of a range: whole strips
  explicit Ranges(const AttentionShape& s) {
    const int64_t wanted = smaller(parts(kRangeTasks, larger(1, s.batch * s.kv_heads)), parts(s.keys, kRangeKeys));
    keys = round_up(parts(s.keys, larger(1, wanted)), kBackwardStrip);
    count = larger(1, parts(s.keys, larger(1, keys)));
  }
};

// Row r of a block. dτ = -(1/τ) Σ ds s. Σ ds = dlse, so that s may be taken from any level. At lse - entropy = Σ p s large logits
// keep their digits, and an error in delta, which enters ds as a multiple of p, cancels. (Without the entropy: from lse.)
template <class Real>
void finish_row(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block, int64_t r, Real* dq,
                Real sum) {
  multiply(dq, p.shape.head_size, block.factor[r]);
  store_row(p.dtype, dq, p.shape.head_size, p.dq, group.at(p.dq_strides, block.first + r));
  if (p.dtemperature == nullptr) return;
  const int64_t at = group.at(p.statistic_strides, block.first + r);
  const Real anchor = statistic<Real>(p.anchor, at);
  const double lse = static_cast<double>(anchor) * block.row_factor(r) + statistic<Real>(p.log_sum, at);
  const Real level = static_cast<Real>(lse - statistic<Real>(p.entropy, at));
  static_cast<Real*>(p.dtemperature)[at] =
      anchor == static_cast<Real>(-kInfinity) ? 0 : -(sum + level * statistic<Real>(p.dlse, at)) / block.temperature[r];
}

template <class Products, bool kEntropy, bool kTemperature>
void backward_range(const EntropyAttentionBackward& p, const Group& group, Span range,
                    typename Products::Real* dq_partial, typename Products::Real* dtemperature_partial) {
  using Real = typename Products::Real;
  using Operand = typename Products::Operand;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row, width = kBackwardStrip + kPad, strip = kBackwardStrip;
  const int64_t keys = larger(0, smaller(range.to, group.sequence.keys) - range.from), padded = round_up(keys, strip);
  const Lease lease{own_scratch};
  const bool few = few_rows(p.shape);
  const int64_t staged =
      larger(larger(kPanel<Real> * (2 * row + kPanel<Real>), Products::kPanelKeys * row), kRows * strip / 2);
  Real* next = own_scratch.get<Real>((5 * padded + 5 * kRows + (few ? strip : 0)) * row + staged + 2 * kRows * width +
                                     strip + padded / strip);
  auto take = [&](int64_t count) { return (next += count) - count; };
  auto operands = [&](int64_t count) { return reinterpret_cast<Operand*>(take(count)); };
  Operand *k_columns = operands(padded * row), *v_columns = operands(padded * row), *k_rows = operands(padded * row);
  Operand *q_rows = operands(kRows * row), *dout_rows = operands(kRows * row);
  Real *dk = take(padded * row), *dv = take(padded * row), *dq = take(kRows * row);
  Real *q = take(kRows * row), *dout = take(kRows * row), *staging = take(staged);
  Real *s = take(kRows * width), *dp = take(kRows * width), *slope = take(strip), *finite = take(padded / strip);
  Real* few_keys = take(few ? strip * row : 0);

  for (int64_t j = 0; j < keys; j += strip) {
    const int64_t count = smaller(strip, keys - j);
    finite[j / strip] = pack_keys<Products>(p.dtype, p.k, p.k_strides, group, D, range.from + j, count, strip,
                                            k_columns + j * row, k_rows + j * row, staging);
    pack_keys<Products>(p.dtype, p.v, p.v_strides, group, D, range.from + j, count, strip, v_columns + j * row, nullptr,
                        staging);
  }
  std::memset(dk, 0, 2 * padded * row * sizeof(Real));

  for (int64_t index = 0; index * kRows < group.rows(); ++index) {
    Block<Real> block(p, group, index);
    RowConstants<Real> constants[kRows];
    Real dtemperature[kRows] = {};
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t at = group.at(p.statistic_strides, block.first + r);
      constants[r].anchor = statistic<Real>(p.anchor, at);
      constants[r].log_sum = statistic<Real>(p.log_sum, at);
      constants[r].entropy = statistic<Real>(p.entropy, at);
      constants[r].dentropy = statistic<Real>(p.dentropy, at);
      constants[r].shift = -statistic<Real>(p.dlse, at);
      if constexpr (kEntropy) constants[r].shift += constants[r].dentropy * constants[r].entropy;
      if (constants[r].anchor == static_cast<Real>(-kInfinity)) block.keys[r] = {};
      block.keys[r] = overlap(block.keys[r], {range.from, range.from + keys});
    }
    block.join_spans();
    std::memset(dq, 0, block.count * row * sizeof(Real));
    bool q_finite = true, dout_finite = true;
    const Operand *q_operand = nullptr, *dout_operand = nullptr;
    if (!block.all.empty()) {
      load_rows(p.dtype, p.q, p.q_strides, group, block, D, block.factor, q);
      q_finite = Products::pack_rows(block.count, D, q, row, q_rows, kRows, 0);
      load_rows<Real>(p.dtype, p.q, p.q_strides, group, block, D, nullptr, q);
      load_rows<Real>(p.dtype, p.dout, p.dout_strides, group, block, D, nullptr, dout);
      dout_finite = Products::pack_rows(block.count, D, dout, row, dout_rows, kRows, 0);
      add_dots(p, group, block, dout, staging, constants);
      dout_operand = Products::narrow(block.count, row, dout);
      if (!few) q_operand = Products::narrow(block.count, row, q);
    }
    for (int64_t first = block.all.from / strip * strip; first < block.all.to; first += strip) {
      const int64_t at = (first - range.from) * row;
      const Span panels = whole_panels(within_strip(block.all, first, strip), Products::kPanelKeys);
      if (few) {
        const Span here = overlap(block.all, {first, first + strip});
        const KeyRows<Real> k(p.dtype, p.k, p.k_strides, group, D, here, few_keys);
        few_scores(block, first, strip, panels, D, q, k, s);
      } else {
        Products::scores(block, first, strip, panels, D, q_operand, k_columns + at, s);
      }
      Products::scores(block, first, strip, panels, D, dout_operand, v_columns + at, dp);
      for (int64_t r = 0; r < block.count; ++r) {
        Real *s_row = s + r * width, *dp_row = dp + r * width;
        const Span seen = within_strip(block.keys[r], first, strip), vectors = whole_vectors<Real>(seen, panels);
        if (p.shape.softcap > 0) cap_row(s_row, vectors, block.factor[r], block.cap[r], slope);
        fill_unseen(s_row, seen, vectors, -kInfinity);
        fill_unseen(dp_row, seen, vectors, 0);
        dtemperature[r] +=
            gradient_row<Real, kEntropy, kTemperature>(s_row, dp_row, vectors, block.row_factor(r), constants[r]);
        if (p.shape.softcap > 0)
          for (int64_t j = seen.from; j < seen.to; ++j) dp_row[j] *= slope[j];
        Real* const both[] = {s_row, dp_row};
        for (Real* x : both) {
          fill_unseen(x, seen, vectors, 0);  // NaN in a row with NaN
          clear_around(x, vectors, panels);
        }
      }
      Products::sum_over_queries(block, first, strip, panels, D, dout_finite, s, dout_rows, dv + at, staging);
      Products::sum_over_queries(block, first, strip, panels, D, q_finite, dp, q_rows, dk + at, staging);
      Products::sum_over_keys(block, first, strip, panels, D, finite[(first - range.from) / strip] != 0, dp,
                              k_rows + at, dq);
    }
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t i = block.first + r;
      if (dq_partial == nullptr) {
        finish_row(p, group, block, r, dq + r * row, dtemperature[r]);
      } else {
        std::memcpy(dq_partial + i * D, dq + r * row, D * sizeof(Real));
        dtemperature_partial[i] = dtemperature[r];
      }
    }
  }
  Products::end_task();
  std::memset(staging, 0, row * sizeof(Real));
  const int64_t end = p.shape.cu_seqlens == nullptr ? smaller(range.to, p.shape.keys) : range.from + keys;
  for (int64_t j = range.from; j < end; ++j) {
    const int64_t i = j - range.from;
    store_row(p.dtype, i < keys ? dk + i * row : staging, D, p.dk, group.key(p.dk_strides, j));
    store_row(p.dtype, i < keys ? dv + i * row : staging, D, p.dv, group.key(p.dv_strides, j));
  }
}

template <class Real, bool kEntropy, bool kTemperature>
void backward(const EntropyAttentionBackward& p) {
  const AttentionShape& shape = p.shape;
  const Ranges ranges(shape);
  const int64_t D = shape.head_size, groups = shape.batch * shape.kv_heads,
                rows = shape.heads / shape.kv_heads * shape.queries;
  const Lease lease{shared_scratch};
  Real *dq = nullptr, *dtemperature = nullptr;  // [ranges, groups, rows, D], [ranges, groups, rows]
  if (ranges.count > 1) {
    dq = shared_scratch.get<Real>(ranges.count * groups * rows * (D + 1));
    dtemperature = dq + ranges.count * groups * rows * D;
  }
  for_tasks(ranges.count * groups, [&](int64_t i) {  // causal: the first keys are seen by most rows
    const int64_t first = i / groups * ranges.keys;
    const Group group(shape, i % groups);
    const Span range{first, first + ranges.keys};
    Real *dq_partial = dq ? dq + i * rows * D : nullptr, *dtemperature_partial = dq ? dtemperature + i * rows : nullptr;
    if constexpr (kPairs && sizeof(Real) == sizeof(float))
      if (takes_pairs(p) && keys_are_finite(p.k, p.k_strides, group, D) &&
          keys_are_finite(p.v, p.v_strides, group, D) && rows_are_finite(p.q, p.q_strides, group, D) &&
          rows_are_finite(p.dout, p.dout_strides, group, D))
        return backward_range<PairProducts, kEntropy, kTemperature>(p, group, range, dq_partial, dtemperature_partial);
    backward_range<PlainProducts<Real>, kEntropy, kTemperature>(p, group, range, dq_partial, dtemperature_partial);
  });
  if (ranges.count == 1) return;
  const int64_t blocks = parts(rows, kRows), next = groups * rows;
  for_tasks(groups * blocks, [&](int64_t i) {
    const Group group(shape, i / blocks);
    if (i % blocks * kRows >= group.rows()) return;
    const Block<Real> block(p, group, i % blocks);
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t at = i / blocks * rows + block.first + r;
      for (int64_t range = 1; range < ranges.count; ++range) {
        for (int64_t d = 0; d < D; ++d) dq[at * D + d] += dq[(at + range * next) * D + d];
        dtemperature[at] += dtemperature[at + range * next];
      }
      finish_row(p, group, block, r, dq + at * D, dtemperature[at]);
    }
  });
}

template <class Real>
void backward(const EntropyAttentionBackward& p) {
  if (p.dentropy)
    p.dtemperature ? backward<Real, true, true>(p) : backward<Real, true, false>(p);
  else
    p.dtemperature ? backward<Real, false, true>(p) : backward<Real, false, false>(p);
}

}  // namespace
}  // namespace attention

void entropy_attention_backward_cpu(const kernels::EntropyAttentionBackward& p) {
  using namespace attention;
  p.dtype == DType::kDouble ? backward<double>(p) : backward<float>(p);
}

}  // namespace isentrope::ops::CPU_CAPABILITY
