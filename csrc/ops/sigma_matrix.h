// What sigma_linear and power_step have in common: what they take as weights, gamma and u, and how kernels see a matrix.
#pragma once
#include <ATen/ATen.h>

#include "csrc/ops/check.h"
#include "csrc/ops/ops.h"
#include "kernels/sigma_linear.h"

namespace isentrope::ops {

inline at::ScalarType accumulator_type(const Tensor& weight) {
  return weight.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

inline void check_weight(const char* op, const char* name, const Tensor& weight) {
  check_dtype(op, name, weight, {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble});
  OP_CHECK(op, weight.dim() == 2, name, " has ", weight.dim(), " dimensions; wanted [out, in]");
  OP_CHECK(op, weight.sym_size(0) >= 1 && weight.sym_size(1) >= 1, name, " has shape ", weight.sym_sizes(),
           "; wanted at least one row and one column");
}

// x in weight's dtype or the one sums are kept in.
inline void check_vector(const char* op, const char* name, const Tensor& x, c10::SymIntArrayRef shape,
                         const char* meaning, const Tensor& weight) {
  const at::ScalarType type = weight.scalar_type(), wide = accumulator_type(weight);
  if (x.scalar_type() != wide && type == wide) check_dtype(op, name, x, {wide});
  if (x.scalar_type() != wide && type != wide) check_dtype(op, name, x, {type, wide});
  check_shape(op, name, x, shape, meaning);
  check_device(op, name, x, "weight", weight);
}

// A matrix as products and kernels take it: unit stride in a row, rows that do not share memory. Copied only where it is not.
inline Tensor with_rows(const Tensor& x) {
  const bool rows = (x.stride(1) == 1 || x.size(1) == 1) && (x.stride(0) >= x.size(1) || x.size(0) == 1);
  return rows ? x : x.contiguous();
}

inline kernels::SigmaMatrix matrix_of(const Tensor& x) {
  return {x.const_data_ptr(), x.size(0), x.size(1), x.stride(0)};
}

}  // namespace isentrope::ops
