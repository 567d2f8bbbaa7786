// The keys of model in a configuration: what a decoder is made of.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/field.h"
#include "csrc/model/lora.h"
#include "csrc/model/mixers/options.h"
#include "csrc/model/rope.h"
#include "csrc/model/train_only.h"

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
  std::string activation = "swiglu";
  bool fused_head = true;
  std::string recompute = "none";
  std::string compute = "float32";
  bool causal = true;
  int64_t num_labels = 0;
  std::vector<std::string> mixers = {"softmax"};
  AttentionConfig attention;
  SoftmaxRnnMixerConfig softmax_rnn;
  LinearMixerConfig linear;
  PrefixLinearMixerConfig prefix_linear;
  RoutedMixerConfig routed;
  NormalizedMixerConfig normalized;
  GatedDeltaMixerConfig gated_delta;
  SsdMixerConfig ssd;
  NatslMixerConfig natsl;
  EstimatedMixerConfig estimated;
  HierarchicalMixerConfig hierarchical;
  SigmaConfig sigma_reparam;
  std::optional<LoraConfig> lora = {};
  std::vector<std::string> freeze;
  std::optional<TrainOnlyConfig> train_only = {};
  std::optional<ComposeConfig> compose = {};
  // No keys:
  int64_t vocabulary =
      0;               // rows of the embedding: those of the tokenizer, or more in a model that was trained elsewhere
  int64_t tokens = 0;  // of them, the first, those that are tokens: the others have no logits; 0: all
  int64_t positions_made_for =
      0;  // the longest sequence of a model that was trained elsewhere; 0: max_position_embeddings

  int64_t token_count() const { return tokens > 0 ? tokens : vocabulary; }
  // The kind of a layer's mixer.
  const std::string& mixer_of(int64_t layer) const { return mixers[static_cast<size_t>(layer) % mixers.size()]; }
  int64_t head_size() const { return head_dim.value_or(hidden_size / num_attention_heads); }
  bool swiglu() const { return activation == "swiglu"; }
  bool merged_mlp() const { return activation == "none"; }  // one matrix stands in the place of the MLP
  // Rows of the matrix before the activation, gate and up joined; 0 where there is none.
  int64_t mlp_rows() const { return merged_mlp() ? 0 : (swiglu() ? 2 : 1) * intermediate_size; }
  // The matrices between a block's second norm and its second sum: name, rows and columns.
  std::vector<std::tuple<std::string, int64_t, int64_t>> mlp_matrices() const;
  int64_t mlp_numbers() const;  // of these matrices together
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
    v("intermediate_size", intermediate_size, "Inner width of the MLP.", between(1, 1 << 20));
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
    v("mlp_bias", mlp_bias, "Biases of the linear layers of the MLP.");
    v("activation", activation,
      "swiglu: down(silu(gate x) · up x); gelu, relu: down(f(up x)); crrelu: that with f(x) = max(0, x) + ε x "
      "exp(−x²/2), ε learned, one a block, 0.01 at the start. none: without an activation the MLP's matrices are one, "
      "C × C, and a block gives β · x + W x / α with α and β learned, 1 at the start (entropy-guided attention, arXiv "
      "2501.03489).",
      one_of({"swiglu", "gelu", "relu", "crrelu", "none"}));
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
    v("causal", causal,
      "Whether a token sees those before it alone. False: every token of its sequence, an encoder, for the objectives "
      "mlm and tag (docs/encoders.md), from scratch or from a causal model.pretrained.");
    v("num_labels", num_labels,
      "Classes of a token that an encoder tells beside the tokens of the vocabulary, score [num_labels, C] with a "
      "bias; "
      "objective tag takes 2. 0: none.",
      between(0, 1 << 16));
    v("mixers", mixers,
      "What stands between the norm and the output projection of each block (docs/mixers.md): a pattern that repeats "
      "over the layers, as [linear, linear, softmax]; num_hidden_layers is a multiple of its length.",
      one_of({"softmax", "softmax_rnn", "routed", "linear", "prefix_linear", "normalized", "gated_delta", "ssd",
              "natsl", "estimated", "hierarchical"}));
    v("attention", attention, "What is done to the logits of attention, in layers of kinds softmax and softmax_rnn.");
    v("softmax_rnn", softmax_rnn,
      "Layers of kind softmax_rnn: softmax attention with its denominator left out or replaced, and with gates "
      "(arXiv 2507.23632).");
    v("linear", linear, "Layers of kind linear: linear attention (arXiv 2006.16236).");
    v("prefix_linear", prefix_linear,
      "Layers of kind prefix_linear: linear attention whose state begins with a prefix that is read in both directions "
      "(JRT-RNN, arXiv 2407.05483).");
    v("routed", routed,
      "Layers of kind routed: half of the heads see a window, half the tokens of their own cluster (Routing "
      "Transformer, arXiv 2003.05997).");
    v("normalized", normalized,
      "Layers of kind normalized: weights q·k as they are, over a denominator that the token sets (dynamical systems "
      "framework, arXiv 2405.15731).");
    v("gated_delta", gated_delta, "Layers of kind gated_delta: gated delta networks (arXiv 2412.06464).");
    v("ssd", ssd, "Layers of kind ssd: the state space of Mamba-2 (arXiv 2405.21060).");
    v("natsl", natsl,
      "Layers of kind natsl: chunks of tokens are seen by softmax attention or kept in the state of a gated delta "
      "rule, "
      "as a router says (NAtS-L).");
    v("estimated", estimated,
      "Layers of kind estimated: softmax attention over the tokens that a linear-cost estimate of it holds for the "
      "largest (SEA, arXiv 2310.01777).");
    v("hierarchical", hierarchical,
      "Layers of kind hierarchical, of encoders: softmax attention tied in blocks by a tree over the tokens (arXiv "
      "2509.15448).");
    v("sigma_reparam", sigma_reparam, "Linear layers of learned spectral norm (sigmaReparam).");
    v("lora", lora,
      "Train a low-rank adapter beside the weights of model.pretrained, which stay as they are; absent: train all "
      "weights.");
    v("freeze", freeze,
      "Weights that stay as they are: names as checkpoints have them, where * stands for any letters, or qk for those "
      "that make queries and keys.");
    v("train_only", train_only,
      "Train these weights alone (docs/options.md); with lora, the adapters of these; absent: all.");
    v("compose", compose,
      "Train the coefficients of a sum of task vectors in the place of weights (aTLAS, docs/options.md); checkpoints "
      "hold the sum.");
  }
};

// Throws std::invalid_argument for an encoder, which goes on with no text.
void require_causal(const DecoderConfig& config);

}  // namespace isentrope::model
