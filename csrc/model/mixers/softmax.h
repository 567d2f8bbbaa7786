// Softmax attention with rotary positions, grouped queries and the options of model.attention.
#pragma once
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/model/mixer.h"

namespace isentrope::model {

class SoftmaxMixer : public Mixer {
 public:
  explicit SoftmaxMixer(const MixerBuilder& builder);
  torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const override;
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<SoftmaxMixer>(*this); }
  void register_rest(const MixerBuilder& builder) override;
  std::vector<MixerWeight> others() override;
  std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const override;
  std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const override;
  std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const override;
  int64_t qk_clip(const std::vector<double>& max_logit) override;

  const DecoderConfig& config() const { return config_; }
  int64_t window() const { return config_.attention.window_of(layer_); }

  torch::Tensor q_norm, k_norm;   // [D]; undefined without model.attention.qk_norm
  torch::Tensor log_temperature;  // [H] or [H · context]; undefined without model.attention.temperature

 private:
  // qkv [N, (H + 2G)·D] with every query and key head through its norm.
  torch::Tensor normed_heads(const torch::Tensor& qkv) const;
  // q [B, H, T, D], k, v [B, G, T, D] → [B, H, T, D]
  torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                       const MixerPass& pass) const;
};

}  // namespace isentrope::model
