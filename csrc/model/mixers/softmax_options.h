// What rows of softmax attention (softmax.h) are by the configuration.
#pragma once
#include <string>

#include "csrc/model/decoder_config.h"

namespace isentrope::model {

// What becomes of Σ_j e^s_j v_j, as SoftmaxRnnMixerConfig has it; by default softmax attention.
struct SoftmaxOptions {
  double softcap = 0;               // of the logits; 0: none
  std::string denominator = "sum";  // max_one, detached, count, none; with a norm sum, whatever it stands in place of
  std::string norm = "none";        // rms, layer, l2
  bool value_gate = false, output_gate = false;

  bool scaled() const { return denominator != "sum"; }  // a row is its softmax's times a function of its log-sum-exp
  bool weighed_norm() const { return norm == "rms" || norm == "layer"; }
  bool plain() const { return !scaled() && norm == "none" && !value_gate && !output_gate; }
};

SoftmaxOptions softmax_options(const DecoderConfig& config);
SoftmaxOptions softmax_rnn_options(const DecoderConfig& config);

}  // namespace isentrope::model
