// The sums of csrc/train/composition.h over a piece of a tensor, as pointers and sizes; composition_cpu.cpp is compiled once an instruction set.
#pragma once
#include <cstdint>

namespace isentrope::train {

inline constexpr int64_t kComposePiece = 4096;
struct ComposePiece {
  int64_t count = 0, vectors = 0;
  const float* base = nullptr;           // [count]
  const float* const* others = nullptr;  // [V] of [count]
  const float* factors = nullptr;        // [V]
  float* out = nullptr;                  // [count] base + Σ factor · (other − base)
  const float* gradient = nullptr;       // [count], in the place of factors and out
  double* products = nullptr;            // [V] Σ gradient · (other − base)
};
void compose_sum(const ComposePiece& piece);
void compose_products(const ComposePiece& piece);

}  // namespace isentrope::train
