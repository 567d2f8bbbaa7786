// Rotary positions: the angle that a pair of a head turns by a position, plain or stretched to longer sequences than a model was
// trained for. The mathematics is that of transformers 5.24, modeling_rope_utils, in double precision.
//
// D head size, θ base, f_i = θ^(−2i/D) for i = 0 … D/2 − 1, s factor, P original_max_position_embeddings.
#pragma once
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "csrc/field.h"

namespace isentrope::model {

//   default   f_i
//   linear    f_i / s
//   dynamic   f_i: transformers raises the base for sequences beyond max_position_embeddings alone, which a decoder refuses
//   yarn      f_i / s for slow pairs, f_i for fast ones, between them by a ramp over i; cosine and sine times attention_factor
//             (Peng et al., arXiv:2309.00071)
//   llama3    f_i / s where the wave length 2π / f_i is above P / low_freq_factor, f_i below P / high_freq_factor, between them
//             by a ramp over P / wave length (Llama 3.1)
struct RopeScalingConfig {
  std::string rope_type = "default";
  std::optional<double> factor = {};
  std::optional<int64_t> original_max_position_embeddings = {};
  std::optional<double> attention_factor = {};
  std::optional<double> beta_fast = {};
  std::optional<double> beta_slow = {};
  std::optional<double> mscale = {};
  std::optional<double> mscale_all_dim = {};
  bool truncate = true;
  std::optional<double> low_freq_factor = {};
  std::optional<double> high_freq_factor = {};

  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("rope_type", rope_type,
      "How rotary positions are stretched; dynamic does nothing up to max_position_embeddings, where sequences end "
      "here.",
      one_of({"default", "linear", "dynamic", "yarn", "llama3"}));
    v("factor", factor, "By how much; of all types but default.", between(1, 1e6));
    v("original_max_position_embeddings", original_max_position_embeddings,
      "yarn, llama3: the length that is stretched; left out: max_position_embeddings.", between(1, 1 << 24));
    v("attention_factor", attention_factor,
      "yarn: what cosine and sine are multiplied by; left out: 0.1 ln(factor) + 1, or of mscale and mscale_all_dim.",
      above_to(0, 100));
    v("beta_fast", beta_fast, "yarn: pairs that turn so often within the length are not stretched; left out: 32.",
      above_to(0, 1e6));
    v("beta_slow", beta_slow, "yarn: pairs that turn less often are stretched in full; left out: 1.", above_to(0, 1e6));
    v("mscale", mscale,
      "yarn: with mscale_all_dim, attention_factor is the ratio of 0.1 · mscale · ln(factor) + 1 of the two.",
      above_to(0, 100));
    v("mscale_all_dim", mscale_all_dim, "yarn: see mscale.", above_to(0, 100));
    v("truncate", truncate, "yarn: whether the ramp begins and ends at whole pairs.");
    v("low_freq_factor", low_freq_factor,
      "llama3: wave lengths above the length divided by this are stretched in full; left out: 1.", above_to(0, 1e6));
    v("high_freq_factor", high_freq_factor,
      "llama3: wave lengths below the length divided by this are not stretched; left out: 4.", above_to(0, 1e6));
  }
};

// [D/2] double on the CPU. positions: max_position_embeddings.
torch::Tensor inverse_frequencies(const RopeScalingConfig& scaling, double theta, int64_t D, int64_t positions);
// What cosine and sine are multiplied by; 1 for all types but yarn.
double rope_attention_factor(const RopeScalingConfig& scaling);

}  // namespace isentrope::model
