// gated_delta_rule on the CPU. A task is a key head of a sequence: its state stays in cache while the chunks go by.
#include "csrc/ops/gated_delta_rule_cpu.h"

#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/recurrence_chunk.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace recurrence {
namespace {

using kernels::GatedDeltaBackward;
using kernels::GatedDeltaForward;

constexpr int64_t kSolveRows = 16;  // solved row by row; what lies before them by products

// ---- what both directions compute of a chunk ------------------------------------------------------------------------

template <class Real>
struct ChunkBlocks {
  Decays<Real> decays;
  Real *q, *k, *x,
      *u;  // [C, d or e]; x: X; k: the keys where they have to be moved, then what next_state makes of them
  Rows<const Real> keys;
  Real* beta;  // [C]
  Real *k_columns, *u_rows;
  Real *minus_l, *scores;  // [C, c]; -L below the diagonal
  Real* S;
  ChunkBlocks(const Sizes<Real>& s, Arena<Real>& arena)
      : decays(s, arena),
        q(arena.take(s.C * s.d)),
        k(arena.take(s.C * s.d)),
        x(arena.take(s.C * s.e)),
        u(arena.take(s.C * s.e)),
        beta(arena.take(s.C)),
        k_columns(arena.take(s.C * s.D)),
        u_rows(arena.take(s.C * s.e)),
        minus_l(arena.take(s.C * s.c)),
        scores(arena.take(s.C * s.c)),
        S(arena.take(s.D * s.e)) {}
};

// (I + L) U = U in place, from the first row on; U is left in panels too. Returns whether it is finite.
template <class Real>
bool solve_lower(const Sizes<Real>& s, int64_t count, int64_t columns, const Real* minus_l, Real* u, Real* u_rows) {
  bool finite = true;
  for (int64_t first = 0; first < count; first += kSolveRows) {
    const int64_t rows = smaller(kSolveRows, count - first);
    if (first > 0)
      product<false, true>(rows, columns, kTile, minus_l + first * s.c, s.c, u_rows, s.C * kPanel<Real>,
                           u + first * s.e, s.e, [first](int64_t, int64_t) {
                             return Span{0, first};
                           });
    for (int64_t i = first; i < first + rows; ++i)
      for (int64_t j = first; j < i; ++j) add_row(columns, minus_l[i * s.c + j], u + j * s.e, u + i * s.e);
    finite &= pack_rows(rows, s.e, u + first * s.e, s.e, u_rows + first * kPanel<Real>, s.C);
  }
  return finite;
}

// (I + L)ᵀ Y = Y in place, from the last row back.
template <class Real>
void solve_upper(const Sizes<Real>& s, int64_t count, int64_t columns, const Real* minus_l, const Rows<Real>& y,
                 Real* y_rows) {
  for (int64_t first = (count - 1) / kSolveRows * kSolveRows; first >= 0; first -= kSolveRows) {
    const int64_t end = smaller(first + kSolveRows, count);
    if (end < count)
      product<true, true>(end - first, columns, kTile, minus_l + first, s.c, y_rows, s.C * kPanel<Real>, y[first],
                          y.width, [=](int64_t, int64_t) {
                            return Span{end, count};
                          });
    for (int64_t i = end - 1; i >= first; --i)
      for (int64_t j = i + 1; j < end; ++j) add_row(columns, minus_l[j * s.c + i], y[j], y[i]);
    pack_rows(end - first, s.e, y[first], y.width, y_rows + first * kPanel<Real>, s.C);
  }
}

// The chunk's keys, values and β, L, X and U with the state S before it. Returns whether U is finite.
template <class Real, class Parameters>
bool read_chunk(const Parameters& p, const Sizes<Real>& s, const Steps& steps, int64_t first, int64_t count,
                const Real* S, ChunkBlocks<Real>& b, Ahead* ahead) {
  const int64_t values = round_up(s.E, kLanes<Real>);
  const auto key = [&](const HeadStrides& x) {
    return [&steps, &x, first](int64_t t) { return steps.key(x, first + t); };
  };
  b.keys = rows_of(p.dtype, p.k, p.k_strides.row, count, s.D, s.d, key(p.k_strides), b.k, /*filled=*/true);
  const auto v = rows_of(p.dtype, p.v, p.v_strides.row, count, s.E, s.e, key(p.v_strides), b.x);
  b.decays.read(p.log_decay, count, s.c, key(p.decay_strides));
  pack_transposed(count, s.D, b.keys.data, b.keys.width, b.k_columns);
  lower_scores(s, count, s.D, b.keys.data, b.keys.width, b.k_columns, b.minus_l, ahead);
  weigh(s, count, b.decays, b.minus_l, /*strict=*/true);
  state_product<false>(count, values, s.D, b.keys.data, b.keys.width, S, b.u, s.e, ahead);
  for (int64_t t = 0; t < count; ++t) {
    b.beta[t] = static_cast<const Real*>(p.beta)[steps.key(p.beta_strides, first + t)];
    scale_row(s.C, -b.beta[t], b.minus_l + t * s.c);
    sum_of_rows(values, v[t], -b.decays.rise[t], b.u + t * s.e, b.x + t * s.e);
    scaled_row(s.e, b.beta[t], b.x + t * s.e, b.u + t * s.e);
  }
  std::memset(b.u + count * s.e, 0, (s.C - count) * s.e * sizeof(Real));
  return solve_lower(s, count, values, b.minus_l, b.u, b.u_rows);
}

template <class Real, class Parameters>
Real write_of(const Parameters& p, int64_t index, int64_t chunk) {
  if (p.write == nullptr) return 1;
  return static_cast<const Real*>(p.write)[index * parts(p.shape.steps, p.shape.chunk) + chunk];
}

// S ← exp(b_C) S + write (fall ⊙ K)ᵀ U. Nothing is added of a gate of 0, be U what it may.
template <class Real>
void next_state(const Sizes<Real>& s, int64_t count, Real write, const ChunkBlocks<Real>& b, Real* S, Ahead* ahead) {
  if (b.decays.given) scale_row(s.D * s.e, b.decays.total, S);
  if (write == 0) return;
  for (int64_t t = 0; t < count; ++t) scaled_row(s.d, write * b.decays.fall[t], b.keys[t], b.k + t * s.d);
  add_to_state(count, round_up(s.E, kLanes<Real>), s.D, b.k, s.d, b.u_rows, s.C, S, ahead);
}

// ---- forward --------------------------------------------------------------------------------------------------------

template <class Real>
struct ForwardBlocks : ChunkBlocks<Real> {
  Real* out;  // [C, e]
  ForwardBlocks(const Sizes<Real>& s, Arena<Real>& arena) : ChunkBlocks<Real>(s, arena), out(arena.take(s.C * s.e)) {}
};

template <class Real>
void forward_head(const GatedDeltaForward& p, int64_t index) {
  const Lease lease;
  const Steps steps(p.shape, index);
  const Sizes<Real> s(p.shape, steps.rows.count);
  auto b = workspace_of<ForwardBlocks<Real>, Real>(s);
  const int64_t values = round_up(s.E, kLanes<Real>);
  read_state<Real>(p.state, s, index, 0, b.S, nullptr);
  for (int64_t chunk = 0; chunk < s.chunks; ++chunk) {
    const int64_t first = chunk * p.shape.chunk, count = smaller(p.shape.chunk, steps.rows.count - first);
    Ahead ahead;
    ask_forward(p, s, steps, first, count, 0, ahead);
    const bool finite = read_chunk(p, s, steps, first, count, b.S, b, &ahead);
    for (int64_t i = 0; i < s.group; ++i) {
      const auto query = [&](const HeadStrides& x) {
        return [&, i](int64_t t) { return steps.query(x, i, first + t); };
      };
      if (i > 0) ask_forward(p, s, steps, first, count, i, ahead);
      const auto q = rows_of(p.dtype, p.q, p.q_strides.row, count, s.D, s.d, query(p.q_strides), b.q);
      const auto out = target_of(p.dtype, p.out, p.out_strides.row, s.E, s.e, query(p.out_strides), b.out);
      lower_scores(s, count, s.D, q.data, q.width, b.k_columns, b.scores, &ahead);
      weigh(s, count, b.decays, b.scores);
      state_product<false>(count, values, s.D, q.data, q.width, b.S, out.data, out.width, &ahead);
      if (b.decays.given)
        for (int64_t t = 0; t < count; ++t) scale_row(values, b.decays.rise[t], out[t]);
      lower_product<true>(s, count, values, b.scores, b.u_rows, finite, out.data, out.width, &ahead);
      store_rows(p.dtype, out, count, s.E, s.e, p.out, query(p.out_strides));
    }
    next_state(s, count, write_of<Real>(p, index, chunk), b, b.S, &ahead);
  }
  write_state<Real>(b.S, nullptr, s, index, 0, p.last_state);
  if (p.shape.cu_seqlens != nullptr) return;
  std::memset(b.out, 0, s.e * sizeof(Real));
  for (int64_t t = steps.rows.count; t < p.shape.steps; ++t)
    for (int64_t i = 0; i < s.group; ++i) store_row(p.dtype, b.out, s.E, p.out, steps.query(p.out_strides, i, t));
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <class Real>
struct BackwardBlocks : ChunkBlocks<Real> {
  Real *dq, *dk, *du, *dout, *of_keys;  // [C, d or e]; of_keys [C, d]
  Rows<Real> dkeys, y;                  // in dk and du, or where they are wanted; y: dU, then Y, then dV
  Real *k_rows, *q_rows, *dout_rows, *dx_rows, *u_columns;
  Real *dscores, *columns_sum;  // [C, c], [C]
  Real *dS, *transposed, *dS_transposed, *staging;
  Real* dbeta;   // [C]
  Real* before;  // [chunks, D · e] the state before each
  int64_t state_size;
  BackwardBlocks(const Sizes<Real>& s, Arena<Real>& arena) : ChunkBlocks<Real>(s, arena) {
    Real **keys[] = {&dq, &dk, &of_keys, &k_rows, &q_rows}, **values[] = {&du, &dout, &dout_rows, &dx_rows};
    for (Real** x : keys) *x = arena.take(s.C * s.d);
    for (Real** x : values) *x = arena.take(s.C * s.e);
    u_columns = arena.take(s.C * s.E);
    dscores = arena.take(s.C * s.c), columns_sum = arena.take(s.C);
    dS = arena.take(s.D * s.e), transposed = arena.take(s.E * s.d), dS_transposed = arena.take(s.E * s.d);
    staging = arena.take(kPanel<Real> * kPanel<Real>);
    dbeta = arena.take(s.C);
    state_size = s.D * s.e;
    before = arena.take((s.chunks > 0 ? s.chunks : 1) * state_size);
  }
};

// What dL gives: to β, the keys as rows and as columns of L, and the decays between. Y in du.
template <class Real>
void add_solve_gradient(const Sizes<Real>& s, int64_t count, bool k_finite, DecayTerms& terms, BackwardBlocks<Real>& b,
                        Ahead* ahead) {
  const int64_t keys = round_up(s.D, kLanes<Real>);
  lower_scores(s, count, s.E, b.y.data, b.y.width, b.u_columns, b.dscores, ahead);  // Y Uᵀ = -dL
  if (b.decays.given) add_between(s, count, b.minus_l, b.dscores, b.columns_sum, terms.between);
  weigh(s, count, b.decays, b.dscores, /*strict=*/true);
  lower_product<false>(s, count, keys, b.dscores, b.k_rows, k_finite, b.of_keys, s.d, ahead);
  for (int64_t t = 0; t < count; ++t) {
    b.dbeta[t] -= dot(keys, b.of_keys + t * s.d, b.keys[t]);
    add_row(keys, -b.beta[t], b.of_keys + t * s.d, b.dkeys[t]);
    scale_row(s.C, -b.beta[t], b.dscores + t * s.c);
    std::memset(b.dscores + t * s.c + t, 0, (s.C - t) * sizeof(Real));  // a β that is not finite
  }
  upper_product(s, count, keys, b.dscores, b.k_rows, k_finite, b.dkeys.data, b.dkeys.width, ahead);
}

template <class Real>
void backward_chunk(const GatedDeltaBackward& p, const Sizes<Real>& s, const Steps& steps, int64_t index, int64_t chunk,
                    BackwardBlocks<Real>& b) {
  const int64_t first = chunk * p.shape.chunk, count = smaller(p.shape.chunk, steps.rows.count - first);
  const int64_t keys = round_up(s.D, kLanes<Real>), values = round_up(s.E, kLanes<Real>);
  const Real* S = b.before + chunk * b.state_size;
  const Real write = write_of<Real>(p, index, chunk);
  const auto key = [&](const HeadStrides& x) { return [&](int64_t t) { return steps.key(x, first + t); }; };
  Ahead ahead;
  ask_backward(p, s, steps, first, count, 0, b.before, b.state_size, ahead);
  read_chunk(p, s, steps, first, count, S, b, &ahead);
  b.dkeys = target_of(p.dtype, p.dk, p.dk_strides.row, s.D, s.d, key(p.dk_strides), b.dk);
  b.y = target_of(p.dtype, p.dv, p.dv_strides.row, s.E, s.e, key(p.dv_strides), b.du);
  const Decays<Real>& decays = b.decays;
  const bool k_finite = pack_rows(count, s.d, b.keys.data, b.keys.width, b.k_rows, s.C);
  pack_transposed(count, s.E, b.u, s.e, b.u_columns);
  transpose_state(s.D, s.E, S, b.transposed, b.staging);
  transpose_state(s.D, s.E, b.dS, b.dS_transposed, b.staging);

  // What the state after the chunk gives to U, the keys and the gate.
  DecayTerms terms = {};
  double dwrite = 0;
  if (values < s.e) std::memset(b.du, 0, s.C * s.e * sizeof(Real));
  state_product<false>(count, values, s.D, b.keys.data, b.keys.width, b.dS, b.y.data, b.y.width, &ahead);
  state_product<false>(count, keys, s.E, b.u, s.e, b.dS_transposed, b.dkeys.data, b.dkeys.width, &ahead);
  for (int64_t t = 0; t < count; ++t) {
    scale_row(values, write * decays.fall[t], b.y[t]);
    scale_row(keys, decays.fall[t], b.dkeys[t]);
    const double falling = dot(keys, b.keys[t], b.dkeys[t]);
    dwrite += falling;
    terms.falling[t] = write == 0 ? 0 : write * falling;
    scale_row(keys, write, b.dkeys[t]);
  }
  terms.through = static_cast<double>(dot(b.state_size, S, b.dS)) * decays.total;
  if (decays.given) scale_row(b.state_size, decays.total, b.dS);

  for (int64_t i = 0; i < s.group; ++i) {
    const auto query = [&](const HeadStrides& x) { return [&, i](int64_t t) { return steps.query(x, i, first + t); }; };
    if (i > 0) ask_backward(p, s, steps, first, count, i, b.before, b.state_size, ahead);
    const auto q = rows_of(p.dtype, p.q, p.q_strides.row, count, s.D, s.d, query(p.q_strides), b.q);
    const auto dout = rows_of(p.dtype, p.dout, p.dout_strides.row, count, s.E, s.e, query(p.dout_strides), b.dout);
    const auto dq = target_of(p.dtype, p.dq, p.dq_strides.row, s.D, s.d, query(p.dq_strides), b.dq);
    const bool q_finite = pack_rows(count, s.d, q.data, q.width, b.q_rows, s.C);
    const bool dout_finite = pack_rows(count, s.e, dout.data, dout.width, b.dout_rows, s.C);
    lower_scores(s, count, s.D, q.data, q.width, b.k_columns, b.scores, &ahead);
    lower_scores(s, count, s.E, dout.data, dout.width, b.u_columns, b.dscores, &ahead);
    weigh(s, count, decays, b.scores);
    if (decays.given) add_between(s, count, b.scores, b.dscores, b.columns_sum, terms.between);
    weigh(s, count, decays, b.dscores);
    state_product<false>(count, keys, s.E, dout.data, dout.width, b.transposed, dq.data, dq.width, &ahead);
    for (int64_t t = 0; t < count; ++t) {
      scale_row(keys, decays.rise[t], dq[t]);
      terms.rising[t] += dot(keys, q[t], dq[t]);
      scaled_row(s.d, decays.rise[t], q[t], b.q + t * s.d);
    }
    lower_product<true>(s, count, keys, b.dscores, b.k_rows, k_finite, dq.data, dq.width, &ahead);
    upper_product(s, count, values, b.scores, b.dout_rows, dout_finite, b.y.data, b.y.width, &ahead);
    upper_product(s, count, keys, b.dscores, b.q_rows, q_finite, b.dkeys.data, b.dkeys.width, &ahead);
    add_to_state(count, values, s.D, b.q, s.d, b.dout_rows, s.C, b.dS, &ahead);
    store_rows(p.dtype, dq, count, s.D, s.d, p.dq, query(p.dq_strides));
  }

  solve_upper(s, count, values, b.minus_l, b.y, b.dx_rows);
  for (int64_t t = 0; t < count; ++t) b.dbeta[t] = dot(s.e, b.y[t], b.x + t * s.e);
  add_solve_gradient(s, count, k_finite, terms, b, &ahead);
  for (int64_t t = 0; t < count; ++t) scale_row(s.e, b.beta[t], b.y[t]);  // dX, dV
  pack_rows(count, s.e, b.y.data, b.y.width, b.dx_rows, s.C);
  state_product<false>(count, keys, s.E, b.y.data, b.y.width, b.transposed, b.of_keys, s.d, &ahead);
  for (int64_t t = 0; t < count; ++t) {
    scale_row(keys, -decays.rise[t], b.of_keys + t * s.d);
    terms.rising[t] += dot(keys, b.keys[t], b.of_keys + t * s.d);
    add_row(keys, Real(1), b.of_keys + t * s.d, b.dkeys[t]);
    scaled_row(s.d, -decays.rise[t], b.keys[t], b.k + t * s.d);
  }
  add_to_state(count, values, s.D, b.k, s.d, b.dx_rows, s.C, b.dS, &ahead);

  store_rows(p.dtype, b.dkeys, count, s.D, s.d, p.dk, key(p.dk_strides));
  store_rows(p.dtype, b.y, count, s.E, s.e, p.dv, key(p.dv_strides));
  for (int64_t t = 0; t < count; ++t) static_cast<Real*>(p.dbeta)[steps.key(p.dbeta_strides, first + t)] = b.dbeta[t];
  if (p.dlog_decay != nullptr) store_ddecay(terms, count, static_cast<Real*>(p.dlog_decay), key(p.ddecay_strides));
  if (p.dwrite != nullptr)
    static_cast<Real*>(p.dwrite)[index * parts(p.shape.steps, p.shape.chunk) + chunk] = static_cast<Real>(dwrite);
}

template <class Real>
void backward_head(const GatedDeltaBackward& p, int64_t index) {
  const Lease lease;
  const Steps steps(p.shape, index);
  const Sizes<Real> s(p.shape, steps.rows.count);
  auto b = workspace_of<BackwardBlocks<Real>, Real>(s);
  read_state<Real>(p.state, s, index, 0, b.before, nullptr);
  for (int64_t chunk = 0; chunk + 1 < s.chunks; ++chunk) {
    Real *S = b.before + chunk * b.state_size, *next = S + b.state_size;
    const int64_t count = p.shape.chunk, first = chunk * count,
                  later = smaller(count, steps.rows.count - first - count);
    Ahead ahead;
    ahead.add(p.dtype, p.k, steps.key(p.k_strides, first + count), p.k_strides.row, later, s.D);
    ahead.add(p.dtype, p.v, steps.key(p.v_strides, first + count), p.v_strides.row, later, s.E);
    read_chunk(p, s, steps, first, count, S, b, &ahead);
    std::memcpy(next, S, b.state_size * sizeof(Real));
    next_state(s, count, write_of<Real>(p, index, chunk), b, next, &ahead);
  }
  read_state<Real>(p.dlast_state, s, index, 0, b.dS, nullptr);
  for (int64_t chunk = s.chunks - 1; chunk >= 0; --chunk) backward_chunk(p, s, steps, index, chunk, b);
  if (p.dstate != nullptr) write_state<Real>(b.dS, nullptr, s, index, 0, p.dstate);
  if (p.dwrite != nullptr) {
    const int64_t all = parts(p.shape.steps, p.shape.chunk);
    for (int64_t chunk = s.chunks; chunk < all; ++chunk) static_cast<Real*>(p.dwrite)[index * all + chunk] = 0;
  }
  if (p.shape.cu_seqlens != nullptr) return;
  std::memset(b.dk, 0, s.d * sizeof(Real));
  std::memset(b.du, 0, s.e * sizeof(Real));
  for (int64_t t = steps.rows.count; t < p.shape.steps; ++t) {
    for (int64_t i = 0; i < s.group; ++i) store_row(p.dtype, b.dk, s.D, p.dq, steps.query(p.dq_strides, i, t));
    store_row(p.dtype, b.dk, s.D, p.dk, steps.key(p.dk_strides, t));
    store_row(p.dtype, b.du, s.E, p.dv, steps.key(p.dv_strides, t));
    static_cast<Real*>(p.dbeta)[steps.key(p.dbeta_strides, t)] = 0;
    if (p.dlog_decay != nullptr) static_cast<Real*>(p.dlog_decay)[steps.key(p.ddecay_strides, t)] = 0;
  }
}

// Of its many triangular products chunks of 32 need least time (a fifth less than those of 64); a gate is one of its own chunks.
template <class Parameters>
Parameters with_short_chunks(Parameters p) {
  if (p.write == nullptr) p.shape.chunk = smaller(p.shape.chunk, 32);
  return p;
}

}  // namespace
}  // namespace recurrence

void gated_delta_rule_forward_cpu(const kernels::GatedDeltaForward& parameters) {
  const kernels::GatedDeltaForward p = recurrence::with_short_chunks(parameters);
  for_tasks(p.shape.sequences * p.shape.kv_heads, [&](int64_t i) {
    p.dtype == DType::kDouble ? recurrence::forward_head<double>(p, i) : recurrence::forward_head<float>(p, i);
  });
}

void gated_delta_rule_backward_cpu(const kernels::GatedDeltaBackward& parameters) {
  const kernels::GatedDeltaBackward p = recurrence::with_short_chunks(parameters);
  for_tasks(p.shape.sequences * p.shape.kv_heads, [&](int64_t i) {
    p.dtype == DType::kDouble ? recurrence::backward_head<double>(p, i) : recurrence::backward_head<float>(p, i);
  });
}

}  // namespace isentrope::ops::CPU_CAPABILITY
