// The CPU backend of entropy_attention, once for every instruction set. Its bits depend on shapes and values alone, not on the number of threads.
#pragma once
#include "kernels/entropy_attention.h"

namespace isentrope::ops {

#define ISENTROPE_DECLARE(ISA)                                                     \
  namespace ISA {                                                                  \
  void entropy_attention_forward_cpu(const kernels::EntropyAttentionForward& p);   \
  void entropy_attention_backward_cpu(const kernels::EntropyAttentionBackward& p); \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

// The variant for this processor. Nothing is checked: for a caller with memory of its own that attends a token at a time.
void entropy_attention_forward_cpu(const kernels::EntropyAttentionForward& p);

}  // namespace isentrope::ops
