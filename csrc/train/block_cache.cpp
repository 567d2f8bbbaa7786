#include "csrc/train/block_cache.h"

#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>

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
    const size_t most = std::max(most_, used_ + size);
    shrink(most + most / 8 - used_ - size);
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

void BlockCache::hold_in_forks() {
  static const int once = ::pthread_atfork([] { of_process().lock_.lock(); }, [] { of_process().lock_.unlock(); },
                                           [] { of_process().lock_.unlock(); });
  static_cast<void>(once);  // there was no memory for it: as without
}

void keep_tensor_memory() {
  BlockCache::hold_in_forks();
  c10::SetCPUAllocator(&BlockCache::of_process(), /*priority=*/1);
}

bool keeps_tensor_memory() { return c10::GetCPUAllocator() == &BlockCache::of_process(); }

}  // namespace isentrope::train
