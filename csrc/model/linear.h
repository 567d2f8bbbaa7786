// The product with a weight, of which a decoder mostly consists, and weights whose spectral norm is learned
// (sigmaReparam: Zhai et al., ICML 2023, arXiv:2303.06296; the mathematics: kernels/sigma_linear.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace isentrope::model {

class Bfloat16Copy;  // csrc/model/bfloat16_training.h

// Rows first … first + rows − 1 of a weight.
struct SigmaPart {
  std::string name;  // "layers.0.q"
  int64_t first, rows;
};

// A weight W [M, K]. Each part i of its rows enters as γ_i / σ_i · W_i with σ_i = ‖W_i u_i‖, rows of no part as they are.
// u_i stays near the first right singular vector of W_i by power steps after an update; nothing here changes it.
struct Projection {
  std::string name;              // "layers.0.qkv"
  at::Tensor weight;             // [M, K]
  at::Tensor bias;               // [M], or undefined
  std::vector<SigmaPart> parts;  // P of them, rising; gamma and u are undefined where there is none
  at::Tensor gamma;              // [P]
  at::Tensor u;                  // [P, K], rows of length 1
  bool through = true;           // whether the gradient of W is taken through σ too, or σ is a constant there
  std::shared_ptr<Bfloat16Copy> bfloat16 = {};  // where float products with W are to be of bfloat16: the copy they take
  // The low-rank term of csrc/model/lora.h.
  std::vector<SigmaPart> lora = {};  // P' parts that have one, rising; those below are undefined where there is none
  at::Tensor lora_a = {};            // [P'·R, K]: A of one part below that of the part before
  at::Tensor lora_b = {};            // [rows of those parts together, R], likewise
  double lora_scale = 0;
};

// W_i, a view.
at::Tensor weight_of(const Projection& projection, size_t i);

// x [N, K] → x · (γ / σ · W)ᵀ + bias [N, M], with the low-rank term where there is one; gradients of first order for x, W, bias, γ,
// A and B, of which one that does not require it is not computed.
// Float and double on the CPU: own kernels, in which every element is one sum in a fixed order. So no bit of
// a row, or of a gradient, depends on the number of threads, nor a row on the rows beside it; the BLAS in
// torch promises neither. The factors ride on the packing of W. Elsewhere torch's linear and ops::sigma_linear.
//
// projection.bfloat16: x, γ / σ · W, and in the backward pass the gradient of the result are rounded to bfloat16, and each of the
// three products is of two such operands with sums in float. x may then be bfloat16 itself, and its gradient is; the result and all
// other gradients are float. Where the processor has no products of bfloat16, float products of the rounded operands, with the
// same promises; elsewhere than on the CPU torch's product, whose result is rounded to bfloat16 too. Double is left alone.
at::Tensor linear(const at::Tensor& x, const Projection& projection);

// σ [P].
at::Tensor spectral_norms(const Projection& projection);
// γ / σ [] of a weight that is one part, with gradients: of γ, and of W where projection.through. 0 where σ is.
at::Tensor norm_scale(const Projection& projection);
// γ / σ · W [M, K] without its gradient, W + s B A where there is a low-rank term, W itself where there is no part of either. A
// product with it has the bits of linear() on the CPU; with a low-rank term it differs from that by rounding.
at::Tensor folded(const Projection& projection);

}  // namespace isentrope::model
