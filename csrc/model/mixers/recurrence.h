// Mixers that keep a matrix a head in the place of keys and values, whatever the length. With a_t the share of the state that is
// kept, φ the feature map, u_t what is written, per head:
//
//   S_t = a_t S_{t-1} + φ(k_t) u_tᵀ,   out_t = S_tᵀ φ(q_t)
//
//   linear       u_t = v_t                                    out_t / (φ(q_t)·Σ φ(k_s)) with a normalizer
//   normalized   u_t = v_t, φ(x) = x                          out_t / η(w·x_t), or its RMSNorm
//   gated_delta  u_t = β_t (v_t − a_t S_{t-1}ᵀ k_t)           rms_norm(out_t) · silu(g_t)
//   prefix_linear as linear, from S_0 = Σ φ(e_j) w_jᵀ: csrc/model/mixers/prefix_linear.h
//   ssd          u_t = Δ_t v_t, a_t = exp(−A Δ_t)             rms_norm((out_t + D v_t) · silu(g_t))
//   natsl        as gated_delta, beside softmax attention: csrc/model/mixers/natsl.h
//
// q, k and v may go through a short causal convolution first. One class is all of them, by options; kinds are files beside it.
#pragma once
#include <memory>
#include <vector>

#include "csrc/model/mixer.h"
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

// What a recurrence keeps of B sequences.
struct RecurrentState {
  torch::Tensor matrix;  // [B, states, features, width] float, or double for double weights
  torch::Tensor tail;    // [B, conv_size − 1, channels]: the last inputs of the convolution; undefined without one
};

class RecurrenceMixer : public Mixer {
 public:
  RecurrenceMixer(const MixerBuilder& builder, const RecurrenceOptions& options);
  torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const override;
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<RecurrenceMixer>(*this); }
  std::vector<MixerWeight> others() override;
  std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const override;
  std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const override;
  std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const override;

  // projected [B · T, shape.rows()] → [B · T, shape.output]. packing: or null. state: of B sequences, gone on from and replaced; null:
  // nothing stands before them. prefix [B · T] bool: of options().prefix, of sequences whose first token is here; undefined: none.
  // record: whose states are told where it asks for them; or null.
  torch::Tensor mix(const torch::Tensor& projected, int64_t T, const Packing* packing, RecurrentState* state,
                    const torch::Tensor& prefix = {}, AttentionRecord* record = nullptr) const;
  RecurrentState empty_state(int64_t sequences) const;

  const RecurrenceOptions& options() const { return r_; }
  double eps() const { return config_.rms_norm_eps; }

  // Undefined where the options have none.
  torch::Tensor conv;            // [channels, 1, conv_size]
  torch::Tensor A_log, dt_bias;  // [states], of decay token
  torch::Tensor head_decay;      // [states], of decay head
  torch::Tensor skip;            // [states], of steps
  torch::Tensor o_norm;          // [E]

 protected:
  // inputs [N, channels] of rows of T → the same behind the convolution and its SiLU, or as they are without one; packing and state as
  // in mix().
  torch::Tensor convolved(const torch::Tensor& inputs, int64_t T, const Packing* packing, RecurrentState* state) const;
  torch::Tensor steps(const torch::Tensor& decay) const;  // of decay token: softplus(w·x + dt_bias), [N, states] float
  // [N, heads, E], the values [N, values, E] as they were → [N, shape.output]
  torch::Tensor finished(torch::Tensor out, const torch::Tensor& v, const torch::Tensor& gate,
                         const torch::Tensor& denominator) const;

 private:
  torch::Tensor mapped(const torch::Tensor& x) const;  // [N, heads, D] → [N, heads, features]

  RecurrenceOptions r_;
};

}  // namespace isentrope::model
