// Examples that lie in memory, as a source.
#pragma once
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/shuffle.h"

namespace isentrope::data {

// Examples first … first + count − 1 of the stream of a list that is not empty: each epoch a permutation fixed by (seed, epoch), or,
// not shuffled, the order of the list. Throws std::invalid_argument for a negative number.
inline std::vector<Example> take_of_list(const std::vector<Example>& list, uint64_t seed, bool shuffled, int64_t first,
                                         int64_t count) {
  if (first < 0 || count < 0)
    throw std::invalid_argument("take(" + std::to_string(first) + ", " + std::to_string(count) + ") is negative");
  std::vector<Example> examples;
  examples.reserve(static_cast<size_t>(count));
  const auto n = static_cast<uint64_t>(list.size());
  std::optional<Shuffle> order;
  for (auto i = static_cast<uint64_t>(first); i < static_cast<uint64_t>(first + count); ++i) {
    if (!order || i % n == 0) order.emplace(seed, i / n, n);
    examples.push_back(list[shuffled ? (*order)(i % n) : i % n]);
  }
  return examples;
}

// Training examples that the program made itself; at least one.
class ExampleList : public ExampleSource {
 public:
  ExampleList(std::vector<Example> examples, uint64_t seed) : examples_(std::move(examples)), seed_(seed) {}
  std::vector<Example> take(int64_t first, int64_t count) const override {
    return take_of_list(examples_, seed_, /*shuffled=*/true, first, count);
  }
  int64_t size() const override { return static_cast<int64_t>(examples_.size()); }

 private:
  std::vector<Example> examples_;
  uint64_t seed_;
};

}  // namespace isentrope::data
