// What the CPU backend of window_entropy offers to window_entropy.cpp, once for every instruction set.
#pragma once
#include <cstdint>

#include "kernels/window_entropy.h"

namespace isentrope::ops {

// The largest of a row's windows, or of all rows' together.
struct WindowSelect {
  kernels::DType dtype = kernels::DType::kFloat;
  int64_t groups = 0, size = 0;    // sets of values, each chosen from by itself, and their length
  const void* mean = nullptr;      // [groups, size]
  const int32_t* count = nullptr;  // [groups, size]: 0 where there is no window
  double fraction = 0;             // the quantile, or the share that is taken
  bool top = false;                // the share, and high; else the quantile alone
  void* threshold = nullptr;       // [groups]
  bool* high = nullptr;            // [groups, size], with top
};

// The windows at or above a threshold.
struct WindowMark {
  kernels::DType dtype = kernels::DType::kFloat;
  int64_t rows = 0, length = 0;
  const void* mean = nullptr;       // [rows, length]
  const int32_t* count = nullptr;   // [rows, length]
  const void* threshold = nullptr;  // [rows], or [1] for all of them
  bool one_threshold = false;
  bool* high = nullptr;  // [rows, length]
};

// Nothing here depends on which thread runs it.
#define ISENTROPE_DECLARE(ISA)                                                  \
  namespace ISA {                                                               \
  void window_entropy_forward_on_cpu(const kernels::WindowEntropyForward& p);   \
  void window_entropy_backward_on_cpu(const kernels::WindowEntropyBackward& p); \
  void window_select_on_cpu(const WindowSelect& p);                             \
  void window_mark_on_cpu(const WindowMark& p);                                 \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
