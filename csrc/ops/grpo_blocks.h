// The tokens of grpo_loss and grpo_select on the CPU: in blocks, as plain loops that the compiler makes vectors of. For files
// that are compiled once for every instruction set.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels/grpo_loss.h"

namespace isentrope::ops {
namespace CPU_CAPABILITY {
namespace {

using namespace kernels;

// Sums have this many lanes, token t in lane t mod kLanes: one AVX-512 vector of floats, two of AVX2, so that the order of
// sums is the same on both.
constexpr int kLanes = 16;
constexpr int kBlock = 256;  // tokens at once: a dozen arrays of them stay in the first-level cache

// Calls function(T()) for the dtype of the parameters; the callers let only these two through.
template <class Function>
void with_type(DType dtype, Function&& function) {
  if (dtype == DType::kDouble) {
    function(double());
  } else {
    function(float());
  }
}

// e^x for |x| ≤ 80, to about one unit in the last place; NaN stays NaN. Branch-free, for the vectoriser.
inline __attribute__((always_inline)) float exponential(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: a float that large has no digits after the point
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // x - n log 2, the logarithm in two parts
  // The Taylor series to r^7: what it leaves out is below 6e-9 for |r| ≤ log(2)/2.
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = (sum * r * r + r) + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127) << 23;  // the low bits of shifted hold n: 2^n
  float scale;
  std::memcpy(&scale, &bits, 4);
  return sum * scale;
}
inline double exponential(double x) { return std::exp(x); }

// log x for normal x > 0, to about one unit in the last place. Branch-free like exponential.
inline __attribute__((always_inline)) float logarithm(float x) {
  constexpr uint32_t kRootHalf = 0x3f3504f3;  // √½, so that x = 2^n m with m in [√½, √2)
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const int32_t n = static_cast<int32_t>(bits - kRootHalf) >> 23;
  bits -= static_cast<uint32_t>(n) << 23;
  float m;
  std::memcpy(&m, &bits, 4);
  const float f = m - 1.0f, s = f / (2.0f + f), t = s * s;
  // log m = 2 artanh s; the series to s^9 leaves out less than 1e-9 of it for |s| ≤ 0.1716.
  const float series = t * (1.0f / 3 + t * (1.0f / 5 + t * (1.0f / 7 + t * (1.0f / 9))));
  const float exponent = static_cast<float>(n);
  return exponent * 0.693359375f + ((s + s) + ((s + s) * series - exponent * 2.12194440e-4f));
}
inline double logarithm(double x) { return std::log(x); }

// What the mathematics of a token asks of a backend.
struct VectorMath {
  template <class T>
  static inline __attribute__((always_inline)) T exponential(T x) {
    return CPU_CAPABILITY::exponential(x);
  }
  template <class T>
  static inline __attribute__((always_inline)) T logarithm(T x) {
    return CPU_CAPABILITY::logarithm(x);
  }
};

// A block: count tokens from number at on; the arrays go on to padded, a multiple of kLanes, with tokens that do not count.
struct Block {
  int64_t at;
  int count, padded;
};

// Calls function(Block) over a segment.
template <class Function>
inline void for_blocks(int64_t segment, int64_t length, Function&& function) {
  const int64_t per_sequence = grpo_segments(length), row = segment / per_sequence;
  const int64_t begin = segment % per_sequence * kGrpoSegment;
  const int64_t end = begin + kGrpoSegment < length ? begin + kGrpoSegment : length;
  for (int64_t t = begin; t < end; t += kBlock) {
    const int count = static_cast<int>(end - t < kBlock ? end - t : kBlock);
    function(Block{row * length + t, count, (count + kLanes - 1) / kLanes * kLanes});
  }
}

// The flags of a block [padded], 0 behind the last; in buffer [kBlock] where the block is not full. flags may be null: all 0.
inline const uint8_t* read_flags(const bool* flags, const Block& block, uint8_t* buffer) {
  if (flags != nullptr && block.count == block.padded) return reinterpret_cast<const uint8_t*>(flags) + block.at;
  std::memset(buffer, 0, kBlock);
  if (flags != nullptr) std::memcpy(buffer, flags + block.at, block.count);
  return buffer;
}

// out [padded]: 1 where a flag is set, else 0. flags may be null: all 0.
template <class T>
inline void load_flags(const bool* flags, const Block& block, T* __restrict out) {
  uint8_t buffer[kBlock];
  const uint8_t* byte = read_flags(flags, block, buffer);
  for (int i = 0; i < block.padded; ++i) out[i] = T(byte[i] < 1 ? byte[i] : 1);
}

// How many flags are set.
inline int count_flags(const bool* flags, const Block& block) {
  uint8_t buffer[kBlock], sum[kLanes] = {};
  const uint8_t* byte = read_flags(flags, block, buffer);
  for (int first = 0; first < block.padded; first += kLanes)
    for (int i = 0; i < kLanes; ++i) sum[i] += byte[first + i] < 1 ? byte[first + i] : 1;
  int total = 0;
  for (int i = 0; i < kLanes; ++i) total += sum[i];
  return total;
}

// out [padded]: source where the token counts, else 0, whatever stands there. source may be null: all 0.
template <class T>
inline void load(const void* source, const Block& block, const T* __restrict counts, T* __restrict out) {
  const T* from = static_cast<const T*>(source) + (source == nullptr ? 0 : block.at);
  const int given = source == nullptr ? 0 : block.count;
  for (int i = 0; i < given; ++i) {
    const T x = from[i];
    out[i] = counts[i] > T(0) ? x : T(0);
  }
  for (int i = given; i < block.padded; ++i) out[i] = T(0);
}

// Adds x(0), …, x(padded - 1) to sum [kLanes].
template <class T, class Function>
inline void add_lanes(const Block& block, T (&sum)[kLanes], Function&& x) {
  for (int first = 0; first < block.padded; first += kLanes)
    for (int i = 0; i < kLanes; ++i) sum[i] += x(first + i);
}
template <class T>
inline double total(const T (&x)[kLanes]) {
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// The tokens of a block [padded] as far as they count, else 0.
template <class T>
struct Tokens {
  T logprob[kBlock], old_logprob[kBlock], advantage[kBlock], entropy[kBlock], counts[kBlock], selected[kBlock];
};

}  // namespace
}  // namespace CPU_CAPABILITY
}  // namespace isentrope::ops
