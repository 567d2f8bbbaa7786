// The kept tokens of a row on the CPU (kernels/token_entropy.h), for token_entropy and linear_token_entropy, compiled for the
// instruction set of the file that includes it:
//
//   1. all logits into bins of 1/16 of a binary order of magnitude, whose masses are added up: the bin at the edge of K
//   2. the few logits of that bin by digits of eight bits: the edge itself, and of equal logits the last id
//   3. the centred sums of what is kept
//
// Masses are integers, added up in two histograms at a time, so that equal bins that follow each other need not wait.
#pragma once
#include "csrc/ops/cpu_rows.h"
#include "csrc/ops/token_entropy_rows.h"

namespace isentrope::ops::CPU_CAPABILITY {

inline thread_local Scratch keep_scratch, keep_copy;

constexpr double kMassUnit = 549755813888.0;        // 2^39
constexpr int64_t kBins = 1024, kBinsAnOrder = 16;  // so that the lowest bin is what lies 60 orders below the anchor
constexpr int64_t kPiece = 1024;                    // logits whose bins and masses lie in the first-level cache

inline uint32_t ordered(float z) {
  const float x = z + 0.0f;  // -0 is 0
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline uint64_t ordered(double z) {
  const double x = z + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 63 ? ~bits : bits | 0x8000000000000000u;
}

// Of logits z [n]: their bins, higher for higher logits, and masses before they are cut to integers. Room for whole vectors in both.
template <class Real>
void bins_and_masses(const Real* z, int64_t n, Real anchor, Real c, Real* bin, Real* mass) {
  using V = VectorOf<Real>;
  const V from(anchor), scale(c), unit(static_cast<Real>(kMassUnit)), lowest(static_cast<Real>(-60)),
      bound(static_cast<Real>(-1100)), slope(static_cast<Real>(kBinsAnOrder)),
      offset(static_cast<Real>(60 * kBinsAnOrder));
  const auto one = [&](V x, int64_t i) {
    const V y = max(bound, (x - from) * scale);
    store(bin + i, fma(max(lowest, y), slope, offset));
    store(mass + i, exp2(y) * unit);
  };
  int64_t i = 0;
  for (; i + V::kWidth <= n; i += V::kWidth) one(load(z + i), i);
  if (i == n) return;
  Real few[V::kWidth];
  for (int64_t k = 0; k < V::kWidth; ++k) few[k] = i + k < n ? z[i + k] : anchor;
  one(load(few), i);
}

// From the highest of 0 … count - 1 down, where masses reach what is needed; need becomes what is to be reached there.
inline int64_t reach(const uint64_t* mass, int64_t count, uint64_t& need) {
  int64_t i = count - 1;
  for (; i > 0 && mass[i] < need; --i) need -= mass[i];
  return i;
}

template <class Real>
struct Edge {
  Real logit;
  int64_t last;
};

// kByMass: K has mass share of the whole; else need tokens.
template <bool kByMass, class Real>
Edge<Real> find_edge(const Real* z, int64_t V, double share, uint64_t need, Real anchor, Real c) {
  // [V] each: of what lies in the bin of the edge masses, logits and ids; the bins of all.
  constexpr int64_t kBytes = sizeof(uint64_t) + sizeof(Real) + sizeof(uint32_t) + sizeof(uint16_t);
  uint64_t* mass = keep_scratch.get<uint64_t>((V * kBytes + 7) / 8);
  Real* logit = reinterpret_cast<Real*>(mass + V);
  uint32_t* id = reinterpret_cast<uint32_t*>(logit + V);
  uint16_t* bin = reinterpret_cast<uint16_t*>(id + V);
  alignas(64) Real bins[kPiece + 16], masses[kPiece + 16];
  uint64_t sums[2][kBins] = {};
  for (int64_t i = 0; i < V; i += kPiece) {
    const int64_t n = V - i < kPiece ? V - i : kPiece;
    bins_and_masses(z + i, n, anchor, c, bins, masses);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t b = static_cast<int32_t>(bins[k]) & (kBins - 1);
      bin[i + k] = static_cast<uint16_t>(b);
      sums[k & 1][b] += kByMass ? static_cast<uint64_t>(static_cast<int64_t>(masses[k])) : 1;
    }
  }
  uint64_t total = 0;
  for (int64_t b = 0; b < kBins; ++b) total += sums[0][b] += sums[1][b];
  if (kByMass) {
    need = static_cast<uint64_t>(::ceil(share * static_cast<double>(total)));
    need = need < 1 ? 1 : need > total ? total : need;
  }
  const int64_t edge = reach(sums[0], kBins, need);

  int64_t n = 0;
  for (int64_t i = 0; i < V; ++i) {
    id[n] = static_cast<uint32_t>(i);
    n += bin[i] == edge;
  }
  for (int64_t i = 0; i < n; ++i) logit[i] = z[id[i]];
  for (int64_t i = 0; i < n; i += kPiece) {
    const int64_t count = n - i < kPiece ? n - i : kPiece;
    bins_and_masses(logit + i, count, anchor, c, bins, masses);
    for (int64_t k = 0; k < count; ++k)
      mass[i + k] = kByMass ? static_cast<uint64_t>(static_cast<int64_t>(masses[k])) : 1;
  }
  for (int shift = static_cast<int>(sizeof(Real)) * 8 - 8; shift >= 0 && n > 1; shift -= 8) {
    uint64_t of_digit[256] = {};
    for (int64_t i = 0; i < n; ++i) of_digit[ordered(logit[i]) >> shift & 255] += mass[i];
    const uint64_t digit = reach(of_digit, 256, need);
    int64_t m = 0;
    for (int64_t i = 0; i < n; ++i) {
      if ((ordered(logit[i]) >> shift & 255) != digit) continue;
      logit[m] = logit[i], mass[m] = mass[i], id[m] = id[i];
      ++m;
    }
    n = m;
  }
  int64_t i = 0;
  for (; i + 1 < n && mass[i] < need; ++i) need -= mass[i];
  return {logit[0], id[i]};
}

// Adds s and s·log2 s of the logits of z [n] that are at least edge.
template <class Real>
void add_kept(const Real* z, int64_t n, Real edge, Real anchor, Real c, double& sum, double& sum_log) {
  using V = VectorOf<Real>;
  const V bound(edge), none(static_cast<Real>(-kInfinity)), from(anchor), scale(c);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    LaneSums<V, false> a, b;
    const auto one = [&](LaneSums<V, false>& sums, const Real* x) {
      const V v = load(x);
      sums.template add<true>(where_at_least(v, bound, v, none), from, scale);
    };
    int64_t i = begin;
    for (; i + 2 * V::kWidth <= end; i += 2 * V::kWidth) {
      one(a, z + i);
      one(b, z + i + V::kWidth);
    }
    for (; i < end; i += V::kWidth) {
      Real few[V::kWidth];
      for (int64_t k = 0; k < V::kWidth; ++k) few[k] = i + k < end ? z[i + k] : static_cast<Real>(-kInfinity);
      one(a, few);
    }
    sum += static_cast<double>(reduce_add(a.sum + b.sum));
    sum_log += static_cast<double>(reduce_add(a.sum_log + b.sum_log));
  }
}

template <class Real>
kernels::KeptTokens kept_tokens(const kernels::TokenEntropyKeep& p, const Real* z, int64_t V, double entropy,
                                double anchor, double log_sum) {
  const bool by_mass = p.keep == kernels::Keep::kTopP;
  const double dropped = by_mass ? 0 : std::floor(p.share * static_cast<double>(V)), end = static_cast<double>(V - 1);
  if (log_sum != log_sum) return {kNaN, kNaN, kNaN, end};
  if ((anchor == -kInfinity && log_sum == 0) || (by_mass ? p.share >= 1 : dropped < 1))
    return {entropy, log_sum, -kInfinity, end};
  const Real c = static_cast<Real>(kLog2e / p.temperature), from = static_cast<Real>(anchor);
  const uint64_t need = static_cast<uint64_t>(dropped < end ? end + 1 - dropped : 1);
  const Edge<Real> edge =
      by_mass ? find_edge<true>(z, V, p.share, need, from, c) : find_edge<false>(z, V, p.share, need, from, c);
  double sum = 0, sum_log = 0;
  add_kept(z, edge.last + 1, edge.logit, from, c, sum, sum_log);
  add_kept(z + edge.last + 1, V - edge.last - 1, std::nextafter(edge.logit, static_cast<Real>(kInfinity)), from, c, sum,
           sum_log);
  const double log2_sum = ::log2(sum), H = kLn2 * (log2_sum - sum_log / sum);
  return {H < 0 ? 0 : H, kLn2 * log2_sum, static_cast<double>(edge.logit), static_cast<double>(edge.last)};
}

// Row n of what p says, whose logits are z [V] in Real; not read where the row is ignored.
template <class Real>
void keep_row(const kernels::TokenEntropyKeep& p, int64_t n, const Real* z) {
  kernels::KeptTokens kept = {};
  if (p.target[n] != p.ignore_index) {
    const auto value = [n](const void* x) { return static_cast<double>(static_cast<const Real*>(x)[n]); };
    kept = kept_tokens(p, z, p.layout.vocab, value(p.entropy), value(p.anchor), value(p.log_sum));
  }
  p.kept[n] = kept;
  static_cast<Real*>(p.kept_entropy)[n] = static_cast<Real>(kept.entropy);
}

}  // namespace isentrope::ops::CPU_CAPABILITY
