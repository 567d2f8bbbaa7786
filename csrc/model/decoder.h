// A decoder of the Llama kind: RMSNorm, rotary positions, grouped-query attention, SwiGLU. On request its linear layers have
// biases or a learned spectral norm (csrc/model/linear.h), and its norms stand elsewhere or nowhere.
// Its weights carry the names that all families of csrc/train/family.h give them; it knows no family itself.
//
// B sequences, T positions, H query heads, G key/value heads, D head size, C width, M inner width of the MLP,
// V vocabulary.
#pragma once
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/field.h"
#include "csrc/model/linear.h"
#include "csrc/model/lora.h"
#include "csrc/model/packing.h"
#include "csrc/model/rope.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

struct AttentionConfig {
  int64_t window = 0;
  std::vector<std::string> layer_types = {};
  double softcap = 0.0;
  bool qk_norm = false;
  std::string bias = "none";
  std::string temperature = "none";
  double qk_clip = 0.0;

  int64_t window_of(int64_t layer) const;  // 0 for none

  template <class Visitor>
  void visit(Visitor& v) {
    v("window", window, "Keys a query sees, itself and those just before it; 0 for all.", at_least(0));
    v("layer_types", layer_types,
      "Which layers have the window: a pattern of full_attention and sliding_attention that repeats; empty: all have "
      "it.",
      one_of({"full_attention", "sliding_attention"}));
    v("softcap", softcap, "Logits become softcap · tanh(logit / softcap); 0 for none.", at_least(0));
    v("qk_norm", qk_norm, "RMSNorm of every query and key head before the rotation, as Qwen3 has it.");
    v("bias", bias, "Biases of the linear layers: none, of qkv (as Qwen2 has them), or of all, the output's too.",
      one_of({"none", "qkv", "all"}));
    v("temperature", temperature,
      "Learned temperature of the logits: none, one a head, or one a head and position of the query.",
      one_of({"none", "head", "row"}));
    v("qk_clip", qk_clip,
      "After an update, query and key weights of heads whose largest logit was above this are scaled back to it; 0 for "
      "none.",
      at_least(0));
  }
};

// Linear layers of learned spectral norm: W enters as γ / σ · W, where σ is the largest singular value of W.
struct SigmaConfig {
  std::vector<std::string> layers = {"none"};
  std::string gamma_init = "one";
  std::string sigma_grad = "through";
  std::string fused_qkv = "separate";
  int64_t steps_max = 20;
  double tolerance = 1e-4;
  int64_t every = 10;
  bool svd = false;

  bool takes(const std::string& layer) const;  // q, k, v, o, gate, up, down or head
  bool any() const;
  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("layers", layers,
      "Linear layers whose spectral norm is learned: none, all, attention (q, k, v, o), mlp (gate, up, down), or some "
      "by name; all takes the head too, where it is not tied to the embedding.",
      one_of({"none", "all", "attention", "mlp", "q", "k", "v", "o", "gate", "up", "down", "head"}));
    v("gamma_init", gamma_init,
      "Where the learned norms of a new model start: at one, or at sigma, the norm that the weight is drawn with. A "
      "model from a checkpoint without learned norms starts at sigma.",
      one_of({"one", "sigma"}));
    v("sigma_grad", sigma_grad,
      "Whether gradients of the weight go through its norm, or take that for a constant (detached).",
      one_of({"through", "detached"}));
    v("fused_qkv", fused_qkv, "Whether q, k and v have one norm together, or one each.", one_of({"one", "separate"}));
    v("steps_max", steps_max, "Most power steps that follow the norm of a layer after an update.", between(1, 1000));
    v("tolerance", tolerance, "A layer's power steps end where one changes its norm by less than this share; 0: never.",
      between(0, 1));
    v("every", every, "Steps between two measurements of sigma and gamma in metrics.jsonl; 0 for none.", at_least(0));
    v("svd", svd, "Whether a measurement also tells the true norm, by a singular value decomposition.");
  }
};

struct DecoderConfig {
  std::string pretrained;
  std::string family = "auto";
  int64_t num_hidden_layers = 2;
  int64_t hidden_size = 64;
  int64_t num_attention_heads = 4;
  int64_t num_key_value_heads = 4;
  int64_t intermediate_size = 192;
  std::optional<int64_t> head_dim = {};
  int64_t max_position_embeddings = 64;
  double rope_theta = 10000.0;
  RopeScalingConfig rope_scaling;
  double rms_norm_eps = 1e-5;
  std::optional<double> initializer_range = {};
  std::string norm = "pre";
  bool tie_word_embeddings = false;
  bool mlp_bias = false;
  bool fused_head = true;
  std::string recompute = "none";
  std::string compute = "float32";
  AttentionConfig attention;
  SigmaConfig sigma_reparam;
  std::optional<LoraConfig> lora = {};
  // No keys:
  int64_t vocabulary =
      0;               // rows of the embedding: those of the tokenizer, or more in a model that was trained elsewhere
  int64_t tokens = 0;  // of them, the first, those that are tokens: the others have no logits; 0: all
  int64_t positions_made_for =
      0;  // the longest sequence of a model that was trained elsewhere; 0: max_position_embeddings

  int64_t token_count() const { return tokens > 0 ? tokens : vocabulary; }
  int64_t head_size() const { return head_dim.value_or(hidden_size / num_attention_heads); }
  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("pretrained", pretrained,
      "Folder of a model of transformers, or of a checkpoint, to start from: its config.json gives the keys of model, "
      "and "
      "its weights are taken (docs/models.md).");
    v("family", family,
      "Model of transformers that checkpoints are written as; auto: the first that has these options.",
      one_of({"auto", "llama", "qwen2", "qwen3", "mistral"}));
    v("num_hidden_layers", num_hidden_layers, "Decoder blocks.", between(1, 1024));
    v("hidden_size", hidden_size, "Size of the residual stream (C).", between(2, 1 << 17));
    v("num_attention_heads", num_attention_heads, "Query heads (H).", between(1, 1 << 14));
    v("num_key_value_heads", num_key_value_heads, "Key and value heads (G); num_attention_heads is a multiple of it.",
      between(1, 1 << 14));
    v("intermediate_size", intermediate_size, "Inner width of the SwiGLU MLP.", between(1, 1 << 20));
    v("head_dim", head_dim,
      "Size of a head (D), a multiple of 8 up to 256; left out: hidden_size / num_attention_heads.", between(8, 256));
    v("max_position_embeddings", max_position_embeddings, "Longest sequence in tokens, prompt and completion together.",
      between(2, 1 << 24));
    v("rope_theta", rope_theta, "Base of the rotary wave lengths.", above_to(1, 1e12));
    v("rope_scaling", rope_scaling, "Rotary positions that are stretched to longer sequences.");
    v("rms_norm_eps", rms_norm_eps, "Added to the mean square in RMSNorm, which is about 1 in a healthy stream.",
      above_to(0, 1));
    v("norm", norm,
      "Where RMSNorm stands: pre, before attention, MLP and head; post, after every residual sum, on the stream "
      "itself; none.",
      one_of({"pre", "post", "none"}));
    v("initializer_range", initializer_range,
      "Standard deviation that all matrices are drawn with; left out: 0.02 for embedding and head, fan_in^-0.5 "
      "elsewhere, half "
      "of that for the projections onto the residual stream.",
      between(1e-8, 10));
    v("tie_word_embeddings", tie_word_embeddings, "Use the embedding as output head.");
    v("mlp_bias", mlp_bias, "Biases of the three linear layers of the MLP.");
    v("fused_head", fused_head,
      "Losses take log-probabilities and entropies straight from the hidden states, block by block of the vocabulary: "
      "logits of a "
      "batch never exist together. False: from logits, which takes memory of tokens times vocabulary. A matter of "
      "rounding.");
    v("recompute", recompute,
      "blocks: of each block its input alone is kept, and the block is computed again in the backward pass: a third "
      "more "
      "work, much less memory, the same bits.",
      one_of({"none", "blocks"}));
    v("compute", compute,
      "Type of the operands of products in training: float32, or bfloat16, which takes about half the time where the "
      "processor "
      "multiplies it. Weights, gradients, sums, norms, losses and the optimiser stay float32.",
      one_of({"float32", "bfloat16"}));
    v("attention", attention, "What is done to the logits of attention.");
    v("sigma_reparam", sigma_reparam, "Linear layers of learned spectral norm (sigmaReparam).");
    v("lora", lora,
      "Train a low-rank adapter beside the weights of model.pretrained, which stay as they are; absent: train all "
      "weights.");
  }
};

// The joined projections are stored once, query|key|value and gate|up, because one product is faster than
// three. Norms that model.norm leaves out are undefined: all with none; with post the first layer's input_norm, since no sum
// stands before it, while the input_norm of layer i is that after the MLP of layer i − 1, and the final norm after the last.
struct LayerWeights {
  torch::Tensor input_norm;  // [C]
  Projection qkv;            // [(H + 2G)·D, C]
  Projection o;              // [C, H·D]
  torch::Tensor post_norm;   // [C]
  Projection gate_up;        // [2M, C]
  Projection down;           // [C, M]
  torch::Tensor q_norm;      // [D], like k_norm; undefined without model.attention.qk_norm
  torch::Tensor k_norm;
  torch::Tensor log_temperature;  // [H] or [H · context]; undefined without model.attention.temperature
};

// A linear layer of learned spectral norm: views.
struct SigmaLayer {
  std::string name;      // "layers.0.q", "head"
  torch::Tensor weight;  // [rows, columns]
  torch::Tensor gamma;   // []
  torch::Tensor u;       // [columns]
};

// What the attention of a forward pass says of itself, one tensor a layer.
struct AttentionRecord {
  std::vector<torch::Tensor> entropy;    // [B, H, T] nats, differentiable
  std::vector<torch::Tensor> max_logit;  // [B, H, T]
  std::vector<int64_t> window;           // position t sees min(t + 1, window) keys, all t + 1 where it is 0
  torch::Tensor position;                // [B, T] where rows are packed; undefined: row t has position t
  bool with_bound = false;               // asks for:
  std::vector<torch::Tensor> bound;      // [B, H, T] nats, what the entropy is at least (csrc/model/entropy_bound.h)
};

class DecoderImpl : public torch::nn::Module {
 public:
  // Weights are drawn from streams made of (seed, number of the tensor): normal, of the std that initializer_range says. float32 on the
  // CPU; to() moves them. Biases begin at 0. No seed: all weights are 0 but those of norms, for others to be copied in. Throws
  // std::invalid_argument with config.problem().
  DecoderImpl(const DecoderConfig& config, std::optional<uint64_t> seed);

  // tokens [B, T] int64, T ≤ context → logits [B, T, V], of config().token_count() of them. Positions count from 0; causal, so padding on the
  // right of a sequence changes nothing before it. record: filled in, where given. position [B, T], where given: rows hold
  // several sequences (csrc/model/packing.h), and each is computed as it would be alone.
  torch::Tensor forward(const torch::Tensor& tokens, AttentionRecord* record = nullptr,
                        const torch::Tensor& position = {});
  // The same without the head: [B, T, C] after the last norm. logits = hidden · headᵀ.
  torch::Tensor hidden(const torch::Tensor& tokens, AttentionRecord* record = nullptr,
                       const torch::Tensor& position = {});

  // Log-probability of target [B, T] and entropy of every position, [B, T], with the gradients of a loss; logits are divided by
  // temperature. moments: Σ p² and Σ p² log p too. Positions whose target is -100 give 0 and are left out of the product with the head. The one place
  // that minds model.fused_head.
  ops::TokenEntropy token_entropy(const torch::Tensor& tokens, const torch::Tensor& target, double temperature = 1.0,
                                  AttentionRecord* record = nullptr, const torch::Tensor& position = {},
                                  const std::optional<ops::Keep>& keep = {}, bool moments = false);

  // QK-clip (Kimi K2, arXiv 2507.20534): for max_logit [L][H] of an update, scales the query and key rows of every head above
  // model.attention.qk_clip such that the same inputs would have given that much; a key head shared by several takes the square
  // root of the largest cut, and their queries the rest. Returns the number of heads that were above.
  int64_t qk_clip(const std::vector<std::vector<double>>& max_logit);

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
  // x as an operand of products: in bfloat16 where model.compute is that and x is float32.
  torch::Tensor operand(const torch::Tensor& x) const;
  torch::Tensor normed_heads(const torch::Tensor& qkv, const LayerWeights& layer) const;
  torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, size_t layer,
                       AttentionRecord* record, const Packing* packing) const;

  // One block: x [N, C] and the output of the block before it → the same of this one; delta is undefined before the first.
  std::pair<torch::Tensor, torch::Tensor> block(const torch::Tensor& x, const torch::Tensor& delta, size_t layer,
                                                const torch::Tensor& cosine, const torch::Tensor& sine,
                                                const Packing* packing, AttentionRecord* record) const;
  std::pair<torch::Tensor, torch::Tensor> recomputed_block(const torch::Tensor& x, const torch::Tensor& delta,
                                                           size_t layer, const torch::Tensor& cosine,
                                                           const torch::Tensor& sine,
                                                           const std::shared_ptr<const Packing>& packing,
                                                           AttentionRecord* record) const;
  std::shared_ptr<Bfloat16Copy> bfloat16_copy() const;
  Projection projection(torch::nn::Module& owner, const std::string& path, const std::string& name,
                        torch::Tensor weight, bool bias, const std::vector<SigmaPart>& runs) const;
  void add_lora_term(Projection& projection, torch::nn::Module& owner, const std::string& name,
                     const std::vector<SigmaPart>& runs) const;
  std::vector<Projection> sigma_projections() const;  // those that have parts
  std::vector<std::pair<std::string, torch::Tensor>> named(torch::Tensor weight_of(const Projection&)) const;

  DecoderConfig config_;
  torch::Tensor embedding_, final_norm_, cosine_, sine_;
  Projection head_;
  std::vector<LayerWeights> layers_;
};
TORCH_MODULE(Decoder);

}  // namespace isentrope::model
