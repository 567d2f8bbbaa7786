// A model that is a sum of others (aTLAS: Zhang et al., NeurIPS 2024, arXiv:2407.02880). With θ₀ the weights of a base and θ_i those of a model that
// was trained from it, τ_i = θ_i − θ₀, and of every tensor b
//
//   θ_b = θ₀_b + Σ_i c_ib τ_ib        dL/dc_ib = ⟨dL/dθ_b, τ_ib⟩
//
// c is what is trained. The files of the folders are mapped, and no τ is ever made: both sums go over the files' own memory, tensors that are
// not float32 by pieces of it. dL/dθ_b is dropped as soon as its products are there. Products and sums in float, over pieces of
// 4096 elements in double: no bit depends on the number of threads.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/model/decoder.h"
#include "csrc/train/composition_pieces.h"

namespace isentrope::train {

class Composition {
 public:
  // base: the folder of θ₀; decoder holds its weights, and is where it stays. All of its parameters stop having gradients of their own.
  // origin: weights_digest() of the base. Throws std::runtime_error that names the folder, and the tensors that it lacks or
  // that have another shape; or, of a checkpoint of this program, that its run began from other weights.
  Composition(const model::ComposeConfig& config, const std::string& base, int64_t origin, model::Decoder decoder);
  ~Composition();
  Composition(const Composition&) = delete;
  Composition& operator=(const Composition&) = delete;

  void apply();  // the decoder's weights become the sum
  // c [V, tensors], or [V, 1] with config.per vector; its gradient adds up over the decoder's backward passes.
  const torch::Tensor& coefficients() const { return coefficients_; }

 private:
  struct Weight {
    std::string name;
    torch::Tensor view;                 // of the decoder
    torch::Tensor base;                 // in its file
    std::vector<torch::Tensor> others;  // [V], in theirs
    int64_t column = 0;                 // of the coefficients
  };
  class Products;
  void add_products(const Weight& weight, const torch::Tensor& gradient);
  template <class Body>
  void for_pieces(const Weight& weight, const Body& body) const;

  model::Decoder decoder_;
  torch::Tensor coefficients_;
  std::vector<Weight> weights_;
};

}  // namespace isentrope::train
