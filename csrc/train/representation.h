// How many directions the states of the last layer use, how fast their variance falls, and the spectrum of a few weights, while a model
// trains. The variants, names and arithmetic are those of `isentrope diagnose --measure representation`
// (python/isentrope/diagnose/spectrum.py), so that the figures of a run and of its checkpoints can be compared.
//
// Z [M, d]: what the last norm gives of M tokens; s its singular values, λ the eigenvalues of its centred covariance. With
// p_i = x_i / Σ x + 1e-7, which is not normalised again, exp(-Σ p ln p) is
//
//   rankme_singular      of x = s (RankMe, arXiv 2210.02885)
//   rankme_centred       of the singular values of the centred Z
//   rankme_eigenvalues   of x = λ (arXiv 2509.23024, equation 1)
//
//   alpha, r2            λ_i ∝ i^-α: least squares of ln λ_i on ln i with weights 1/i, first ≤ i ≤ last, i from 1 (α-ReQ, NeurIPS 2022)
//   matrix_entropy       -Σ p ln p of p = s² / Σ s², over ln min(M, d)
//
// and of a weight W as its layer multiplies with it (csrc/model/linear.h: folded):
//
//   spectral_norm        s_1
//   stable_rank          Σ s² / s_1²
//   effective_rank       as rankme_singular (Roy and Vetterli, EUSIPCO 2007, but for the 1e-7)
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/batch.h"
#include "csrc/model/decoder.h"
#include "csrc/train/distributed.h"
#include "csrc/train/representation_config.h"

namespace isentrope::train {

using Figures = std::map<std::string, double>;

// Falling, none below 0: the min(M, d) eigenvalues of the smaller Gram matrix of Z [M, d], in float64.
std::vector<double> squared_singular_values(const torch::Tensor& Z);
// exp(-Σ p ln p) as above; 1 where all are 0.
double rankme(const std::vector<double>& values);
struct PowerLaw {
  double alpha = 0, r2 = 0;
};
// None where fewer than three values above 0 stand between first and last; r2 is NaN where all of them are equal.
std::optional<PowerLaw> power_law(const std::vector<double>& eigenvalues, int64_t first, int64_t last);

// The figures of Z [M, d] and of W [rows, columns] by the names above; those that do not apply, or of a matrix that is not finite, are
// left out.
Figures figures_of_states(const torch::Tensor& Z, int64_t first, int64_t last);
Figures figures_of_weight(const torch::Tensor& W);

// [M, C] float32 or float64: the first `tokens` tokens of an update, row by row and without padding, behind the last norm. A forward pass
// without gradients, of micro_tokens at a time (0: at once).
torch::Tensor last_states(model::Decoder& model, const data::Batch& update, int64_t tokens, int64_t micro_tokens);

// The names of the matrices that the patterns fit, in the model's order. Throws std::runtime_error for a pattern that fits none.
std::vector<std::string> matrices_that_fit(const model::Decoder& model, const std::vector<std::string>& patterns);

// All of it for one step, by the names of docs/metrics.md. All ranks have the same weights and the same update: the first one looks, and
// tells the others. A verb of Ranks.
Figures look_inside(const RepresentationConfig& config, model::Decoder& model, const data::Batch& update,
                    int64_t micro_tokens, const Ranks& ranks = {});
// What a person should know of such figures of a model of so many features; "" where there is nothing.
std::string too_few_tokens(const Figures& figures, int64_t features);
// The same of what looking takes, every so many steps of `step` seconds each: "" up to 1 % of the time.
std::string slow_look(double look, double step, int64_t every);

}  // namespace isentrope::train
