// The CPU backend of gated_delta_rule, once for every instruction set. Its bits depend on shapes and values alone, not on the number of threads.
#pragma once
#include "kernels/gated_delta_rule.h"

namespace isentrope::ops {

#define ISENTROPE_DECLARE(ISA)                                              \
  namespace ISA {                                                           \
  void gated_delta_rule_forward_cpu(const kernels::GatedDeltaForward& p);   \
  void gated_delta_rule_backward_cpu(const kernels::GatedDeltaBackward& p); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
