#include "csrc/model/bfloat16_kernels.h"
#include "csrc/model/cpu_kernels.h"
#include "csrc/ops/cpu_dispatch.h"

namespace isentrope::model {

#define ISENTROPE_DECLARE(isa)                              \
  namespace isa {                                           \
  const CpuKernels<float>& float_kernels();                 \
  const CpuKernels<double>& double_kernels();               \
  const DecodeKernels<float>& float_decode_kernels();       \
  const DecodeKernels<uint16_t>& bfloat16_decode_kernels(); \
  const Bfloat16Kernels& bfloat16_kernels();                \
  }
ISENTROPE_DECLARE(DEFAULT)
ISENTROPE_DECLARE(AVX2)
ISENTROPE_DECLARE(AVX512)
#undef ISENTROPE_DECLARE

template <>
const CpuKernels<float>& cpu_kernels<float>() {
  return ISENTROPE_PICK(float_kernels)();
}

template <>
const CpuKernels<double>& cpu_kernels<double>() {
  return ISENTROPE_PICK(double_kernels)();
}

template <>
const DecodeKernels<float>& decode_kernels<float>() {
  return ISENTROPE_PICK(float_decode_kernels)();
}

template <>
const DecodeKernels<uint16_t>& decode_kernels<uint16_t>() {
  return ISENTROPE_PICK(bfloat16_decode_kernels)();
}

const Bfloat16Kernels& bfloat16_kernels() { return ISENTROPE_PICK(bfloat16_kernels)(); }

}  // namespace isentrope::model
