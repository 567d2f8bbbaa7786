// A decoder of the Llama kind: RMSNorm, rotary positions, grouped-query attention, SwiGLU. On request its linear layers have
// biases or a learned spectral norm (csrc/model/linear.h), its norms stand elsewhere or nowhere, its MLP is one matrix, and layers have another mixer
// in the place of attention (csrc/model/mixer.h).
// Its weights carry the names that all families of csrc/train/family.h give them; it knows no family itself.
//
// B sequences, T positions, H query heads, G key/value heads, D head size, C width, M inner width of the MLP,
// V vocabulary.
#pragma once
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/model/attention_record.h"
#include "csrc/model/decoder_config.h"
#include "csrc/model/linear.h"
#include "csrc/model/mixer.h"
#include "csrc/model/packing.h"
#include "csrc/model/places.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

// The joined projections are stored once, gate|up here and query|key|value in the mixer, because one product is faster than
// three. Norms that model.norm leaves out are undefined: all with none; with post the first layer's input_norm, since no sum
// stands before it, while the input_norm of layer i is that after the MLP of layer i − 1, and the final norm after the last.
struct LayerWeights {
  torch::Tensor input_norm;  // [C]
  std::shared_ptr<Mixer> mixer;
  torch::Tensor post_norm;  // [C]
  Projection gate_up;       // [2M, C]; up alone, [M, C], without a gate; no weight with model.activation none
  Projection down;          // [C, M], or [C, C]
  // [1], with model.activation none, where the block gives beta · x + down · x / alpha.
  torch::Tensor alpha = {}, beta = {};
  torch::Tensor epsilon = {};  // [1], with model.activation crrelu

  // All of its projections, in the order of their draws.
  std::vector<Projection*> projections() {
    if (!gate_up.weight.defined()) return {&mixer->qkv, &mixer->o, &down};
    return {&mixer->qkv, &mixer->o, &gate_up, &down};
  }
  std::vector<const Projection*> projections() const {
    const auto all = const_cast<LayerWeights*>(this)->projections();
    return {all.begin(), all.end()};
  }
};

// A linear layer of learned spectral norm: views.
struct SigmaLayer {
  std::string name;      // "layers.0.q", "head"
  torch::Tensor weight;  // [rows, columns]
  torch::Tensor gamma;   // []
  torch::Tensor u;       // [columns]
};

class DecoderImpl : public torch::nn::Module {
 public:
  // Weights are drawn from streams made of (seed, number of the tensor): normal, of the std that initializer_range says. float32 on the
  // CPU; to() moves them. Biases begin at 0. No seed: all weights are 0 but those of norms, for others to be copied in. Throws
  // std::invalid_argument with config.problem().
  DecoderImpl(const DecoderConfig& config, std::optional<uint64_t> seed);

  // tokens [B, T] int64, T ≤ context → logits [B, T, V], of config().token_count() of them. Positions count from 0; causal, so padding on the
  // right of a sequence changes nothing before it. record: filled in, where given. Of places with positions each sequence is computed as
  // it would be alone. A token of a prefix may be kHidden.
  torch::Tensor forward(const torch::Tensor& tokens, AttentionRecord* record = nullptr, const Places& places = {});
  // The same without the head: [B, T, C] after the last norm. logits = hidden · headᵀ. inner: the residual stream behind that block, from
  // 0, without a norm; of the last block as without it. No gradient reaches the blocks behind it, which are computed only for a record.
  // Of an encoder (model.causal is false) no token sees what stands behind places.lengths.
  torch::Tensor hidden(const torch::Tensor& tokens, AttentionRecord* record = nullptr, const Places& places = {},
                       std::optional<int64_t> inner = {});
  // Logits of the classes of each token, [B, T, num_labels].
  torch::Tensor label_logits(const torch::Tensor& tokens, AttentionRecord* record = nullptr,
                             const torch::Tensor& lengths = {});

  // Log-probability of target [B, T] and entropy of every position, [B, T], with the gradients of a loss; logits are divided by
  // temperature. moments: Σ p² and Σ p² log p too. Positions whose target is -100 give 0 and are left out of the product with the head.
  // The one place that minds model.fused_head. inner: of the policy softmax(head · h) of an inner layer, as hidden() has it.
  ops::TokenEntropy token_entropy(const torch::Tensor& tokens, const torch::Tensor& target, double temperature = 1.0,
                                  AttentionRecord* record = nullptr, const Places& places = {},
                                  const std::optional<ops::Keep>& keep = {}, bool moments = false,
                                  std::optional<int64_t> inner = {});

  // QK-clip (Kimi K2, arXiv 2507.20534): for max_logit [L][H] of an update, L layers that attend, scales the query and key rows of every head above
  // model.attention.qk_clip such that the same inputs would have given that much; a key head shared by several takes the square
  // root of the largest cut, and their queries the rest. Returns the number of heads that were above.
  int64_t qk_clip(const std::vector<std::vector<double>>& max_logit);

  // What mixers have counted in the passes of an update (Mixer::seen) begins anew; and is taken over behind it, added up over ranks by
  // sum, which is called for the same layers on each.
  void forget_seen();
  void take_seen(const std::function<void(torch::Tensor&)>& sum);

  // Every weight under its Hugging Face name, as views into the joined tensors:
  // [("model.embed_tokens.weight", …), …].
  std::vector<std::pair<std::string, torch::Tensor>> named_weights() const;
  // The same of a plain decoder that computes what this one does: layers of learned spectral norm as γ / σ · W, those of a low-rank
  // term as W + s B A, copies then.
  std::vector<std::pair<std::string, torch::Tensor>> folded_weights() const;

  // Layers of learned spectral norm; none of these does anything where model.sigma_reparam has none.
  std::vector<SigmaLayer> sigma_layers() const;
  // Follows the weights with u, once after an update. Returns σ of every layer, in the order of sigma_layers(); not finite where
  // a weight is not.
  std::vector<double> power_step();
  // Makes u the first right singular vector of weights that were copied in, and γ one or σ: the weight's own norm, with which
  // the layer computes what a plain one does.
  void start_sigma(bool gamma_is_sigma);
  // {"sigma/layers.0.qkv", …}: W, γ and u of the layers above, which folded weights do not tell. restore_sigma copies them in,
  // or returns false and does nothing where state is not of these layers.
  std::map<std::string, torch::Tensor> sigma_state() const;
  bool restore_sigma(const std::map<std::string, torch::Tensor>& state);

  // With model.lora the adapter alone requires gradients. It is 0 until start_lora draws every A of it, uniform in ±1/√K, from
  // streams made of (seed, number of the layer); every B is 0 then, so that the decoder computes what its weights do.
  void start_lora(uint64_t seed);
  // A and B of every linear layer that has a low-rank term, as views: [("model.layers.0.self_attn.q_proj.lora_A.weight", …), …].
  std::vector<std::pair<std::string, torch::Tensor>> adapter() const;
  // A decoder that has all weights in common with this one, but for an adapter of its own: this one's, as it is now.
  std::shared_ptr<DecoderImpl> with_kept_adapter() const;

  const DecoderConfig& config() const { return config_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const torch::Tensor& embedding() const { return embedding_; }    // [V, C]
  const torch::Tensor& final_norm() const { return final_norm_; }  // [C]; undefined with model.norm none
  const Projection& head() const { return head_; }                 // [V, C]; the embedding itself when tied
  // Cosine and sine of position · frequency (csrc/model/rope.h), times the factor of attention there, [max_position_embeddings, D/2] double on the CPU.
  const torch::Tensor& cosine() const { return cosine_; }
  const torch::Tensor& sine() const { return sine_; }

 private:
  torch::Tensor logits_of(const torch::Tensor& hidden);
  // x as an operand of products: in bfloat16 where model.compute is that and x is float32.
  torch::Tensor operand(const torch::Tensor& x) const;

  // One block: x [N, C] and the output of the block before it → the same of this one; delta is undefined before the first.
  std::pair<torch::Tensor, torch::Tensor> block(const torch::Tensor& x, const torch::Tensor& delta, size_t layer,
                                                const torch::Tensor& cosine, const torch::Tensor& sine,
                                                const Packing* packing, const Places& places,
                                                AttentionRecord* record) const;
  std::pair<torch::Tensor, torch::Tensor> recomputed_block(const torch::Tensor& x, const torch::Tensor& delta,
                                                           size_t layer, const torch::Tensor& cosine,
                                                           const torch::Tensor& sine,
                                                           const std::shared_ptr<const Packing>& packing,
                                                           const Places& places, AttentionRecord* record) const;
  std::shared_ptr<Bfloat16Copy> bfloat16_copy() const;
  Projection projection(torch::nn::Module& owner, const std::string& path, const std::string& name,
                        torch::Tensor weight, bool bias, const std::vector<SigmaPart>& runs) const;
  void add_lora_term(Projection& projection, torch::nn::Module& owner, const std::string& name,
                     const std::vector<SigmaPart>& runs) const;
  std::vector<Projection> sigma_projections() const;  // those that have parts
  std::vector<std::pair<std::string, torch::Tensor>> named(torch::Tensor weight_of(const Projection&)) const;

  DecoderConfig config_;
  bool reads_prefix_ = false;  // a layer does
  torch::Tensor embedding_, final_norm_, cosine_, sine_;
  torch::Tensor score_, score_bias_;  // [num_labels, C] and [num_labels]; undefined without
  Projection head_;
  std::vector<LayerWeights> layers_;
};
TORCH_MODULE(Decoder);

}  // namespace isentrope::model
