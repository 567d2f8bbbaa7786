// How a method becomes a torch op, torch.ops.isentrope.method_<name>: one call in its .cpp,
//
//   TORCH_LIBRARY_FRAGMENT(isentrope, m) {
//     define(m, "method_top_entropy(Tensor entropy, Tensor mask, float fraction=0.2) -> Tensor", top_entropy);
//   }
//
// The function is the op on every device (host() brings what it reads to the CPU, and its result goes back), and its result a constant to
// autograd. A last argument is the Meta entry, which gives the shapes; without it the result is like the first argument.
#pragma once
#include <torch/library.h>

#include <string>

#include "csrc/methods/method.h"
#include "csrc/ops/check.h"

namespace isentrope::methods {

template <class Function, class Meta>
void define(torch::Library& m, const char* schema, Function* function, Meta* meta) {
  const std::string text = schema, name = text.substr(0, text.find('('));
  m.def(schema);
  m.impl(name.c_str(), torch::dispatch(c10::DispatchKey::CompositeExplicitAutograd, torch::CppFunction(function)));
  m.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Meta, torch::CppFunction(meta)));
  m.impl(name.c_str(), torch::dispatch(c10::DispatchKey::Autograd, torch::CppFunction::makeFallthrough()));
}

// The same, with a Meta entry of one result that has the shape, dtype and device of the first argument.
template <class First, class... Rest>
void define(torch::Library& m, const char* schema, Tensor (*function)(First, Rest...)) {
  define(
      m, schema, function, +[](First x, Rest...) -> Tensor { return torch::empty_symint(x.sym_sizes(), x.options()); });
}

// Checks of arguments, in the house's four parts: op, argument, what came, what was wanted.
inline void check_rows(const char* op, const char* name, const Tensor& x) {
  OP_CHECK(op, x.dim() == 2, name, " has ", x.dim(), " dimensions; wanted [B, T]");
}
inline void check_like(const char* op, const char* name, const Tensor& x, const char* like_name, const Tensor& like) {
  OP_CHECK(op, x.sizes() == like.sizes(), name, " has shape ", x.sizes(), "; wanted ", like.sizes(), ", as ",
           like_name);
}
inline void check_floating(const char* op, const char* name, const Tensor& x) {
  ops::check_dtype(op, name, x, {torch::kFloat, torch::kDouble});
}
inline void check_number(const char* op, const char* name, double x, bool right, const char* wanted) {
  OP_CHECK(op, right, name, " is ", x, "; wanted ", wanted);
}

// A constant, contiguous copy on the CPU where x is not one already; of the dtype given, or its own; masks of numbers become bool, true where a
// number is not 0.
inline Tensor host(const Tensor& x) { return x.detach().to(torch::kCPU).contiguous(); }
inline Tensor host(const Tensor& x, torch::ScalarType dtype) { return x.detach().to(torch::kCPU, dtype).contiguous(); }
inline Tensor host_mask(const Tensor& mask) {
  return (mask.scalar_type() == torch::kBool ? mask : mask.ne(0)).detach().to(torch::kCPU).contiguous();
}

}  // namespace isentrope::methods
