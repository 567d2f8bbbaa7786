// The loops over tokens of the methods that change advantages, of the discriminator of the entropy and of tea, compiled once an instruction set as
// those of csrc/methods/weight_cpu.h, whose rules hold. Sums and products of advantages are made in double and rounded once, the same for every
// instruction set (csrc/CMakeLists.txt: no contraction); exponentials in the dtype of the arrays.
#pragma once
#include "csrc/methods/weight_cpu.h"

namespace isentrope::methods {

// out ← A + min(alpha max(H, 0), |A| / kappa).
struct EntropyGainLoop : TokenRows {
  const void* advantage = nullptr;
  const void* entropy = nullptr;
  double alpha = 0, kappa = 0;
  void* factor = nullptr;
};

// out ← A + sign(A) min(gamma σ(slope (t / end[row] − centre)), cap |A|).
struct PositionLoop : TokenRows {
  const void* advantage = nullptr;
  const double* end = nullptr;  // [rows]
  double gamma = 0, slope = 0, centre = 0, cap = 0;
  void* factor = nullptr;
};

// out ← A − beta (ℓ + H) where there is an entropy, A − beta (ℓ − centre) where there is none, or, rescale, max(0, A (1 − beta ℓ)) and
// min(0, A (1 + beta ℓ)) by the sign of A; A where ℓ is not finite.
struct RepoLoop : TokenRows {
  const void* advantage = nullptr;
  const void* logprob = nullptr;
  const void* entropy = nullptr;
  double beta = 0, centre = 0;
  bool rescale = false;
  void* factor = nullptr;
};

// out ← A + alpha |A| where the flag is set, else A.
struct PlanLoop : TokenRows {
  const void* advantage = nullptr;
  const bool* plans = nullptr;
  double alpha = 0;
  void* factor = nullptr;
};

// out ← A up[row] where A > 0, A down[row] where A < 0.
struct ScaleLoop : TokenRows {
  const void* advantage = nullptr;
  const double* up = nullptr;    // [rows]
  const double* down = nullptr;  // [rows]
  void* factor = nullptr;
};

// factor ← 0 where |π − μ| > delta and A ((π − μ) − (Σ π² − Σ μ²) / 2) > 0, else 1; π = exp ℓ, μ = exp ℓ_old.
struct FurtherLoop : TokenRows {
  const void* logprob = nullptr;
  const void* old_logprob = nullptr;
  const void* sum_p2 = nullptr;
  const void* old_sum_p2 = nullptr;
  const void* advantage = nullptr;
  double delta = 0;
  void* factor = nullptr;
};

// z ← p (H + ℓ), p = exp ℓ, less H Σ p² + Σ p² log p where these are given; sum [rows] of z over the tokens that count, and how many they are.
struct DiscriminatorLoop : TokenRows {
  const void* logprob = nullptr;
  const void* entropy = nullptr;
  const void* sum_p2 = nullptr;
  const void* sum_p2_logp = nullptr;
  void* z = nullptr;
  double* sum = nullptr;
  int64_t* count = nullptr;
};
// sum [rows] of (x − centre)² over the tokens that count.
struct SquareLoop : TokenRows {
  const void* x = nullptr;
  double centre = 0;
  double* sum = nullptr;
};
// beyond ← by how much z − centre lies below low or above high, 0 where it does not or A has no sign that is looked at.
struct BeyondLoop : TokenRows {
  const void* z = nullptr;
  const void* advantage = nullptr;
  double centre = 0, low = 0, high = 0;  // low ≤ 0 ≤ high
  bool negative = false, positive = false;
  void* beyond = nullptr;
  bool* out = nullptr;       // [rows, length]: beyond > 0
  int64_t* count = nullptr;  // [rows], of out
};

// factor ← min(most, alpha softmax of (A − mean A) (ℓ − mean ℓ) over the tokens of the row that count).
struct TeaLoop : TokenRows {
  const void* logprob = nullptr;
  const void* advantage = nullptr;
  double mean_logprob = 0, mean_advantage = 0, alpha = 0, most = 0;
  void* factor = nullptr;
};

#define ISENTROPE_DECLARE(ISA)                           \
  namespace ISA {                                        \
  void entropy_gain_on_cpu(const EntropyGainLoop& p);    \
  void position_on_cpu(const PositionLoop& p);           \
  void repo_on_cpu(const RepoLoop& p);                   \
  void plan_on_cpu(const PlanLoop& p);                   \
  void scale_on_cpu(const ScaleLoop& p);                 \
  void further_on_cpu(const FurtherLoop& p);             \
  void discriminator_on_cpu(const DiscriminatorLoop& p); \
  void square_on_cpu(const SquareLoop& p);               \
  void beyond_on_cpu(const BeyondLoop& p);               \
  void tea_on_cpu(const TeaLoop& p);                     \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::methods
