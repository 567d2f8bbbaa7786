// The CPU backend of entropy_attention. Its bits depend on shapes and values alone, not on the number of threads.
#pragma once
#include "csrc/ops/cpu_dispatch.h"
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

inline void entropy_attention_forward_cpu(const kernels::EntropyAttentionForward& p) {
  ISENTROPE_PICK(entropy_attention_forward_cpu)(p);
}
inline void entropy_attention_backward_cpu(const kernels::EntropyAttentionBackward& p) {
  ISENTROPE_PICK(entropy_attention_backward_cpu)(p);
}

}  // namespace isentrope::ops
