// What the CPU backend of crrelu offers to crrelu.cpp, once for every instruction set.
#pragma once
#include "kernels/crrelu.h"

namespace isentrope::ops {

// Elements of a task, and of one sum of ε's gradient: fixed, so that no bit depends on the number of threads.
inline constexpr int64_t kCrreluRun = 1 << 14;

#define ISENTROPE_DECLARE(ISA)                                   \
  namespace ISA {                                                \
  void crrelu_forward_on_cpu(const kernels::CrreluForward& p);   \
  /* parts [⌈N / kCrreluRun⌉], depsilon is left */           \
  void crrelu_backward_on_cpu(const kernels::CrreluBackward& p); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
