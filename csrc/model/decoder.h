// A decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases.
// Its weights carry Hugging Face names, so that a checkpoint opens in `transformers` as LlamaForCausalLM.
//
// B sequences, T positions, H query heads, G key/value heads, D head size, C width, M inner width of the MLP,
// V vocabulary.
#pragma once
#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <string>
#include <utility>
#include <vector>

#include "csrc/field.h"

namespace isentrope::model {

struct AttentionConfig {
  int64_t window = 0;
  double softcap = 0.0;
  bool qk_norm = false;
  std::string temperature = "none";
  double qk_clip = 0.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("window", window, "Keys a query sees, itself and those just before it; 0 for all.", at_least(0));
    v("softcap", softcap, "Logits become softcap · tanh(logit / softcap); 0 for none.", at_least(0));
    v("qk_norm", qk_norm, "RMSNorm of every query and key head before the rotation, as Qwen3 has it.");
    v("temperature", temperature,
      "Learned temperature of the logits: none, one a head, or one a head and position of the query.",
      one_of({"none", "head", "row"}));
    v("qk_clip", qk_clip,
      "After an update, query and key weights of heads whose largest logit was above this are scaled back to it; 0 for none.",
      at_least(0));
  }
};

struct DecoderConfig {
  int64_t layers = 2;
  int64_t width = 64;
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t mlp = 192;
  int64_t context = 64;
  double rope_base = 10000.0;
  double norm_eps = 1e-5;
  bool tied_head = false;
  AttentionConfig attention;
  int64_t vocabulary = 0;  // set from the tokenizer, not a key

  int64_t head_size() const { return width / heads; }
  std::string problem() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("layers", layers, "Decoder blocks.", at_least(1));
    v("width", width, "Size of the residual stream (C).", at_least(2));
    v("heads", heads, "Query heads (H); width is a multiple of 8 · heads.", at_least(1));
    v("kv_heads", kv_heads, "Key and value heads (G); heads is a multiple of it.", at_least(1));
    v("mlp", mlp, "Inner width of the SwiGLU MLP.", at_least(1));
    v("context", context, "Longest sequence in tokens, prompt and completion together.", at_least(2));
    v("rope_base", rope_base, "Base of the rotary wave lengths.", above(1));
    v("norm_eps", norm_eps, "Added to the mean square in RMSNorm.", above(0));
    v("tied_head", tied_head, "Use the embedding as output head.");
    v("attention", attention, "What is done to the logits of attention.");
  }
};

// The joined projections are stored once, query|key|value and gate|up, because one product is faster than
// three.
struct LayerWeights {
  torch::Tensor input_norm;  // [C]
  torch::Tensor qkv;         // [(H + 2G)·D, C]
  torch::Tensor o;           // [C, H·D]
  torch::Tensor post_norm;   // [C]
  torch::Tensor gate_up;     // [2M, C]
  torch::Tensor down;        // [C, M]
  torch::Tensor q_norm;      // [D], like k_norm; undefined without model.attention.qk_norm
  torch::Tensor k_norm;
  torch::Tensor log_temperature;  // [H] or [H · context]; undefined without model.attention.temperature
};

// What the attention of a forward pass says of itself, one tensor a layer.
struct AttentionRecord {
  std::vector<torch::Tensor> entropy;    // [B, H, T] nats, differentiable
  std::vector<torch::Tensor> max_logit;  // [B, H, T]
  int64_t window = 0;                    // of the model: row t sees min(t + 1, window) keys, all t + 1 where it is 0
};

class DecoderImpl : public torch::nn::Module {
 public:
  // Weights are drawn from streams made of (seed, number of the tensor): normal, std 0.02 for embedding and
  // head, fan_in^-0.5 elsewhere, half of that for the two projections onto the residual stream. float32 on
  // the CPU; to() moves them. Throws std::invalid_argument with config.problem().
  DecoderImpl(const DecoderConfig& config, uint64_t seed);

  // tokens [B, T] int64, T ≤ context → logits [B, T, V]. Positions count from 0; causal, so padding on the
  // right of a sequence changes nothing before it. record: filled in, where given.
  torch::Tensor forward(const torch::Tensor& tokens, AttentionRecord* record = nullptr);
  // The same without the head: [B, T, C] after the last norm. logits = hidden · headᵀ.
  torch::Tensor hidden(const torch::Tensor& tokens, AttentionRecord* record = nullptr);

  // QK-clip (Kimi K2, arXiv 2507.20534): for max_logit [L][H] of an update, scales the query and key rows of every head above
  // model.attention.qk_clip such that the same inputs would have given that much; a key head shared by several takes the square
  // root of the largest cut, and their queries the rest. Returns the number of heads that were above.
  int64_t qk_clip(const std::vector<std::vector<double>>& max_logit);

  // Every weight under its Hugging Face name, as views into the joined tensors:
  // [("model.embed_tokens.weight", …), …].
  std::vector<std::pair<std::string, torch::Tensor>> named_weights() const;

  const DecoderConfig& config() const { return config_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const torch::Tensor& embedding() const { return embedding_; }    // [V, C]
  const torch::Tensor& final_norm() const { return final_norm_; }  // [C]
  const torch::Tensor& head() const { return head_; }              // [V, C]; the embedding itself when tied
  // Cosine and sine of position · rope_base^(−2i/D), [context, D/2] double on the CPU.
  const torch::Tensor& cosine() const { return cosine_; }
  const torch::Tensor& sine() const { return sine_; }

 private:
  torch::Tensor normed_heads(const torch::Tensor& qkv, const LayerWeights& layer) const;
  torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v, const LayerWeights& layer,
                       AttentionRecord* record) const;

  DecoderConfig config_;
  torch::Tensor embedding_, final_norm_, head_, cosine_, sine_;
  std::vector<LayerWeights> layers_;
};
TORCH_MODULE(Decoder);

}  // namespace isentrope::model
