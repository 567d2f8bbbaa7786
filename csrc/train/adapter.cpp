#include "csrc/train/adapter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <vector>

#include "csrc/train/json_file.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using torch::Tensor;

constexpr const char* kConfig = "adapter_config.json";
constexpr const char* kWeights = "adapter_model.safetensors";
constexpr const char* kPrefix = "base_model.model.";  // PEFT's wrappers around the model

// Module of a block → the name that model.lora.targets has for it.
const std::map<std::string, std::string>& layer_of_module() {
  static const std::map<std::string, std::string> kLayers{
      {"self_attn.q_proj", "q"}, {"self_attn.k_proj", "k"}, {"self_attn.v_proj", "v"}, {"self_attn.o_proj", "o"},
      {"mlp.gate_proj", "gate"}, {"mlp.up_proj", "up"},     {"mlp.down_proj", "down"}};
  return kLayers;
}

// Keys that do not change what an adapter computes, or that are looked at by themselves.
const std::set<std::string> kHarmless{"peft_type",
                                      "task_type",
                                      "auto_mapping",
                                      "peft_version",
                                      "base_model_name_or_path",
                                      "revision",
                                      "r",
                                      "target_modules",
                                      "exclude_modules",
                                      "inference_mode",
                                      "lora_alpha",
                                      "lora_dropout",
                                      "use_rslora",
                                      "megatron_core",
                                      "megatron_config",
                                      "runtime_config",
                                      "eva_config",
                                      "bias",
                                      "fan_in_fan_out",
                                      "qalora_group_size",
                                      "init_lora_weights"};

bool says_nothing(const std::string& key, const json& value) {
  const bool zero = value == 0 && key != "layers_to_transform";  // there 0 is the first block
  return value.is_null() || value == false || (value.is_structured() && value.empty()) || value == "" || zero;
}

[[noreturn]] void refuse(const std::string& dir, const std::string& key, const json& value, const std::string& wanted) {
  throw std::runtime_error(dir + "/" + kConfig + ": " + key + " is " + value.dump() + "; " + wanted);
}

json read_config_of(const std::string& dir) {
  const json config = read_json(dir + "/" + kConfig);
  if (const json type = config.value("peft_type", json()); type != "LORA")
    refuse(dir, "peft_type", type, "of the adapters of PEFT, LORA alone is read");
  return config;
}

std::string names_of(const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;
  std::string text;
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > kShown ? text + " and " + std::to_string(names.size() - kShown) + " more" : text;
}

std::map<std::string, TensorEntry> read_header(const std::string& dir) {
  std::error_code error;
  if (!fs::exists(dir + "/" + kWeights, error))
    throw std::runtime_error(dir + ": has " + kConfig + " and no " + kWeights + ", which holds the adapter" +
                             (fs::exists(dir + "/adapter_model.bin", error)
                                  ? "; adapter_model.bin is not read: open it in PEFT and save it with save_pretrained"
                                  : ""));
  return read_safetensors_header(dir + "/" + kWeights);
}

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight" → block 3, layer q.
std::optional<std::pair<std::string, std::string>> place_of(const std::string& name) {
  const std::string begin = std::string(kPrefix) + "model.layers.";
  if (!name.starts_with(begin)) return std::nullopt;
  const size_t dot = name.find('.', begin.size()), end = name.find(".lora_");
  if (dot == std::string::npos || end == std::string::npos || end < dot) return std::nullopt;
  const auto layer = layer_of_module().find(name.substr(dot + 1, end - dot - 1));
  const std::string tail = name.substr(end);
  if (layer == layer_of_module().end() || (tail != ".lora_A.weight" && tail != ".lora_B.weight")) return std::nullopt;
  return std::pair{name.substr(begin.size(), dot - begin.size()), layer->second};
}

}  // namespace

bool is_adapter(const std::string& dir) {
  std::error_code error;
  return fs::exists(dir + "/" + kConfig, error);
}

model::LoraConfig read_adapter_config(const std::string& dir) {
  const json config = read_config_of(dir);
  if (const json bias = config.value("bias", json("none")); bias != "none")
    refuse(dir, "bias", bias, "the biases of the model stay as they are: wanted \"none\"");
  const json start = config.value("init_lora_weights", json(true));
  if (start.is_string() && start != "gaussian" && start != "orthogonal" && start != "eva")
    refuse(dir, "init_lora_weights", start, "it changes the weights of the base, which are read as they are");
  for (const auto& [key, value] : config.items())
    if (!kHarmless.contains(key) && !says_nothing(key, value)) refuse(dir, key, value, "adapters with it are not read");

  model::LoraConfig lora;
  const std::string file = dir + "/" + kConfig;
  lora.rank = json_field<int64_t>(file, config, "r");
  lora.alpha = json_field<double>(file, config, "lora_alpha");
  lora.rslora = config.contains("use_rslora") && json_field<bool>(file, config, "use_rslora");
  if (lora.rank < 1) refuse(dir, "r", lora.rank, "wanted 1 or more");
  if (!(lora.alpha > 0)) refuse(dir, "lora_alpha", lora.alpha, "wanted above 0");

  std::map<std::string, std::set<std::string>> layers_of;  // block → its layers
  std::vector<std::string> foreign;
  for (const auto& [name, entry] : read_header(dir))
    if (const auto place = place_of(name))
      layers_of[place->first].insert(place->second);
    else
      foreign.push_back(name);
  if (!foreign.empty())
    throw std::runtime_error(dir + "/" + kWeights + ": holds " + names_of(foreign) +
                             ", and an adapter here has lora_A.weight and lora_B.weight of q_proj, k_proj, v_proj, "
                             "o_proj, gate_proj, up_proj and down_proj of the blocks alone");
  if (layers_of.empty()) throw std::runtime_error(dir + "/" + kWeights + ": holds no tensor");
  const auto& first = *layers_of.begin();
  for (const auto& one : layers_of)
    if (one.second != first.second)
      throw std::runtime_error(dir + "/" + kWeights + ": block " + first.first +
                               " has terms in other layers than block " + one.first +
                               "; adapters that differ by block are not read");
  lora.targets.clear();
  for (const char* layer : {"q", "k", "v", "o", "gate", "up", "down"})
    if (first.second.contains(layer)) lora.targets.emplace_back(layer);
  return lora;
}

std::string name_of_base(const std::string& dir) {
  const json name = read_config_of(dir).value("base_model_name_or_path", json());
  if (!name.is_string() || name == "")
    refuse(dir, "base_model_name_or_path", name, "wanted the folder of the model that the adapter belongs to");
  return name.get<std::string>();
}

std::string base_of_adapter(const std::string& dir) {
  const std::string base = name_of_base(dir);
  std::error_code error;
  if (!fs::is_directory(base, error))
    refuse(dir, "base_model_name_or_path", base,
           "there is no such folder, in which the model was that the adapter belongs to; put it there, a link will do");
  return base;
}

void read_adapter(const std::string& dir, model::Decoder& decoder) {
  const auto own = decoder->adapter();
  std::map<std::string, Tensor> wanted;
  for (const auto& [name, tensor] : own) wanted.insert({kPrefix + name, tensor});
  std::vector<std::string> missing, foreign, other;
  const auto entries = read_header(dir);
  for (const auto& [name, entry] : entries) {
    const auto place = wanted.find(name);
    if (place == wanted.end())
      foreign.push_back(name + " " + text_of(entry.shape));
    else if (place->second.sizes() != entry.shape)
      other.push_back(name + " is " + text_of(entry.shape) + ", wanted " + text_of(place->second.sizes()));
    else if (!torch::isFloatingType(entry.type))
      other.push_back(name + " holds " + torch::toString(entry.type) + ", wanted floating-point numbers");
  }
  for (const auto& [name, tensor] : wanted)
    if (!entries.contains(name)) missing.push_back(name);
  std::string differences;
  const auto tell = [&](const char* head, const std::vector<std::string>& names) {
    if (!names.empty()) differences += (differences.empty() ? "" : "; ") + (head + names_of(names));
  };
  tell("missing: ", missing);
  tell("without a place in this model: ", foreign);
  tell("", other);
  if (!differences.empty())
    throw std::runtime_error(dir + "/" + kWeights + ": an adapter of another model: " + differences);
  const torch::NoGradGuard no_grad;
  for (const auto& [name, tensor] : read_safetensors(dir + "/" + kWeights)) wanted.at(name).copy_(tensor);
}

void write_adapter(const std::string& dir, const NamedTensors& weights, const model::LoraConfig& lora,
                   const std::string& base) {
  NamedTensors tensors;
  for (const auto& [name, tensor] : weights) tensors.emplace_back(kPrefix + name, tensor);
  write_safetensors(dir + "/" + kWeights, tensors);
  std::vector<std::string> modules;
  for (const std::string& layer : lora.layers()) modules.push_back(layer + "_proj");
  const bool whole = lora.alpha == std::floor(lora.alpha) && lora.alpha < 1e15;  // PEFT says that it is an integer
  const ordered_json config{
      {"peft_type", "LORA"},
      {"task_type", "CAUSAL_LM"},
      {"base_model_name_or_path", base},
      {"r", lora.rank},
      {"lora_alpha", whole ? ordered_json(static_cast<int64_t>(lora.alpha)) : ordered_json(lora.alpha)},
      {"use_rslora", lora.rslora},
      {"target_modules", modules},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"inference_mode", true},
      {"init_lora_weights", true},
      {"lora_dropout", 0.0},
      {"modules_to_save", nullptr}};
  write_durably(dir + "/" + kConfig,
                config.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");  // a path may be no UTF-8
}

int64_t digest_of_base(const model::Decoder& decoder) {
  // FNV-1a over words instead of bytes: at the speed of memory. It is no guard against people.
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const auto& [name, weight] : decoder->named_weights()) {
    const Tensor plain = weight.detach().to(torch::kCPU, torch::kFloat32).contiguous();
    const float* data = plain.const_data_ptr<float>();
    for (int64_t i = 0; i < plain.numel(); ++i) hash = (hash ^ std::bit_cast<uint32_t>(data[i])) * 0x100000001b3ull;
  }
  return static_cast<int64_t>(hash);
}

}  // namespace isentrope::train
