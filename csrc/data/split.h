// Which split a prompt belongs to. The hash of its text decides, so that equal prompts are never on two
// sides, whatever the seed, the order or the file they stand in. A corpus is split by its files' names likewise.
#pragma once
#include <cstdint>
#include <string_view>

#include "csrc/data/example.h"
#include "kernels/gpu/philox.h"

namespace isentrope::data {

// Uniform in [0, 1): FNV-1a (Fowler, Noll, Vo), whose high bits are then mixed by one Philox block.
inline double prompt_hash(std::string_view prompt) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : prompt) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return philox(hash, 0, 0).word[0] * 0x1p-32;
}

// The first `validation` of the unit interval, then `test`, the rest is for training.
inline Split split_of(std::string_view prompt, double validation, double test) {
  const double place = prompt_hash(prompt);
  return place < validation ? Split::validation : place < validation + test ? Split::test : Split::train;
}

}  // namespace isentrope::data
