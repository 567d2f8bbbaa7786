// The forward pass of entropy_attention on the CPU (csrc/ops/entropy_attention_rows.h).
#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/entropy_attention_cpu.h"
#include "csrc/ops/entropy_attention_few_rows.h"
#include "csrc/ops/entropy_attention_products.h"
#include "csrc/ops/entropy_attention_runs.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace attention {
namespace {

using kernels::EntropyAttentionForward;

// A packed strip: kᵀ, v and whether v is finite. Memory is counted in Real, of which operands take no more than one each.
template <class Products>
struct ForwardStrip {
  using Real = typename Products::Real;
  using Operand = typename Products::Operand;
  Operand *k_columns, *v_rows;
  Real* finite;
  static int64_t size(int64_t D) { return 2 * kForwardStrip * Widths<Real>(D).row + kLanes<Real>; }
  ForwardStrip(Real* memory, int64_t D)
      : k_columns(reinterpret_cast<Operand*>(memory)),
        v_rows(reinterpret_cast<Operand*>(memory + kForwardStrip * Widths<Real>(D).row)),
        finite(memory + size(D) - kLanes<Real>) {}
  void pack(const EntropyAttentionForward& p, const Group& group, int64_t first, Real* staging) const {
    const int64_t D = p.shape.head_size, count = smaller(kForwardStrip, group.sequence.keys - first);
    pack_keys<Products>(p.dtype, p.k, p.k_strides, group, D, first, count, kForwardStrip, k_columns, nullptr, staging);
    *finite =
        pack_keys<Products>(p.dtype, p.v, p.v_strides, group, D, first, count, kForwardStrip, nullptr, v_rows, staging);
  }
};

// The states of a block's rows before any key: those of the sinks alone.
template <class Real, int64_t kMost>
void start_rows(const EntropyAttentionForward& p, const Group& group, const Block<Real, kMost>& block,
                Running<Real>* state) {
  if (p.bias.sinks == nullptr) return;
  for (int64_t r = 0; r < block.count; ++r) {
    const Real sink = statistic<Real>(p.bias.sinks, block.head(group, r));
    if (sink != static_cast<Real>(-kInfinity)) state[r] = {sink / block.row_factor(r), 1, 0};
  }
}

// Scores in place: capped and biased, then p = exp(s - m), 0 for what the row does not see.
template <class Real, bool kEntropy, int64_t kMost>
void softmax_rows(const Block<Real, kMost>& block, const Sights<kMost>& sights, int64_t first, const Runs& runs,
                  Span panels, int64_t row, Real* s, Running<Real>* state, Real* out) {
  for (int64_t r = 0; r < block.count; ++r, s += kForwardStrip + kPad, out += row) {
    const Span seen = within_strip(sights.keys[r], first, kForwardStrip), vectors = whole_vectors<Real>(seen, panels);
    if (block.capped) cap_row<Real>(s, vectors, block.factor[r], block.cap[r], nullptr);
    add_bias(s, seen, block, runs, r);
    fill_unseen(s, seen, vectors, -kInfinity);
    fill_between(s, seen, runs, -kInfinity);
    softmax_row<Real, kEntropy>(s, vectors, block.row_factor(r), state[r], out, row);
    clear_around(s, vectors, panels);
  }
}

template <class Real, bool kEntropy, int64_t kMost>
void finish_rows(const EntropyAttentionForward& p, const Group& group, const Block<Real, kMost>& block, int64_t row,
                 const Running<Real>* state, Real* out) {
  for (int64_t r = 0; r < block.count; ++r, out += row) {
    const Running<Real>& x = state[r];
    const bool none = x.sum == 0, nan = x.sum != x.sum;
    const double log_sum = ::log(static_cast<double>(x.sum));
    multiply(out, p.shape.head_size, none ? Real(0) : 1 / x.sum);
    store_row(p.dtype, out, p.shape.head_size, p.out, group.at(p.out_strides, block.first + r));
    const int64_t at = group.at(p.statistic_strides, block.first + r);
    auto put = [at](void* to, double value) {
      if (to != nullptr) static_cast<Real*>(to)[at] = static_cast<Real>(value);
    };
    const double top = static_cast<double>(x.top) * block.row_factor(r);
    put(p.lse, none ? -kInfinity : top + log_sum);
    put(p.max_logit, nan ? kNaN : top);
    put(p.anchor, x.top);
    put(p.log_sum, none ? 0 : log_sum);
    if constexpr (kEntropy) put(p.entropy, none ? 0 : log_sum - kLn2 * x.sum_log / x.sum);
  }
}

template <class Products>
int64_t forward_scratch(int64_t D) {
  using Real = typename Products::Real;
  return (2 * kRows + Products::kPanelKeys) * Widths<Real>(D).row + kRows * (kForwardStrip + kPad);
}

// packed: the group's strips; or room for one, which is packed as it is needed.
template <class Products, bool kEntropy>
void forward_block(const EntropyAttentionForward& p, const Group& group, Span rows_of_block,
                   typename Products::Real* packed, bool all_packed, typename Products::Real* scratch) {
  using Real = typename Products::Real;
  using Strip = ForwardStrip<Products>;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row;
  const Block<Real> block(p, group, rows_of_block);
  Real *q = scratch, *out = q + kRows * row, *staging = out + kRows * row, *s = staging + Products::kPanelKeys * row;
  Running<Real> state[kRows];
  start_rows(p, group, block, state);
  std::memset(out, 0, block.count * row * sizeof(Real));
  if (!block.all.empty()) load_rows(p.dtype, p.q, p.q_strides, group, block, D, static_cast<const Real*>(nullptr), q);
  const auto* rows = Products::narrow(block.count, row, q);
  for_passes(block, kForwardStrip, Products::kPanelKeys, [&](const Sights<>& sights, int64_t first, const Runs& runs) {
    const auto strip_of = [&](const Run& run) {
      return Strip(packed + (all_packed ? run.key / kForwardStrip * Strip::size(D) : 0), D);
    };
    const auto panels_of = [&](const Sights<>& x) {
      return whole_panels(within_strip(x.all, first, kForwardStrip), Products::kPanelKeys);
    };
    // Places of a strip's rows: a run lies there from key % kForwardStrip on, and in the rows of scores from `at` on.
    const auto shift_of = [](const Run& run) { return run.key % kForwardStrip - run.at; };
    if (!all_packed) strip_of(runs.run[0]).pack(p, group, first, staging);
    for_parts(sights, first, runs, [&](const Sights<>& part, const Run& run) {
      Products::scores(part, first, kForwardStrip, panels_of(part), D, rows,
                       strip_of(run).k_columns + shift_of(run) * D, s);
    });
    softmax_rows<Real, kEntropy>(block, sights, first, runs, panels_of(sights), row, s, state, out);
    for_parts(sights, first, runs, [&](const Sights<>& part, const Run& run) {
      const Strip strip = strip_of(run);
      Products::sum_over_keys(part, first, kForwardStrip, panels_of(part), D, *strip.finite != 0, s,
                              strip.v_rows + Products::row_offset(shift_of(run), D), out);
    });
  });
  finish_rows<Real, kEntropy>(p, group, block, row, state, out);
}

template <class Real>
int64_t few_scratch(int64_t D) {
  return (2 * kFewRows + 2 * kForwardStrip) * Widths<Real>(D).row + kFewRows * (kForwardStrip + kPad);
}

// Some of a group of at most kFewRows rows.
template <class Real, bool kEntropy>
void forward_few(const EntropyAttentionForward& p, const Group& group, Span rows, Real* scratch) {
  const int64_t D = p.shape.head_size, width = kForwardStrip + kPad;
  const Widths<Real> widths(D);
  const int64_t row = widths.row;
  const Block<Real, kFewRows> block(p, group, rows);
  Real *q = scratch, *out = q + kFewRows * row, *k_memory = out + kFewRows * row,
       *v_memory = k_memory + kForwardStrip * row, *s = v_memory + kForwardStrip * row;
  Running<Real> state[kFewRows];
  start_rows(p, group, block, state);
  std::memset(out, 0, block.count * row * sizeof(Real));
  if (!block.all.empty()) load_rows(p.dtype, p.q, p.q_strides, group, block, D, static_cast<const Real*>(nullptr), q);
  using Few = Sights<kFewRows>;
  for_passes(block, kForwardStrip, kPanel<Real>, [&](const Few& sights, int64_t first, const Runs& runs) {
    const Span panels = whole_panels(within_strip(sights.all, first, kForwardStrip), kPanel<Real>);
    for_parts(sights, first, runs, [&](const Few& part, const Run& run) {
      const KeyRows<Real> k(p.dtype, p.k, p.k_strides, group, D, keys_of(part, first, kForwardStrip, run), k_memory);
      few_scores(part, first, kForwardStrip, panels, D, q, k, s);
    });
    softmax_rows<Real, kEntropy>(block, sights, first, runs, panels, row, s, state, out);
    for_parts(sights, first, runs, [&](const Few& part, const Run& run) {
      const Span here = within_strip(part.all, first, kForwardStrip);
      const KeyRows<Real> v(p.dtype, p.v, p.v_strides, group, D, keys_of(part, first, kForwardStrip, run), v_memory);
      for (int64_t r = 0; r < block.count; ++r) {  // over the row's own span: a NaN beyond it stays away
        const Span seen = within_strip(part.keys[r], first, kForwardStrip);
        if (seen.empty()) continue;
        KeyRows<Real> own = v;
        own.data += (seen.from - here.from) * v.ld;
        weighted_sum(seen.to - seen.from, widths.columns, s + r * width + seen.from, own, out + r * row);
      }
    });
  });
  finish_rows<Real, kEntropy>(p, group, block, row, state, out);
}

template <class Products, bool kEntropy>
void forward(const EntropyAttentionForward& p) {
  using Real = typename Products::Real;
  const AttentionShape& shape = p.shape;
  const int64_t D = shape.head_size, groups = shape.batch * shape.kv_heads;
  if (few_rows(shape)) {
    for_tasks(groups, [&](int64_t i) {
      const Lease lease{own_scratch};
      const Group group(shape, i);
      for (const Span rows : Blocks<kFewRows>(shape, group.sequence.queries))
        forward_few<Real, kEntropy>(p, group, rows, own_scratch.get<Real>(few_scratch<Real>(D)));
    });
    return;
  }
  const int64_t blocks = Blocks<>(shape, shape.queries).count(), strips = parts(shape.keys, kForwardStrip);
  const int64_t strip_size = ForwardStrip<Products>::size(D);
  auto pack_strip = [&](const Group& group, int64_t i, Real* packed, Real* staging) {
    if (i * kForwardStrip < group.sequence.keys)
      ForwardStrip<Products>(packed + i * strip_size, D).pack(p, group, i * kForwardStrip, staging);
  };
  // Threads take whole groups where there are enough of them, else blocks of rows: it is the same arithmetic.
  const bool one_pass = blocks == 1 && shape.block_mask == nullptr;  // over the keys, a strip at a time
  if (blocks == 1 || groups >= 4 * threads()) {
    for_tasks(groups, [&](int64_t i) {
      const Lease lease{own_scratch};
      const Group group(shape, i);
      Real* scratch = own_scratch.get<Real>(forward_scratch<Products>(D) + (one_pass ? 1 : strips) * strip_size);
      Real *packed = scratch, *rest = scratch + (one_pass ? 1 : strips) * strip_size;
      if (!one_pass)
        for (int64_t strip = 0; strip < strips; ++strip) pack_strip(group, strip, packed, rest);
      for (const Span rows : Blocks<>(shape, group.sequence.queries))
        forward_block<Products, kEntropy>(p, group, rows, packed, !one_pass, rest);
      Products::end_task();
    });
    return;
  }
  const Lease lease{shared_scratch};
  Real* packed = shared_scratch.get<Real>(groups * strips * strip_size);
  for_tasks(groups * strips, [&](int64_t i) {
    pack_strip(Group(shape, i / strips), i % strips, packed + i / strips * strips * strip_size,
               own_scratch.get<Real>(forward_scratch<Products>(D)));
  });
  for_tasks(groups * blocks, [&](int64_t i) {
    const Group group(shape, i % groups);
    const Blocks<> blocks_of(shape, group.sequence.queries);
    const int64_t block = blocks - 1 - i / groups;  // causal: the last rows see most keys
    if (block < blocks_of.count() && !blocks_of[block].empty())
      forward_block<Products, kEntropy>(p, group, blocks_of[block], packed + i % groups * strips * strip_size, true,
                                        own_scratch.get<Real>(forward_scratch<Products>(D)));
    Products::end_task();
  });
}

template <class Products>
void forward(const EntropyAttentionForward& p) {
  p.entropy ? forward<Products, true>(p) : forward<Products, false>(p);
}

}  // namespace
}  // namespace attention

void entropy_attention_forward_cpu(const kernels::EntropyAttentionForward& p) {
  using namespace attention;
  if (p.dtype == DType::kDouble) return forward<PlainProducts<double>>(p);
  bool pairs = takes_pairs(p);
  for (int64_t i = 0; pairs && i < p.shape.batch * p.shape.kv_heads; ++i)
    pairs = keys_are_finite(p.v, p.v_strides, Group(p.shape, i), p.shape.head_size);
  if constexpr (kPairs)
    if (pairs) return forward<PairProducts>(p);
  forward<PlainProducts<float>>(p);
}

}  // namespace isentrope::ops::CPU_CAPABILITY
