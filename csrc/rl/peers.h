// The processes that draw the rollouts of a step together, as this room sees them; csrc/train/distributed.h has them.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace isentrope::rl {

// One process alone.
class Peers {
 public:
  virtual ~Peers() = default;
  virtual int64_t rank() const { return 0; }
  virtual int64_t size() const { return 1; }
  // What each rank gives, in the order of ranks, to all of them. Called by all.
  virtual std::vector<std::string> gather(const std::string& own) const { return {own}; }
  // The sum, in the order of their numbers, of values of which each rank has those whose turn it was: number i of rank
  // i % size(). Called by all.
  double sum_of_turns(const std::vector<double>& own) const {
    double sum = 0;
    const auto of_ranks = gather({reinterpret_cast<const char*>(own.data()), own.size() * sizeof(double)});
    for (size_t i = 0; i < own.size(); ++i) {
      double value = 0;
      std::memcpy(&value, of_ranks[i % of_ranks.size()].data() + i * sizeof(double), sizeof(double));
      sum += value;
    }
    return sum;
  }
  // A new queue, the same for all ranks; called by all. A call of it, from any thread, gives the next number, from 0 on, to one
  // rank alone.
  virtual std::function<int64_t()> queue() const {
    return [next = std::make_shared<std::atomic<int64_t>>(0)] { return (*next)++; };
  }
};

}  // namespace isentrope::rl
