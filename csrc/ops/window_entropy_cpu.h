// What the CPU backend of window_entropy offers to window_entropy.cpp. Running sums and a selection gain nothing from wider
// vectors, so it is compiled once.
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

// Nothing here depends on which thread runs it.
void window_entropy_forward_on_cpu(const kernels::WindowEntropyForward& p);
void window_entropy_backward_on_cpu(const kernels::WindowEntropyBackward& p);
void window_select_on_cpu(const WindowSelect& p);

}  // namespace isentrope::ops
