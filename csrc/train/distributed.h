// The processes of a run, which torchrun starts, and the few verbs that they have in common: c10d behind it, Gloo on the CPU and
// NCCL on GPUs. distributed.cpp is the only file that knows c10d.
//
// Every verb is called by all ranks, in the same order, and begins with a word of 64 bytes from each: whether it has failed,
// which verb it is at, and the numbers that it brings where they are few. So an error on one rank (a reward that raises, a loss that is not finite) ends what all ranks do at
// the same place, before anything is changed: together() says so to the others, who throw StoppedByRank. A rank that dies or hangs
// cannot say it: then the verb fails on the others within the time limit, names the rank, and no verb works any more.
//
// On one rank a verb gives back what it got, and costs nothing.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/rl/peers.h"

namespace isentrope::train {

// Another rank has failed: "rank 1: " and its text.
struct StoppedByRank : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Ranks : public rl::Peers {
 public:
  Ranks();  // one
  // As torchrun's variables say: RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; without WORLD_SIZE, or where it is 1, one rank.
  // timeout_s: limit of this call and of each verb. gpu: whether tensors on a GPU are exchanged too. Throws std::runtime_error
  // where a variable is missing or wrong, the build has one rank, the port is taken, or a rank does not come (names it).
  static std::shared_ptr<Ranks> of_environment(double timeout_s, bool gpu);
  static std::string build();  // "Gloo", "Gloo and NCCL", or "one rank (…)"
  ~Ranks() override;

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }
  bool alone() const { return size_ == 1; }
  bool first() const { return rank_ == 0; }

  // ---- what is counted over all ranks: the same bits on each
  void sum(torch::Tensor& x) const;  // contiguous; float64, float32 or int64
  void max(torch::Tensor& x) const;
  void sum(std::vector<double>& x) const;
  double sum(double x) const;
  int64_t max(int64_t x) const;
  // Rows [N of each rank, …] → [all N, …] in the order of ranks.
  torch::Tensor rows(const torch::Tensor& own) const;
  std::vector<std::string> gather(const std::string& own) const override;
  std::string from_first(const std::string& text) const;
  std::function<int64_t()> queue() const override;
  void barrier() const;

  // ---- large tensors, float32, without the word at their beginning
  // Sends in[r] to rank r, and gets what each has for this rank; the function that comes back waits for it. The tensors live until
  // then. in, out: flat; counts: elements for and from each rank.
  std::function<void()> exchange(const torch::Tensor& out, const torch::Tensor& in, std::vector<int64_t> out_counts,
                                 std::vector<int64_t> in_counts) const;
  // parts[r]: flat, filled by rank r, then the same on all.
  void share(std::vector<torch::Tensor>& parts) const;

  bool broken() const;  // a rank has died or hangs, and no verb works any more

  // Bytes that this rank has sent in all verbs, by the algorithms of Gloo (ring for sums and gathers, tree from one to all).
  int64_t bytes_sent() const;

  // Runs work, and ends on all ranks where it has ended on all; an exception on one of them is one on all. May be nested.
  template <class Work>
  auto together(Work work) const {
    if (alone()) return work();
    const Scope scope(*this);
    try {
      if constexpr (std::is_void_v<decltype(work())>) {
        work();
        settle();
      } else {
        auto result = work();
        settle();
        return result;
      }
    } catch (const StoppedByRank&) {
      throw;
    } catch (...) {
      tell();
      throw;
    }
  }
  // Within a handler: tells the exception in hand to the others, if that is not done yet.
  void tell() const noexcept;
  // The begin of a stretch without other verbs, in which exchange() is called as often on every rank, whatever happens there.
  void settle() const;

 private:
  struct Group;
  struct Scope {
    explicit Scope(const Ranks& ranks);
    ~Scope();
    Scope(const Scope&) = delete;
    const Ranks& ranks_;
  };

  int64_t rank_ = 0, size_ = 1;
  std::unique_ptr<Group> group_;
};

}  // namespace isentrope::train
