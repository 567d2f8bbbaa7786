// Softmax attention and the gated delta rule in one layer, on the same queries, keys and values (NAtS-L, Neural Attention Search Linear:
// automl/NeuralAttentionSearchLinear). A sequence is cut into chunks of `chunk` tokens, and of each head a router shares the chunks out:
// with r_c the mean over the chunk of a projection of its tokens to two numbers, plus a bias, z_c = softmax(r_c), and m_c = (1, 0) where
// the first of r_c is the larger or both are equal, (0, 1) elsewhere, whose gradient is that of z_c (straight-through). A query of chunk c
// sees the keys of its own chunk up to itself by both, those of chunks before by one of them. Per head, with q̂, k̂ of length 1:
//
//   soft_t = Σ_s p_ts v_s, p the softmax of g_s rms(q_t)·rms(k_s) / √D with the weights' factors g_s = 1 in the own chunk, m_{c(s),0} before
//   S_t = a_t S_{t−1} + β_t k̂_t (v_t − a_t S_{t−1}ᵀ k̂_t)ᵀ,   lin_t = S_tᵀ q̂_t / √D
//   behind chunk c:  S ← m_{c,1} S + (1 − m_{c,1}) (Π a) S_before
//   out_t = rms_norm(w_0 rms(soft_t) + w_1 rms(lin_t)) · silu(g_t),   w = softmax(W q_t), W [2, D] of all heads
//
// No positions. A chunk's share is for later chunks alone, so that a token's output depends on those before it alone. Differences from
// the published layer: one head size for q, k and v and as many heads of either operator, where it has wider values and regroups them into
// more heads of softmax attention; its ablations of the own chunk, of norms and of W are not here.
#pragma once
#include <memory>
#include <vector>

#include "csrc/model/mixers/recurrence.h"

namespace isentrope::model {

class NatslMixer : public RecurrenceMixer {
 public:
  explicit NatslMixer(const MixerBuilder& builder);
  torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const override;
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<NatslMixer>(*this); }
  std::vector<MixerWeight> others() override;
  torch::Tensor seen() const override { return counts_; }
  void take(const torch::Tensor& seen) override;
  torch::Tensor softmax_share() const override { return share_; }
  std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const override;
  std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const override;
  std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const override;

  const DecoderConfig& config() const { return config_; }
  // projected [N, shape.rows()] in the parts that follow one another: what goes through the convolution, g, b, decay, route.
  std::vector<torch::Tensor> parts(const torch::Tensor& projected) const;
  using RecurrenceMixer::convolved;
  torch::Tensor log_decay(const torch::Tensor& decay) const { return -A_log.exp() * steps(decay); }
  torch::Tensor strength(const torch::Tensor& b) const;  // β, [N, H]
  // Whether chunks whose mean is [..., 2 · H] are softmax attention's, [..., H] bool.
  torch::Tensor chosen(const torch::Tensor& mean) const;
  // x [N, H, D] through a norm of a head.
  torch::Tensor normed(const torch::Tensor& x, const torch::Tensor& weight) const;
  // Both results [N, H, D] of queries q [N, H, D] as the convolution gave them → [N, H · D], with g as parts() gave it.
  torch::Tensor joined(const torch::Tensor& q, const torch::Tensor& soft, const torch::Tensor& lin,
                       const torch::Tensor& g) const;

  torch::Tensor q_norm, k_norm, soft_norm, linear_norm;  // [D]
  torch::Tensor blend;                                   // W [2, D]
  torch::Tensor route_bias;                              // [2 · H]

 private:
  struct Route {
    torch::Tensor chosen;     // [sequences, H, chunks] bool: softmax attention's
    torch::Tensor soft, lin;  // the same shape, m_{c,0} and m_{c,1} with their gradient
  };
  Route routed(const torch::Tensor& route, int64_t T, const Packing* packing) const;

  torch::Tensor
      counts_;  // [H, 2] double: tokens of softmax attention and all, of chunks that have ended, since forget_seen()
  torch::Tensor share_;  // [H] double
};

}  // namespace isentrope::model
