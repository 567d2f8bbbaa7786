// Which split a prompt belongs to. The hash of its text decides, so that equal prompts are never on two
// sides, whatever the seed, the order or the file they stand in. A corpus is split by its files' names likewise.
#pragma once
#include <cstdint>
#include <string_view>

#include "csrc/data/example.h"
#include "kernels/gpu/philox.h"

namespace isentrope::data {

// FNV-1a (Fowler, Noll, Vo), 64 bits: two of a million prompts share it with probability 3e-8.
inline uint64_t prompt_hash(std::string_view prompt) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : prompt) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return hash;
}

// The first `validation` of the unit interval, then `test`, the rest is for training.
inline Split split_of(std::string_view prompt, double validation, double test) {
  const double place = philox(prompt_hash(prompt), 0, 0).word[0] * 0x1p-32;  // mixes its high bits; uniform in [0, 1)
  return place < validation ? Split::validation : place < validation + test ? Split::test : Split::train;
}

}  // namespace isentrope::data
