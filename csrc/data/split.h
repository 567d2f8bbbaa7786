// Which split a prompt belongs to: the one whose file it stands in, or of a file that splits share, the one that the hash of
// its text decides, so that equal prompts are never on two sides, whatever the seed and the order. A corpus is split by its
// files' names likewise.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/data/example.h"
#include "kernels/gpu/philox.h"

namespace isentrope::data {

// What the keys NAME_path and NAME_fraction of a held-out part say together.
struct HeldOutKeys {
  std::string name;  // validation, test
  const std::string& path;
  std::optional<double> fraction;

  static constexpr double kFraction = 0.05;                                         // where neither is written
  double share() const { return path.empty() ? fraction.value_or(kFraction) : 0; }  // of what training has
  bool any() const { return !path.empty() || share() > 0; }
  std::string problem() const {
    if (fraction && !(*fraction >= 0 && *fraction <= 1)) return name + "_fraction is in 0 … 1";
    if (fraction && !path.empty())
      return name + "_fraction is a share of what training would have, and " + name +
             "_path gives this part data of its own; leave one of the two out";
    return "";
  }
};

// FNV-1a (Fowler, Noll, Vo), 64 bits: two of a million prompts share it with probability 3e-8.
inline uint64_t prompt_hash(std::string_view prompt) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : prompt) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return hash;
}

// Uniform in [0, 1): the draw mixes the high bits of the hash.
inline double split_place(std::string_view prompt) { return philox(prompt_hash(prompt), 0, 0).word[0] * 0x1p-32; }

// The first `validation` of the unit interval, then `test`, the rest is for training.
inline Split split_of(std::string_view prompt, double validation, double test) {
  const double place = split_place(prompt);
  return place < validation ? Split::validation : place < validation + test ? Split::test : Split::train;
}

// split_of() each of a list, but that a part with a share above 0 is not empty by chance: where the hash puts no prompt into it,
// it gets the one of the training prompts whose place is lowest, as long as two different ones are left there.
inline std::vector<Split> splits_of(const std::vector<std::string_view>& prompts, double validation, double test) {
  std::vector<Split> splits;
  std::vector<std::pair<double, std::string_view>> training;  // by place
  for (const std::string_view prompt : prompts) {
    splits.push_back(split_of(prompt, validation, test));
    if (splits.back() == Split::train) training.emplace_back(split_place(prompt), prompt);
  }
  for (const auto& [share, part] : {std::pair{validation, Split::validation}, {test, Split::test}}) {
    if (share <= 0 || std::find(splits.begin(), splits.end(), part) != splits.end()) continue;
    std::sort(training.begin(), training.end());
    const auto other =
        std::find_if(training.begin(), training.end(), [&](const auto& x) { return x != training.front(); });
    if (other == training.end()) continue;
    for (size_t i = 0; i < prompts.size(); ++i)
      if (prompts[i] == training.front().second) splits[i] = part;
    training.erase(training.begin(), other);
  }
  return splits;
}

}  // namespace isentrope::data
