// The instruction set of the CPU backends, chosen once a process.
//
// Each <op>_cpu.cpp is compiled once as DEFAULT, AVX2 and AVX512, in a namespace of that name, so that no function
// compiled for a wider unit is ever linked in place of a narrower one.
#pragma once
#include <ATen/Version.h>

#include <string>

namespace isentrope::ops {

enum class Isa { kDefault, kAvx2, kAvx512 };

// What torch itself uses: ATEN_CPU_CAPABILITY=default|avx2|avx512 in the environment narrows it.
inline Isa isa() {
  static const Isa chosen = [] {
    const std::string name = at::get_cpu_capability();
    if (name.rfind("AVX512", 0) == 0) return Isa::kAvx512;
    return name == "AVX2" ? Isa::kAvx2 : Isa::kDefault;
  }();
  return chosen;
}

template <class Function>
Function* pick(Function* plain, Function* avx2, Function* avx512) {
  return isa() == Isa::kAvx512 ? avx512 : isa() == Isa::kAvx2 ? avx2 : plain;
}

// The variant of a function that fits the processor; a sanitized build has one alone (csrc/CMakeLists.txt).
#if defined(ISENTROPE_ISA)
#define ISENTROPE_PICK(function) (&ISENTROPE_ISA::function)
#elif defined(__x86_64__)
#define ISENTROPE_PICK(function) ::isentrope::ops::pick(&DEFAULT::function, &AVX2::function, &AVX512::function)
#else
#define ISENTROPE_PICK(function) (&DEFAULT::function)
#endif

}  // namespace isentrope::ops
