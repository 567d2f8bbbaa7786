// The memory of large results on the CPU, kept for the next ones of their size: an update makes the same [B, T] as the one before, and pages
// that the C library gave back to the system cost more to get anew than the loops that write them (tens of ns for each kB). At most
// four blocks wait for a tensor, whatever their size.
#pragma once
#include <ATen/core/Tensor.h>

namespace isentrope::ops {

// [sizes of like] of that dtype, contiguous on the CPU, not initialised. From torch's allocator where it is below 1 MB, or where
// that allocator is not the one torch begins with and has an order of its own (csrc/train/block_cache.h). Any thread; also behind a fork.
at::Tensor result_like(const at::Tensor& like, at::ScalarType dtype);
inline at::Tensor result_like(const at::Tensor& like) { return result_like(like, like.scalar_type()); }

// Where torch's allocator is another one that leaves some threads to the heap: whether this thread is one of them. They are served as
// with the allocator that torch begins with.
void heap_serves_where(bool (*here)());

}  // namespace isentrope::ops
