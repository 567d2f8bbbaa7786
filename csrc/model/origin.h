// Inputs of products that are made again in the backward pass instead of being kept: outputs of norms, of the gate, and of attention
// in the order of tokens. Each is one pass over what its own node keeps anyway.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "csrc/model/linear.h"
#include "csrc/model/lora.h"

namespace isentrope::model {

using at::Tensor;

// What a tensor was made of, where that is kept for the backward pass anyway: a product keeps this in the place of its input, and makes
// the input again, bit for bit, by one pass over it.
struct Origin {
  enum Made : int64_t {
    kElsewhere,  // from is empty: the tensor itself is kept
    kByNorm,     // from: sum [N, C], weight [C], 1 / rms [N]
    kBySwiglu,   // from: gate_up [N, 2M]
    kByHeads,    // from: [B, H, T, D], in rows of tokens [B·T, H·D]
  };
  Made made = kElsewhere;
  std::vector<Tensor> from = {};  // without gradients

  Tensor again() const;
};

// linear() and add_lora() whose nodes keep the origin of x in its place; the same bits.
Tensor linear(const Tensor& x, const Projection& projection, const Origin& origin);
Tensor add_lora(const Tensor& y, const Tensor& x, const Projection& projection, const Origin& origin);

}  // namespace isentrope::model
