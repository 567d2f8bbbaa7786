// Softmax attention over tokens that a linear-cost estimate of it chooses (SEA: Lee et al., ICLR 2024, arXiv 2310.01777; gmlwns2000/sea-attention),
// causal. A row t has n = t + 1 tokens in sight, which lie in M cells of a row of its own: token s in cell ⌊s M / n⌋. Per head, with a and b a
// second query and key of each token (the published layer: low-rank terms beside q and k), φ the feature map, e_s = (cos, sin) of the rotary
// angles of its position, R_t the rotation that makes e_s those of t − s, n(·) an RMSNorm and the weights of the small network one set for all heads:
//
//   (c_t, p_t) = Σ_{s ≤ t} φ(a_t)·φ(b_s) (v_s, e_s) / Σ_{s ≤ t} φ(a_t)·φ(b_s)                   linear attention
//   z_t = gelu(n(W_1 (c_t, R_t p_t, v_t, e_t))),   l = W_2 z_t + w   [M]
//   Â_t = softmax over the cells that hold a token of l + K * l      K [H, H, 3], a convolution over columns from all heads
//   sight: the tokens of the H · max(1, ⌊keep M / n + 1/2⌋) cells of the largest Â_t of all heads, and t itself
//   y_t = Σ_s p_ts v_s, p the softmax of q_t·k_s / √D (rotary) over its sight;   m_t = mean of v_s, s ≤ t;   (f, g) = σ(W_g z_t + w_g)
//   out_t = x + rms_norm(x),  x = g f y_t + (1 − g) m_t
//
// The choice has no gradient. Â learns from Σ over cells of A: KL(A ‖ Â), A the full attention of the layer itself, without its gradient
// (estimated.self_weight), or a teacher's (csrc/model/attention_losses.h), which takes all pairs of a training step, as published; decoding
// takes M and the tokens in sight. Differences from the published layer: fixed e in the place of a learned table, so that any length goes; the
// network convolves over columns alone, and not over the rows before, of which decoding would keep some; a cell without a token is not chosen,
// and a token always sees itself, so that no row is empty; the last norm begins at 0, so that a student begins near its teacher.
#pragma once
#include <memory>
#include <vector>

#include "csrc/model/mixer.h"

namespace isentrope::model {

class EstimatedMixer : public Mixer {
 public:
  explicit EstimatedMixer(const MixerBuilder& builder);
  torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const override;
  std::shared_ptr<Mixer> clone() const override { return std::make_shared<EstimatedMixer>(*this); }
  std::vector<MixerWeight> others() override;
  torch::Tensor seen() const override { return sums_; }
  void take(const torch::Tensor& seen) override;
  torch::Tensor estimate() const override { return told_; }
  std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const override;
  std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const override;
  std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const override;

  const DecoderConfig& config() const { return config_; }
  // projected [N, shape.rows()] in q [N, H, D], k, v [N, G, D], a [N, H, D], b [N, G, D].
  std::vector<torch::Tensor> parts(const torch::Tensor& projected) const;
  torch::Tensor mapped(const torch::Tensor& x) const;  // φ

  struct Estimate {
    torch::Tensor log;    // [N, H, M] log Â, −∞ of cells without a token
    torch::Tensor gates;  // [N, H, 2]: f and g
  };
  // cp [N, H, 2D] of the linear attention, v [N, G, D], cosine, sine [N, D/2], count [N] int64 tokens in sight.
  Estimate estimated(const torch::Tensor& cp, const torch::Tensor& v, const torch::Tensor& cosine,
                     const torch::Tensor& sine, const torch::Tensor& count) const;
  // [N, H, M] bool: the cells that are chosen.
  torch::Tensor chosen(const torch::Tensor& log, const torch::Tensor& count) const;
  // y [N, H, D], mean [N, G, D] → [N, H · D]
  torch::Tensor joined(const torch::Tensor& y, const torch::Tensor& mean, const torch::Tensor& gates) const;

  torch::Tensor in, norm;         // W_1 [2D, 4D], [2D]
  torch::Tensor columns, bias;    // W_2 [M, 2D], w [M]
  torch::Tensor conv;             // K [H, H, 3]
  torch::Tensor gate, gate_bias;  // W_g [2, 2D], w_g [2]
  torch::Tensor o_norm;           // [D]

 private:
  // The positions of the tokens that each row sees, from first [N] on, -1 filled up: [N, H, any].
  torch::Tensor sight(const torch::Tensor& chosen, const torch::Tensor& count, const torch::Tensor& first,
                      int64_t longest) const;
  void compare(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& out, const Estimate& estimate,
               const torch::Tensor& chosen, const MixerPass& pass, int64_t B) const;

  torch::Tensor
      sums_;  // [H, 3] double: of divergences, of the attention's share at chosen tokens, and rows, since forget_seen()
  torch::Tensor told_;  // [H, 2] double
};

}  // namespace isentrope::model
