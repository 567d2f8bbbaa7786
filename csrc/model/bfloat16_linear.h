// Products with a matrix in bfloat16, where the processor multiplies bfloat16 itself (csrc/ops/bfloat16_product.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "csrc/model/bfloat16_kernels.h"

namespace isentrope::model {

// B [K, N] of a product, in panels of kPairPanel columns, each as bfloat16_product takes it. Made of zeros or unset memory that the
// caller packs: panel(i) holds [depth / 2, kPairPanel, 2] of the columns i · kPairPanel ….
class Bfloat16Panels {
 public:
  Bfloat16Panels(int64_t K, int64_t N);

  int64_t columns() const { return N_; }
  int64_t depth() const { return depth_; }  // K rounded up to pairs
  int64_t panels() const { return (N_ + kPairPanel - 1) / kPairPanel; }
  uint16_t* panel(int64_t i) const { return static_cast<uint16_t*>(packed_.data_ptr()) + i * kPairPanel * depth_; }

  // y [rows, N], rows ldy apart, (+)= a [rows, depth] · B; rows of a lie lda apart and hold 0 beyond K. Sums are float, in an order
  // that depends on K alone: a row's bits do not depend on the rows beside it. staging: a thread's memory, unused before and after.
  void multiply(int64_t rows, const uint16_t* a, int64_t lda, float* y, int64_t ldy, bool add,
                std::vector<float>& staging) const;

 private:
  int64_t N_, depth_;
  at::Tensor packed_;  // begins on a line of the cache, so that no vector of a panel lies on two
};

// A weight [N, K] packed once.
class Bfloat16Weight {
 public:
  // weight [N, K], the bits of bfloat16.
  Bfloat16Weight(int64_t N, int64_t K, const uint16_t* weight);

  // y [rows, N] (+)= x [rows, K] · weightᵀ. x is rounded to bfloat16; for the rest as Bfloat16Panels. operands, staging: a thread's
  // memory.
  void multiply(int64_t rows, const float* x, float* y, bool add, std::vector<uint16_t>& operands,
                std::vector<float>& staging) const;

  int64_t rows() const { return panels_.columns(); }

 private:
  int64_t K_;
  Bfloat16Panels panels_;
};

// Said at the end of a step of such products by the thread that took it.
void end_bfloat16_step();

// Whether the processor has such products.
bool takes_bfloat16_weights();

}  // namespace isentrope::model
