// Vectors of floats for the CPU backends: one set of names, compiled for the instruction set of the file that includes
// it. Everything lies in a namespace of that set and nothing here is shared between sets at link time.
//
//   Float          kWidth floats                      Double1  one double, so that a template serves doubles too
//   load, store    kWidth elements in memory, unaligned
//   Pairs<T>       2·kWidth elements of T at a time: float, bfloat16, half or double. The order within a pair is its
//                  own: the same for load and store, of no matter to a sum.
//   exp2(x)        for x ≤ 127; NaN stays NaN; exactly 0 for x ≤ -150 and exactly 1 for 0; relative error 1.5e-7
//   max(a, b)      b where either is NaN, so max(bound, x) keeps a NaN in x and max(x, bound) drops it
//   raise(a, b)    max(a, b) where either is above 0, else something that is not; a NaN may pass. An integer
//                  instruction, which leaves the multiplier's ports free (as does clamp)
//   clamp(x)       max(x, -200) for x that is not NaN
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef CPU_CAPABILITY
#define CPU_CAPABILITY DEFAULT
#endif
#define ISENTROPE_INLINE inline __attribute__((always_inline))

namespace isentrope::ops::CPU_CAPABILITY {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// 2^f on [0, 1], p(0) = 1: the minimax polynomial of degree 5 (relative error 8e-8 before rounding).
constexpr float kExp2[5] = {0.69315130f, 0.24016444f, 0.055799913f, 0.0090170298f, 0.0018671302f};

struct Double1 {
  using Scalar = double;
  static constexpr int kWidth = 1;
  double v;
  Double1() = default;
  ISENTROPE_INLINE Double1(double x) : v(x) {}
};
ISENTROPE_INLINE Double1 load(const double* p) { return *p; }
ISENTROPE_INLINE void store(double* p, Double1 x) { *p = x.v; }
ISENTROPE_INLINE Double1 operator+(Double1 a, Double1 b) { return a.v + b.v; }
ISENTROPE_INLINE Double1 operator-(Double1 a, Double1 b) { return a.v - b.v; }
ISENTROPE_INLINE Double1 operator*(Double1 a, Double1 b) { return a.v * b.v; }
ISENTROPE_INLINE Double1 fma(Double1 a, Double1 b, Double1 c) { return a.v * b.v + c.v; }
ISENTROPE_INLINE Double1 max(Double1 a, Double1 b) { return a.v > b.v ? a.v : b.v; }
ISENTROPE_INLINE Double1 raise(Double1 a, Double1 b) { return max(a, b); }
ISENTROPE_INLINE Double1 clamp(Double1 x) { return max(Double1(-1100.0), x); }
ISENTROPE_INLINE Double1 exp2(Double1 x) { return ::exp2(x.v); }
ISENTROPE_INLINE double reduce_add(Double1 a) { return a.v; }
ISENTROPE_INLINE double reduce_max(Double1 a) { return a.v; }

#if defined(__AVX512F__)

struct Float {
  using Scalar = float;
  static constexpr int kWidth = 16;
  __m512 v;
  Float() = default;
  ISENTROPE_INLINE Float(__m512 x) : v(x) {}
  ISENTROPE_INLINE Float(float x) : v(_mm512_set1_ps(x)) {}
};
ISENTROPE_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
ISENTROPE_INLINE void store(float* p, Float x) { _mm512_storeu_ps(p, x.v); }
ISENTROPE_INLINE void stream(float* p, Float x) { _mm512_stream_ps(p, x.v); }
ISENTROPE_INLINE Float operator+(Float a, Float b) { return _mm512_add_ps(a.v, b.v); }
ISENTROPE_INLINE Float operator-(Float a, Float b) { return _mm512_sub_ps(a.v, b.v); }
ISENTROPE_INLINE Float operator*(Float a, Float b) { return _mm512_mul_ps(a.v, b.v); }
ISENTROPE_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
ISENTROPE_INLINE Float max(Float a, Float b) { return _mm512_max_ps(a.v, b.v); }
ISENTROPE_INLINE Float raise(Float a, Float b) {
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)));
}
// As unsigned integers negative floats lie above the positive ones, the larger the lower.
ISENTROPE_INLINE Float clamp(Float x) {
  return _mm512_castsi512_ps(_mm512_min_epu32(_mm512_castps_si512(x.v), _mm512_castps_si512(_mm512_set1_ps(-200.0f))));
}
ISENTROPE_INLINE float reduce_add(Float a) { return _mm512_reduce_add_ps(a.v); }
ISENTROPE_INLINE float reduce_max(Float a) { return _mm512_reduce_max_ps(a.v); }
ISENTROPE_INLINE Float exp2(Float x) {
  const __m512 f = _mm512_reduce_ps(x.v, 1);  // x - floor(x)
  __m512 p = _mm512_set1_ps(kExp2[4]);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[3]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[2]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[1]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[0]));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x.v);  // p · 2^floor(x)
}
// 32 bits hold two bfloat16: the low one shifted up is a float, the high one with its neighbour cleared is another.
using Words = __m512i;
ISENTROPE_INLINE Words load_words(const void* p) { return _mm512_loadu_si512(p); }
ISENTROPE_INLINE void store_words(void* p, Words x) { _mm512_storeu_si512(p, x); }
ISENTROPE_INLINE void stream_words(void* p, Words x) { _mm512_stream_si512(static_cast<__m512i*>(p), x); }
ISENTROPE_INLINE Float low_bfloat16(Words x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
ISENTROPE_INLINE Float high_bfloat16(Words x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
ISENTROPE_INLINE Words round_to_bfloat16(Float x) {  // in the upper half of each word, to nearest even
  const Words bits = _mm512_castps_si512(x.v), half = _mm512_set1_epi32(0x7fff);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  return _mm512_add_epi32(bits, _mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1)));
}
ISENTROPE_INLINE Words join_bfloat16(Float low, Float high) {
  // Bits of the low half from the first operand, of the high half from the second.
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(round_to_bfloat16(low), 16), round_to_bfloat16(high),
                                   _mm512_set1_epi32(0xffff), 0xe4);
}
ISENTROPE_INLINE Float load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
ISENTROPE_INLINE void store_half(uint16_t* p, Float x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
ISENTROPE_INLINE void stream_half(uint16_t* p, Float x) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__AVX2__)

struct Float {
  using Scalar = float;
  static constexpr int kWidth = 8;
  __m256 v;
  Float() = default;
  ISENTROPE_INLINE Float(__m256 x) : v(x) {}
  ISENTROPE_INLINE Float(float x) : v(_mm256_set1_ps(x)) {}
};
ISENTROPE_INLINE Float load(const float* p) { return _mm256_loadu_ps(p); }
ISENTROPE_INLINE void store(float* p, Float x) { _mm256_storeu_ps(p, x.v); }
ISENTROPE_INLINE void stream(float* p, Float x) { _mm256_stream_ps(p, x.v); }
ISENTROPE_INLINE Float operator+(Float a, Float b) { return _mm256_add_ps(a.v, b.v); }
ISENTROPE_INLINE Float operator-(Float a, Float b) { return _mm256_sub_ps(a.v, b.v); }
ISENTROPE_INLINE Float operator*(Float a, Float b) { return _mm256_mul_ps(a.v, b.v); }
ISENTROPE_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
ISENTROPE_INLINE Float max(Float a, Float b) { return _mm256_max_ps(a.v, b.v); }
ISENTROPE_INLINE Float raise(Float a, Float b) {
  return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a.v), _mm256_castps_si256(b.v)));
}
// As unsigned integers negative floats lie above the positive ones, the larger the lower.
ISENTROPE_INLINE Float clamp(Float x) {
  return _mm256_castsi256_ps(_mm256_min_epu32(_mm256_castps_si256(x.v), _mm256_castps_si256(_mm256_set1_ps(-200.0f))));
}
ISENTROPE_INLINE float reduce_add(Float a) {
  alignas(32) float t[8];
  _mm256_store_ps(t, a.v);
  return ((t[0] + t[4]) + (t[1] + t[5])) + ((t[2] + t[6]) + (t[3] + t[7]));
}
ISENTROPE_INLINE float reduce_max(Float a) {
  alignas(32) float t[8];
  _mm256_store_ps(t, a.v);
  float m = t[0];
  for (int i = 1; i < 8; ++i) m = m > t[i] ? m : t[i];
  return m;
}
ISENTROPE_INLINE Float exp2(Float x) {
  const __m256 n = _mm256_floor_ps(x.v), f = _mm256_sub_ps(x.v, n);
  __m256 p = _mm256_set1_ps(kExp2[4]);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2[3]));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2[2]));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2[1]));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(kExp2[0]));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvttps_epi32(n), 23);
  const __m256 scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  // Below 2^-126 the exponent field has run over: 0. "Not less than, or unordered" lets NaN through.
  return _mm256_and_ps(scaled, _mm256_cmp_ps(x.v, _mm256_set1_ps(-126.0f), _CMP_NLT_UQ));
}
using Words = __m256i;
ISENTROPE_INLINE Words load_words(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
ISENTROPE_INLINE void store_words(void* p, Words x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
ISENTROPE_INLINE void stream_words(void* p, Words x) { _mm256_stream_si256(static_cast<__m256i*>(p), x); }
ISENTROPE_INLINE Float low_bfloat16(Words x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
ISENTROPE_INLINE Float high_bfloat16(Words x) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
ISENTROPE_INLINE Words round_to_bfloat16(Float x) {
  const Words bits = _mm256_castps_si256(x.v);
  const Words odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
ISENTROPE_INLINE Words join_bfloat16(Float low, Float high) {
  return _mm256_blend_epi16(_mm256_srli_epi32(round_to_bfloat16(low), 16), round_to_bfloat16(high), 0xaa);
}
ISENTROPE_INLINE Float load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
ISENTROPE_INLINE void store_half(uint16_t* p, Float x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
ISENTROPE_INLINE void stream_half(uint16_t* p, Float x) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}

#else  // the compiler's own vectors of four: SSE2, NEON, whatever the platform has at least

typedef float FloatBits __attribute__((vector_size(16), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(16), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(16)));

struct Float {
  using Scalar = float;
  static constexpr int kWidth = 4;
  FloatBits v;
  Float() = default;
  ISENTROPE_INLINE Float(FloatBits x) : v(x) {}
  ISENTROPE_INLINE Float(float x) : v(FloatBits{x, x, x, x}) {}
};
template <class To, class From>
ISENTROPE_INLINE To same_bits(From x) {
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
ISENTROPE_INLINE Float load(const float* p) { return *reinterpret_cast<const FloatBits*>(p); }
ISENTROPE_INLINE void store(float* p, Float x) { *reinterpret_cast<FloatBits*>(p) = x.v; }
ISENTROPE_INLINE void stream(float* p, Float x) { store(p, x); }
ISENTROPE_INLINE Float operator+(Float a, Float b) { return FloatBits(a.v + b.v); }
ISENTROPE_INLINE Float operator-(Float a, Float b) { return FloatBits(a.v - b.v); }
ISENTROPE_INLINE Float operator*(Float a, Float b) { return FloatBits(a.v * b.v); }
// Without the fused instruction z·c - reference would lose digits at large logits: it is rounded once, through double.
ISENTROPE_INLINE Float fma(Float a, Float b, Float c) {
  FloatBits y;
  for (int i = 0; i < 4; ++i) y[i] = static_cast<float>(static_cast<double>(a.v[i]) * b.v[i] + c.v[i]);
  return y;
}
ISENTROPE_INLINE Float max(Float a, Float b) {
  const Integers greater = a.v > b.v;
  return same_bits<FloatBits>((greater & same_bits<Integers>(a.v)) | (~greater & same_bits<Integers>(b.v)));
}
ISENTROPE_INLINE Float raise(Float a, Float b) { return max(a, b); }
ISENTROPE_INLINE Float clamp(Float x) { return max(x, Float(-200.0f)); }
ISENTROPE_INLINE float reduce_add(Float a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
ISENTROPE_INLINE float reduce_max(Float a) {
  float m = a.v[0];
  for (int i = 1; i < 4; ++i) m = m > a.v[i] ? m : a.v[i];
  return m;
}
ISENTROPE_INLINE Float exp2(Float x) {
  const Float in_range = max(Float(-126.0f), x);  // so that the exponent below cannot run over
  // Adding 1.5·2^23 rounds to an integer; one less where that went up gives the floor.
  const FloatBits magic = Float(12582912.0f).v, lowest = Float(-126.0f).v;
  FloatBits n = (in_range.v + magic) - magic;
  n -= same_bits<FloatBits>((n > in_range.v) & same_bits<Integers>(Float(1.0f).v));
  const FloatBits f = in_range.v - n;
  FloatBits p = kExp2[4] * f + kExp2[3];
  p = p * f + kExp2[2];
  p = p * f + kExp2[1];
  p = p * f + kExp2[0];
  p = p * f + 1.0f;
  const Words exponent = same_bits<Words>(n + magic) << 23;  // the low bits of 1.5·2^23 + n are n
  const FloatBits scaled = same_bits<FloatBits>(same_bits<Words>(p) + exponent);
  const Integers kept = ~(x.v < lowest) & same_bits<Integers>(scaled), nan = x.v != x.v;
  return same_bits<FloatBits>(kept | (nan & same_bits<Integers>(x.v)));
}
ISENTROPE_INLINE Words load_words(const void* p) { return *static_cast<const Words*>(p); }
ISENTROPE_INLINE void store_words(void* p, Words x) { *static_cast<Words*>(p) = x; }
ISENTROPE_INLINE void stream_words(void* p, Words x) { store_words(p, x); }
ISENTROPE_INLINE Float low_bfloat16(Words x) { return same_bits<FloatBits>(x << 16); }
ISENTROPE_INLINE Float high_bfloat16(Words x) { return same_bits<FloatBits>(x & 0xffff0000u); }
ISENTROPE_INLINE Words round_to_bfloat16(Float x) {
  const Words bits = same_bits<Words>(x.v);
  return bits + ((bits >> 16) & 1u) + 0x7fffu;
}
ISENTROPE_INLINE Words join_bfloat16(Float low, Float high) {
  return (round_to_bfloat16(low) >> 16) | (round_to_bfloat16(high) & 0xffff0000u);
}
// half: exponent and mantissa moved into place, then scaled by 2^112, which also makes its denormals normal.
ISENTROPE_INLINE Float load_half(const uint16_t* p) {
  float y[4];
  for (int i = 0; i < 4; ++i) {
    const uint32_t magnitude = p[i] & 0x7fffu, sign = static_cast<uint32_t>(p[i] & 0x8000u) << 16;
    const float scaled = magnitude >= 0x7c00u ? same_bits<float>(0x7f800000u | ((magnitude & 0x3ffu) << 13))
                                              : same_bits<float>(magnitude << 13) * 0x1p112f;
    y[i] = same_bits<float>(same_bits<uint32_t>(scaled) | sign);
  }
  return load(y);
}
ISENTROPE_INLINE void store_half(uint16_t* p, Float x) {
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = same_bits<uint32_t>(static_cast<float>(x.v[i]));
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t y;
    if (magnitude > 0x7f800000u)
      y = 0x7e00u;  // NaN
    else if (magnitude >= 0x477ff000u)
      y = 0x7c00u;                     // rounds above the largest: infinity
    else if (magnitude < 0x38800000u)  // a denormal half: let the addition of 0.5 round
      y = same_bits<uint32_t>(same_bits<float>(magnitude) + 0.5f) - 0x3f000000u;
    else
      y = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    p[i] = static_cast<uint16_t>(sign | y);
  }
}
ISENTROPE_INLINE void stream_half(uint16_t* p, Float x) { store_half(p, x); }

#endif

// Orders streamed stores before what another thread is told next.
ISENTROPE_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
struct Pairs;
template <>
struct Pairs<float> {
  using Vector = Float;
  Float first, second;
  static ISENTROPE_INLINE Pairs load(const float* p) {
    return {CPU_CAPABILITY::load(p), CPU_CAPABILITY::load(p + Float::kWidth)};
  }
  ISENTROPE_INLINE void store(float* p) const {
    CPU_CAPABILITY::store(p, first);
    CPU_CAPABILITY::store(p + Float::kWidth, second);
  }
  // Past the cache; p aligned to 64 bytes.
  ISENTROPE_INLINE void stream(float* p) const {
    CPU_CAPABILITY::stream(p, first);
    CPU_CAPABILITY::stream(p + Float::kWidth, second);
  }
};
template <>
struct Pairs<BFloat16> {
  using Vector = Float;
  Float first, second;
  static ISENTROPE_INLINE Pairs load(const BFloat16* p) {
    const Words words = load_words(p);
    return {low_bfloat16(words), high_bfloat16(words)};
  }
  ISENTROPE_INLINE void store(BFloat16* p) const { store_words(p, join_bfloat16(first, second)); }
  ISENTROPE_INLINE void stream(BFloat16* p) const { stream_words(p, join_bfloat16(first, second)); }
};
template <>
struct Pairs<Half> {
  using Vector = Float;
  Float first, second;
  static ISENTROPE_INLINE Pairs load(const Half* p) { return {load_half(&p->bits), load_half(&p[Float::kWidth].bits)}; }
  ISENTROPE_INLINE void store(Half* p) const {
    store_half(&p->bits, first);
    store_half(&p[Float::kWidth].bits, second);
  }
  ISENTROPE_INLINE void stream(Half* p) const {
    stream_half(&p->bits, first);
    stream_half(&p[Float::kWidth].bits, second);
  }
};
template <>
struct Pairs<double> {
  using Vector = Double1;
  Double1 first, second;
  static ISENTROPE_INLINE Pairs load(const double* p) { return {p[0], p[1]}; }
  ISENTROPE_INLINE void store(double* p) const { p[0] = first.v, p[1] = second.v; }
  ISENTROPE_INLINE void stream(double* p) const { store(p); }
};

// Of elements T: the vector that sums of them are kept in, its scalar, and the elements of one pair.
template <class T>
using VectorOf = typename Pairs<T>::Vector;
template <class T>
using ScalarOf = typename VectorOf<T>::Scalar;
template <class T>
constexpr int64_t kStep = 2 * VectorOf<T>::kWidth;

}  // namespace isentrope::ops::CPU_CAPABILITY
