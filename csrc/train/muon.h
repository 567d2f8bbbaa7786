// Muon: matrices move along the nearest matrix whose singular values are all about one. G: the gradient of a matrix [A, B], η: the
// learning rate.
//
//   M ← μ M + (1-μ) G,  U ← μ M + (1-μ) G (nesterov) or M,  O ← newton_schulz(U),  W ← (1 - η decay) W - η s O
//
//   newton_schulz, in bfloat16: X ← U / ‖U‖_F, then ns_steps times X ← a X + (b XXᵀ + c (XXᵀ)²) X
//   s: √max(1, A/B) (original), 0.2 √max(A, B) (match_rms_adamw, arXiv 2502.16982: updates as large as AdamW's)
//
// (Jordan et al. 2024, kellerjordan.github.io/posts/muon; the update of torch.optim.Muon)
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/model/decoder.h"

namespace isentrope::train {

struct MuonConfig {
  std::optional<double> lr = {};
  double momentum = 0.95;
  bool nesterov = true;
  int64_t ns_steps = 5;
  std::vector<double> ns_coefficients = {3.4445, -4.7750, 2.0315};
  std::string adjust_lr_fn = "match_rms_adamw";

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("lr", lr, "Peak learning rate of the matrices that Muon moves; left out: optimizer.lr.", above(0));
    v("momentum", momentum, "Decay of the mean of the gradients.", between(0, 1));
    v("nesterov", nesterov, "Whether a step looks ahead along that mean.");
    v("ns_steps", ns_steps, "Newton-Schulz iterations.", between(1, 99));
    v("ns_coefficients", ns_coefficients, "a, b, c of the iteration a X + (b XXᵀ + c (XXᵀ)²) X.", between(-100, 100));
    v("adjust_lr_fn", adjust_lr_fn,
      "How the rate of a matrix [A, B] depends on its shape: original, times √max(1, A/B); match_rms_adamw, times 0.2 "
      "√max(A, B), so that one rate suits AdamW and Muon.",
      one_of({"original", "match_rms_adamw"}));
  }
};

// The matrices of the decoder's blocks, by parameter name, each with the rows of the matrices that are stored joined in it: of qkv
// the three of query, key and value, of gate_up both, of up. With model.lora the A and B of each of these. Everything else (embedding, head, norms) is left to AdamW.
std::map<std::string, std::vector<int64_t>> muon_matrices(const model::DecoderConfig& model);

// One update of a matrix in place, of each of its parts of so many rows by itself. moment [A, B]: M.
void muon_step(const MuonConfig& config, const torch::Tensor& weight, const torch::Tensor& grad,
               const torch::Tensor& moment, const std::vector<int64_t>& rows, double lr, double weight_decay);

}  // namespace isentrope::train
