#include "csrc/train/model_config.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "csrc/message.h"
#include "csrc/train/config_fields.h"
#include "csrc/train/family.h"
#include "csrc/train/json_file.h"

namespace isentrope::train {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kSliding = "sliding_attention";
constexpr const char* kFull = "full_attention";

// ---- reading ------------------------------------------------------------------------------------------------------

// One object of config.json; a key that is null counts as one that is not there, as it does in transformers.
class Object {
 public:
  Object(std::string place, json object) : place_(std::move(place)), object_(std::move(object)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  bool has_null(const char* key) const { return object_.contains(key) && object_.at(key).is_null(); }
  const json& at(const char* key) const { return object_.at(key); }
  const std::string& place() const { return place_; }
  [[noreturn]] void fail(const char* key, const std::string& wanted) const {
    throw std::runtime_error(place_ + key + " is " + excerpt(object_.at(key).dump()) + "; " + wanted);
  }

  template <class T>
  T read(const char* key) const {
    if (!has(key)) throw std::runtime_error(place_ + "'" + key + "' is missing");
    const json& value = object_.at(key);
    const bool right = std::is_same_v<T, bool>      ? value.is_boolean()
                       : std::is_same_v<T, int64_t> ? value.is_number_integer()
                       : std::is_same_v<T, double>  ? value.is_number()
                                                    : value.is_string();
    if (!right) fail(key, "wanted " + type_name<T>());
    return value.get<T>();
  }
  template <class T>
  T read(const char* key, const T& otherwise) const {
    return has(key) ? read<T>(key) : otherwise;
  }
  template <class T>
  std::optional<T> find(const char* key) const {
    return has(key) ? std::optional(read<T>(key)) : std::nullopt;
  }
  template <class T>
  void require(const char* key, const T& only) const {
    if (has(key) && object_.at(key) != json(only)) fail(key, "the decoder has " + json(only).dump());
  }

 private:
  std::string place_;  // of the keys, for messages: "c/config.json: ", "c/config.json: rope_scaling."
  json object_;
};

// Whether a number is in the range that its key has in a configuration.
class InRange {
 public:
  explicit InRange(std::string file) : file_(std::move(file)) {}
  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& allowed = {}) {
    if constexpr (Section<T>)
      member.visit(*this);
    else if constexpr (is_optional<T>)
      optional(name, member, allowed);
    else if constexpr (std::is_arithmetic_v<T>)
      check(name, static_cast<double>(member), allowed);
  }

 private:
  template <class T>
  void optional(const char* name, const std::optional<T>& member, const Allowed& allowed) const {
    if constexpr (std::is_arithmetic_v<T>)  // config.json has no section that may be absent
      check(name, member ? std::optional(static_cast<double>(*member)) : std::nullopt, allowed);
  }
  void check(const char* name, std::optional<double> value, const Allowed& allowed) const {
    if (value && !(*value >= allowed.min && *value <= allowed.max && !(allowed.above && *value == allowed.min)))
      throw std::runtime_error(file_ + ": " + name + " is " + to_text(*value) + "; wanted " + range(allowed));
  }
  std::string file_;
};

// transformers 5 takes rope_scaling where it is neither null nor empty, else rope_parameters; 4 knows rope_scaling alone. Without
// a base there it is rope_theta beside them, which 5 no longer writes.
void read_rope(const std::string& file, const Object& keys, model::DecoderConfig& config) {
  config.rope_theta = keys.read<double>("rope_theta", 10000.0);
  const bool older = keys.has("rope_scaling") && keys.at("rope_scaling") != json::object();
  const char* section = older ? "rope_scaling" : "rope_parameters";
  if (!keys.has(section)) return;
  if (!keys.at(section).is_object()) keys.fail(section, "wanted an object");
  for (const char* type : {kFull, kSliding})
    if (keys.at(section).contains(type)) keys.fail(section, "the decoder has the same rotary positions in all layers");
  const Object rope(file + ": " + section + ".", keys.at(section));
  rope.require("partial_rotary_factor", 1.0);
  config.rope_theta = rope.read<double>("rope_theta", config.rope_theta);
  model::RopeScalingConfig& scaling = config.rope_scaling;
  const char* type = rope.has("rope_type") ? "rope_type" : "type";
  scaling.rope_type = rope.read<std::string>(type, "default");
  const std::string& t = scaling.rope_type;
  if (t == "default") return;
  const bool yarn = t == "yarn", llama3 = t == "llama3";
  if (!yarn && !llama3 && t != "linear" && t != "dynamic")
    rope.fail(type, "wanted default, linear, dynamic, yarn or llama3");
  scaling.factor = rope.read<double>("factor");
  if (yarn || llama3) {
    const char* length = "original_max_position_embeddings";
    scaling.original_max_position_embeddings =
        keys.has(length) ? keys.read<int64_t>(length) : rope.read<int64_t>(length, config.max_position_embeddings);
  }
  const auto above_0 = [&](const char* key) {  // transformers takes 0 for a key that is not there
    const auto value = rope.find<double>(key);
    return value && *value != 0 ? value : std::nullopt;
  };
  if (yarn) {
    scaling.attention_factor = rope.find<double>("attention_factor");
    scaling.beta_fast = above_0("beta_fast");
    scaling.beta_slow = above_0("beta_slow");
    scaling.mscale = above_0("mscale");
    scaling.mscale_all_dim = above_0("mscale_all_dim");
    scaling.truncate = rope.read<bool>("truncate", true);
  }
  if (llama3) {
    scaling.low_freq_factor = rope.read<double>("low_freq_factor");
    scaling.high_freq_factor = rope.read<double>("high_freq_factor");
  }
}

void read_windows(const Family& family, const Object& keys, model::DecoderConfig& config) {
  if (family.windows == Windows::kAll) {
    if (keys.has("layer_types")) keys.fail("layer_types", "transformers takes such a model for a Ministral");
    const bool null = keys.has_null("sliding_window");
    config.attention.window = null ? 0 : keys.read<int64_t>("sliding_window", family.sliding_window);
  }
  if (family.windows != Windows::kByLayer) return;
  const int64_t L = config.num_hidden_layers;
  const bool null = !keys.read<bool>("use_sliding_window", false) || keys.has_null("sliding_window");
  const int64_t window = null ? 0 : keys.read<int64_t>("sliding_window", family.sliding_window);
  std::vector<std::string> types;
  if (keys.has("layer_types")) {
    if (!keys.at("layer_types").is_array()) keys.fail("layer_types", "wanted a list");
    for (const json& type : keys.at("layer_types")) {
      if (type != kSliding && type != kFull)
        keys.fail("layer_types", std::string("wanted a list of ") + kFull + " and " + kSliding);
      types.push_back(type);
    }
    if (static_cast<int64_t>(types.size()) != L)
      keys.fail("layer_types", "wanted a type for each of " + std::to_string(L) + " layers");
  } else {
    const int64_t first = keys.read<int64_t>("max_window_layers", 28);
    for (int64_t i = 0; i < L; ++i) types.emplace_back(window > 0 && i >= first ? kSliding : kFull);
  }
  const auto sliding = std::count(types.begin(), types.end(), kSliding);
  if (sliding > 0 && window == 0)
    throw std::runtime_error(keys.place() +
                             "layer_types: sliding_attention takes a window; use_sliding_window and "
                             "sliding_window give none");
  config.attention.window = sliding > 0 ? window : 0;
  if (sliding > 0 && sliding < L) config.attention.layer_types = types;
}

void read_biases(const Family& family, const Object& keys, model::AttentionConfig& attention) {
  if (family.biases == Biases::kQkv) attention.bias = "qkv";
  if (family.biases == Biases::kKey && keys.read<bool>("attention_bias", false)) attention.bias = "all";
  if (family.own && keys.read<bool>("qkv_bias", false)) attention.bias = "qkv";
}

void read_own(const Object& keys, model::DecoderConfig& config) {
  config.causal = keys.read<bool>("causal", true);
  config.num_labels = keys.read<int64_t>("num_labels", 0);
  config.norm = keys.read<std::string>("norm", "pre");
  config.activation = keys.read<std::string>("activation", "swiglu");
  constexpr const char* kActivations[]{"swiglu", "gelu", "relu", "crrelu", "none"};
  if (std::find(std::begin(kActivations), std::end(kActivations), config.activation) == std::end(kActivations))
    keys.fail("activation", "wanted swiglu, gelu, relu, crrelu or none");
  config.attention.qk_norm = keys.read<bool>("qk_norm", false);
  config.attention.temperature = keys.read<std::string>("attention_temperature", "none");
  config.attention.softcap = keys.read<double>("attn_logit_softcapping", 0.0);
}

// The keys of a section of the configuration, as they stand in config.json.
class SectionReader {
 public:
  explicit SectionReader(Object object) : object_(std::move(object)) {}
  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& allowed = {}) {
    member = object_.read<T>(name, member);
    if constexpr (std::is_same_v<T, std::string>)
      if (std::find(allowed.names.begin(), allowed.names.end(), member) == allowed.names.end())
        object_.fail(name, "wanted " + range(allowed));
  }

 private:
  Object object_;
};

struct SectionWriter {
  ordered_json object = ordered_json::object();
  template <class T>
  void operator()(const char* name, const T& member, const char*, const Allowed& = {}) {
    object[name] = member;
  }
};

// visit(name, section) for the options of every kind of mixer that has some.
template <class Config, class F>
void for_mixer_options(Config& config, const F& visit) {
  visit("softmax_rnn", config.softmax_rnn);
  visit("linear", config.linear);
  visit("prefix_linear", config.prefix_linear);
  visit("routed", config.routed);
  visit("normalized", config.normalized);
  visit("gated_delta", config.gated_delta);
  visit("ssd", config.ssd);
  visit("natsl", config.natsl);
  visit("estimated", config.estimated);
  visit("hierarchical", config.hierarchical);
}

void read_mixers(const std::string& file, const Object& keys, model::DecoderConfig& config) {
  if (!keys.has("mixers")) return;
  const char* wanted = "wanted a list of kinds of mixers that this version has (docs/mixers.md)";
  if (!keys.at("mixers").is_array() || keys.at("mixers").empty()) keys.fail("mixers", wanted);
  config.mixers.clear();
  for (const json& kind : keys.at("mixers")) {
    if (!kind.is_string() || !model::is_mixer_kind(kind)) keys.fail("mixers", wanted);
    config.mixers.push_back(kind);
  }
  for_mixer_options(config, [&](const char* name, auto& section) {
    if (!keys.has(name)) return;
    if (!keys.at(name).is_object()) keys.fail(name, "wanted an object");
    SectionReader reader(Object(file + ": " + name + ".", keys.at(name)));
    section.visit(reader);
  });
}

// ---- writing ------------------------------------------------------------------------------------------------------

// The keys of a stretched RoPE, without its base.
ordered_json rope_keys(const model::DecoderConfig& c) {
  const model::RopeScalingConfig& s = c.rope_scaling;
  ordered_json keys{{"rope_type", s.rope_type}};
  const auto add = [&](const char* key, const auto& value) {
    if (value) keys[key] = *value;
  };
  add("factor", s.factor);
  if (s.rope_type == "yarn" || s.rope_type == "llama3")
    keys["original_max_position_embeddings"] = s.original_max_position_embeddings.value_or(c.max_position_embeddings);
  add("attention_factor", s.attention_factor);
  add("beta_fast", s.beta_fast);
  add("beta_slow", s.beta_slow);
  add("mscale", s.mscale);
  add("mscale_all_dim", s.mscale_all_dim);
  if (!s.truncate) keys["truncate"] = false;
  if (s.rope_type == "llama3") {
    keys["low_freq_factor"] = s.low_freq_factor.value_or(1);
    keys["high_freq_factor"] = s.high_freq_factor.value_or(4);
  }
  return keys;
}

void write_windows(const Family& family, const model::DecoderConfig& c, ordered_json& object) {
  if (family.windows == Windows::kNone) return;
  const int64_t window = c.attention.window, L = c.num_hidden_layers;
  object["sliding_window"] = window > 0 ? ordered_json(window) : ordered_json(nullptr);
  if (family.windows == Windows::kAll) return;  // with layer_types transformers takes it for a Ministral
  std::vector<std::string> types;
  for (int64_t i = 0; i < L; ++i) types.emplace_back(c.attention.window_of(i) > 0 ? kSliding : kFull);
  object["use_sliding_window"] = window > 0;
  object["max_window_layers"] = std::find(types.begin(), types.end(), kSliding) - types.begin();
  object["layer_types"] = types;
}

void write_own(const model::DecoderConfig& c, ordered_json& object) {
  // The classes of python/isentrope/modeling_isentrope.py, which stands beside config.json.
  object["auto_map"] = {{"AutoConfig", "modeling_isentrope.IsentropeConfig"}};
  if (c.causal) {
    object["auto_map"]["AutoModelForCausalLM"] = "modeling_isentrope.IsentropeForCausalLM";
  } else {
    object["auto_map"]["AutoModelForMaskedLM"] = "modeling_isentrope.IsentropeForMaskedLM";
    if (c.num_labels > 0)
      object["auto_map"]["AutoModelForTokenClassification"] = "modeling_isentrope.IsentropeForTokenClassification";
    object["causal"] = false;
    object["num_labels"] = c.num_labels;
  }
  object["norm"] = c.norm;
  if (!c.swiglu()) object["activation"] = c.activation;
  object["qk_norm"] = c.attention.qk_norm;
  object["qkv_bias"] = c.attention.bias == "qkv";
  object["attention_temperature"] = c.attention.temperature;
  object["attn_logit_softcapping"] = c.attention.softcap;
  object["mixers"] = c.mixers;
  for_mixer_options(c, [&](const char* name, auto section) {
    if (std::find(c.mixers.begin(), c.mixers.end(), name) == c.mixers.end()) return;
    SectionWriter writer;
    section.visit(writer);
    object[name] = writer.object;
  });
}

}  // namespace

namespace {

std::string architecture_of(const Family& family, const model::DecoderConfig& c) {
  if (c.causal) return family.architecture;
  return c.num_labels > 0 ? "IsentropeForTokenClassification" : "IsentropeForMaskedLM";
}

}  // namespace

bool opens_in_transformers(const model::DecoderConfig& config) { return !family_of(config).own; }

std::string model_config_json(const model::DecoderConfig& c, const data::Tokenizer& tokenizer) {
  const Family& family = family_of(c);
  ordered_json rope = rope_keys(c);
  const ordered_json scaling = c.rope_scaling.rope_type == "default" ? ordered_json(nullptr) : rope;
  rope["rope_theta"] = c.rope_theta;
  ordered_json object{
      {"architectures", {architecture_of(family, c)}},
      {"model_type", family.type},
      {"vocab_size", c.vocabulary},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"num_attention_heads", c.num_attention_heads},
      {"num_key_value_heads", c.num_key_value_heads},
      {"head_dim", c.head_size()},
      {"max_position_embeddings", std::max(c.positions_made_for, c.max_position_embeddings)},
      {"rms_norm_eps", c.rms_norm_eps},
      // transformers 5 reads rope_parameters, 4 reads rope_theta and rope_scaling; likewise dtype and torch_dtype.
      {"rope_parameters", rope},
      {"rope_theta", c.rope_theta},
      {"rope_scaling", scaling},
      {"hidden_act", "silu"},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"dtype", "float32"},
      {"torch_dtype", "float32"},
      {"bos_token_id", nullptr},
      {"eos_token_id", ids_of(tokenizer.end_ids())},
      {"pad_token_id", tokenizer.pad_id()},
      {"isentrope_version", ISENTROPE_VERSION}};
  if (family.biases == Biases::kKey) object["attention_bias"] = c.attention.bias == "all";
  if (family.mlp_bias) object["mlp_bias"] = c.mlp_bias;
  write_windows(family, c, object);
  if (family.own) write_own(c, object);
  return object.dump(2) + "\n";
}

model::DecoderConfig parse_model_config(const std::string& file) {
  const Object keys(file + ": ", read_json(file));
  const Family& family = family_named(file, keys.read<std::string>("model_type"));
  const auto names = [&](const char* one) { return keys.at("architectures") == json::array({one}); };
  const bool encoder = family.own && keys.has("causal") && keys.at("causal") == false;
  if (keys.has("architectures") && !names(family.architecture) &&
      !(encoder && (names("IsentropeForMaskedLM") || names("IsentropeForTokenClassification"))))
    keys.fail("architectures", "wanted [\"" + std::string(family.architecture) + "\"], the model with its head");
  if (keys.has("quantization_config"))
    keys.fail("quantization_config", "quantised weights are not read; take the folder of the model that was quantised");
  keys.require("hidden_act", "silu");
  if (keys.has("is_causal") && keys.at("is_causal") != true)  // transformers turns the mask off by it
    keys.fail("is_causal", "a decoder that sees later tokens is opened with model.causal false, without this key");

  model::DecoderConfig config;
  if (!family.own) config.family = family.type;
  config.vocabulary = keys.read<int64_t>("vocab_size");
  config.hidden_size = keys.read<int64_t>("hidden_size");
  config.intermediate_size = keys.read<int64_t>("intermediate_size");
  config.num_hidden_layers = keys.read<int64_t>("num_hidden_layers");
  config.num_attention_heads = keys.read<int64_t>("num_attention_heads");
  const bool as_many = keys.has_null("num_key_value_heads") || !family.num_key_value_heads;
  config.num_key_value_heads =
      keys.read<int64_t>("num_key_value_heads", as_many ? config.num_attention_heads : *family.num_key_value_heads);
  config.head_dim = keys.has("head_dim") ? keys.find<int64_t>("head_dim") : family.head_dim;
  config.max_position_embeddings = keys.read<int64_t>("max_position_embeddings", family.max_position_embeddings);
  config.positions_made_for = config.max_position_embeddings;
  config.rms_norm_eps = keys.read<double>("rms_norm_eps", 1e-6);
  config.tie_word_embeddings = keys.read<bool>("tie_word_embeddings", false);
  config.attention.qk_norm = family.qk_norm;
  read_biases(family, keys, config.attention);
  if (family.mlp_bias) config.mlp_bias = keys.read<bool>("mlp_bias", false);
  read_rope(file, keys, config);
  if (family.own) read_own(keys, config);
  if (family.own) read_mixers(file, keys, config);
  InRange in_range(file);
  config.visit(in_range);
  if (config.vocabulary < 1 || config.vocabulary > (1 << 24))
    keys.fail("vocab_size", "wanted 1 to " + std::to_string(1 << 24));
  read_windows(family, keys, config);
  config.visit(in_range);
  if (config.head_dim && *config.head_dim * config.num_attention_heads == config.hidden_size) config.head_dim.reset();
  for (const std::string& problem : {config.rope_scaling.problem(), config.problem()})
    if (!problem.empty()) throw std::runtime_error(file + ": " + problem);
  return config;
}

}  // namespace isentrope::train
