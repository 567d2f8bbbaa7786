#include "csrc/train/block_cache.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "csrc/ops/result_memory.h"

namespace isentrope::train {
namespace {

constexpr size_t kPage = size_t{1} << 12, kHugePage = size_t{1} << 21;

// A block that is at most 1/8 too large is taken in the place of a new one.
constexpr size_t waste(size_t size) { return size / 8; }

void* map(size_t size) {
  void* address = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return nullptr;
  if (size >= kHugePage) ::madvise(address, size, MADV_HUGEPAGE);  // advice: where there are none, nothing is lost
  return address;
}

}  // namespace

BlockCache& BlockCache::of_process() {
  // Never destroyed: tensors of static variables may outlive it.
  static auto* const cache = new BlockCache(*c10::GetDefaultCPUAllocator());
  return *cache;
}

c10::DataPtr BlockCache::allocate(size_t bytes) {
  if (bytes < kLeast) return small_.allocate(bytes);
  const size_t size = (bytes + kPage - 1) / kPage * kPage;
  const std::lock_guard hold(lock_);
  void* address = take(size);
  if (!address) {
    shrink(std::max(most_, used_ + size) - used_ - size);
    address = map(size);
    if (!address) {
      shrink(0);
      address = map(size);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, address, "the system gives no ", bytes,
                     " bytes of memory for a tensor; free some, or make the batch smaller (batch.micro_tokens)");
    live_.emplace(address, size);
    used_ += size;
    most_ = std::max(most_, used_);
  }
  return {address, address, give_back, c10::Device(c10::DeviceType::CPU)};
}

void* BlockCache::take(size_t size) {
  const auto found = by_size_.lower_bound(size);
  if (found == by_size_.end() || found->first > size + waste(size)) return nullptr;
  const auto [address, whole] = *found->second;
  live_.emplace(address, whole);
  age_.erase(found->second);
  by_size_.erase(found);
  kept_ -= whole;
  used_ += whole;
  most_ = std::max(most_, used_);
  return address;
}

void BlockCache::give_back(void* address) {
  BlockCache& cache = of_process();
  {
    const std::lock_guard hold(cache.lock_);
    if (const auto live = cache.live_.find(address); live != cache.live_.end()) {
      const size_t size = live->second;
      cache.live_.erase(live);
      cache.used_ -= size;
      cache.kept_ += size;
      cache.by_size_.emplace(size, cache.age_.insert(cache.age_.end(), {address, size}));
      return;
    }
  }
  cache.small_.raw_deallocate(address);  // what raw_allocate() had of the heap
}

void BlockCache::shrink(size_t bytes) {
  while (kept_ > bytes) {
    const auto [address, size] = age_.front();
    const auto [first, last] = by_size_.equal_range(size);
    by_size_.erase(std::find_if(first, last, [&](const auto& one) { return one.second == age_.begin(); }));
    age_.pop_front();
    kept_ -= size;
    ::munmap(address, size);
  }
}

size_t BlockCache::used() const {
  const std::lock_guard hold(lock_);
  return used_;
}

size_t BlockCache::kept() const {
  const std::lock_guard hold(lock_);
  return kept_;
}

size_t BlockCache::most() const {
  const std::lock_guard hold(lock_);
  return most_;
}

void BlockCache::release() {
  const std::lock_guard hold(lock_);
  shrink(0);
  most_ = used_;
}

void BlockCache::hold_in_forks() {
  static const int once = ::pthread_atfork([] { of_process().lock_.lock(); }, [] { of_process().lock_.unlock(); },
                                           [] { of_process().lock_.unlock(); });
  static_cast<void>(once);  // there was no memory for it: as without
}

void keep_tensor_memory() {
  BlockCache::hold_in_forks();
  c10::SetCPUAllocator(&BlockCache::of_process(), /*priority=*/1);
}

namespace {

thread_local bool in_blocks = false;  // what TensorMemory says

// The cache for threads with a TensorMemory, the heap for all others. Every tensor is given back to where it came from.
class ByThread final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override { return chosen().allocate(bytes); }
  // Knows its blocks by their addresses, and leaves what is none of them to the heap.
  c10::DeleterFnPtr raw_deleter() const override { return BlockCache::of_process().raw_deleter(); }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }

 private:
  static c10::Allocator& chosen() {
    if (in_blocks) return BlockCache::of_process();
    return *c10::GetDefaultCPUAllocator();
  }
};

// Never destroyed, as the cache.
ByThread& by_thread() {
  static auto* const one = new ByThread();
  return *one;
}

}  // namespace

TensorMemory::TensorMemory(bool kept) : before_(std::exchange(in_blocks, kept)) {
  static const int once = [] {
    if (c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator()) return 0;  // another's, or the program's
    BlockCache::hold_in_forks();
    c10::SetCPUAllocator(&by_thread(), /*priority=*/1);
    ops::heap_serves_where([] { return !in_blocks; });
    return 0;
  }();
  static_cast<void>(once);
}

TensorMemory::~TensorMemory() { in_blocks = before_; }

bool keeps_tensor_memory() {
  const c10::Allocator* now = c10::GetCPUAllocator();
  return now == &BlockCache::of_process() || (in_blocks && now == &by_thread());
}

}  // namespace isentrope::train
