// The CPU backend of grpo_select. Compiled once for every instruction set, in a namespace of its name.
#include <cmath>
#include <cstring>

#include "csrc/ops/grpo_blocks.h"
#include "csrc/ops/grpo_loss_cpu.h"

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

// cov [padded]: the covariance of each token. candidate [padded]: 1 where it counts and, by_band, clip_cov may
// choose it; else 0.
template <bool by_band, class T>
__attribute__((noinline)) void find_candidates(const GrpoSelect& p, const GrpoCentre& centre, int padded,
                                               const Tokens<T>& x, T* __restrict cov, T* __restrict candidate) {
  const GrpoCentre c = centre;
  for (int i = 0; i < padded; ++i) cov[i] = grpo_covariance(c, x.advantage[i], x.logprob[i]);
  if constexpr (!by_band) {
    for (int i = 0; i < padded; ++i) candidate[i] = x.counts[i];
    return;
  }
  GrpoLossRule rule;
  rule.lower = p.lower;
  rule.upper = p.upper;
  rule.dual_clip = INFINITY;
  const T lower = T(p.cov_lower), upper = T(p.cov_upper);
  T ratio[kBlock];
  for (int i = 0; i < padded; ++i) ratio[i] = exponential(grpo_log_ratio(x.logprob[i], x.old_logprob[i]));
  for (int i = 0; i < padded; ++i) {
    const GrpoToken<T> token{x.logprob[i], x.old_logprob[i], x.advantage[i], T(0), x.counts[i], T(0)};
    const GrpoPolicy<T> policy = grpo_policy<GrpoForm::kTokenRatio, T>(rule, token, T(0), ratio[i], T(1));
    const T inside = (cov[i] > lower ? T(1) : T(0)) * (cov[i] < upper ? T(1) : T(0));
    candidate[i] = x.counts[i] * inside * (T(1) - policy.low) * (T(1) - policy.high);
  }
}

// Ranks of some tokens [padded]: the largest covariance first.
template <class T>
void rank_by_covariance(const T* cov, int padded, uint32_t* __restrict rank) {
  for (int i = 0; i < padded; ++i) {
    const float descending = -static_cast<float>(cov[i]) + 0.0f;  // + 0: -0 ranks as 0
    uint32_t bits;
    std::memcpy(&bits, &descending, 4);
    rank[i] = ordered_bits(bits);
  }
}

// The same by the draws of those among them.
template <class T>
void rank_by_draw(uint64_t seed, const Block& block, const T* among, uint32_t* __restrict rank) {
  uint64_t drawn = kNoKey;
  PhiloxBlock draw{};
  for (int i = 0; i < block.count; ++i) {
    if (!(among[i] > T(0))) continue;
    const uint64_t number = static_cast<uint64_t>(block.at + i);
    if (number / 4 != drawn) draw = philox(seed, drawn = number / 4, 0);
    rank[i] = draw.word[number % 4];
  }
}

// Appends the keys below limit of those among the tokens to keys; returns how many.
template <class T>
int64_t keys_below(uint64_t limit, const Block& block, const T* among, const uint32_t* rank, uint64_t* keys) {
  const uint32_t limit_rank = static_cast<uint32_t>(limit >> 32);
  int64_t found = 0;
  for (int first = 0; first < block.padded; first += kLanes) {
    // Most tokens end here: few are below the limit once some segments have been seen.
    int near = 0;
    for (int i = first; i < first + kLanes; ++i)
      near |= static_cast<int>(among[i] > T(0)) & static_cast<int>(rank[i] <= limit_rank);
    if (near == 0) continue;
    for (int i = first; i < first + kLanes; ++i) {
      const uint64_t key = selection_key(rank[i], static_cast<uint64_t>(block.at + i));
      if (among[i] > T(0) && key < limit) keys[found++] = key;
    }
  }
  return found;
}

template <class T>
int64_t segment_keys(const GrpoSelect& p, const GrpoCentre& centre, int64_t segment, uint64_t limit, uint64_t* keys,
                     int64_t* available) {
  const bool in_band = p.choice == GrpoChoice::kClipCov, by_band = in_band || p.choice == GrpoChoice::kRandomClipCov;
  int64_t found = 0;
  T candidates[kLanes] = {};
  for_blocks(segment, p.length, [&](const Block& block) {
    T cov[kBlock], candidate[kBlock];
    uint32_t rank[kBlock] = {};
    Tokens<T> x;
    load_flags(p.mask, block, x.counts);
    load(p.logprob, block, x.counts, x.logprob);
    load(p.advantage, block, x.counts, x.advantage);
    if (by_band) load(p.old_logprob, block, x.counts, x.old_logprob);
    (by_band ? find_candidates<true, T> : find_candidates<false, T>)(p, centre, block.padded, x, cov, candidate);
    add_lanes(block, candidates, [&](int i) { return candidate[i]; });
    const T* among = in_band ? candidate : x.counts;
    if (p.choice == GrpoChoice::kKlCov) {
      rank_by_covariance(cov, block.padded, rank);
    } else {
      rank_by_draw(p.seed, block, among, rank);
    }
    found += keys_below(limit, block, among, rank, keys + found);
  });
  *available += static_cast<int64_t>(total(candidates));
  return found;
}

}  // namespace

int64_t grpo_select_keys(const GrpoSelect& p, const GrpoCentre& centre, int64_t segment, uint64_t limit, uint64_t* keys,
                         int64_t* available) {
  int64_t found = 0;
  with_type(p.dtype,
            [&](auto zero) { found = segment_keys<decltype(zero)>(p, centre, segment, limit, keys, available); });
  return found;
}

}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
