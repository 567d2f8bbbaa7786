// What grpo_loss and grpo_select ask of their arguments, and the types they compute in.
#pragma once
#include <ATen/ATen.h>

#include <cmath>
#include <string>

#include "csrc/ops/check.h"
#include "csrc/ops/entries.h"

namespace isentrope::ops {

// The type all is computed in: double for double log-probabilities, else float.
inline at::ScalarType compute_type(const Tensor& logprob) {
  return logprob.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}
inline kernels::DType dtype_of(at::ScalarType type) {
  return type == at::kDouble ? kernels::DType::kDouble : kernels::DType::kFloat;
}

inline void check_logprob(const char* op, const Tensor& logprob) {
  check_dtype(op, "logprob", logprob, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  OP_CHECK(op, logprob.dim() == 2, "logprob has shape ", logprob.sym_sizes(), "; wanted [B, T]");
}

inline void check_like_logprob(const char* op, const char* name, const Tensor& x, const Tensor& logprob) {
  check_shape(op, name, x, logprob.sym_sizes(), "[B, T], as logprob");
  check_device(op, name, x, "logprob", logprob);
}

inline void check_values(const char* op, const char* name, const Tensor& x, const Tensor& logprob) {
  check_dtype(op, name, x, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  check_like_logprob(op, name, x, logprob);
}

inline double checked(const char* op, const char* name, double value, double least) {
  OP_CHECK(op, std::isfinite(value) && value >= least, name, " is ", value, "; wanted a number of at least ", least);
  return value;
}

// The position of name among names; an error that lists them where it is not there.
template <size_t kCount>
size_t index_of(const char* op, const char* argument, c10::string_view name, const char* const (&names)[kCount]) {
  std::string list;
  for (size_t i = 0; i < kCount; ++i) {
    if (name == names[i]) return i;
    list += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  OP_CHECK(op, false, argument, " is \"", std::string(name), "\"; wanted one of ", list);
}

inline Tensor as(const Tensor& x, at::ScalarType type) { return x.to(type).contiguous(); }
inline Tensor as(const OptionalTensor& x, at::ScalarType type) { return x ? as(*x, type) : Tensor(); }
inline const void* data(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

}  // namespace isentrope::ops
