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
               int64_t count, const ForwardBlocks<Real>& b, const Rows<const Real>& q, const Rows<Real>& out) {
  for (int64_t t = 0; t < count; ++t) {
    Real before = dot(s.d, q[t], b.z);
    if (b.decays.given) before *= b.decays.rise[t];
    const Real weight = before + row_sum(s.C, b.scores + t * s.c);
    scale_row(s.e, weight == 0 ? Real(0) : 1 / weight, out[t]);
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
    Ahead ahead;
    auto k = rows_of(p.dtype, p.k, p.k_strides.row, count, s.D, s.d, key(p.k_strides), b.k, /*filled=*/true);
    const auto v = rows_of(p.dtype, p.v, p.v_strides.row, count, s.E, s.e, key(p.v_strides), b.v);
    b.decays.read(p.log_decay, count, s.c, key(p.decay_strides));
    pack_transposed(count, s.D, k.data, k.width, b.k_columns);
    const bool finite = pack_rows(count, s.e, v.data, v.width, b.v_rows, s.C);
    for (int64_t i = 0; i < s.group; ++i) {
      const auto query = [&](const HeadStrides& x) {
        return [&, i](int64_t t) { return steps.query(x, i, first + t); };
      };
      ask_forward(p, s, steps, first, count, i, ahead);
      const auto q = rows_of(p.dtype, p.q, p.q_strides.row, count, s.D, s.d, query(p.q_strides), b.q);
      const auto out = target_of(p.dtype, p.out, p.out_strides.row, s.E, s.e, query(p.out_strides), b.out);
      lower_scores(s, count, s.D, q.data, q.width, b.k_columns, b.scores, &ahead);
      weigh(s, count, b.decays, b.scores);
      state_product<false>(count, columns, s.D, q.data, q.width, b.S, out.data, out.width, &ahead);
      if (b.decays.given)
        for (int64_t t = 0; t < count; ++t) scale_row(columns, b.decays.rise[t], out[t]);
      lower_product<true>(s, count, columns, b.scores, b.v_rows, finite, out.data, out.width, &ahead);
      if (p.normalizer) normalize(p, s, steps, i, first, count, b, q, out);
      store_rows(p.dtype, out, count, s.E, s.e, p.out, query(p.out_strides));
    }
    if (b.decays.given) {
      for (int64_t t = 0; t < count; ++t) scaled_row(s.d, b.decays.fall[t], k[t], b.k + t * s.d);
      k = {b.k, s.d};
      scale_row(s.D * s.e, b.decays.total, b.S);
      scale_row(s.d, b.decays.total, b.z);
    }
    add_to_state(count, columns, s.D, k.data, k.width, b.v_rows, s.C, b.S, &ahead);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t) add_row(s.d, Real(1), k[t], b.z);
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
    const int64_t count = p.shape.chunk, first = chunk * count, next = first + count;
    const int64_t later = smaller(count, steps.rows.count - next);
    const Real* last = b.before + chunk * b.state_size;
    Real *state = b.before + (chunk + 1) * b.state_size, *z = state + s.E * s.d;
    Ahead ahead;
    ahead.add(p.dtype, p.k, steps.key(p.k_strides, next), p.k_strides.row, later, s.D);
    ahead.add(p.dtype, p.v, steps.key(p.v_strides, next), p.v_strides.row, later, s.E);
    const auto key = [&](const HeadStrides& x) { return [&](int64_t t) { return steps.key(x, first + t); }; };
    auto k = rows_of(p.dtype, p.k, p.k_strides.row, count, s.D, s.d, key(p.k_strides), b.k);
    const auto v = rows_of(p.dtype, p.v, p.v_strides.row, count, s.E, s.e, key(p.v_strides), b.v);
    if (p.log_decay != nullptr) {
      b.decays.read(p.log_decay, count, s.c, key(p.decay_strides), /*pairs=*/false);
      for (int64_t t = 0; t < count; ++t) scaled_row(s.d, b.decays.fall[t], k[t], b.k + t * s.d);
      k = {b.k, s.d};
      scaled_row(b.state_size, b.decays.total, last, state);
    } else {
      std::memcpy(state, last, b.state_size * sizeof(Real));
    }
    pack_rows(count, s.d, k.data, k.width, b.k_rows, s.C);
    add_to_state(count, columns, s.E, v.data, v.width, b.k_rows, s.C, state, &ahead);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t) add_row(s.d, Real(1), k[t], z);
  }
}

// dout and, with normalizer, the gradient of the rows' weights: of out = n / weight those of n and weight.
template <class Real, class At, class OutAt, class WeightAt>
Rows<const Real> load_dout(const LinearAttentionBackward& p, const Sizes<Real>& s, int64_t count, const At& at,
                           const OutAt& out_at, const WeightAt& weight_at, BackwardBlocks<Real>& b) {
  if (!p.normalizer) return rows_of(p.dtype, p.dout, p.dout_strides.row, count, s.E, s.e, at, b.dout);
  load_rows(p.dtype, p.dout, count, s.E, s.e, at, b.dout);
  load_rows(p.dtype, p.out, count, s.E, s.e, out_at, b.of_state);
  for (int64_t t = 0; t < count; ++t) {
    const Real weight = static_cast<const Real*>(p.weight)[weight_at(t)], inverse = weight == 0 ? Real(0) : 1 / weight;
    b.dweight[t] = -dot(s.e, b.dout + t * s.e, b.of_state + t * s.e) * inverse;
    scale_row(s.e, inverse, b.dout + t * s.e);
  }
  return {b.dout, s.e};
}

template <class Real>
void backward_chunk(const LinearAttentionBackward& p, const Sizes<Real>& s, const Steps& steps, int64_t chunk,
                    BackwardBlocks<Real>& b) {
  const int64_t first = chunk * p.shape.chunk, count = smaller(p.shape.chunk, steps.rows.count - first);
  const int64_t keys = round_up(s.D, kLanes<Real>), values = round_up(s.E, kLanes<Real>);
  const Real *state = b.before + chunk * b.state_size, *z = state + s.E * s.d;
  const auto key = [&](const HeadStrides& x) { return [&](int64_t t) { return steps.key(x, first + t); }; };
  Ahead ahead;
  ask_backward(p, s, steps, first, count, 0, b.before, b.state_size, ahead);
  const auto k = rows_of(p.dtype, p.k, p.k_strides.row, count, s.D, s.d, key(p.k_strides), b.k, /*filled=*/true);
  const auto v = rows_of(p.dtype, p.v, p.v_strides.row, count, s.E, s.e, key(p.v_strides), b.v, /*filled=*/true);
  const auto dk = target_of(p.dtype, p.dk, p.dk_strides.row, s.D, s.d, key(p.dk_strides), b.dk);
  const auto dv = target_of(p.dtype, p.dv, p.dv_strides.row, s.E, s.e, key(p.dv_strides), b.dv);
  b.decays.read(p.log_decay, count, s.c, key(p.decay_strides));
  const bool given = b.decays.given;
  pack_transposed(count, s.D, k.data, k.width, b.k_columns);
  pack_transposed(count, s.E, v.data, v.width, b.v_columns);
  const bool k_finite = pack_rows(count, s.d, k.data, k.width, b.k_rows, s.C);

  // What the state after the chunk gives to k and v.
  DecayTerms terms = {};
  transpose_state(s.D, s.E, b.dS, b.transposed, b.staging);
  state_product<false>(count, values, s.D, k.data, k.width, b.dS, dv.data, dv.width, &ahead);
  state_product<false>(count, keys, s.E, v.data, v.width, b.transposed, dk.data, dk.width, &ahead);
  for (int64_t t = 0; t < count; ++t) {
    if (p.normalizer) add_row(keys, Real(1), b.dz, dk[t]);
    if (!given) continue;
    scale_row(values, b.decays.fall[t], dv[t]);
    scale_row(keys, b.decays.fall[t], dk[t]);
    terms.falling[t] = dot(keys, k[t], dk[t]);
  }
  if (given) {
    terms.through = static_cast<double>(dot(s.E * s.d, state, b.transposed)) * b.decays.total;
    if (p.normalizer) terms.through += static_cast<double>(dot(s.d, z, b.dz)) * b.decays.total;
    scale_row(s.D * s.e, b.decays.total, b.dS);
    scale_row(s.d, b.decays.total, b.dz);
  }

  for (int64_t i = 0; i < s.group; ++i) {
    const auto query = [&](const HeadStrides& x) { return [&, i](int64_t t) { return steps.query(x, i, first + t); }; };
    if (i > 0) ask_backward(p, s, steps, first, count, i, b.before, b.state_size, ahead);
    auto q = rows_of(p.dtype, p.q, p.q_strides.row, count, s.D, s.d, query(p.q_strides), b.q);
    const auto dout = load_dout(p, s, count, query(p.dout_strides), query(p.out_strides), query(p.weight_strides), b);
    const auto dq = target_of(p.dtype, p.dq, p.dq_strides.row, s.D, s.d, query(p.dq_strides), b.dq);
    const bool q_finite = pack_rows(count, s.d, q.data, q.width, b.q_rows, s.C);
    const bool dout_finite = pack_rows(count, s.e, dout.data, dout.width, b.dout_rows, s.C);
    lower_scores(s, count, s.D, q.data, q.width, b.k_columns, b.scores, &ahead);
    lower_scores(s, count, s.E, dout.data, dout.width, b.v_columns, b.dscores, &ahead);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t)
        for (int64_t j = 0; j <= t; ++j) b.dscores[t * s.c + j] += b.dweight[t];
    weigh(s, count, b.decays, b.scores);
    if (given) add_between(s, count, b.scores, b.dscores, b.columns_sum, terms.between);
    weigh(s, count, b.decays, b.dscores);

    state_product<false>(count, keys, s.E, dout.data, dout.width, state, dq.data, dq.width, &ahead);
    for (int64_t t = 0; t < count; ++t) {
      if (p.normalizer) add_row(keys, b.dweight[t], z, dq[t]);
      if (!given) continue;
      scale_row(keys, b.decays.rise[t], dq[t]);
      terms.rising[t] += dot(keys, q[t], dq[t]);
      scaled_row(s.d, b.decays.rise[t], q[t], b.q + t * s.d);
    }
    if (given) q = {b.q, s.d};
    lower_product<true>(s, count, keys, b.dscores, b.k_rows, k_finite, dq.data, dq.width, &ahead);
    upper_product(s, count, values, b.scores, b.dout_rows, dout_finite, dv.data, dv.width, &ahead);
    upper_product(s, count, keys, b.dscores, b.q_rows, q_finite, dk.data, dk.width, &ahead);
    add_to_state(count, values, s.D, q.data, q.width, b.dout_rows, s.C, b.dS, &ahead);
    if (p.normalizer)
      for (int64_t t = 0; t < count; ++t) add_row(s.d, b.dweight[t], q[t], b.dz);
    store_rows(p.dtype, dq, count, s.D, s.d, p.dq, query(p.dq_strides));
  }
  store_rows(p.dtype, dk, count, s.D, s.d, p.dk, key(p.dk_strides));
  store_rows(p.dtype, dv, count, s.E, s.e, p.dv, key(p.dv_strides));
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

// Chunks of 32 have half of the triangular products of those of 64, and all that a chunk reads stays in the first cache.
template <class Parameters>
Parameters with_short_chunks(Parameters p) {
  p.shape.chunk = smaller(p.shape.chunk, 32);
  return p;
}

}  // namespace
}  // namespace recurrence

void linear_attention_forward_cpu(const kernels::LinearAttentionForward& parameters) {
  const kernels::LinearAttentionForward p = recurrence::with_short_chunks(parameters);
  for_tasks(p.shape.sequences * p.shape.kv_heads, [&](int64_t i) {
    p.dtype == DType::kDouble ? recurrence::forward_head<double>(p, i) : recurrence::forward_head<float>(p, i);
  });
}

void linear_attention_backward_cpu(const kernels::LinearAttentionBackward& parameters) {
  const kernels::LinearAttentionBackward p = recurrence::with_short_chunks(parameters);
  for_tasks(p.shape.sequences * p.shape.kv_heads, [&](int64_t i) {
    p.dtype == DType::kDouble ? recurrence::backward_head<double>(p, i) : recurrence::backward_head<float>(p, i);
  });
}

}  // namespace isentrope::ops::CPU_CAPABILITY
