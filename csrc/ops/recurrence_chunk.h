// A chunk of steps for the CPU backends of linear_attention and gated_delta_rule (kernels/recurrence.h): its decays, and the
// products of blocks in cache (csrc/ops/cpu_product.h).
//
// A block of rows is [C, width], width whole panels; rows and columns that do not exist are 0. As the right factor of a product a
// block lies in panels, of its rows ([width / kPanel, C, kPanel]) or of its transpose ([C / kPanel, columns, kPanel]). A state is
// kept in panels of its rows: S [D, E] as [e / kPanel, D, kPanel].
//
// Triangular products leave out what lies above the diagonal: tiles of kTile rows sum over the steps that some row of the tile
// sees, where the others have 0; or, where an operand is not finite and 0 · NaN would be NaN, tiles are one row high.
#pragma once
#include "csrc/ops/recurrence_rows.h"

namespace isentrope::ops::CPU_CAPABILITY::recurrence {

constexpr double kLog2e = 1.4426950408889634074;
constexpr double kMostExponent = 120;  // of exp2 of vectors, either sign: its results are normal floats

// ---- states ---------------------------------------------------------------------------------------------------------

// The state of a key head in memory, [D, E + extra], and what is here: S in panels, and z [d], the last column, with extra.
template <class Real>
void read_state(const void* memory, const Sizes<Real>& z, int64_t at, int64_t extra, Real* S, Real* weights) {
  constexpr int64_t P = kPanel<Real>;
  std::memset(S, 0, z.D * z.e * sizeof(Real));
  if (weights != nullptr) std::memset(weights, 0, z.d * sizeof(Real));
  if (memory == nullptr) return;
  const Real* from = static_cast<const Real*>(memory) + at * z.D * (z.E + extra);
  for (int64_t i = 0; i < z.D; ++i, from += z.E + extra) {
    for (int64_t n = 0; n < z.E; n += P) std::memcpy(S + n * z.D + i * P, from + n, smaller(P, z.E - n) * sizeof(Real));
    if (extra) weights[i] = from[z.E];
  }
}
template <class Real>
void write_state(const Real* S, const Real* weights, const Sizes<Real>& z, int64_t at, int64_t extra, void* memory) {
  constexpr int64_t P = kPanel<Real>;
  Real* to = static_cast<Real*>(memory) + at * z.D * (z.E + extra);
  for (int64_t i = 0; i < z.D; ++i, to += z.E + extra) {
    for (int64_t n = 0; n < z.E; n += P) std::memcpy(to + n, S + n * z.D + i * P, smaller(P, z.E - n) * sizeof(Real));
    if (extra) to[z.E] = weights[i];
  }
}

// to, Xᵀ [columns, rows] in panels = X [rows, columns] in panels; rows to whole panels, those beyond `rows` 0.
template <class Real>
void transpose_state(int64_t rows, int64_t columns, const Real* x, Real* to, Real* staging) {
  constexpr int64_t P = kPanel<Real>;
  for (int64_t r = 0; r < rows; r += P)
    for (int64_t n = 0; n < columns; n += P) {
      const Real* from = x + n * rows + r * P;
      if (rows - r < P) {  // staging [P, P]
        std::memset(staging, 0, P * P * sizeof(Real));
        std::memcpy(staging, from, (rows - r) * P * sizeof(Real));
        from = staging;
      }
      pack_columns(smaller(P, columns - n), from, P, to + r * columns + n * P);
    }
}

// ---- decays ---------------------------------------------------------------------------------------------------------

// Of one chunk. Without log_decay none is made: every factor is 1.
template <class Real>
struct Decays {
  Real *rise, *fall;  // [C]
  Real* gamma;        // [C, c] Γ at and below the diagonal
  Real total = 1;     // exp(b_C)
  bool given = false;

  Decays(const Sizes<Real>& z, Arena<Real>& arena)
      : rise(arena.take(z.C)),
        fall(arena.take(z.C)),
        gamma(arena.take(z.C * z.c)),
        high(arena.take(z.C)),
        low(arena.take(z.C)) {}

  // at(t): where step t's logarithm lies. pairs: Γ too.
  template <class At>
  void read(const void* log_decay, int64_t count, int64_t c, const At& at, bool pairs = true) {
    using V = Vector<Real>;
    given = log_decay != nullptr;
    const int64_t whole = round_up(count, kPanel<Real>);
    if (!given) {
      for (int64_t t = 0; t < whole; ++t) rise[t] = fall[t] = 1;
      return;
    }
    double b[kMostChunk], sum = 0;
    for (int64_t t = 0; t < count; ++t) {
      const double g = static_cast<double>(static_cast<const Real*>(log_decay)[at(t)]) * kLog2e;
      b[t] = sum += g < kernels::kLowestLogDecay ? kernels::kLowestLogDecay : g;
    }
    Real rest[kMostChunk];
    for (int64_t t = 0; t < whole; ++t) {
      const double x = b[smaller(t, count - 1)], y = sum - x;
      high[t] = static_cast<Real>(x);  // a sum of two parts, of which differences keep their digits
      low[t] = static_cast<Real>(x - static_cast<double>(high[t]));
      fall[t] = static_cast<Real>(y);
      rest[t] = static_cast<Real>(y - static_cast<double>(fall[t]));
    }
    const auto power_of_parts = [](V high, V low) {
      const V first = exp2(high);
      return fma(first * V(Real(1 / kLog2e)), low, first);
    };
    for (int64_t t = 0; t < whole; t += kWidth<Real>) {
      store(rise + t, power_of_parts(load(high + t), load(low + t)));
      store(fall + t, power_of_parts(load(fall + t), load(rest + t)));
    }
    // Each step by itself, so that one that is not finite leaves those before it as they are.
    for (int64_t t = 0; t < whole; ++t) {
      const double x = b[smaller(t, count - 1)], y = sum - x;
      if (!(::fabs(x) <= kMostExponent)) rise[t] = static_cast<Real>(::exp2(x));
      if (!(::fabs(y) <= kMostExponent)) fall[t] = static_cast<Real>(::exp2(y));
    }
    total = rise[count - 1];
    const V most(Real(-127) * (sizeof(Real) == 8 ? 8 : 1));  // of exp2
    const auto power = [most](V x) { return exp2(V(Real(0)) - max(most, V(Real(0)) - x)); };
    for (int64_t i = 0; pairs && i < count; ++i)
      for (int64_t j = 0; j <= i; j += kWidth<Real>)
        store(gamma + i * c + j, power((V(high[i]) - load(high + j)) + (V(low[i]) - load(low + j))));
  }

 private:
  Real *high, *low;  // [C] b · log2 e
};

// ---- square blocks --------------------------------------------------------------------------------------------------

// to [count, c] = A [count, d] · Bᵀ at and below the diagonal (in whole vectors), columns: B's transpose in panels.
template <class Real>
void lower_scores(const Sizes<Real>& z, int64_t count, int64_t K, const Real* a, int64_t width, const Real* columns,
                  Real* to, Ahead* ahead = nullptr) {
  for (int64_t n = 0; n < count; n += kPanel<Real>, columns += K * kPanel<Real>)
    for (int64_t m = n / kTile * kTile; m < count; m += kTile) {
      if (ahead != nullptr) ahead->ask();
      const int64_t rows = smaller(kTile, count - m);
      if (m + rows <= n + kLanes<Real>)
        tile_of<Real, 1, false, false>(rows, K, a + m * width, width, columns, to + m * z.c + n, z.c);
      else
        tile_of<Real, 2, false, false>(rows, K, a + m * width, width, columns, to + m * z.c + n, z.c);
    }
}

// x ⊙ Γ at and below the diagonal (below it, if strict), 0 above.
template <class Real>
void weigh(const Sizes<Real>& z, int64_t count, const Decays<Real>& decays, Real* x, bool strict = false) {
  for (int64_t i = 0; i < count; ++i, x += z.c) {
    const int64_t kept = strict ? i : i + 1;
    if (decays.given)
      for (int64_t j = 0; j < kept; j += kLanes<Real>)
        *reinterpret_cast<Lanes<Real>*>(x + j) *= load_lanes<Real>(decays.gamma + i * z.c + j);
    std::memset(x + kept, 0, (z.C - kept) * sizeof(Real));
  }
}

// to [count, columns] (+)= L [count, c] · X, L lower triangular, X in panels of rows. finite: X is.
template <bool kAdd, class Real>
void lower_product(const Sizes<Real>& z, int64_t count, int64_t columns, const Real* lower, const Real* x, bool finite,
                   Real* to, int64_t width, Ahead* ahead = nullptr) {
  const int64_t height = finite ? kTile : 1;
  product<false, kAdd>(count, columns, height, lower, z.c, x, z.C * kPanel<Real>, to, width, [=](int64_t m, int64_t) {
    if (ahead != nullptr) ahead->ask();
    return Span{0, smaller(m + height, count)};
  });
}
// to [count, columns] += Lᵀ · X.
template <class Real>
void upper_product(const Sizes<Real>& z, int64_t count, int64_t columns, const Real* lower, const Real* x, bool finite,
                   Real* to, int64_t width, Ahead* ahead = nullptr) {
  product<true, true>(count, columns, finite ? kTile : 1, lower, z.c, x, z.C * kPanel<Real>, to, width,
                      [=](int64_t m, int64_t) {
                        if (ahead != nullptr) ahead->ask();
                        return Span{m, count};
                      });
}

// ---- products with a state ------------------------------------------------------------------------------------------

// to [count, columns] (+)= A [count, width] · S, S [K, columns] in panels.
template <bool kAdd, class Real>
void state_product(int64_t count, int64_t columns, int64_t K, const Real* a, int64_t width, const Real* S, Real* to,
                   int64_t to_width, Ahead* ahead = nullptr) {
  product<false, kAdd>(count, columns, kTile, a, width, S, K * kPanel<Real>, to, to_width, [=](int64_t, int64_t) {
    if (ahead != nullptr) ahead->ask();
    return Span{0, K};
  });
}

// S [K, columns] in panels += A [count, width]ᵀ · X, X in panels of rows, C apart.
template <class Real>
void add_to_state(int64_t count, int64_t columns, int64_t K, const Real* a, int64_t width, const Real* x, int64_t C,
                  Real* S, Ahead* ahead = nullptr) {
  constexpr int64_t P = kPanel<Real>;
  for (int64_t n = 0; n < columns; n += P)
    product<true, true>(K, smaller(P, columns - n), kTile, a, width, x + n * C, 0, S + n * K, P, [=](int64_t, int64_t) {
      if (ahead != nullptr) ahead->ask();
      return Span{0, count};
    });
}

// The transpose of x [C, width] in panels: of its first count rows, in whole panels.
template <class Real>
void pack_transposed(int64_t count, int64_t K, const Real* x, int64_t width, Real* to) {
  constexpr int64_t P = kPanel<Real>;
  for (int64_t t = 0; t < count; t += P) pack_columns(K, x + t * width, width, to + t * K);
}

// ---- the gradient of decays -----------------------------------------------------------------------------------------

// The terms of dlog_decay, each a sum of those that lie on one side of a step alone.
struct DecayTerms {
  double rising[kMostChunk], falling[kMostChunk], between[kMostChunk];  // by step: Σ_{i ≥ t}, Σ_{j < t}, Σ_{i ≥ t > j}
  double through = 0;                                                   // of the whole chunk
};

// between += what dP_ij P_ij below the diagonal give. P is 0 above it; dP there may be anything.
template <class Real>
void add_between(const Sizes<Real>& s, int64_t count, const Real* P, const Real* dP, Real* columns_sum,
                 double* between) {
  constexpr int64_t L = kLanes<Real>;
  Real last[L];
  std::memset(columns_sum, 0, s.C * sizeof(Real));
  for (int64_t i = 0; i < count; ++i, P += s.c, dP += s.c) {
    Lanes<Real> sum = {};
    const auto add = [&](int64_t j, Lanes<Real> x) {
      sum += x;
      *reinterpret_cast<Lanes<Real>*>(columns_sum + j) += x;
    };
    int64_t j = 0;
    for (; j + L <= i; j += L) add(j, load_lanes<Real>(P + j) * load_lanes<Real>(dP + j));
    if (j < i) {
      for (int64_t l = 0; l < L; ++l) last[l] = j + l < i ? P[j + l] * dP[j + l] : Real(0);
      add(j, load_lanes<Real>(last));
    }
    *reinterpret_cast<Lanes<Real>*>(last) = sum;
    between[i] += row_sum<Real>(L, last);
  }
  for (int64_t j = 0; j < count; ++j) between[j] -= columns_sum[j];
}

template <class Real, class At>
void store_ddecay(const DecayTerms& terms, int64_t count, Real* to, const At& at) {
  double falling = 0;
  for (int64_t t = 0; t < count; ++t) {
    to[at(t)] = static_cast<Real>(falling);
    falling += terms.falling[t];
  }
  double rising = terms.through;
  for (int64_t t = count - 1; t >= 0; --t) {
    rising += terms.rising[t] + terms.between[t];
    to[at(t)] = static_cast<Real>(to[at(t)] + rising);
  }
}

}  // namespace isentrope::ops::CPU_CAPABILITY::recurrence
