// Routed attention (Routing Transformer: Roy et al., TACL 2021, arXiv 2003.05997). Of H heads the first H − H/2 see a window of tokens, with
// rotary positions. The others have C centres each, of length 1, and no positions: a token belongs to the cluster c whose centre has the
// largest product with its query (argmax), and attends to the last `window` tokens of its cluster, itself among them; or (balanced) each
// cluster takes the `window` tokens with the largest products of q / ‖q‖ and its centre, and each of these attends to those of them that are
// not behind it: a token that several clusters take has the mean of their results, one that none takes has 0.
//
// A centre has no gradient. Behind an update, with m the mean of q / ‖q‖ over the tokens whose nearest centre it is, over all ranks:
// centre ← unit(decay · centre + (1 − decay) · unit(m)); one without tokens stays.
#pragma once
#include <memory>
#include <vector>

#include "csrc/model/mixer.h"

namespace isentrope::model {

class RoutedMixer : public Mixer {
 public:
  explicit RoutedMixer(const MixerBuilder& builder);
  torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const override;
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<RoutedMixer>(*this); }
  std::vector<MixerWeight> others() override { return {{"self_attn.centroids", &centroids, /*wide=*/true}}; }
  torch::Tensor seen() const override { return sums_; }
  void take(const torch::Tensor& seen) override;
  std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const override;
  std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const override;
  std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const override;

  const DecoderConfig& config() const { return config_; }
  int64_t routed_heads() const { return config_.num_attention_heads / 2; }
  int64_t local_heads() const { return config_.num_attention_heads - routed_heads(); }

  torch::Tensor centroids;  // [routed heads, C, D]

 private:
  struct Attended {
    torch::Tensor out;                 // [B · T, heads, D]
    torch::Tensor entropy, max_logit;  // [B, heads, T]
  };
  // q, k, v [B · T, heads, D]
  Attended local(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const MixerPass& pass) const;
  Attended by_argmax(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const MixerPass& pass,
                     int64_t B) const;
  Attended balanced(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const MixerPass& pass,
                    int64_t B) const;
  // The nearest centre of each query, [routed heads, B · T] of 0 … C − 1.
  torch::Tensor nearest(const torch::Tensor& q) const;
  void count(const torch::Tensor& q, const torch::Tensor& nearest) const;

  torch::Tensor sums_;  // [routed heads, C, D + 1] double: of q / ‖q‖ and of tokens, since forget_seen()
};

}  // namespace isentrope::model
