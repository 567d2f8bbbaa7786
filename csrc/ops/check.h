// Checks of op arguments. Every message has four parts: the op, the argument, what came, what is wanted.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <initializer_list>

#include "kernels/gpu/dtype.h"

namespace isentrope::ops {

// condition, else "isentrope::<op>: <what came and what is wanted>"; the rest is streamed together.
#define OP_CHECK(op, condition, ...) TORCH_CHECK_VALUE(condition, "isentrope::", op, ": ", __VA_ARGS__)

inline void check_dtype(const char* op, const char* name, const at::Tensor& x,
                        std::initializer_list<at::ScalarType> allowed) {
  for (at::ScalarType type : allowed)
    if (x.scalar_type() == type) return;
  std::string list;
  for (at::ScalarType type : allowed) list += (list.empty() ? "" : ", ") + std::string(c10::toString(type));
  TORCH_CHECK_TYPE(false, "isentrope::", op, ": ", name, " has dtype ", x.scalar_type(), "; wanted ", list);
}

// A dtype that check_dtype has let through, as the kernels name it.
inline kernels::DType kernel_dtype(const char* op, const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return kernels::DType::kFloat;
    case at::kBFloat16:
      return kernels::DType::kBFloat16;
    case at::kHalf:
      return kernels::DType::kHalf;
    case at::kDouble:
      return kernels::DType::kDouble;
    default:
      TORCH_CHECK_TYPE(false, "isentrope::", op, ": no kernel takes ", x.scalar_type());
  }
}

// x on the device of like.
inline void check_device(const char* op, const char* name, const at::Tensor& x, const char* like_name,
                         const at::Tensor& like) {
  OP_CHECK(op, x.device() == like.device(), name, " is on ", x.device(), "; wanted ", like.device(), ", where ",
           like_name, " is");
}

inline void check_shape(const char* op, const char* name, const at::Tensor& x, c10::SymIntArrayRef wanted,
                        const char* meaning) {
  OP_CHECK(op, x.sym_sizes() == wanted, name, " has shape ", x.sym_sizes(), "; wanted ", wanted, " (", meaning, ")");
}

}  // namespace isentrope::ops
