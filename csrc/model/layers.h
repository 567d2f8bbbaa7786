// What a decoder block is made of beside its matrix products, each one pass over its operands and one
// autograd node: kernels of csrc/model/cpu_kernels.h for float and double on the CPU, the same formula in
// ATen elsewhere. Gradients are first order. Results do not depend on the number of threads.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <tuple>

#include "csrc/model/origin.h"

namespace isentrope::model {

using at::Tensor;

// sum = x + delta, y = weight · sum / sqrt(mean(sum²) + eps); → (sum, y, 1 / sqrt(…) [N], undefined where no kernel made it). x, delta
// [N, C], weight [C]; delta may be undefined: sum is x then. (RMSNorm: Zhang and Sennrich, NeurIPS 2019, arXiv:1910.07467.)
std::tuple<Tensor, Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps);

// One place of the residual stream: x, the sum x + delta (x where delta is undefined) as it goes on, and what the next branch reads.
// Norm before the branch: (sum, its norm); norm_after: the norm for both; weight undefined: the sum for both.
struct Residual {
  Tensor x, branch;
  Origin origin = {};  // of branch
};
Residual residual(const Tensor& x, const Tensor& delta, const Tensor& weight, double eps, bool norm_after);

// silu(gate) · up of gate_up [N, 2M] = gate | up → [N, M]. (SwiGLU: Shazeer 2020, arXiv:2002.05202.)
Tensor swiglu(const Tensor& gate_up);
Origin swiglu_origin(const Tensor& gate_up);

// gelu (x Φ(x): Hendrycks and Gimpel 2016, arXiv:1606.08415), relu, or crrelu with its epsilon [1] (csrc/ops/ops.h), of x [N, M] → [N, M].
Tensor activated(const std::string& activation, const Tensor& x, const Tensor& epsilon);

// x [B, H, T, D] → [B·T, H·D]
Tensor token_rows(const Tensor& x);
Origin token_rows_origin(const Tensor& x);

// qkv [B·T, (H + 2G)·D] → q [B, H, T, D], k, v [B, G, T, D], with q and k turned by the angles of their
// positions: (x_i, x_{i + D/2}) → (x_i cos − x_{i + D/2} sin, x_{i + D/2} cos + x_i sin); cosine, sine [T,
// D/2]. (RoPE: Su et al. 2021, arXiv:2104.09864, in the half-split order of Hugging Face's Llama.)
std::tuple<Tensor, Tensor, Tensor> rotary_split(const Tensor& qkv, const Tensor& cosine, const Tensor& sine,
                                                int64_t heads, int64_t kv_heads);

// Whether the kernels of cpu_kernels.h take x.
bool has_cpu_kernels(const Tensor& x);

}  // namespace isentrope::model
