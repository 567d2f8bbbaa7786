// The forward pass of entropy_attention on the CPU (csrc/ops/entropy_attention_rows.h).
#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/entropy_attention_cpu.h"
#include "csrc/ops/entropy_attention_few_rows.h"
#include "csrc/ops/entropy_attention_products.h"

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

// Scores in place: capped, then p = exp(s - m), 0 for what the row does not see.
template <class Real, bool kEntropy, int64_t kMost>
void softmax_rows(const Block<Real, kMost>& block, int64_t first, Span panels, int64_t row, Real* s,
                  Running<Real>* state, Real* out) {
  for (int64_t r = 0; r < block.count; ++r, s += kForwardStrip + kPad, out += row) {
    const Span seen = within_strip(block.keys[r], first, kForwardStrip), vectors = whole_vectors<Real>(seen, panels);
    if (block.capped) cap_row<Real>(s, vectors, block.factor[r], block.cap[r], nullptr);
    fill_unseen(s, seen, vectors, -kInfinity);
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
void forward_block(const EntropyAttentionForward& p, const Group& group, int64_t index, typename Products::Real* packed,
                   bool all_packed, typename Products::Real* scratch) {
  using Real = typename Products::Real;
  using Strip = ForwardStrip<Products>;
  const int64_t D = p.shape.head_size, row = Widths<Real>(D).row;
  const Block<Real> block(p, group, index);
  Real *q = scratch, *out = q + kRows * row, *staging = out + kRows * row, *s = staging + Products::kPanelKeys * row;
  Running<Real> state[kRows];
  std::memset(out, 0, block.count * row * sizeof(Real));
  if (!block.all.empty()) load_rows(p.dtype, p.q, p.q_strides, group, block, D, static_cast<const Real*>(nullptr), q);
  const auto* rows = Products::narrow(block.count, row, q);
  for (int64_t first = block.all.from / kForwardStrip * kForwardStrip; first < block.all.to; first += kForwardStrip) {
    const Strip strip(packed + (all_packed ? first / kForwardStrip * Strip::size(D) : 0), D);
    if (!all_packed) strip.pack(p, group, first, staging);
    const Span panels = whole_panels(within_strip(block.all, first, kForwardStrip), Products::kPanelKeys);
    Products::scores(block, first, kForwardStrip, panels, D, rows, strip.k_columns, s);
    softmax_rows<Real, kEntropy>(block, first, panels, row, s, state, out);
    Products::sum_over_keys(block, first, kForwardStrip, panels, D, *strip.finite != 0, s, strip.v_rows, out);
  }
  finish_rows<Real, kEntropy>(p, group, block, row, state, out);
}

template <class Real>
int64_t few_scratch(int64_t D) {
  return (2 * kFewRows + 2 * kForwardStrip) * Widths<Real>(D).row + kFewRows * (kForwardStrip + kPad);
}

// A whole group of at most kFewRows rows.
template <class Real, bool kEntropy>
void forward_few(const EntropyAttentionForward& p, const Group& group, Real* scratch) {
  const int64_t D = p.shape.head_size, width = kForwardStrip + kPad;
  const Widths<Real> widths(D);
  const int64_t row = widths.row;
  const Block<Real, kFewRows> block(p, group, 0);
  Real *q = scratch, *out = q + kFewRows * row, *k_memory = out + kFewRows * row,
       *v_memory = k_memory + kForwardStrip * row, *s = v_memory + kForwardStrip * row;
  Running<Real> state[kFewRows];
  std::memset(out, 0, block.count * row * sizeof(Real));
  if (!block.all.empty()) load_rows(p.dtype, p.q, p.q_strides, group, block, D, static_cast<const Real*>(nullptr), q);
  for (int64_t first = block.all.from / kForwardStrip * kForwardStrip; first < block.all.to; first += kForwardStrip) {
    const Span here = within_strip(block.all, first, kForwardStrip), keys{first + here.from, first + here.to};
    const Span panels = whole_panels(here, kPanel<Real>);
    const KeyRows<Real> k(p.dtype, p.k, p.k_strides, group, D, keys, k_memory),
        v(p.dtype, p.v, p.v_strides, group, D, keys, v_memory);
    few_scores(block, first, kForwardStrip, panels, D, q, k, s);
    softmax_rows<Real, kEntropy>(block, first, panels, row, s, state, out);
    for (int64_t r = 0; r < block.count; ++r) {  // over the row's own span: a NaN beyond it stays away
      const Span seen = within_strip(block.keys[r], first, kForwardStrip);
      if (seen.empty()) continue;
      KeyRows<Real> own = v;
      own.data += (seen.from - here.from) * v.ld;
      weighted_sum(seen.to - seen.from, widths.columns, s + r * width + seen.from, own, out + r * row);
    }
  }
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
      forward_few<Real, kEntropy>(p, Group(shape, i), own_scratch.get<Real>(few_scratch<Real>(D)));
    });
    return;
  }
  const int64_t blocks = parts(shape.heads / shape.kv_heads * shape.queries, kRows),
                strips = parts(shape.keys, kForwardStrip);
  const int64_t strip_size = ForwardStrip<Products>::size(D);
  auto pack_strip = [&](const Group& group, int64_t i, Real* packed, Real* staging) {
    if (i * kForwardStrip < group.sequence.keys)
      ForwardStrip<Products>(packed + i * strip_size, D).pack(p, group, i * kForwardStrip, staging);
  };
  // Threads take whole groups where there are enough of them, else blocks of rows: it is the same arithmetic.
  if (blocks == 1 || groups >= 4 * threads()) {
    for_tasks(groups, [&](int64_t i) {
      const Lease lease{own_scratch};
      const Group group(shape, i);
      Real* scratch = own_scratch.get<Real>(forward_scratch<Products>(D) + (blocks == 1 ? 1 : strips) * strip_size);
      Real *packed = scratch, *rest = scratch + (blocks == 1 ? 1 : strips) * strip_size;
      if (blocks > 1)
        for (int64_t strip = 0; strip < strips; ++strip) pack_strip(group, strip, packed, rest);
      for (int64_t block = 0; block * kRows < group.rows(); ++block)
        forward_block<Products, kEntropy>(p, group, block, packed, blocks > 1, rest);
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
    const int64_t block = blocks - 1 - i / groups;  // causal: the last rows see most keys
    if (block * kRows < group.rows())
      forward_block<Products, kEntropy>(p, group, block, packed + i % groups * strips * strip_size, true,
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
