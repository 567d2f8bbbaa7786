// Products of training in bfloat16 with sums in float (csrc/ops/bfloat16_product.h), and the copy of a weight that they take.
//
// N rows, K inputs, M outputs. Every element is one sum in a fixed order, over blocks of 1536 numbers: no bit of a row, or of a
// gradient, depends on the number of threads, nor a row on the rows beside it.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>

#include "csrc/model/bfloat16_linear.h"

namespace isentrope::model {

// A float weight [M, K] times scale by rows, rounded to bfloat16 and packed for both products with it, made when first asked for and
// kept until the weight or the scale is another: between two updates, that is, for all micro-batches and both passes.
class Bfloat16Copy {
 public:
  // x · (scale · W)ᵀ takes B [K, M] of these, dy · (scale · W) B [M, K] of those. weight [M, K] float, contiguous; scale [M] or
  // undefined.
  std::shared_ptr<const Bfloat16Panels> for_output(const at::Tensor& weight, const at::Tensor& scale);
  std::shared_ptr<const Bfloat16Panels> for_gradient(const at::Tensor& weight, const at::Tensor& scale);

 private:
  void look(const at::Tensor& weight, const at::Tensor& scale);

  std::mutex mutex_;
  // Of what the panels are: the weight's memory and how often it was changed in place, and the scale's values.
  const void* data_ = nullptr;
  int64_t version_ = -1;
  at::Tensor scale_;
  std::shared_ptr<const Bfloat16Panels> output_, gradient_;
};

// x [N, K] in float or bfloat16 → bfloat16 [N, K rounded up to pairs], 0 beyond K.
at::Tensor bfloat16_operand(const at::Tensor& x);
// a [N, B's depth] as above → float [N, B's columns] = a · B.
at::Tensor bfloat16_product_with(const at::Tensor& a, const Bfloat16Panels& b);
// dy [N, ≥ M], x [N, ≥ K] as above → float [M, K] = dyᵀ x.
at::Tensor bfloat16_weight_gradient(const at::Tensor& dy, const at::Tensor& x, int64_t M, int64_t K);

}  // namespace isentrope::model
