// What linear_attention and gated_delta_rule have in common: a state of D × E numbers for each key head of each sequence, which
// every step decays, adds to, and is read from.
//
// Sequence n has steps t = 0 … n_b - 1: B of them, of key_lengths[n] or T steps; or packed ones, of the rows cu_seqlens[n] …
// cu_seqlens[n + 1] - 1 of every array. Steps at and after n_b do not exist: nothing of them is read, out and gradients are 0 there.
//
// Steps are taken in chunks of C. With g_t the logarithm of a step's decay, of either sign, and b_i = Σ_{l ≤ i} g_l within the chunk:
//   rise_i = exp(b_i)      fall_j = exp(b_C - b_j)      Γ_ij = exp(b_i - b_j) for j ≤ i, else 0
// Each is the exponential of a sum of the decays that lie between, so nothing overflows that the recurrence would not have. A g of
// -inf forgets all that was before; g is bounded to -1e4, whose exponential is 0 in every type.
#pragma once
#include <cstdint>

#include "kernels/entropy_attention.h"  // HeadStrides
#include "kernels/gpu/dtype.h"
#include "kernels/gpu/philox.h"  // ISENTROPE_HOST_DEVICE

namespace isentrope::kernels {

struct RecurrenceShape {
  int64_t sequences = 0;   // N: B, or the number of packed sequences
  int64_t heads = 0;       // H, a multiple of G: query head h reads the state of key head h / (H / G)
  int64_t kv_heads = 0;    // G
  int64_t steps = 0;       // T; packed: of all sequences together
  int64_t key_size = 0;    // D
  int64_t value_size = 0;  // E
  int64_t chunk = 64;      // C, a multiple of 16 up to 256
  // Out of range values are bounded to 0 … T: nothing is read out of bounds.
  const int64_t* key_lengths = nullptr;  // [B], or null
  const int64_t* cu_seqlens = nullptr;   // [N + 1], or null: not packed
};

// The rows of one sequence in every array: entry `batch`, rows first … first + count - 1.
struct RecurrenceRows {
  int64_t batch, first, count;
};
ISENTROPE_HOST_DEVICE inline int64_t bounded_row(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}
ISENTROPE_HOST_DEVICE inline RecurrenceRows recurrence_rows(const RecurrenceShape& s, int64_t n) {
  if (s.cu_seqlens == nullptr)
    return {n, 0, s.key_lengths != nullptr ? bounded_row(s.key_lengths[n], 0, s.steps) : s.steps};
  const int64_t first = bounded_row(s.cu_seqlens[n], 0, s.steps);
  return {0, first, bounded_row(s.cu_seqlens[n + 1], first, s.steps) - first};
}

// Where the chunks of a sequence begin in an array that has a place for every chunk: chunks of no two sequences share one.
ISENTROPE_HOST_DEVICE inline int64_t first_chunk(const RecurrenceShape& s, int64_t n, const RecurrenceRows& rows) {
  return s.cu_seqlens == nullptr ? n * ((s.steps + s.chunk - 1) / s.chunk) : rows.first / s.chunk + n;
}
ISENTROPE_HOST_DEVICE inline int64_t chunk_places(const RecurrenceShape& s) {
  return s.cu_seqlens == nullptr ? s.sequences * ((s.steps + s.chunk - 1) / s.chunk) : s.steps / s.chunk + s.sequences;
}

constexpr double kLowestLogDecay = -1e4;

}  // namespace isentrope::kernels
