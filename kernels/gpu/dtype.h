// Element types of the kernels' buffers, known at run time. Plain C++: every contract header may include it.
#pragma once
#include <cstddef>

namespace isentrope::kernels {

enum class DType { kFloat, kBFloat16, kHalf, kDouble };

constexpr size_t size_of(DType type) { return type == DType::kDouble ? 8 : type == DType::kFloat ? 4 : 2; }

constexpr const char* name_of(DType type) {
  switch (type) {
    case DType::kFloat:
      return "float";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kHalf:
      return "half";
    case DType::kDouble:
      return "double";
  }
  return "unknown";
}

}  // namespace isentrope::kernels
