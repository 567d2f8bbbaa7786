// From a value known at run time to a template constant. Every dispatch ends in a throw that lists what is allowed.
//
//   gpu::dispatch<DType::kFloat, DType::kBFloat16>("token_entropy_forward: dtype", p.dtype, [&](auto type) {
//     using T = gpu::TypeOf<type()>;
//     ...
//   });
//   gpu::dispatch<false, true>("moments", p.sum_p2 != nullptr, [&](auto moments) { ... kernel<T, moments()> ... });
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/gpu/dtype.h"
#include "kernels/gpu/platform.h"

namespace isentrope::gpu {

template <kernels::DType kType>
struct TypeOfDType;
template <>
struct TypeOfDType<kernels::DType::kFloat> {
  using type = float;
};
template <>
struct TypeOfDType<kernels::DType::kBFloat16> {
  using type = bfloat16;
};
template <>
struct TypeOfDType<kernels::DType::kHalf> {
  using type = half;
};
template <>
struct TypeOfDType<kernels::DType::kDouble> {
  using type = double;
};
template <kernels::DType kType>
using TypeOf = typename TypeOfDType<kType>::type;

inline std::string describe(kernels::DType type) { return kernels::name_of(type); }
inline std::string describe(bool value) { return value ? "true" : "false"; }
template <class Value>
std::string describe(Value value) {
  return std::to_string(static_cast<long long>(value));
}

// Calls function(std::integral_constant<.., v>) for the v among kValues that equals value; what names it in the error.
template <auto... kValues, class Value, class Function>
void dispatch(const char* what, Value value, Function&& function) {
  const bool found =
      ((value == kValues && (function(std::integral_constant<decltype(kValues), kValues>{}), true)) || ...);
  if (found) return;
  std::string allowed;
  ((allowed += (allowed.empty() ? "" : ", ") + describe(kValues)), ...);
  throw std::invalid_argument(std::string(what) + " is " + describe(value) + "; wanted one of " + allowed);
}

}  // namespace isentrope::gpu
