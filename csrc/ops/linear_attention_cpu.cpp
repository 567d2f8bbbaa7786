// linear_attention on the CPU. A task is a key head of a sequence: its state stays in cache while the chunks go by.
#include "csrc/ops/linear_attention_cpu.h"

#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/recurrence_chunk.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace recurrence {
namespace {

using kernels::LinearAttentionBackward;
using kernels::LinearAttentionForward;

// ---- forward --------------------------------------------------------------------------------------------------------

template <class Real>
struct ForwardBlocks {
  Decays<Real> decays;
  Real *q, *k, *v, *out;  // [C, d or e]
  Real *k_columns, *v_rows, *scores;
  Real *S, *z;
  ForwardBlocks(const Sizes<Real>& s, Arena<Real>& arena)
      : decays(s, arena),
        q(arena.take(s.C * s.d)),
        k(arena.take(s.C * s.d)),
        v(arena.take(s.C * s.e)),
        out(arena.take(s.C * s.e)),
        k_columns(arena.take(s.C * s.D)),
        v_rows(arena.take(s.C * s.e)),
        scores(arena.take(s.C * s.c)),
        S(arena.take(s.D * s.e)),
        z(arena.take(s.d)) {}
};

// Divides the rows of out by their weights, and keeps those.
template <class Real>
void normalize(const LinearAttentionForward& p, const Sizes<Real>& s, const Steps& steps, int64_t i, int64_t first,
               int64_t count, const ForwardBlocks<Real>& b) {
  for (int64_t t = 0; t < count; ++t) {
    Real before = dot(s.d, b.q + t * s.d, b.z);
    if (b.decays.given) before *= b.decays.rise[t];
    const Real weight = before + row_sum(s.C, b.scores + t * s.c);
    scale_row(s.e, weight == 0 ? Real(0) : 1 / weight, b.out + t * s.e);
    static_cast<Real*>(p.weight)[steps.query(p.weight_strides, i, first + t)] = weight;
  }
}

template <class Real>
void forward_head(const LinearAttentionForward& p, int64_t index) {
  const Lease lease;
  const Steps steps(p.shape, index);
  const Sizes<Real> s(p.shape, steps.rows.count);
  auto b = workspace_of<ForwardBlocks<Real>, Real>(s);
  const int64_t columns = round_up(s.E, kLanes<Real>);
  read_state(p.state, s, index, p.normalizer, b.S, b.z);
  for (int64_t first = 0; first < steps.rows.count; first += p.shape.chunk) {
    const int64_t count = smaller(p.shape.chunk, steps.rows.count - first);
    const auto key = [&](const HeadStrides& x) { return [&](int64_t t) { return steps.key(x, first + t); }; };
    load_rows(p.dtype, p.k, count, s.D, s.d, key(p.k_strides), b.k);
    load_rows(p.dtype, p.v, count, s.E, s.e, key(p.v_strides), b.v);
    b.decays.read(p.log_decay, count, s.c, key(p.decay_strides));
    pack_transposed(count, s.D, b.k, s.d, b.k_columns);
    const bool finite = pack_rows(count, s.e, b.v, s.e, b.v_rows, s.C);
    for (int64_t i = 0; i < s.group; ++i) {
      const auto query = [&](const HeadStrides& x) {
        return [&, i](int64_t t) { return steps.query(x, i, first + t); };
      };
      load_rows(p.dtype, p.q, count, s.D, s.d, query(p.q_strides), b.q);
      lower_scores(s, count, s.D, b.q, s.d, b.k_columns, b.scores);
      weigh(s, count, b.decays, b.scores);
      state_product<false>(count, columns, s.D, b.q, s.d, b.S, b.out, s.e);
      if (b.decays.given)
        for (int64_t t = 0; t < count; ++t) scale_row(columns, b.decays.rise[t], b.out + t * s.e);
      lower_product<true>(s, count, columns, b.scores, b.v_rows, finite, b.out, s.e);
      if (p.normalizer) normalize(p, s, steps, i, first, count, b);
      store_rows(p.dtype, b.out, count, s.E, s.e, p.out, query(p.out_strides));
    }
    if (b.decays.given) {
      for (int64_t t = 0; t < count; ++t) scale_row(s.d, b.decays.fall[t], b.k + t * s.d);
      scale_row(s.D * s.e, b.decays.total, b.S);
      scale_row(s.d, b.decays.total, b.z);
    }
    add_to_state(count, columns, s.D, b.k, s.d, b.v_rows, s.C, b.S);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t) add_row(s.d, Real(1), b.k + t * s.d, b.z);
  }
  write_state(b.S, b.z, s, index, p.normalizer, p.last_state);
  if (p.shape.cu_seqlens != nullptr) return;
  std::memset(b.out, 0, s.e * sizeof(Real));
  for (int64_t t = steps.rows.count; t < p.shape.steps; ++t)
    for (int64_t i = 0; i < s.group; ++i) {
      store_row(p.dtype, b.out, s.E, p.out, steps.query(p.out_strides, i, t));
      if (p.normalizer) static_cast<Real*>(p.weight)[steps.query(p.weight_strides, i, t)] = 0;
    }
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <class Real>
struct BackwardBlocks {
  Decays<Real> decays;
  Real *q, *k, *v, *dq, *dk, *dv, *dout, *of_state;  // [C, d or e]; of_state [C, the larger]
  Real *k_columns, *v_columns, *k_rows, *q_rows, *dout_rows;
  Real *scores, *dscores;     // [C, c]
  Real *S, *dS, *transposed;  // dS and its transpose
  Real *z, *dz, *staging;
  Real *dweight, *columns_sum;  // [C]
  Real* before;                 // [chunks] the transposed state before each, and its z
  int64_t state_size;
  BackwardBlocks(const Sizes<Real>& s, Arena<Real>& arena) : decays(s, arena) {
    Real **keys[] = {&q, &k, &dq, &dk, &k_rows, &q_rows}, **values[] = {&v, &dv, &dout, &dout_rows};
    for (Real** x : keys) *x = arena.take(s.C * s.d);
    for (Real** x : values) *x = arena.take(s.C * s.e);
    of_state = arena.take(s.C * (s.d > s.e ? s.d : s.e));
    k_columns = arena.take(s.C * s.D), v_columns = arena.take(s.C * s.E);
    scores = arena.take(s.C * s.c), dscores = arena.take(s.C * s.c);
    S = arena.take(s.D * s.e), dS = arena.take(s.D * s.e), transposed = arena.take(s.E * s.d);
    z = arena.take(s.d), dz = arena.take(s.d), staging = arena.take(kPanel<Real> * kPanel<Real>);
    dweight = arena.take(s.C), columns_sum = arena.take(s.C);
    state_size = s.E * s.d + s.d;
    before = arena.take(s.chunks * state_size);
  }
};

// The states before the chunks, transposed, and their z.
template <class Real>
void run_forward(const LinearAttentionBackward& p, const Sizes<Real>& s, const Steps& steps, int64_t index,
                 BackwardBlocks<Real>& b) {
  const int64_t columns = round_up(s.D, kLanes<Real>);
  read_state(p.state, s, index, p.normalizer, b.S, b.z);
  transpose_state(s.D, s.E, b.S, b.before, b.staging);
  std::memcpy(b.before + s.E * s.d, b.z, s.d * sizeof(Real));
  for (int64_t chunk = 0; chunk + 1 < s.chunks; ++chunk) {
    const int64_t first = chunk * p.shape.chunk, count = p.shape.chunk;
    Real *state = b.before + (chunk + 1) * b.state_size, *z = state + s.E * s.d;
    std::memcpy(state, state - b.state_size, b.state_size * sizeof(Real));
    const auto key = [&](const HeadStrides& x) { return [&](int64_t t) { return steps.key(x, first + t); }; };
    load_rows(p.dtype, p.k, count, s.D, s.d, key(p.k_strides), b.k);
    load_rows(p.dtype, p.v, count, s.E, s.e, key(p.v_strides), b.v);
    if (p.log_decay != nullptr) {
      b.decays.read(p.log_decay, count, s.c, key(p.decay_strides), /*pairs=*/false);
      for (int64_t t = 0; t < count; ++t) scale_row(s.d, b.decays.fall[t], b.k + t * s.d);
      scale_row(b.state_size, b.decays.total, state);
    }
    pack_rows(count, s.d, b.k, s.d, b.k_rows, s.C);
    add_to_state(count, columns, s.E, b.v, s.e, b.k_rows, s.C, state);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t) add_row(s.d, Real(1), b.k + t * s.d, z);
  }
}

// dout and, with normalizer, the gradient of the rows' weights: of out = n / weight those of n and weight.
template <class Real, class At, class OutAt, class WeightAt>
void load_dout(const LinearAttentionBackward& p, const Sizes<Real>& s, int64_t count, const At& at, const OutAt& out_at,
               const WeightAt& weight_at, BackwardBlocks<Real>& b) {
  load_rows(p.dtype, p.dout, count, s.E, s.e, at, b.dout);
  if (!p.normalizer) return;
  load_rows(p.dtype, p.out, count, s.E, s.e, out_at, b.of_state);
  for (int64_t t = 0; t < count; ++t) {
    const Real weight = static_cast<const Real*>(p.weight)[weight_at(t)], inverse = weight == 0 ? Real(0) : 1 / weight;
    b.dweight[t] = -dot(s.e, b.dout + t * s.e, b.of_state + t * s.e) * inverse;
    scale_row(s.e, inverse, b.dout + t * s.e);
  }
}

template <class Real>
void backward_chunk(const LinearAttentionBackward& p, const Sizes<Real>& s, const Steps& steps, int64_t chunk,
                    BackwardBlocks<Real>& b) {
  const int64_t first = chunk * p.shape.chunk, count = smaller(p.shape.chunk, steps.rows.count - first);
  const int64_t keys = round_up(s.D, kLanes<Real>), values = round_up(s.E, kLanes<Real>);
  const Real *state = b.before + chunk * b.state_size, *z = state + s.E * s.d;
  const auto key = [&](const HeadStrides& x) { return [&](int64_t t) { return steps.key(x, first + t); }; };
  load_rows(p.dtype, p.k, count, s.D, s.d, key(p.k_strides), b.k);
  load_rows(p.dtype, p.v, count, s.E, s.e, key(p.v_strides), b.v);
  b.decays.read(p.log_decay, count, s.c, key(p.decay_strides));
  const bool given = b.decays.given;
  pack_transposed(count, s.D, b.k, s.d, b.k_columns);
  pack_transposed(count, s.E, b.v, s.e, b.v_columns);
  const bool k_finite = pack_rows(count, s.d, b.k, s.d, b.k_rows, s.C);

  // What the state after the chunk gives to k and v.
  DecayTerms terms = {};
  transpose_state(s.D, s.E, b.dS, b.transposed, b.staging);
  state_product<false>(count, values, s.D, b.k, s.d, b.dS, b.dv, s.e);
  state_product<false>(count, keys, s.E, b.v, s.e, b.transposed, b.dk, s.d);
  for (int64_t t = 0; t < count; ++t) {
    if (p.normalizer) add_row(keys, Real(1), b.dz, b.dk + t * s.d);
    if (!given) continue;
    scale_row(values, b.decays.fall[t], b.dv + t * s.e);
    scale_row(keys, b.decays.fall[t], b.dk + t * s.d);
    terms.falling[t] = dot(keys, b.k + t * s.d, b.dk + t * s.d);
  }
  if (given) {
    terms.through = static_cast<double>(dot(s.E * s.d, state, b.transposed)) * b.decays.total;
    if (p.normalizer) terms.through += static_cast<double>(dot(s.d, z, b.dz)) * b.decays.total;
    scale_row(s.D * s.e, b.decays.total, b.dS);
    scale_row(s.d, b.decays.total, b.dz);
  }

  for (int64_t i = 0; i < s.group; ++i) {
    const auto query = [&](const HeadStrides& x) { return [&, i](int64_t t) { return steps.query(x, i, first + t); }; };
    load_rows(p.dtype, p.q, count, s.D, s.d, query(p.q_strides), b.q);
    load_dout(p, s, count, query(p.dout_strides), query(p.out_strides), query(p.weight_strides), b);
    const bool q_finite = pack_rows(count, s.d, b.q, s.d, b.q_rows, s.C);
    const bool dout_finite = pack_rows(count, s.e, b.dout, s.e, b.dout_rows, s.C);
    lower_scores(s, count, s.D, b.q, s.d, b.k_columns, b.scores);
    lower_scores(s, count, s.E, b.dout, s.e, b.v_columns, b.dscores);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t)
        for (int64_t j = 0; j <= t; ++j) b.dscores[t * s.c + j] += b.dweight[t];
    weigh(s, count, b.decays, b.scores);
    if (given) add_between(s, count, b.scores, b.dscores, b.columns_sum, terms.between);
    weigh(s, count, b.decays, b.dscores);

    state_product<false>(count, keys, s.E, b.dout, s.e, state, b.dq, s.d);
    for (int64_t t = 0; t < count; ++t) {
      if (p.normalizer) add_row(keys, b.dweight[t], z, b.dq + t * s.d);
      if (!given) continue;
      scale_row(keys, b.decays.rise[t], b.dq + t * s.d);
      terms.rising[t] += dot(keys, b.q + t * s.d, b.dq + t * s.d);
      scale_row(s.d, b.decays.rise[t], b.q + t * s.d);
    }
    lower_product<true>(s, count, keys, b.dscores, b.k_rows, k_finite, b.dq, s.d);
    upper_product(s, count, values, b.scores, b.dout_rows, dout_finite, b.dv, s.e);
    upper_product(s, count, keys, b.dscores, b.q_rows, q_finite, b.dk, s.d);
    add_to_state(count, values, s.D, b.q, s.d, b.dout_rows, s.C, b.dS);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t) add_row(s.d, b.dweight[t], b.q + t * s.d, b.dz);
    store_rows(p.dtype, b.dq, count, s.D, s.d, p.dq, query(p.dq_strides));
  }
  store_rows(p.dtype, b.dk, count, s.D, s.d, p.dk, key(p.dk_strides));
  store_rows(p.dtype, b.dv, count, s.E, s.e, p.dv, key(p.dv_strides));
  if (p.dlog_decay != nullptr) store_ddecay(terms, count, static_cast<Real*>(p.dlog_decay), key(p.ddecay_strides));
}

template <class Real>
void backward_head(const LinearAttentionBackward& p, int64_t index) {
  const Lease lease;
  const Steps steps(p.shape, index);
  const Sizes<Real> s(p.shape, steps.rows.count > 0 ? steps.rows.count : 1);
  auto b = workspace_of<BackwardBlocks<Real>, Real>(s);
  if (steps.rows.count > 0) run_forward(p, s, steps, index, b);
  read_state(p.dlast_state, s, index, p.normalizer, b.dS, b.dz);
  for (int64_t chunk = parts(steps.rows.count, p.shape.chunk) - 1; chunk >= 0; --chunk)
    backward_chunk(p, s, steps, chunk, b);
  if (p.dstate != nullptr) write_state(b.dS, b.dz, s, index, p.normalizer, p.dstate);
  if (p.shape.cu_seqlens != nullptr) return;
  std::memset(b.dk, 0, s.d * sizeof(Real));
  std::memset(b.dv, 0, s.e * sizeof(Real));
  for (int64_t t = steps.rows.count; t < p.shape.steps; ++t) {
    for (int64_t i = 0; i < s.group; ++i) store_row(p.dtype, b.dk, s.D, p.dq, steps.query(p.dq_strides, i, t));
    store_row(p.dtype, b.dk, s.D, p.dk, steps.key(p.dk_strides, t));
    store_row(p.dtype, b.dv, s.E, p.dv, steps.key(p.dv_strides, t));
    if (p.dlog_decay != nullptr) static_cast<Real*>(p.dlog_decay)[steps.key(p.ddecay_strides, t)] = 0;
  }
}

}  // namespace
}  // namespace recurrence

void linear_attention_forward_cpu(const kernels::LinearAttentionForward& p) {
  for_tasks(p.shape.sequences * p.shape.kv_heads, [&](int64_t i) {
    p.dtype == DType::kDouble ? recurrence::forward_head<double>(p, i) : recurrence::forward_head<float>(p, i);
  });
}

// The gradient has more of the triangular products, and is a tenth faster with chunks of 32.
void linear_attention_backward_cpu(const kernels::LinearAttentionBackward& parameters) {
  kernels::LinearAttentionBackward p = parameters;
  p.shape.chunk = recurrence::smaller(p.shape.chunk, 32);
  for_tasks(p.shape.sequences * p.shape.kv_heads, [&](int64_t i) {
    p.dtype == DType::kDouble ? recurrence::backward_head<double>(p, i) : recurrence::backward_head<float>(p, i);
  });
}

}  // namespace isentrope::ops::CPU_CAPABILITY
