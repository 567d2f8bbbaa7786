// The memory of tensors of the program: large blocks are kept for the next tensor of about their size.
//
// A training step asks for the same sizes again and again. The heap of the C library either gives large blocks back to the system,
// and every step pays for their pages anew, or keeps them and cuts them up: of a step with 1.29 GB in use at once 1.72 GB stayed
// (tests/python/test_training_options.py has its configuration). Here a block is of one tensor at a time and is never cut, and
//
//   bytes in use + bytes kept ≤ the most bytes that were in use at once so far,
//
// so a process takes what it uses at the moment when it uses most, and nothing beside.
#pragma once
#include <c10/core/Allocator.h>

#include <cstddef>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

namespace isentrope::train {

class BlockCache final : public c10::Allocator {
 public:
  // Below, the heap serves: its small blocks are not given back one by one.
  static constexpr size_t kLeast = size_t{1} << 20;

  // The one of the process, for a deleter knows an address alone.
  static BlockCache& of_process();
  BlockCache(const BlockCache&) = delete;

  // Any thread. Memory that the system refuses is c10::OutOfMemoryError, after all that is kept was given back.
  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override { return give_back; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

  // A process that a reward in Python forks has one thread: the lock, which another thread may have at that moment, is held over each
  // fork from here on.
  static void hold_in_forks();

  size_t used() const;  // bytes of the blocks that tensors have
  size_t kept() const;  // and of those that wait for one
  size_t most() const;  // that were in use at once since the last release()
  void release();       // gives all back that waits, and forgets how much was in use

 private:
  struct Kept {
    void* address;
    size_t size;
  };
  using Age = std::list<Kept>;  // the longest kept first

  explicit BlockCache(c10::Allocator& small) : small_(small) {}
  static void give_back(void* address);
  void* take(size_t size);    // with the lock; null where none fits
  void shrink(size_t bytes);  // with the lock; gives blocks back until at most so many bytes are kept

  c10::Allocator& small_;
  mutable std::mutex lock_;
  std::unordered_map<void*, size_t> live_;
  Age age_;
  std::multimap<size_t, Age::iterator> by_size_;
  size_t used_ = 0, kept_ = 0, most_ = 0;
};

// Makes it the allocator of all tensors on the CPU from here on. Of the program alone: in another process memory is not ours to arrange.
void keep_tensor_memory();

// While one stands, tensors that its thread makes have blocks of it, or with false do not; those of other threads are where they were.
// For a trainer in a process of somebody else, around all that it does. Where that process has an allocator of its own: nothing.
class TensorMemory {
 public:
  explicit TensorMemory(bool kept);
  ~TensorMemory();
  TensorMemory(const TensorMemory&) = delete;

 private:
  bool before_;
};

bool keeps_tensor_memory();  // whether tensors that this thread makes have blocks of it

}  // namespace isentrope::train
