#include "csrc/train/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <tuple>

#include "csrc/durable_file.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using torch::Tensor;

constexpr int kFormat = 2;  // of trainer.json and trainer.safetensors
constexpr const char* kDone = "DONE";

// The family of `transformers` whose model computes what this one does. There is none for a soft cap, a temperature or norms in
// this place: such a checkpoint names a model type of its own, and is refused there instead of giving other logits.
std::pair<std::string, std::string> family(const model::DecoderConfig& decoder) {
  const model::AttentionConfig& c = decoder.attention;
  if (c.softcap > 0 || c.temperature != "none" || decoder.norm != "pre") return {"isentrope", "IsentropeForCausalLM"};
  if (c.qk_norm) return {"qwen3", "Qwen3ForCausalLM"};
  return c.window > 0 ? std::pair{"mistral", "MistralForCausalLM"} : std::pair{"llama", "LlamaForCausalLM"};
}

ordered_json model_config(const model::DecoderConfig& c, const data::Tokenizer& tokenizer) {
  const auto [type, architecture] = family(c);
  const ordered_json window = c.attention.window > 0 ? ordered_json(c.attention.window) : ordered_json(nullptr);
  const std::vector<std::string> layer_types(c.layers, c.attention.window > 0 ? "sliding_attention" : "full_attention");
  return {
      {"architectures", {architecture}},
      {"model_type", type},
      {"vocab_size", c.vocabulary},
      {"hidden_size", c.width},
      {"intermediate_size", c.mlp},
      {"num_hidden_layers", c.layers},
      {"num_attention_heads", c.heads},
      {"num_key_value_heads", c.kv_heads},
      {"head_dim", c.head_size()},
      {"max_position_embeddings", c.context},
      {"rms_norm_eps", c.norm_eps},
      {"norm", c.norm},
      // transformers 5 reads rope_parameters, 4 reads rope_theta; likewise dtype and torch_dtype.
      {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", c.rope_base}}},
      {"rope_theta", c.rope_base},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"attention_dropout", 0.0},
      {"sliding_window", window},
      {"use_sliding_window", c.attention.window > 0},
      {"max_window_layers", 0},
      {"layer_types", layer_types},
      {"qk_norm", c.attention.qk_norm},
      {"attn_logit_softcapping", c.attention.softcap > 0 ? ordered_json(c.attention.softcap) : ordered_json(nullptr)},
      {"attention_temperature", c.attention.temperature},
      {"tie_word_embeddings", c.tied_head},
      {"dtype", "float32"},
      {"torch_dtype", "float32"},
      {"bos_token_id", nullptr},
      {"eos_token_id", tokenizer.eos_id()},
      {"pad_token_id", tokenizer.pad_id()}};
}

json read_json(const std::string& file) {
  json value = json::parse(read_whole(file), nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) throw std::runtime_error(file + ": not a JSON object; the file is damaged");
  return value;
}

template <class T>
T field(const std::string& file, const json& object, const char* key) {
  try {
    return object.at(key).get<T>();
  } catch (const json::exception&) {
    throw std::runtime_error(file + ": '" + key + "' is missing or of another type");
  }
}

void require_complete(const std::string& dir) {
  if (!fs::is_directory(dir)) throw std::runtime_error(dir + ": there is no such checkpoint folder");
  if (!fs::exists(dir + "/" + kDone))
    throw std::runtime_error(dir + ": not a complete checkpoint (it has no file DONE); take another one");
}

// trainer.json alone, without tensors.
CheckpointState read_position(const std::string& dir) {
  require_complete(dir);
  const std::string file = dir + "/trainer.json";
  const json object = read_json(file);
  const int format = field<int>(file, object, "format");
  if (format != kFormat)
    throw std::runtime_error(file + ": format " + std::to_string(format) + ", and this version reads format " +
                             std::to_string(kFormat));
  CheckpointState state;
  state.phase = field<int64_t>(file, object, "phase");
  state.phase_name = field<std::string>(file, object, "phase_name");
  state.phase_finished = field<bool>(file, object, "phase_finished");
  state.step = field<int64_t>(file, object, "step");
  state.seed = field<uint64_t>(file, object, "seed");
  return state;
}

void sync_file(const std::string& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  const bool failed = fd < 0 || ::fsync(fd) != 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (failed) throw std::runtime_error(file + ": cannot be brought to disk: " + std::strerror(error));
}

// Puts the folder `temporary` in the place of dir, in one step where something stands there.
void move_into_place(const std::string& temporary, const std::string& dir) {
  if (!fs::exists(dir)) {
    fs::rename(temporary, dir);
    return;
  }
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, dir.c_str(), RENAME_EXCHANGE) != 0) {
    // A file system without the exchange.
    fs::remove_all(dir);
    fs::rename(temporary, dir);
    return;
  }
  fs::remove_all(temporary);
}

void write_folder(const std::string& dir, const CheckpointState& state, const model::Decoder& decoder,
                  const data::Tokenizer& tokenizer, const TrainConfig& config) {
  write_safetensors(dir + "/model.safetensors", decoder->folded_weights());
  write_durably(dir + "/config.json", model_config(decoder->config(), tokenizer).dump(2) + "\n");
  // As `isentrope sample` draws: from all tokens, where transformers takes the 50 likeliest unless told otherwise.
  const ordered_json generation{{"bos_token_id", nullptr},
                                {"eos_token_id", tokenizer.eos_id()},
                                {"pad_token_id", tokenizer.pad_id()},
                                {"do_sample", true},
                                {"top_k", 0}};
  write_durably(dir + "/generation_config.json", generation.dump(2) + "\n");
  tokenizer.save(dir);
  for (const auto& entry : fs::directory_iterator(dir)) sync_file(entry.path());

  NamedTensors tensors;
  for (const auto& [name, tensor] : state.optimizer) tensors.emplace_back("optimizer/" + name, tensor);
  for (const auto& [name, tensor] : state.source) tensors.emplace_back("source/" + name, tensor);
  for (const auto& [name, tensor] : state.extra) tensors.emplace_back("extra/" + name, tensor);
  write_safetensors(dir + "/trainer.safetensors", tensors);
  const ordered_json trainer{{"format", kFormat},
                             {"isentrope", ISENTROPE_VERSION},
                             {"phase", state.phase},
                             {"phase_name", state.phase_name},
                             {"phase_finished", state.phase_finished},
                             {"step", state.step},
                             {"seed", state.seed}};
  write_durably(dir + "/trainer.json", trainer.dump(2) + "\n");
  write_durably(dir + "/config.yaml", print_config(config));
  sync_folder(dir);
  write_durably(dir + "/" + kDone, "");
  sync_folder(dir);
}

struct Found {
  std::string dir;
  CheckpointState state;
};

// Complete checkpoints of a run, furthest last.
std::vector<Found> complete_checkpoints(const std::string& run_dir) {
  std::vector<Found> found;
  const fs::path root = run_dir + "/checkpoints";
  if (!fs::is_directory(root)) return found;
  for (const auto& entry : fs::directory_iterator(root))
    if (entry.is_directory() && entry.path().extension() != ".tmp" && fs::exists(entry.path() / kDone))
      found.push_back({entry.path().string(), read_position(entry.path().string())});
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    auto key = [](const Found& f) { return std::tie(f.state.phase, f.state.step, f.state.phase_finished, f.dir); };
    return key(a) < key(b);
  });
  return found;
}

std::string shape_of(const Tensor& tensor) {
  std::ostringstream out;
  out << tensor.sizes();
  return out.str();
}

}  // namespace

std::string checkpoint_dir(const std::string& run_dir, const std::string& phase, int64_t step) {
  char number[24];
  std::snprintf(number, sizeof(number), "%06lld", static_cast<long long>(step));
  return run_dir + "/checkpoints/" + phase + "-" + number;
}

void save_checkpoint(const std::string& dir, const CheckpointState& state, const model::Decoder& decoder,
                     const data::Tokenizer& tokenizer, const TrainConfig& config) {
  const std::string temporary = dir + ".tmp";
  try {
    fs::remove_all(temporary);
    fs::create_directories(temporary);
    write_folder(temporary, state, decoder, tokenizer, config);
    move_into_place(temporary, dir);
    sync_folder(fs::absolute(dir).parent_path().string());
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
}

CheckpointState load_checkpoint_state(const std::string& dir) {
  CheckpointState state = read_position(dir);
  const std::string file = dir + "/trainer.safetensors";
  for (auto& [name, tensor] : read_safetensors(file)) {
    const size_t slash = name.find('/');
    const std::string part = name.substr(0, slash);
    auto* map = part == "optimizer" ? &state.optimizer
                : part == "source"  ? &state.source
                : part == "extra"   ? &state.extra
                                    : nullptr;
    if (!map || slash == std::string::npos)
      throw std::runtime_error(file + ": '" + name + "' belongs to no part of the trainer's state");
    map->emplace(name.substr(slash + 1), tensor);
  }
  return state;
}

model::DecoderConfig read_model_config(const std::string& dir) {
  require_complete(dir);
  const std::string file = dir + "/config.json";
  const json object = read_json(file);
  model::DecoderConfig config;
  if (object.contains("qk_norm")) {  // a checkpoint of before these had none of them
    config.attention.qk_norm = field<bool>(file, object, "qk_norm");
    config.attention.temperature = field<std::string>(file, object, "attention_temperature");
    if (!object.at("sliding_window").is_null())
      config.attention.window = field<int64_t>(file, object, "sliding_window");
    if (!object.at("attn_logit_softcapping").is_null())
      config.attention.softcap = field<double>(file, object, "attn_logit_softcapping");
  }
  if (object.contains("norm")) config.norm = field<std::string>(file, object, "norm");  // likewise
  if (const auto type = field<std::string>(file, object, "model_type"), own = family(config).first; type != own)
    throw std::runtime_error(file + ": model_type is '" + type + "'; wanted '" + own + "'");
  config.vocabulary = field<int64_t>(file, object, "vocab_size");
  config.width = field<int64_t>(file, object, "hidden_size");
  config.mlp = field<int64_t>(file, object, "intermediate_size");
  config.layers = field<int64_t>(file, object, "num_hidden_layers");
  config.heads = field<int64_t>(file, object, "num_attention_heads");
  config.kv_heads = field<int64_t>(file, object, "num_key_value_heads");
  config.context = field<int64_t>(file, object, "max_position_embeddings");
  config.norm_eps = field<double>(file, object, "rms_norm_eps");
  config.rope_base = field<double>(file, object, "rope_theta");
  config.tied_head = field<bool>(file, object, "tie_word_embeddings");
  if (const std::string problem = config.problem(); !problem.empty()) throw std::runtime_error(file + ": " + problem);
  return config;
}

void load_weights(const std::string& dir, model::Decoder& decoder) {
  require_complete(dir);
  const std::string file = dir + "/model.safetensors";
  auto stored = read_safetensors(file);
  std::vector<std::string> differences;
  const auto own = decoder->named_weights();
  std::map<std::string, Tensor> wanted(own.begin(), own.end());
  for (const auto& [name, tensor] : own) {
    const auto found = stored.find(name);
    if (found == stored.end())
      differences.push_back(name + " is missing");
    else if (found->second.sizes() != tensor.sizes())
      differences.push_back(name + " is " + shape_of(found->second) + ", wanted " + shape_of(tensor));
  }
  for (const auto& [name, tensor] : stored)
    if (!wanted.count(name)) differences.push_back(name + " " + shape_of(tensor) + " has no place in this model");
  if (!differences.empty()) {
    constexpr size_t kShown = 5;  // enough to see what kind of difference it is
    std::string message = file + ": weights of another model: ";
    for (size_t i = 0; i < std::min(differences.size(), kShown); ++i) message += (i ? "; " : "") + differences[i];
    if (differences.size() > kShown) message += "; and " + std::to_string(differences.size() - kShown) + " more";
    throw std::runtime_error(message);
  }
  torch::NoGradGuard no_grad;
  for (auto& [name, tensor] : wanted) tensor.copy_(stored.at(name));
}

std::optional<std::string> find_latest(const std::string& run_dir) {
  const auto found = complete_checkpoints(run_dir);
  return found.empty() ? std::nullopt : std::optional(found.back().dir);
}

void prune_checkpoints(const std::string& run_dir, int64_t keep) {
  const fs::path root = run_dir + "/checkpoints";
  if (!fs::is_directory(root)) return;
  auto found = complete_checkpoints(run_dir);
  std::map<int64_t, int64_t> kept;  // phase → checkpoints met, newest first
  for (auto checkpoint = found.rbegin(); checkpoint != found.rend(); ++checkpoint) {
    if (checkpoint->state.phase_finished || ++kept[checkpoint->state.phase] <= keep) continue;
    fs::remove(checkpoint->dir + "/" + kDone);  // first, so that a half removed folder is not taken for whole
    fs::remove_all(checkpoint->dir);
  }
  std::vector<fs::path> torn;
  for (const auto& entry : fs::directory_iterator(root))
    if (entry.is_directory() && (entry.path().extension() == ".tmp" || !fs::exists(entry.path() / kDone)))
      torn.push_back(entry.path());
  for (const fs::path& path : torn) fs::remove_all(path);
}

}  // namespace isentrope::train
