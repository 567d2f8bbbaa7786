// Products with a matrix in bfloat16, where the processor multiplies bfloat16 itself (csrc/ops/bfloat16_product.h).
#pragma once
#include <cstdint>
#include <vector>

namespace isentrope::model {

// A weight [N, K] packed once, in panels of 64 of its rows.
class Bfloat16Weight {
 public:
  // weight [N, K], the bits of bfloat16.
  Bfloat16Weight(int64_t N, int64_t K, const uint16_t* weight);

  // y [rows, N] (+)= x [rows, K] · weightᵀ. x is rounded to bfloat16; sums are float, in an order that depends on K alone: a row's
  // bits do not depend on the rows beside it. operands, staging: a thread's memory, unused before and after.
  void multiply(int64_t rows, const float* x, float* y, bool add, std::vector<uint16_t>& operands,
                std::vector<float>& staging) const;

  int64_t rows() const { return N_; }

 private:
  int64_t N_, K_, depth_;  // depth: K rounded up to pairs
  std::vector<uint16_t> packed_;
};

// Said at the end of a step of such products by the thread that took it.
void end_bfloat16_step();

// Whether the processor has such products.
bool takes_bfloat16_weights();

}  // namespace isentrope::model
