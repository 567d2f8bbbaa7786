// What the CPU backend of sigma_linear and power_step offers to sigma_linear.cpp and power_step.cpp, once for every
// instruction set: the launchers of kernels/sigma_linear.h, on torch's threads. The bits do not depend on the number of
// threads.
#pragma once
#include "kernels/sigma_linear.h"

namespace isentrope::ops {

#define ISENTROPE_DECLARE(ISA)                         \
  namespace ISA {                                      \
  void sigma_norm(const kernels::SigmaNorm& p);        \
  void sigma_dot(const kernels::SigmaDot& p);          \
  void sigma_rank_one(const kernels::SigmaRankOne& p); \
  void power_step(const kernels::PowerStep& p);        \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

}  // namespace isentrope::ops
