#include "csrc/model/decoder_config.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "csrc/model/mixer_shape.h"

namespace isentrope::model {

int64_t AttentionConfig::window_of(int64_t layer) const {
  if (layer_types.empty()) return window;
  return layer_types[static_cast<size_t>(layer) % layer_types.size()] == "sliding_attention" ? window : 0;
}

bool SigmaConfig::any() const {
  return std::any_of(layers.begin(), layers.end(), [](const auto& x) { return x != "none"; });
}

bool SigmaConfig::takes(const std::string& layer) const {
  static const std::map<std::string, std::string> groups{{"q", "attention"}, {"k", "attention"}, {"v", "attention"},
                                                         {"o", "attention"}, {"gate", "mlp"},    {"up", "mlp"},
                                                         {"down", "mlp"},    {"head", "head"}};
  return std::any_of(layers.begin(), layers.end(),
                     [&](const std::string& x) { return x == layer || x == "all" || x == groups.at(layer); });
}

std::string SigmaConfig::problem() const {
  if (any() && std::find(layers.begin(), layers.end(), "none") != layers.end())
    return "layers: none stands beside other names; write one or the other";
  if (fused_qkv == "one" && (takes("q") != takes("k") || takes("k") != takes("v")))
    return "layers: fused_qkv is one, and q, k, v are not all named; name all three or write fused_qkv: separate";
  return "";
}

std::vector<std::tuple<std::string, int64_t, int64_t>> DecoderConfig::mlp_matrices() const {
  const int64_t C = hidden_size, M = intermediate_size;
  if (merged_mlp()) return {{"down", C, C}};
  if (!swiglu()) return {{"up", M, C}, {"down", C, M}};
  return {{"gate", M, C}, {"up", M, C}, {"down", C, M}};
}

int64_t DecoderConfig::mlp_numbers() const {
  int64_t sum = 0;
  for (const auto& [name, rows, columns] : mlp_matrices()) sum += rows * columns;
  return sum;
}

namespace {

// What speaks against a block whose MLP is one matrix.
std::string merged_mlp_problem(const DecoderConfig& c) {
  if (c.mlp_bias)
    return "mlp_bias: with activation none one matrix without a bias stands in the place of the MLP; leave it at false";
  const auto names_others = [](const std::vector<std::string>& names) {
    return std::any_of(names.begin(), names.end(), [](const auto& x) { return x == "gate" || x == "up"; });
  };
  const char* wanted = ": with activation none the MLP is one matrix, down; leave gate and up out";
  if (names_others(c.sigma_reparam.layers)) return std::string("sigma_reparam.layers") + wanted;
  if (c.lora && names_others(c.lora->targets)) return std::string("lora.targets") + wanted;
  return "";
}

// What speaks against a model whose tokens see those behind them.
std::string encoder_problem(const DecoderConfig& c) {
  for (const std::string& kind : c.mixers)
    if (kind != "softmax" && kind != "hierarchical")
      return "mixers: a layer of kind " + kind +
             " cannot see the tokens behind, and causal is false; wanted softmax or hierarchical";
  if (c.attention.window > 0)
    return "attention.window: a window is of the tokens before, and causal is false; leave it at 0";
  if (c.num_labels > 0 && c.lora)
    return "lora: an adapter has no place for the weights of num_labels; train all weights";
  return "";
}

bool names(const std::vector<std::string>& layers, const std::string& layer) {
  return std::find(layers.begin(), layers.end(), layer) != layers.end();
}

// What speaks against training a part of the weights, or coefficients in their place.
std::string part_problem(const DecoderConfig& c) {
  const bool part = !c.freeze.empty() || c.train_only;
  const std::string key = c.compose ? "compose" : c.train_only ? "train_only" : "freeze";
  if (c.compose && (part || c.lora))
    return std::string("compose: trains coefficients in the place of weights; leave ") +
           (c.lora         ? "lora"
            : c.train_only ? "train_only"
                           : "freeze") +
           " out";
  if (c.compose && c.pretrained.empty())
    return "compose: adds task vectors to the weights of model.pretrained, which names none; name a model there";
  if (!c.compose && !part) return "";
  if (c.sigma_reparam.any())
    return key + ": the layers of sigma_reparam learn norms beside their weights; use one of the two";
  if (c.attention.qk_clip > 0) return "attention.qk_clip: scales weights that " + key + " may hold; use one of the two";
  if (const auto& only = c.train_only; only && !only->blocks.empty() && only->blocks[1] >= c.num_hidden_layers)
    return "train_only.blocks: " + std::to_string(only->blocks[1]) + "; the model has blocks 0 to " +
           std::to_string(c.num_hidden_layers - 1);
  return "";
}

}  // namespace

std::string DecoderConfig::problem() const {
  if (head_dim && *head_dim % 8 != 0)
    return "head_dim: " + std::to_string(*head_dim) + " is not a multiple of 8; take " +
           std::to_string((*head_dim + 7) / 8 * 8);
  const int64_t H = num_attention_heads, G = num_key_value_heads;
  if (!head_dim && (hidden_size % (8 * H) != 0 || head_size() > 256))
    return "hidden_size: " + std::to_string(hidden_size) + " does not give " + std::to_string(H) +
           " heads a size that is a multiple of 8 up to 256; a multiple of " + std::to_string(8 * H) +
           " does, or head_dim gives the size";
  if (H % G != 0)
    return "num_key_value_heads: " + std::to_string(G) + " does not divide num_attention_heads (" + std::to_string(H) +
           ")";
  if (mixers.empty()) return "mixers: is an empty list; name a kind, or leave it out for softmax in every layer";
  if (const auto length = static_cast<int64_t>(mixers.size()); num_hidden_layers % length != 0)
    return "mixers: a pattern of " + std::to_string(length) + " layers does not fit num_hidden_layers (" +
           std::to_string(num_hidden_layers) + "); write one that divides it, or a kind for every layer";
  for (int64_t i = 0; i < static_cast<int64_t>(mixers.size()); ++i)
    if (const std::string problem = mixer_kind(mixer_of(i)).problem(*this, i); !problem.empty()) return problem;
  if (!causal)
    if (const std::string problem = encoder_problem(*this); !problem.empty()) return problem;
  if (causal && num_labels > 0)
    return "num_labels: " + std::to_string(num_labels) +
           " classes of a token are told by all of its text, and causal is true; write causal: false";
  if (merged_mlp())
    if (const std::string problem = merged_mlp_problem(*this); !problem.empty()) return problem;
  if (!swiglu() && !merged_mlp()) {
    const char* wanted = ": names gate, and with activation ";
    if (names(sigma_reparam.layers, "gate"))
      return "sigma_reparam.layers" + (wanted + activation) + " there is none; leave it out";
    if (lora && names(lora->targets, "gate"))
      return "lora.targets" + (wanted + activation) + " there is none; leave it out";
  }
  if (const std::string problem = part_problem(*this); !problem.empty()) return problem;
  const auto& types = attention.layer_types;
  if (static_cast<int64_t>(types.size()) > num_hidden_layers)
    return "attention.layer_types: " + std::to_string(types.size()) + " types, and num_hidden_layers is " +
           std::to_string(num_hidden_layers);
  if (attention.window == 0 && std::find(types.begin(), types.end(), "sliding_attention") != types.end())
    return "attention.layer_types: sliding_attention takes a window, and attention.window is 0";
  if (positions_made_for > max_position_embeddings && attention.temperature == "row")
    return "max_position_embeddings: attention.temperature row has weights for " + std::to_string(positions_made_for) +
           " positions; leave it at that";
  if (positions_made_for > 0 && positions_made_for < max_position_embeddings)
    return "max_position_embeddings: " + std::to_string(max_position_embeddings) + ", and the model was made for " +
           std::to_string(positions_made_for) + "; write at most that";
  if (attention.qk_clip > 0 && attention.qk_norm)
    return "attention.qk_clip: scales weights that attention.qk_norm scales back; use one of the two";
  if (attention.qk_clip > 0 && (sigma_reparam.takes("q") || sigma_reparam.takes("k")))
    return "attention.qk_clip: scales rows of q and k, whose norm sigma_reparam holds at gamma; use one of the two "
           "there";
  if (attention.qk_clip > 0 && attending_layers(*this) == 0)
    return "attention.qk_clip: no layer of mixers has the logits of a softmax; leave it at 0";
  if (lora && sigma_reparam.any())
    return "lora: the layers of sigma_reparam learn the norm of weights that an adapter leaves as they are; use one of "
           "the two";
  if (lora && attention.qk_clip > 0)
    return "attention.qk_clip: scales weights of q and k, which lora leaves as they are; use one of the two";
  if (tie_word_embeddings && names(sigma_reparam.layers, "head"))
    return "sigma_reparam.layers: the head is the embedding (tie_word_embeddings), which is no linear layer; leave "
           "head out";
  return sigma_reparam.problem().empty() ? "" : "sigma_reparam." + sigma_reparam.problem();
}

void require_causal(const DecoderConfig& config) {
  if (!config.causal)
    throw std::invalid_argument(
        "the model is an encoder (model.causal is false): its tokens see those behind them, so that it draws none; "
        "take "
        "a causal model to sample, for rollouts and for answers");
}

}  // namespace isentrope::model
