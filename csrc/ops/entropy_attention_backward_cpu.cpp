// The backward pass of entropy_attention on the CPU (csrc/ops/entropy_attention_rows.h).
#include <numeric>

#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/entropy_attention_cpu.h"
#include "csrc/ops/entropy_attention_few_rows.h"
#include "csrc/ops/entropy_attention_products.h"
#include "csrc/ops/entropy_attention_runs.h"

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
    // A block's gate belongs to one task.
    if (s.of_gates) keys = round_up(keys, std::lcm(kBackwardStrip, s.block_size));
    count = larger(1, parts(s.keys, larger(1, keys)));
  }
};

// The sink's ds in row r of a block.
template <class Real>
Real sink_gradient(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block, int64_t r) {
  const int64_t D = p.shape.head_size, i = block.first + r, at = group.at(p.statistic_strides, i);
  Real out[kMostHeadSize], dout[kMostHeadSize];
  load_row(p.dtype, p.out, group.at(p.out_strides, i), D, out);
  load_row(p.dtype, p.dout, group.at(p.dout_strides, i), D, dout);
  double delta = -statistic<Real>(p.dlse, at);
  for (int64_t d = 0; d < D; ++d) delta += static_cast<double>(dout[d]) * out[d];
  if (statistic<Real>(p.anchor, at) == static_cast<Real>(-kInfinity)) return 0;  // no key, and a sink of -inf
  // The sink as the forward pass took it: in a row that sees it alone log p is 0 exactly.
  const Real sink = statistic<Real>(p.bias.sinks, block.head(group, r)) / block.row_factor(r);
  const double far = static_cast<double>(sink - statistic<Real>(p.anchor, at)) * block.row_factor(r);
  const double log_p = ::fmax(kLowest, far - statistic<Real>(p.log_sum, at)),
               dentropy = statistic<Real>(p.dentropy, at);
  return static_cast<Real>(::exp(log_p) * (-delta - dentropy * (statistic<Real>(p.entropy, at) + log_p)));
}

// Row r of a block. dτ = -(1/τ) Σ ds s. Σ ds = dlse, so that s may be taken from any level. At lse - entropy = Σ p s large logits
// keep their digits, and an error in delta, which enters ds as a multiple of p, cancels. (Without the entropy: from lse.)
template <class Real>
void finish_row(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block, int64_t r, Real* dq,
                Real sum) {
  multiply(dq, p.shape.head_size, block.factor[r]);
  store_row(p.dtype, dq, p.shape.head_size, p.dq, group.at(p.dq_strides, block.first + r));
  const int64_t at = group.at(p.statistic_strides, block.first + r);
  const Real dsink = p.dsinks == nullptr ? Real(0) : sink_gradient(p, group, block, r);
  if (p.dsinks != nullptr) static_cast<Real*>(p.dsinks)[at] = dsink;
  if (p.dtemperature == nullptr) return;
  const Real anchor = statistic<Real>(p.anchor, at);
  const double lse = static_cast<double>(anchor) * block.row_factor(r) + statistic<Real>(p.log_sum, at);
  const Real level = static_cast<Real>(lse - statistic<Real>(p.entropy, at));
  static_cast<Real*>(p.dtemperature)[at] =
      anchor == static_cast<Real>(-kInfinity)
          ? 0
          : -(sum + level * (statistic<Real>(p.dlse, at) - dsink)) / block.temperature[r];
}

// sums [runs] += those of a row's ds over each run. Returns Σ ds log gate.
template <class Real>
Real add_gate_sums(const Block<Real>& block, const Runs& runs, Span seen, const Real* ds, double* sums) {
  Real all = 0;
  for (const Run& run : runs) {
    const Span here = overlap(seen, run.places());
    Real sum = 0;
    for (int64_t j = here.from; j < here.to; ++j) sum += ds[j];
    sums[&run - runs.begin()] += sum;
    all += sum * log_gate(block, run);
  }
  return all;
}

template <class Real>
void add_gate_gradients(const EntropyAttentionBackward& p, const Group& group, const Block<Real>& block,
                        const Runs& runs, const double* sums) {
  if (p.dgates == nullptr) return;
  const int64_t columns = parts(p.shape.keys, block.block_size), row_blocks = parts(p.shape.queries, block.block_size);
  const int64_t row = (group.b * p.shape.heads + block.head(group)) * row_blocks + block.query(0) / block.block_size;
  for (const Run& run : runs)
    static_cast<Real*>(p.dgates)[row * columns + run.column] +=
        static_cast<Real>(sums[&run - runs.begin()] / block.gates[run.column]);
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

  for (const Span rows_of_block : Blocks<>(p.shape, group.sequence.queries)) {
    Block<Real> block(p, group, rows_of_block);
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
    for_passes(block, strip, Products::kPanelKeys, [&](const Sights<>& sights, int64_t first, const Runs& runs) {
      const auto panels_of = [&](const Sights<>& x) {
        return whole_panels(within_strip(x.all, first, strip), Products::kPanelKeys);
      };
      // Where the packed strip with a run begins, and its places of rows, counted as in the forward pass.
      const auto strip_of = [&](const Run& run) { return run.key / strip * strip - range.from; };
      const auto shift_of = [&](const Run& run) { return run.key % strip - run.at; };
      const Span panels = panels_of(sights);
      for_parts(sights, first, runs, [&](const Sights<>& part, const Run& run) {
        const int64_t at = strip_of(run) * row + shift_of(run) * D;
        if (few) {
          const KeyRows<Real> k(p.dtype, p.k, p.k_strides, group, D, keys_of(part, first, strip, run), few_keys);
          few_scores(part, first, strip, panels, D, q, k, s);
        } else {
          Products::scores(part, first, strip, panels_of(part), D, q_operand, k_columns + at, s);
        }
        Products::scores(part, first, strip, panels_of(part), D, dout_operand, v_columns + at, dp);
      });
      double gate_sums[Runs::kMost] = {};
      for (int64_t r = 0; r < block.count; ++r) {
        Real *s_row = s + r * width, *dp_row = dp + r * width;
        const Span seen = within_strip(sights.keys[r], first, strip), vectors = whole_vectors<Real>(seen, panels);
        if (p.shape.softcap > 0) cap_row(s_row, vectors, block.factor[r], block.cap[r], slope);
        add_bias(s_row, seen, block, runs, r);
        fill_unseen(s_row, seen, vectors, -kInfinity);
        fill_unseen(dp_row, seen, vectors, 0);
        fill_between(s_row, seen, runs, -kInfinity);
        fill_between(dp_row, seen, runs, 0);
        dtemperature[r] +=
            gradient_row<Real, kEntropy, kTemperature>(s_row, dp_row, vectors, block.row_factor(r), constants[r]);
        if (block.gates != nullptr) dtemperature[r] -= add_gate_sums(block, runs, seen, dp_row, gate_sums);
        if (p.shape.softcap > 0)
          for (int64_t j = seen.from; j < seen.to; ++j) dp_row[j] *= slope[j];
        Real* const both[] = {s_row, dp_row};
        for (Real* x : both) {
          fill_unseen(x, seen, vectors, 0);  // NaN in a row with NaN
          clear_around(x, vectors, panels);
        }
      }
      if (block.gates != nullptr) add_gate_gradients(p, group, block, runs, gate_sums);
      for_parts(sights, first, runs, [&](const Sights<>& part, const Run& run) {
        // Two runs may share a panel, whose keys are not to be summed twice.
        const bool whole = Products::kWholePanels || runs.count == 1;
        const Span here = whole ? panels_of(part) : within_strip(part.all, first, strip);
        const int64_t to = (strip_of(run) + shift_of(run)) * row;
        const Operand* keys_of_run = k_rows + strip_of(run) * row + Products::row_offset(shift_of(run), D);
        Products::sum_over_queries(part, first, strip, here, D, dout_finite, s, dout_rows, dv + to, staging);
        Products::sum_over_queries(part, first, strip, here, D, q_finite, dp, q_rows, dk + to, staging);
        Products::sum_over_keys(part, first, strip, here, D, finite[strip_of(run) / strip] != 0, dp, keys_of_run, dq);
      });
    });
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
  const int64_t blocks = Blocks<>(shape, shape.queries).count(), next = groups * rows;
  for_tasks(groups * blocks, [&](int64_t i) {
    const Group group(shape, i / blocks);
    const Blocks<> blocks_of(shape, group.sequence.queries);
    if (i % blocks >= blocks_of.count() || blocks_of[i % blocks].empty()) return;
    const Block<Real> block(p, group, blocks_of[i % blocks]);
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
