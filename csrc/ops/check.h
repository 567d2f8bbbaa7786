// Checks of op arguments. Every message has four parts: the op, the argument, what came, what is wanted.
#pragma once
#include <ATen/FuncTorchTLS.h>
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

// No op has a forward-mode derivative. Without this one that does not differentiate by x would give a tangent of 0.
inline void check_no_tangent(const char* op, std::initializer_list<at::Tensor> inputs) {
  for (const at::Tensor& x : inputs)
    TORCH_CHECK_NOT_IMPLEMENTED(!x.defined() || !x._fw_grad(/*level=*/0).defined(), "isentrope::", op,
                                ": forward-mode derivatives (torch.func.jvp, torch.autograd.forward_ad) are not "
                                "implemented; wanted reverse mode: backward or torch.autograd.grad");
}

// torch.func.grad, vjp and what is made of them cannot see into an autograd function of C++; torch says so without the op.
inline void check_no_transform(const char* op) {
  const auto& functorch = at::functorch::functorchTLSAccessor();
  if (!functorch) return;
  try {
    functorch->checkSupportsCppAutogradFunction();
  } catch (const c10::Error&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "isentrope::", op,
                                ": derivatives by torch.func (grad, vjp, jacrev, hessian) are not implemented; wanted "
                                "backward or torch.autograd.grad");
  }
}

inline void check_shape(const char* op, const char* name, const at::Tensor& x, c10::SymIntArrayRef wanted,
                        const char* meaning) {
  OP_CHECK(op, x.sym_sizes() == wanted, name, " has shape ", x.sym_sizes(), "; wanted ", wanted, " (", meaning, ")");
}

}  // namespace isentrope::ops
