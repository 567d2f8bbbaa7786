#include "csrc/train/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "csrc/message.h"
#include "csrc/train/adapter.h"
#include "csrc/train/checkpoint.h"
#include "csrc/train/config_document.h"
#include "csrc/train/config_fields.h"
#include "csrc/train/config_values.h"
#include "csrc/train/run_checkpoints.h"

namespace isentrope::train {
namespace {

// The names that keys had once; their values mean what they meant.
const std::multimap<std::string, std::string> kRenamed{
    {"layers", "num_hidden_layers"},     {"width", "hidden_size"},       {"heads", "num_attention_heads"},
    {"kv_heads", "num_key_value_heads"}, {"mlp", "intermediate_size"},   {"context", "max_position_embeddings"},
    {"rope_base", "rope_theta"},         {"norm_eps", "rms_norm_eps"},   {"tied_head", "tie_word_embeddings"},
    {"init_std", "initializer_range"},   {"samples", "num_generations"}, {"updates", "mini_batches"},
    {"warmup", "warmup_steps"},          {"floor", "min_lr_ratio"},      {"kl_coef", "kl_cov_coef"},
    {"select_fraction", "cov_ratio"},    {"overlong", "truncation"},     {"buffer", "len"},
    {"factor", "penalty_factor"}};

// What other trainers and configurations of models call our keys.
const std::multimap<std::string, std::string> kElsewhere{{"learning_rate", "lr"},
                                                         {"lr_min_ratio", "min_lr_ratio"},
                                                         {"max_steps", "steps"},
                                                         {"num_steps", "steps"},
                                                         {"batch_size", "sequences"},
                                                         {"batch_size", "prompts"},
                                                         {"micro_batch_size", "micro_tokens"},
                                                         {"n", "num_generations"},
                                                         {"group_size", "num_generations"},
                                                         {"num_samples", "num_generations"},
                                                         {"ppo_mini_batch_size", "mini_batches"},
                                                         {"max_completion_length", "max_new_tokens"},
                                                         {"response_length", "max_new_tokens"},
                                                         {"beta", "ref_kl_coef"},
                                                         {"kl_loss_coef", "ref_kl_coef"},
                                                         {"kl_penalty", "estimator"},
                                                         {"kl_coef", "coef"},
                                                         {"kl_ctrl", "control"},
                                                         {"ppo_kl_coef", "kl_cov_coef"},
                                                         {"kl_cov_ratio", "cov_ratio"},
                                                         {"clip_cov_ratio", "cov_ratio"},
                                                         {"sapo_temperature_pos", "tau_pos"},
                                                         {"sapo_temperature_neg", "tau_neg"},
                                                         {"gppo_loss_beta1", "gppo_beta1"},
                                                         {"gppo_loss_beta2", "gppo_beta2"},
                                                         {"epsilon", "clip_low"},
                                                         {"epsilon_high", "clip_high"},
                                                         {"n_layer", "num_hidden_layers"},
                                                         {"n_layers", "num_hidden_layers"},
                                                         {"num_layers", "num_hidden_layers"},
                                                         {"n_heads", "num_attention_heads"},
                                                         {"n_kv_heads", "num_key_value_heads"},
                                                         {"dim", "hidden_size"},
                                                         {"d_model", "hidden_size"},
                                                         {"ffn_dim", "intermediate_size"},
                                                         {"max_seq_len", "max_position_embeddings"},
                                                         {"seq_len", "max_position_embeddings"},
                                                         {"context_length", "max_position_embeddings"},
                                                         {"tie_embeddings", "tie_word_embeddings"},
                                                         {"grad_clip", "max_grad_norm"},
                                                         {"gradient_accumulation_steps", "micro_tokens"},
                                                         {"save_every", "checkpoint_every"},
                                                         {"save_steps", "checkpoint_every"},
                                                         {"max_iters", "steps"},
                                                         {"eval_interval", "every"},
                                                         {"eval_steps", "every"},
                                                         {"text", "corpus"},
                                                         {"n_embd", "hidden_size"},
                                                         {"n_head", "num_attention_heads"},
                                                         {"head_size", "head_dim"},
                                                         {"block_size", "max_position_embeddings"},
                                                         {"max_length", "max_position_embeddings"},
                                                         {"rope_parameters", "rope_scaling"},
                                                         {"model_name_or_path", "pretrained"},
                                                         {"output_dir", "dir"}};

// "; did you mean 'loss'?" where a name is near or means the same elsewhere, else all the names.
std::string key_suggestion(const std::string& word, const std::vector<std::string>& names) {
  const auto named = [&](const std::multimap<std::string, std::string>& table) -> std::string {
    const auto [first, last] = table.equal_range(word);
    for (auto known = first; known != last; ++known)
      if (std::find(names.begin(), names.end(), known->second) != names.end()) return known->second;
    return "";
  };
  if (const std::string now = named(kRenamed); !now.empty()) return "; it is called '" + now + "' now";
  if (const std::string ours = named(kElsewhere); !ours.empty()) return "; did you mean '" + ours + "'?";
  constexpr size_t kLongest = 40;  // no key is half as long
  if (word.size() > kLongest) return "; the keys here are " + join(names);
  return suggestion(word, names, "the keys here");
}

// What keys of before have become, which are entries of lists of methods now: the new form of what stands there, "" for other keys.
std::string moved(const std::string& path, const std::string& name, const YAML::Node& section) {
  const YAML::Node node = section[name];
  const auto flow = [](const YAML::Node& value) {
    YAML::Emitter out;
    out.SetMapFormat(YAML::Flow);
    out.SetSeqFormat(YAML::Flow);
    out << value;
    return std::string(out.c_str());
  };
  const auto entry = [&](const std::string& kind) {
    const std::string keys = node.IsMap() ? flow(node) : "{}";
    return "{kind: " + kind +
           (keys == "{}" || keys == "{ }" ? "" : ", " + keys.substr(keys.find('{') + 1, keys.rfind('}') - 1)) + "}";
  };
  const std::string phase = path.substr(0, path.rfind('.'));
  const auto say = [&](const std::string& list, const std::string& form) {
    return "is an entry of the list " + phase + "." + list + " now; write " + list + ": " + form;
  };
  if (path.ends_with(".rollout")) {
    if (name == "ares" || name == "overlong_buffer")
      return say("reward", "[..., " + entry(name == "ares" ? name : "overlong") + "]");
    if (name == "filter_groups" && !node.as<bool>(true)) return "is off where reward has no such entry; leave it out";
    if (name == "filter_groups") return say("reward", "[..., {kind: filter_groups}]");
    if (name == "max_draws" || name == "max_empty_steps")
      return say("reward", "[..., {kind: filter_groups, " + name + ": " + flow(node) + "}]");
    if (name == "advantage") return say("advantage", "[" + flow(node) + "]");
  }
  if (path.ends_with(".objective") && name == "entropy_coef")
    return "is objective.entropy now; write entropy: {kind: constant, coef: " + flow(node) + "}";
  if (path.ends_with(".objective") && name == "loss" && node.IsScalar() && node.Scalar() == "random") {
    const YAML::Node like = section["random_like"];
    return "is an entry of the list " + phase +
           ".weight now; write loss: " + (like.IsDefined() ? flow(like) : "clip_cov") + " and weight: [{kind: random}]";
  }
  if (path.ends_with(".objective") && name == "random_like")
    return "is the loss of which random, an entry of the list " + phase +
           ".weight, is the control; leave it out, or write loss: " + flow(node) + " and weight: [{kind: random}]";
  return "";
}

// ---- parse --------------------------------------------------------------------------------------------------------

std::string describe(const YAML::Node& node) {
  if (node.IsNull()) return "nothing";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a section of keys";
  return (node.Tag() == "!" ? "the quoted text '" : "'") + excerpt(node.Scalar()) + "'";
}

bool from_text(const std::string& text, bool& value) {
  if (text == "true" || text == "True" || text == "TRUE") return value = true, true;
  if (text == "false" || text == "False" || text == "FALSE") return value = false, true;
  return false;
}

bool from_text(const std::string& text, double& value) {
  if (text == ".inf" || text == "+.inf" || text == "-.inf") return value = text[0] == '-' ? -HUGE_VAL : HUGE_VAL, true;
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

// 1e3 is an integer, 1.5 and 1e30 are none.
bool from_text(const std::string& text, int64_t& value) {
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return true;
  double real = 0;
  constexpr double kExact = 9007199254740992.0;  // 2^53: every integer below is a double
  if (!from_text(text, real) || real != std::floor(real) || std::abs(real) > kExact) return false;
  value = static_cast<int64_t>(real);
  return true;
}

class Reader {
 public:
  Reader(const Document& document, const YAML::Node& node, const std::string& path)
      : document_(document), node_(node), path_(path) {}

  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& allowed = {}) {
    if constexpr (std::is_same_v<T, data::Settings>) {
      read_others(member);
    } else {
      known_.insert(name);
      const YAML::Node child = node_[name];
      if (child.IsDefined()) read(document_, child, child_path(path_, name), member, allowed);
    }
  }

  template <class T>
  static void read(const Document& document, const YAML::Node& node, const std::string& path, T& value,
                   const Allowed& allowed = {}) {
    auto wrong_type = [&] { document.fail(path, "wanted " + type_name<T>() + ", got " + describe(node)); };
    if constexpr (is_optional<T>) {
      value.reset();
      if (!node.IsNull()) read(document, node, path, value.emplace(), allowed);
    } else if constexpr (Section<T>) {
      if (node.IsNull()) return;  // a section whose keys are all left out
      if (!node.IsMap()) wrong_type();
      if constexpr (Chosen<T>) choose(document, node, path, value);
      Keys keys;
      value.visit(keys);
      for (const auto& entry : node) {
        const std::string& name = entry.first.Scalar();
        if (const std::string now = moved(path, name, node); !now.empty()) document.fail(child_path(path, name), now);
        if (!keys.open && std::find(keys.names.begin(), keys.names.end(), name) == keys.names.end())
          document.fail(child_path(path, name), "unknown key" + key_suggestion(name, keys.names));
      }
      Reader reader(document, node, path);
      value.visit(reader);
    } else if constexpr (is_list<T>) {
      const bool texts = std::is_same_v<T, std::vector<std::string>>;
      value = T();
      if (texts ? node.IsScalar() : is_one_or_more<T> && node.IsMap())  // one: a list of it
        return read(document, node, path, value.emplace_back(), allowed);
      if (is_one_or_more<T> && node.IsNull()) return;
      if (!node.IsSequence()) wrong_type();
      if constexpr (is_one_or_more<T>) value.listed = true;
      for (size_t i = 0; i < node.size(); ++i)
        read(document, node[i], child_path(path, std::to_string(i)), value.emplace_back(), allowed);
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!node.IsScalar()) wrong_type();
      value = node.Scalar();
      if (utf8_end(value) < value.size() || value.find('\0') != std::string::npos)
        document.fail(path, "'" + excerpt(value) + "' holds U+0000 or is not UTF-8; write text");
      if (!allowed.names.empty() && std::find(allowed.names.begin(), allowed.names.end(), value) == allowed.names.end())
        document.fail(path, "'" + excerpt(value) + "' is not " + range(allowed));
    } else {
      if (!node.IsScalar() || node.Tag() == "!" || !from_text(node.Scalar(), value)) wrong_type();
      const double number = static_cast<double>(value);
      if (!std::isfinite(number)) document.fail(path, "wanted a finite number, got '" + excerpt(node.Scalar()) + "'");
      Allowed bounds = allowed;
      if (std::is_same_v<T, int64_t> && std::isinf(bounds.max)) bounds.max = kMostCount;
      if (number < bounds.min || number > bounds.max || (bounds.above && number == bounds.min))
        document.fail(
            path, excerpt(node.Scalar()) + " is out of range; wanted " + range(number > kMostCount ? bounds : allowed));
    }
  }

 private:
  // An entry becomes one of the kind that is written.
  template <class T>
  static void choose(const Document& document, const YAML::Node& node, const std::string& path, T& entry) {
    const YAML::Node kind = node["kind"];
    const std::string key = child_path(path, "kind");
    if (!kind.IsDefined() && !T::kOpen) document.fail(path, "no kind is written; wanted one of " + join(T::names()));
    if (kind.IsDefined() && !kind.IsScalar()) document.fail(key, "wanted a text, got " + describe(kind));
    const std::string text = kind.IsDefined() ? kind.Scalar() : "";
    if (!entry.choose(text))
      document.fail(key,
                    "'" + excerpt(text) + "' is not one of " + join(T::names()) + suggestion(text, T::names(), ""));
  }
  void read_others(data::Settings& settings) {
    settings.clear();
    for (const auto& entry : node_)
      if (const std::string& name = entry.first.Scalar(); !known_.contains(name))
        settings[name] = json_of(child_path(path_, name), entry.second).dump();
  }
  nlohmann::json json_of(const std::string& path, const YAML::Node& node) const {
    nlohmann::json value;
    if (node.IsMap())
      for (const auto& entry : node) {
        const std::string& name = entry.first.Scalar();
        value[name] = json_of(child_path(path, name), entry.second);
      }
    if (node.IsSequence()) {
      value = nlohmann::json::array();
      for (const YAML::Node& one : node) value.push_back(json_of(path, one));
    }
    if (!node.IsScalar()) return value;
    const std::string& text = node.Scalar();
    if (utf8_end(text) < text.size()) document_.fail(path, "'" + excerpt(text) + "' is not UTF-8; write text");
    int64_t integer = 0;
    double real = 0;
    bool truth = false;
    if (node.Tag() == "!") return text;
    if (from_text(text, truth)) return truth;
    if (from_text(text, integer)) return integer;
    if (from_text(text, real) && std::isfinite(real)) return real;
    return text;
  }

  const Document& document_;
  const YAML::Node node_;  // const: looking a key up does not make it
  std::set<std::string> known_;
  std::string path_;
};

// ---- validate: what each struct says of its keys together, innermost first ----------------------------------------

class Validator {
 public:
  Validator(const Document& document, const std::string& path) : document_(document), path_(path) {}

  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& = {}) {
    check(document_, child_path(path_, name), member);
  }

  template <class T>
  static void check(const Document& document, const std::string& path, T& value) {
    if constexpr (is_optional<T>) {
      if (value) check(document, path, *value);
    } else if constexpr (is_list<T>) {
      for (size_t i = 0; i < value.size(); ++i) check(document, entry_path(path, value, i), value[i]);
    } else if constexpr (Section<T>) {
      Validator inner(document, path);
      value.visit(inner);
      if constexpr (Checked<T>)
        if (const std::string problem = value.problem(); !problem.empty()) document.fail_section(path, problem);
    }
  }

 private:
  const Document& document_;
  std::string path_;
};

// The model of config.model.pretrained, and above it what the document writes beside that key, which must not contradict.
void take_pretrained(const Document& document, TrainConfig& config) {
  const std::string folder = config.model.pretrained;
  model::DecoderConfig found;
  try {
    found = read_model_config(resolve_checkpoint(folder));
  } catch (const std::runtime_error& error) {
    document.fail("model.pretrained", error.what());
  }
  found.pretrained = folder;
  config.model = found;
  Reader::read(document, document.root()["model"], "model", config.model);
  // What it may become: an encoder, of which no family is, and one that learns labels.
  if (found.causal && !config.model.causal) found.causal = false, config.model.family = "auto";
  if (found.num_labels == 0) found.num_labels = config.model.num_labels;
  const auto was = values_of(found), is = values_of(config.model);
  for (const std::string& key : keys_of_meaning())
    if (was.at(key) != is.at(key))
      document.fail("model." + key, "is " + is.at(key) + ", and " + folder + " (model.pretrained) has " + was.at(key) +
                                        "; leave the key out");
}

// The adapter of config.model.lora->from, and above it what the document writes beside that key, which must not contradict.
void take_adapter(const Document& document, TrainConfig& config) {
  if (is_adapter(resolve_checkpoint(config.model.pretrained)))
    document.fail(
        "model.pretrained",
        config.model.pretrained +
            " is an adapter, and model.lora would put another beside it; merge it into a model with isentrope "
            "export, or train it further: its base here, and the adapter in model.lora.from");
  const std::string folder = config.model.lora->from;
  if (folder.empty()) return;
  model::LoraConfig found;
  try {
    const std::string dir = resolve_checkpoint(folder);
    if (!is_adapter(dir))
      throw std::runtime_error(dir +
                               ": is no adapter (it has no adapter_config.json); leave the key out for a new one");
    found = read_adapter_config(dir);
  } catch (const std::runtime_error& error) {
    document.fail("model.lora.from", error.what());
  }
  found.from = folder;
  config.model.lora = found;
  Reader::read(document, document.root()["model"]["lora"], "model.lora", *config.model.lora);
  const model::LoraConfig& lora = *config.model.lora;
  const auto compare = [&](const std::string& key, const std::string& was, const std::string& is) {
    if (was != is)
      document.fail("model.lora." + key,
                    "is " + is + ", and " + folder + " (model.lora.from) has " + was + "; leave the key out");
  };
  compare("rank", to_text(found.rank), to_text(lora.rank));
  compare("alpha", to_text(found.alpha), to_text(lora.alpha));
  compare("rslora", to_text(found.rslora), to_text(lora.rslora));
  compare("targets", to_text(found.layers()), to_text(lora.layers()));
}

// The tokenizer in the folder of config.model.pretrained, where the document writes none.
void take_tokenizer(const Document& document, TrainConfig& config) {
  const std::string folder = resolve_checkpoint(config.model.pretrained);
  if (document.root()["tokenizer"] || !std::filesystem::exists(folder + "/tokenizer.json")) return;
  try {
    config.tokenizer = data::Tokenizer::load(folder).config();
  } catch (const std::runtime_error& error) {
    document.fail("model.pretrained", std::string(error.what()) + "; write another tokenizer under tokenizer");
  }
}

// Files of functions, from the document's folder, or of the command line from the working one, become absolute: to be read from anywhere.
void find_functions(const Document& document, TrainConfig& config) {
  namespace fs = std::filesystem;
  const auto find = [&](std::string& function, const std::string& path) {
    const size_t colon = function.rfind(':');
    const fs::path file = function.substr(0, colon);
    if (colon == std::string::npos || (file.extension() != ".py" && !file.has_parent_path())) return;
    const fs::path own = document.of_file(path) ? fs::path(document.file()).parent_path() : fs::path();
    function = fs::absolute(own / file).lexically_normal().string() + function.substr(colon);
  };
  for (size_t p = 0; p < config.phases.size(); ++p) {
    const std::string path = "phases." + std::to_string(p);
    for (size_t i = 0; i < config.phases[p].reward.size(); ++i)
      if (auto* reward = std::get_if<rl::RewardConfig>(&config.phases[p].reward[i].value))
        find(reward->function, path + ".reward." + std::to_string(i) + ".function");
    if (auto* python = config.phases[p].in_python()) find(python->name, path + ".environment.class");
  }
}

TrainConfig read_document(const Document& document) {
  TrainConfig config;
  Reader::read(document, document.root(), "", config);
  find_functions(document, config);
  if (!config.model.pretrained.empty()) {
    take_pretrained(document, config);
    take_tokenizer(document, config);
    if (config.model.lora) take_adapter(document, config);
  }
  Validator::check(document, "", config);
  return config;
}

}  // namespace

TrainConfig read_config(const std::string& file, const std::vector<std::string>& overrides) {
  return read_document(Document(file, overrides));
}

TrainConfig with_overrides(const TrainConfig& config, const std::vector<std::string>& overrides) {
  return read_document(Document(config.run.dir + "/config.yaml", print_config(config), overrides));
}

std::string print_config_with_origins(const std::string& file, const std::vector<std::string>& overrides) {
  const Document document(file, overrides);
  const TrainConfig config = read_document(document);
  std::set<std::string> of_folder;
  if (!config.model.pretrained.empty())
    for (const std::string& key : keys_of_meaning()) of_folder.insert("model." + key);
  const bool adapter = config.model.lora && !config.model.lora->from.empty();
  return print_lines(config, [&](const std::string& path) {
    const std::string origin = document.origin(path);
    if (origin == "default" && adapter && path.starts_with("model.lora.")) return config.model.lora->from;
    return origin == "default" && of_folder.contains(path) ? config.model.pretrained : origin;
  });
}

}  // namespace isentrope::train
