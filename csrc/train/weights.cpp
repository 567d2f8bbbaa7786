#include "csrc/train/weights.h"

#include <algorithm>
#include <bit>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <vector>

#include "csrc/train/json_file.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {
namespace fs = std::filesystem;
namespace {

using torch::Tensor;

constexpr const char* kWhole = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// What the index says: tensor → name of its shard.
std::map<std::string, std::string> read_index(const std::string& dir) {
  const std::string file = dir + "/" + kIndex;
  const nlohmann::json index = read_json(file);
  const auto map = index.find("weight_map");
  if (map == index.end() || !map->is_object()) throw std::runtime_error(file + ": weight_map is missing or no object");
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : map->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    if (name.empty() || fs::path(name).filename() != name || name == "..")
      throw std::runtime_error(file + ": '" + tensor + "' is in " + shard.dump() +
                               "; wanted the name of a file in the same folder");
    shards[tensor] = name;
  }
  return shards;
}

// The folder's files with what their headers say.
std::map<std::string, std::map<std::string, TensorEntry>> read_headers(const std::string& dir) {
  std::map<std::string, std::map<std::string, TensorEntry>> files;
  if (exists(dir + "/" + kWhole) || !exists(dir + "/" + kIndex)) {
    if (!exists(dir + "/" + kWhole) && exists(dir + "/pytorch_model.bin"))
      throw std::runtime_error(dir + ": its weights are in pytorch_model.bin, which is not read; open the folder in " +
                               "transformers and save it with save_pretrained, which writes " + kWhole);
    files[kWhole] = read_safetensors_header(dir + "/" + kWhole);
    return files;
  }
  for (const auto& [tensor, shard] : read_index(dir)) {
    const std::string file = dir + "/" + shard;
    if (!exists(file))
      throw std::runtime_error(file + ": is missing, and " + kIndex + " says that it holds " + tensor +
                               "; copy or download it");
    if (!files.contains(shard)) files[shard] = read_safetensors_header(file);
    if (!files.at(shard).contains(tensor))
      throw std::runtime_error(file + ": does not hold " + tensor + ", and " + kIndex + " says that it does");
  }
  return files;
}

bool carries_nothing(const std::string& name, const model::DecoderConfig& config) {
  return name.ends_with("rotary_emb.inv_freq") || (name == "lm_head.weight" && config.tie_word_embeddings);
}

// "missing: a, b and 3 more", nothing where there is none.
void add_list(std::string& text, const char* head, const std::vector<std::string>& names) {
  constexpr size_t kShown = 5;  // enough to see what kind of difference it is
  if (names.empty()) return;
  text.append(text.empty() ? "" : "; ").append(head);
  for (size_t i = 0; i < std::min(names.size(), kShown); ++i) text.append(i ? ", " : "").append(names[i]);
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
}

}  // namespace

int64_t weights_digest(const std::vector<std::pair<std::string, Tensor>>& weights) {
  uint64_t digest = 0;
  for (const auto& [name, weight] : weights) {
    uint64_t hash = 0xcbf29ce484222325ull, sum = 0;
    for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    const Tensor plain = weight.detach().to(torch::kCPU, torch::kFloat32).contiguous();
    const float* data = plain.const_data_ptr<float>();
    for (int64_t i = 0; i < plain.numel(); ++i)
      sum += (uint64_t{std::bit_cast<uint32_t>(data[i])} + 1) * (2 * static_cast<uint64_t>(i) + 1);
    digest += hash * sum;
  }
  return static_cast<int64_t>(digest);
}

std::map<std::string, Tensor> map_weights(const std::string& dir) {
  std::map<std::string, Tensor> found;
  for (const auto& [file, entries] : read_headers(dir)) found.merge(map_safetensors(dir + "/" + file));
  return found;
}

void read_weights(const std::string& dir, model::Decoder& decoder) {
  const auto files = read_headers(dir);
  const auto own = decoder->named_weights();
  std::map<std::string, Tensor> wanted(own.begin(), own.end());
  std::vector<std::string> missing, foreign, other;
  std::map<std::string, std::string> file_of;
  for (const auto& [file, entries] : files)
    for (const auto& [name, entry] : entries) {
      const auto place = wanted.find(name);
      if (place == wanted.end()) {
        if (!carries_nothing(name, decoder->config())) foreign.push_back(name + " " + text_of(entry.shape));
        continue;
      }
      if (const auto [first, is_new] = file_of.emplace(name, file); !is_new)
        throw std::runtime_error(dir + ": '" + name + "' stands in " + first->second + " and in " + file);
      if (place->second.sizes() != entry.shape)
        other.push_back(name + " is " + text_of(entry.shape) + ", wanted " + text_of(place->second.sizes()));
      else if (!torch::isFloatingType(entry.type))
        other.push_back(name + " holds " + torch::toString(entry.type) + ", wanted floating-point numbers");
    }
  // A model that gets labels has not learnt them: they begin at 0.
  const bool labels = file_of.contains("score.weight") || file_of.contains("score.bias");
  for (const auto& [name, tensor] : own)
    if (!file_of.contains(name) && (labels || !name.starts_with("score."))) missing.push_back(name);
  std::string differences;
  add_list(differences, "missing: ", missing);
  add_list(differences, "without a place in this model: ", foreign);
  add_list(differences, "", other);
  const std::string where = dir + "/" + (files.contains(kWhole) && files.size() == 1 ? kWhole : kIndex);
  if (!differences.empty())
    throw std::runtime_error(where + ": weights of another model: " + differences +
                             "; config.json and the weights have to be of one model");

  const torch::NoGradGuard no_grad;
  for (const auto& [file, entries] : files)
    for (const auto& [name, tensor] : read_safetensors(dir + "/" + file))
      if (file_of.contains(name)) wanted.at(name).copy_(tensor);
}

}  // namespace isentrope::train
