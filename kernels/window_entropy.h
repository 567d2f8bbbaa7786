// Means of token entropy over windows that slide along each sequence (HWE, high window entropy), and their gradient.
//
//   window(t) = { s : t - before <= s <= t + after, 0 <= s < T, mask_s }        of size w = before + after + 1
//   n_t = |window(t)|, 0 where t has no window: mask_t or at_t is not set, n_t is 0, or n_t < w and partial windows are dropped
//   mean_t = (1/n_t) Σ_{s in window(t)} x_s, 0 where n_t = 0
//   dx_s = Σ_{t : s in window(t), n_t > 0} dmean_t / n_t
//
// before = 0 is the window that begins with t, after = 0 the one that ends with it, before = -1 the one that follows it.
//
// A sequence is cut into blocks of w tokens. With head_s the sum from the start of s' block to s, and tail_s that from s to the
// block's end, a window that begins at a and ends at b is tail_a + head_b, or one of the two where it lies in one block: O(T) a
// sequence whatever w is, no difference of large sums, and a value that is not finite stays in its own windows. Sums in double.
#pragma once
#include <cstdint>

#include "kernels/gpu/dtype.h"
#include "kernels/gpu/philox.h"  // ISENTROPE_HOST_DEVICE

namespace isentrope::kernels {

// Of values and of how many there are.
struct WindowSums {
  double sum;
  int64_t count;
};

// The tokens a … b of the window of t that exist, and which sums make it. Nothing where b < a.
struct WindowReach {
  int64_t a, b;
  bool head, tail;
};
ISENTROPE_HOST_DEVICE inline WindowReach window_reach(int64_t t, int64_t before, int64_t after, int64_t length) {
  const int64_t w = before + after + 1;
  WindowReach r = {t - before < 0 ? 0 : t - before, t + after >= length ? length - 1 : t + after, false, false};
  const bool one_block = r.a / w == r.b / w;
  r.head = r.b >= r.a && (!one_block || r.a % w == 0);
  r.tail = r.b >= r.a && (!one_block || r.a % w != 0);  // then b ends the block, or the sequence
  return r;
}

// x, mean and their gradients are float or double.
struct WindowEntropyForward {
  DType dtype = DType::kFloat;
  int64_t rows = 0, length = 0;     // B, T
  int64_t before = 0, after = 0;    // before + after >= 0
  bool shrink = false;              // keep partial windows
  const void* x = nullptr;          // [B, T]
  const bool* mask = nullptr;       // [B, T]: the tokens that count; x is not read elsewhere
  const bool* at = nullptr;         // [B, T]: where windows may be; null for everywhere
  void* mean = nullptr;             // [B, T]
  int32_t* count = nullptr;         // [B, T] n_t
  WindowSums* workspace = nullptr;  // [2, B, T] head and tail
};

struct WindowEntropyBackward {
  DType dtype = DType::kFloat;
  int64_t rows = 0, length = 0;
  int64_t before = 0, after = 0;    // as in the forward pass
  const void* dmean = nullptr;      // [B, T]
  const int32_t* count = nullptr;   // [B, T]
  const bool* mask = nullptr;       // [B, T]
  void* dx = nullptr;               // [B, T]
  WindowSums* workspace = nullptr;  // [2, B, T]
};

// stream is a cudaStream_t; returns before the work is done. Throws std::invalid_argument for a dtype out of the list.
void window_entropy_forward_cuda(const WindowEntropyForward& p, void* stream);
void window_entropy_backward_cuda(const WindowEntropyBackward& p, void* stream);

}  // namespace isentrope::kernels
