// The CPU backend of linear_attention, once for every instruction set. Its bits depend on shapes and values alone, not on the number of threads.
#pragma once
#include "kernels/linear_attention.h"

namespace isentrope::ops {

#define ISENTROPE_DECLARE(ISA)                                                   \
  namespace ISA {                                                                \
  void linear_attention_forward_cpu(const kernels::LinearAttentionForward& p);   \
  void linear_attention_backward_cpu(const kernels::LinearAttentionBackward& p); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
