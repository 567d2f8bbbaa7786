// The loops over tokens of the weight methods, compiled once an instruction set (csrc/CMakeLists.txt). Every array is
// [rows, length] of float, or of double where wide; what stands where mask is false is never used, and a factor is 0 there. Rows are
// independent, and nothing depends on which thread runs one. No torch header is included here.
#pragma once
#include <cstdint>

namespace isentrope::methods {

struct TokenRows {
  int64_t rows = 0, length = 0;
  const bool* mask = nullptr;
  bool wide = false;
  int64_t size() const { return rows * length; }
};

// factor ← 1 where the k-th largest search has found a token (csrc/methods/kth.h): its key above, or equal and among the first.
struct KeptLoop : TokenRows {
  const void* x = nullptr;
  uint64_t key = 0;
  int64_t equal = 0;
  void* factor = nullptr;
};

// factor ← 1 where low ≤ −logprob / entropy ≤ high, else 0. An entropy of 0: the quotient of 0 is 0, of any other infinite.
struct SurprisalBandLoop : TokenRows {
  const void* logprob = nullptr;
  const void* entropy = nullptr;
  double low = 0, high = 0;
  void* factor = nullptr;
};

// factor ← 1 where low < (entropy + bias) / (old_entropy + bias) < high, else 0.
struct RatioBandLoop : TokenRows {
  const void* entropy = nullptr;
  const void* old_entropy = nullptr;
  double low = 0, high = 0, bias = 0;
  void* factor = nullptr;
};

// change ← |A / π_old · π (1 − π)^power (ℓ + H)|, 0 where that is not finite; least and most [rows] over the tokens that count,
// infinity and −infinity where none does. power: 1 or 2.
struct ChangeLoop : TokenRows {
  const void* logprob = nullptr;
  const void* old_logprob = nullptr;
  const void* entropy = nullptr;
  const void* advantage = nullptr;
  int64_t power = 2;
  void* change = nullptr;
  double* least = nullptr;
  double* most = nullptr;
};

// factor (which holds the change) ← max(low, high − slope (change − least)), or max(low, exp(−slope change)) where exponential.
struct FallLoop : TokenRows {
  double low = 0, high = 0, least = 0, slope = 0;
  bool exponential = false;
  void* factor = nullptr;
};

// sum [rows] of x over the tokens that count, and how many they are.
struct SumLoop : TokenRows {
  const void* x = nullptr;
  double* sum = nullptr;
  int64_t* count = nullptr;
};

// factor ← max(0, 1 + coef (x − centre)).
struct AffineLoop : TokenRows {
  const void* x = nullptr;
  double coef = 0, centre = 0;
  void* factor = nullptr;
};

// surprisal ← −logprob; positive and negative [rows, length]: whether a token counts and its advantage is above 0, below 0.
struct SignLoop : TokenRows {
  const void* logprob = nullptr;
  const void* advantage = nullptr;
  void* surprisal = nullptr;
  bool* positive = nullptr;
  bool* negative = nullptr;
};

// factor (which holds the surprisal) ← weight[s] where the token is of that sign and belongs to the largest of it, else 1.
struct SignedKeptLoop : TokenRows {
  const bool* of[2] = {};  // positive, negative
  uint64_t key[2] = {};    // of the least that belongs to them; all ones above: none
  int64_t equal[2] = {};
  double weight[2] = {1, 1};
  void* factor = nullptr;
};

// factor ← n e_t / Σ e where advantage is above 0, else 1; e_t = exp H_t / Σ of exp H over the tokens at most half away.
struct SoftWindowLoop : TokenRows {
  const void* entropy = nullptr;
  const void* advantage = nullptr;
  int64_t half = 0;
  void* factor = nullptr;
};

// d = logprob − old_logprob (0 where that is NaN), held within ±20. Per token: factor ← w = exp d; where it leaves [low, high]: the
// end it leaves at (truncate), 0 (mask), or removed, those within being 1 (reject).
enum class Outside { kTruncate, kMask, kReject };
struct RatioLoop : TokenRows {
  const void* logprob = nullptr;
  const void* old_logprob = nullptr;
  double low = 0, high = 0;
  Outside outside = Outside::kTruncate;
  void* factor = nullptr;
  bool* removed = nullptr;  // written for kReject alone
};
// The same with the ratio of a row's tokens together, exp of the sum of their differences or, geometric, of the mean.
struct SequenceRatioLoop : RatioLoop {
  bool geometric = false;
};
// Of a row: factor ← value[row], removed ← gone[row].
struct FillLoop : TokenRows {
  const double* value = nullptr;  // [rows]
  const bool* gone = nullptr;     // [rows] or null
  void* factor = nullptr;
  bool* removed = nullptr;
};
// Where drop[row]: factor ← 0.
struct DropLoop : TokenRows {
  const bool* drop = nullptr;  // [rows]
  void* factor = nullptr;
};

// Of d = logprob − old_logprob (0 where NaN) by row; w = exp of d held within ±20. clamp: the most w counts in its two sums.
struct GapSums {
  int64_t tokens = 0;
  double sum = 0, absolute = 0, most = 0;  // Σ d, Σ |d|, max |d|
  double k3 = 0, square = 0;               // Σ w − 1 − d, Σ w²
  double weight = 0, weight_square = 0;    // Σ min(w, clamp), Σ of its square
};
struct GapLoop : TokenRows {
  const void* logprob = nullptr;
  const void* old_logprob = nullptr;
  double clamp = 0;
  bool all = true;         // else tokens and sum alone
  GapSums* gap = nullptr;  // [rows]
};

#define ISENTROPE_DECLARE(ISA)                            \
  namespace ISA {                                         \
  void kept_on_cpu(const KeptLoop& p);                    \
  void surprisal_band_on_cpu(const SurprisalBandLoop& p); \
  void ratio_band_on_cpu(const RatioBandLoop& p);         \
  void change_on_cpu(const ChangeLoop& p);                \
  void fall_on_cpu(const FallLoop& p);                    \
  void sum_on_cpu(const SumLoop& p);                      \
  void affine_on_cpu(const AffineLoop& p);                \
  void sign_on_cpu(const SignLoop& p);                    \
  void signed_kept_on_cpu(const SignedKeptLoop& p);       \
  void soft_window_on_cpu(const SoftWindowLoop& p);       \
  void ratio_on_cpu(const RatioLoop& p);                  \
  void sequence_ratio_on_cpu(const SequenceRatioLoop& p); \
  void fill_on_cpu(const FillLoop& p);                    \
  void drop_on_cpu(const DropLoop& p);                    \
  void gap_on_cpu(const GapLoop& p);                      \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::methods
