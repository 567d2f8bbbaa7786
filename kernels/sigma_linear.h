// What a linear layer of learned spectral norm (sigmaReparam) needs beside its matrix products, and the power steps that
// keep its direction u near the first right singular vector of W.
//
//   p = W u      σ = ‖p‖ = vᵀW u      v = p / σ      c = γ / σ      y = c · x Wᵀ + b             u is not changed
//   backward, u and v constant, with G = dyᵀx and s = ⟨G, W⟩ = ⟨dy W, x⟩:
//     dx = c · dy W      dγ = s / σ      db = Σ_rows dy
//     dW = c · G + r · v uᵀ      r = dσ - c · s / σ     through: σ is differentiated, and then ⟨W, dW⟩ = 0 for dσ = 0
//                                r = 0                  detached: σ is a constant
//
//   power step:  σ₋ = ‖W u‖   v = W u / σ₋   q = Wᵀv   σ = ‖q‖   u ← q / σ      σ₋ ≤ σ ≤ ‖W‖₂, and σ ≤ ‖W u‖ of the new u
//     A layer takes the next step while σ - σ₋ > tolerance · σ, at most steps_max in all; with tolerance 0 always so many.
//
// Special cases:
//   σ = 0 (W u = 0)     v = 0, c = 0: y = b, all gradients but db are 0. A power step leaves u as it is and gives σ = 0.
//   γ = 0               y = b, dx = 0, dW = 0 (but for dσ); dγ is right.
//   non-finite W or u   σ, and y with it, is not finite. A power step leaves u as it is and gives σ = NaN.
//
// Where c multiplies a matrix product it is that product's alpha, read from memory where the product runs: no scaled copy
// of W is made. The products are the caller's (cuBLAS on a GPU).
//
// W is float, bfloat16, half or double; A below is double for double and else float, and sums over rows and norms are kept
// in double. Results are the same bits at every run.
//
// Source: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse", arXiv 2303.06296 (the
// forward pass and the power step); the backward pass is derived from it by the chain rule.
#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/gpu/dtype.h"
#include "kernels/gpu/philox.h"  // ISENTROPE_HOST_DEVICE

namespace isentrope::kernels {

// Row r begins at r · stride elements; columns are contiguous.
struct SigmaMatrix {
  const void* data = nullptr;  // [rows, columns] dtype
  int64_t rows = 0, columns = 0, stride = 0;
};

// Factors of the matrix products, in the order they have in memory.
enum SigmaFactor { kScale, kScaleOrOne, kZero, kOne, kSigmaFactors };

struct SigmaNorm {
  DType dtype = DType::kFloat;
  SigmaMatrix weight;           // [out, in]
  const void* u = nullptr;      // [in] A
  const void* gamma = nullptr;  // [] A
  void* v = nullptr;            // [out] A
  void* sigma = nullptr;        // [] A
  void* factors = nullptr;      // [4] A: c, c or 1 where c is 0, 0, 1
};

// s = ⟨a, b⟩ / divisor, then dγ and r.
struct SigmaDot {
  DType dtype = DType::kFloat;
  int64_t count = 0;
  void* a = nullptr;        // [count] dtype, contiguous, like b; becomes 0 where clear is set and c is 0
  const void* b = nullptr;  // [count] dtype
  bool clear = false;
  const void* divisor = nullptr;  // [] A
  const void* factors = nullptr;  // [4] A, of SigmaNorm, like the next
  const void* sigma = nullptr;    // [] A
  const void* dsigma = nullptr;   // [] A, or null for 0
  bool through = true;
  double* partial = nullptr;  // [sigma_dot_parts(count)] of workspace
  void* dgamma = nullptr;     // [] A
  void* rank_one = nullptr;   // [] A: r
};

// dW = scale · dW + r · v uᵀ; with scale null dW = r · v uᵀ, and dW is not read.
struct SigmaRankOne {
  DType dtype = DType::kFloat;
  int64_t rows = 0, columns = 0;   // out, in
  const void* scale = nullptr;     // [] A, or null
  const void* rank_one = nullptr;  // [] A: r
  const void* v = nullptr;         // [out] A
  const void* u = nullptr;         // [in] A
  void* dweight = nullptr;         // [out, in] dtype, contiguous
};

// Layers of a power step, of one dtype.
struct PowerLayer {
  SigmaMatrix weight;  // [out, in]
  void* u = nullptr;   // [in] A, read and written
};
struct PowerStep {
  DType dtype = DType::kFloat;
  const PowerLayer* layers = nullptr;  // [count], on the host; not read after the call
  int64_t count = 0;
  int64_t steps_max = 1;
  double tolerance = 0;
  void* sigma = nullptr;      // [count] A
  int32_t* steps = nullptr;   // [count] steps that changed u
  int32_t* done = nullptr;    // [count] of workspace, 0 on entry; CUDA alone, like the next
  void* workspace = nullptr;  // [power_step_workspace(p)] bytes, 16-byte aligned
};

// ---- what both devices share -----------------------------------------------------------------------------------------

// c of γ and σ: NaN, so that y shows it, where σ is not finite.
ISENTROPE_HOST_DEVICE inline double sigma_scale(double gamma, double sigma) {
  if (sigma == 0) return 0.0;
  return sigma < static_cast<double>(INFINITY) ? gamma / sigma : static_cast<double>(NAN);
}

struct SigmaGradient {
  double dgamma, rank_one;
};
ISENTROPE_HOST_DEVICE inline SigmaGradient sigma_gradient(double s, double scale, double sigma, double dsigma,
                                                          bool through) {
  const double dgamma = sigma == 0 ? 0.0 : s / sigma;
  return {dgamma, through ? dsigma - scale * dgamma : 0.0};
}

// What becomes of a layer whose step found before = ‖W u‖ and norm = ‖Wᵀ(W u)‖.
struct PowerOutcome {
  bool moves;  // u ← Wᵀ(W u) / norm, else it stays
  bool done;
  double sigma;
};
ISENTROPE_HOST_DEVICE inline PowerOutcome power_outcome(double before, double norm, double tolerance) {
  const double sigma = norm / before;
  if (norm > 0 && sigma < static_cast<double>(INFINITY))  // false for NaN
    return {true, tolerance > 0 && sigma - before <= tolerance * sigma, sigma};
  return {false, true, before == 0 || norm == 0 ? 0.0 : static_cast<double>(NAN)};
}

// A dot is summed in parts of so many elements, cut here whatever the device and its threads, so that the bits do not
// depend on them: some microseconds of a core, and 16 packs of floats for each thread of a block of 128.
constexpr int64_t kSigmaDotPart = 8192;
ISENTROPE_HOST_DEVICE constexpr int64_t sigma_dot_parts(int64_t count) {
  return (count + kSigmaDotPart - 1) / kSigmaDotPart;
}

// Rows of W that a block of a power step reads twice, the second time from cache: 32 rows of 1024 floats are 128 KB, half
// of what a multiprocessor's neighbourhood of the L2 cache holds, and the sums that a block leaves in memory are 1/32 of W.
constexpr int64_t kPowerRows = 32;
// Columns of those sums, filled up so that each block's begin on a 16-byte boundary.
ISENTROPE_HOST_DEVICE constexpr int64_t power_step_columns(int64_t columns) { return (columns + 3) / 4 * 4; }
inline int64_t power_step_workspace(const PowerStep& p) {
  int64_t bytes = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const SigmaMatrix& w = p.layers[i].weight;
    const int64_t element = p.dtype == DType::kDouble ? 8 : 4;
    bytes += (w.rows + kPowerRows - 1) / kPowerRows * (power_step_columns(w.columns) * element + 8);
  }
  return bytes;
}

// stream is a cudaStream_t; all return before the work is done, and none waits for the device. Throw std::invalid_argument
// for a dtype out of the list.
void sigma_norm_cuda(const SigmaNorm& p, void* stream);         // one read of W
void sigma_dot_cuda(const SigmaDot& p, void* stream);           // one read of a and b
void sigma_rank_one_cuda(const SigmaRankOne& p, void* stream);  // one write of dW
// 2 · steps_max launches for every 64 layers; a layer that is done leaves its blocks at once. One read of W a step.
void power_step_cuda(const PowerStep& p, void* stream);

}  // namespace isentrope::kernels
