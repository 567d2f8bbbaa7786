// Which weights of a model an optimiser moves: model.freeze and model.train_only. KappaTune (arXiv 2506.16289 and oswaldoludwig/kappaTune)
// trains the matrices of the least condition number κ = σ_max / σ_min alone.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "csrc/model/decoder.h"

namespace isentrope::train {

using NamedParameters = std::vector<std::pair<std::string, torch::Tensor>>;

// κ of a matrix [m, n], by the eigenvalues of its smaller Gram matrix in double where these tell it to a thousandth, else by its
// singular values in double; infinite where the smallest is 0, which it is taken for at or below max(m, n) · 2⁻⁵² · the largest.
double condition_number(const torch::Tensor& matrix);

// κ of every weight of decoder with two dimensions or more, a convolution's as [out, all else], from the file where it holds those of
// the same weights, else computed, and written there. go_on: the file of a run that is resumed, whose weights have moved: it is
// taken as it is, and std::runtime_error says where it is missing.
std::map<std::string, double> condition_numbers(const model::Decoder& decoder, const std::string& file, bool go_on);

// Names of Decoder::named_weights() that config.freeze and config.train_only leave to be trained. Throws std::invalid_argument that
// names the pattern that fits no weight, the matrix whose κ is infinite where too few others are there, or that nothing is left.
std::set<std::string> chosen_weights(const model::DecoderConfig& config, const std::vector<std::string>& names,
                                     const std::map<std::string, double>& condition_numbers);

class TrainedWeights {
 public:
  // chosen: names of named_weights(); of a decoder with model.lora, those whose adapters are trained. All other parameters stop
  // requiring gradients, but for those that are stored joined with a chosen one. decoder is to be where it stays, and lives longer.
  TrainedWeights(model::Decoder decoder, const std::set<std::string>& chosen);
  ~TrainedWeights();
  TrainedWeights(const TrainedWeights&) = delete;
  TrainedWeights& operator=(const TrainedWeights&) = delete;

  // What an optimiser takes: parameters of the decoder, and of those that are trained in part, leaves that share the memory of
  // these rows. A backward pass leaves the gradient with the leaves, and none with such a parameter.
  const NamedParameters& parameters() const { return parameters_; }
  // muon_matrices() of the decoder, with those of the leaves.
  std::map<std::string, std::vector<int64_t>> matrices(std::map<std::string, std::vector<int64_t>> whole) const;
  int64_t numbers() const;  // elements that are trained

 private:
  model::Decoder decoder_;
  NamedParameters parameters_;
  std::vector<torch::Tensor> hooked_;
  std::map<std::string, std::string> parameter_of_;  // of a leaf
};

}  // namespace isentrope::train
