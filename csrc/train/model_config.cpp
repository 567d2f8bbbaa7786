#include "csrc/train/model_config.h"

#include <stdexcept>
#include <utility>
#include <vector>

#include "csrc/train/json_file.h"

namespace isentrope::train {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// The family of `transformers` whose model computes what this one does. There is none for a soft cap, a temperature or norms in
// this place: such a checkpoint names a model type of its own, and is refused there instead of giving other logits.
std::pair<std::string, std::string> family(const model::DecoderConfig& decoder) {
  const model::AttentionConfig& c = decoder.attention;
  if (c.softcap > 0 || c.temperature != "none" || decoder.norm != "pre") return {"isentrope", "IsentropeForCausalLM"};
  if (c.qk_norm) return {"qwen3", "Qwen3ForCausalLM"};
  return c.window > 0 ? std::pair{"mistral", "MistralForCausalLM"} : std::pair{"llama", "LlamaForCausalLM"};
}

bool given(const json& object, const char* key) { return object.contains(key) && !object.at(key).is_null(); }

// transformers 5 writes rope_parameters alone, 4 rope_theta, and both take rope_parameters first.
double rope_base(const std::string& file, const json& object) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    if (!given(object, key)) continue;
    const json& rope = object.at(key);
    for (const char* type : {"rope_type", "type"})
      if (rope.is_object() && given(rope, type) && rope.at(type) != "default")
        throw std::runtime_error(file + ": " + key + "." + type + " is " + rope.at(type).dump() +
                                 "; wanted \"default\", the rotary positions that the decoder has");
    if (rope.is_object() && given(rope, "rope_theta")) return json_field<double>(file, rope, "rope_theta");
  }
  return json_field<double>(file, object, "rope_theta");
}

template <class T>
void require(const std::string& file, const json& object, const char* key, const T& wanted) {
  if (given(object, key) && object.at(key) != json(wanted))
    throw std::runtime_error(file + ": " + key + " is " + object.at(key).dump() + "; the decoder has " +
                             json(wanted).dump());
}

}  // namespace

bool opens_in_transformers(const model::DecoderConfig& config) { return family(config).first != "isentrope"; }

std::string model_config_json(const model::DecoderConfig& c, const data::Tokenizer& tokenizer) {
  const auto [type, architecture] = family(c);
  const ordered_json window = c.attention.window > 0 ? ordered_json(c.attention.window) : ordered_json(nullptr);
  ordered_json object{
      {"architectures", {architecture}},
      {"model_type", type},
      {"vocab_size", c.vocabulary},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"num_attention_heads", c.num_attention_heads},
      {"num_key_value_heads", c.num_key_value_heads},
      {"head_dim", c.head_size()},
      {"max_position_embeddings", c.max_position_embeddings},
      {"rms_norm_eps", c.rms_norm_eps},
      {"norm", c.norm},
      // transformers 5 reads rope_parameters, 4 reads rope_theta; likewise dtype and torch_dtype.
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", c.rope_theta}}},
      {"rope_theta", c.rope_theta},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"attention_dropout", 0.0},
      {"sliding_window", window},
      {"use_sliding_window", c.attention.window > 0},
      {"max_window_layers", 0},
      {"qk_norm", c.attention.qk_norm},
      {"attn_logit_softcapping", c.attention.softcap > 0 ? ordered_json(c.attention.softcap) : ordered_json(nullptr)},
      {"attention_temperature", c.attention.temperature},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"dtype", "float32"},
      {"torch_dtype", "float32"},
      {"bos_token_id", nullptr},
      {"eos_token_id", tokenizer.eos_id()},
      {"pad_token_id", tokenizer.pad_id()}};
  // A Mistral model has the window in every layer; with layer_types transformers takes it for a Ministral one.
  if (type != "mistral")
    object["layer_types"] =
        std::vector<std::string>(c.num_hidden_layers, c.attention.window > 0 ? "sliding_attention" : "full_attention");
  return object.dump(2) + "\n";
}

model::DecoderConfig parse_model_config(const std::string& file) {
  const json object = read_json(file);
  const auto type = json_field<std::string>(file, object, "model_type");
  model::DecoderConfig config;
  config.attention.qk_norm = given(object, "qk_norm") ? json_field<bool>(file, object, "qk_norm") : type == "qwen3";
  const bool windowed = !given(object, "use_sliding_window") || json_field<bool>(file, object, "use_sliding_window");
  if (given(object, "sliding_window") && windowed)
    config.attention.window = json_field<int64_t>(file, object, "sliding_window");
  if (given(object, "attention_temperature"))
    config.attention.temperature = json_field<std::string>(file, object, "attention_temperature");
  if (given(object, "attn_logit_softcapping"))
    config.attention.softcap = json_field<double>(file, object, "attn_logit_softcapping");
  if (given(object, "norm")) config.norm = json_field<std::string>(file, object, "norm");
  if (const std::string own = family(config).first; type != own)
    throw std::runtime_error(file + ": model_type is '" + type + "'; wanted '" + own + "'");
  require(file, object, "hidden_act", "silu");
  require(file, object, "attention_bias", false);
  require(file, object, "mlp_bias", false);
  config.vocabulary = json_field<int64_t>(file, object, "vocab_size");
  config.hidden_size = json_field<int64_t>(file, object, "hidden_size");
  config.intermediate_size = json_field<int64_t>(file, object, "intermediate_size");
  config.num_hidden_layers = json_field<int64_t>(file, object, "num_hidden_layers");
  config.num_attention_heads = json_field<int64_t>(file, object, "num_attention_heads");
  config.num_key_value_heads = json_field<int64_t>(file, object, "num_key_value_heads");
  if (given(object, "head_dim") &&
      json_field<int64_t>(file, object, "head_dim") * config.num_attention_heads != config.hidden_size)
    config.head_dim = json_field<int64_t>(file, object, "head_dim");
  config.max_position_embeddings = json_field<int64_t>(file, object, "max_position_embeddings");
  config.rms_norm_eps = json_field<double>(file, object, "rms_norm_eps");
  config.rope_theta = rope_base(file, object);
  config.tie_word_embeddings = json_field<bool>(file, object, "tie_word_embeddings");
  if (const std::string problem = config.problem(); !problem.empty()) throw std::runtime_error(file + ": " + problem);
  if (given(object, "layer_types")) {
    const char* wanted = config.attention.window > 0 ? "sliding_attention" : "full_attention";
    for (const json& layer : object.at("layer_types"))
      if (layer != wanted)
        throw std::runtime_error(file + ": layer_types holds " + layer.dump() + "; all layers of the decoder have " +
                                 wanted);
  }
  return config;
}

}  // namespace isentrope::train
