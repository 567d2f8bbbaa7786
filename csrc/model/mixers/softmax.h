// Softmax attention with rotary positions, grouped queries and the options of model.attention; and the same without its denominator, or
// with another (softmax_rnn: Mongaras and Larson, arXiv 2507.23632). With p the softmax of a row's logits s, Z = Σ_j e^s_j over the n
// keys in sight, g and h sigmoids of projections of a token, one a head:
//
//   y = f Σ_j p_j g_j v_j,   f = 1 (sum), Z / max(1, Z) (max_one), Z over Z as a constant (detached), Z / n (count), Z (none)
//   out = h y, or h norm(y)
//
// A norm takes f away, so that one in the place of the denominator is that of softmax attention, up to its epsilon.
#pragma once
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/model/mixer.h"
#include "csrc/model/mixers/softmax_options.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

class SoftmaxMixer : public Mixer {
 public:
  SoftmaxMixer(const MixerBuilder& builder, const SoftmaxOptions& options);
  torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const override;
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<SoftmaxMixer>(*this); }
  void register_rest(const MixerBuilder& builder) override;
  std::vector<MixerWeight> others() override;
  std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const override;
  std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const override;
  std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const override;
  int64_t qk_clip(const std::vector<double>& max_logit) override;

  const DecoderConfig& config() const { return config_; }
  const SoftmaxOptions& options() const { return r_; }
  int64_t window() const { return config_.attention.window_of(layer_); }

  // The parts of projected [N, shape.rows()].
  struct Projected {
    torch::Tensor qkv;                      // [N, (H + 2G)·D]
    torch::Tensor value_gate, output_gate;  // [N, G] and [N, H] before their sigmoids; undefined without
  };
  Projected parts(const torch::Tensor& projected) const;
  // What stands behind Σ p g v: out [N, H, D], lse [N, H], position [N] int64 of each row in its sequence (undefined where there is no
  // denominator count), gate as in parts → [N, H·D].
  torch::Tensor finished(const torch::Tensor& out, const torch::Tensor& lse, const torch::Tensor& position,
                         const torch::Tensor& gate) const;

  torch::Tensor q_norm, k_norm;   // [D]; undefined without model.attention.qk_norm
  torch::Tensor log_temperature;  // [H] or [H · context]; undefined without model.attention.temperature
  torch::Tensor o_norm;           // [D]; undefined without a norm that has weights

 protected:
  // q [B, H, T, D], k, v [B, G, T, D] → out [B, H, T, D], lse [B, H, T]
  virtual ops::EntropyAttention attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                                       const MixerPass& pass) const;

 private:
  // Tells the record of the full attention of q, k, and of the rows out [N, H·D] that it gives; of kind softmax.
  void tell_map(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& out, const MixerPass& pass) const;
  // qkv [N, (H + 2G)·D] with every query and key head through its norm.
  torch::Tensor normed_heads(const torch::Tensor& qkv) const;

  SoftmaxOptions r_;
};

}  // namespace isentrope::model
