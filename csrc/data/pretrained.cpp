#include "csrc/data/pretrained.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/json_object.h"
#include "csrc/data/token_shard.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kConfig = "tokenizer_config.json";
constexpr const char* kGeneration = "generation_config.json";
constexpr const char* kTemplates = "additional_chat_templates";  // a folder of them
// What is kept of a folder beside tokenizer.json, where it is there.
constexpr const char* kFiles[] = {kConfig,      "special_tokens_map.json", "added_tokens.json", "vocab.json",
                                  "merges.txt", "chat_template.jinja",     "chat_template.json"};

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw std::runtime_error("tokenizer: " + file + ": " + what);
}

Json read_object(const std::string& file, const std::string& content) {
  try {
    return parse_json_object(content);
  } catch (const std::runtime_error& error) {
    fail(file, error.what());
  }
}

// A token's name, or an object that has it as its content; "" for null or none.
std::string token_name(const std::string& file, const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return "";
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string())
    return (*found)["content"].get<std::string>();
  fail(file, std::string(key) + " is " + excerpt(found->dump()) + "; wanted the name of a token");
}

// What tells whether a folder has changed.
std::string state_of(const std::string& folder) {
  std::string state = fs::absolute(folder).string();
  for (const char* name : {kTokenizer, kConfig, "special_tokens_map.json", kGeneration, "config.json",
                           "chat_template.jinja", kTemplates}) {
    std::error_code error;
    const fs::path file = fs::path(folder) / name;
    const auto size = fs::file_size(file, error);
    const auto time = fs::last_write_time(file, error);
    for (const int64_t number : {error ? 0 : static_cast<int64_t>(size), error ? 0 : time.time_since_epoch().count()})
      state.append("|").append(std::to_string(number));
  }
  return state;
}

}  // namespace

std::shared_ptr<const Pretrained> Pretrained::open(const std::string& folder) {
  static std::mutex mutex;
  static std::string last_state;
  static std::shared_ptr<const Pretrained> last;
  const std::lock_guard lock(mutex);
  const std::string state = state_of(folder);
  if (!last || state != last_state) {
    last = std::make_shared<const Pretrained>(folder);
    last_state = state;
  }
  return last;
}

Pretrained::Pretrained(const std::string& folder) {
  if (!fs::exists(folder + "/" + kTokenizer))
    fail(folder, fs::is_directory(folder) ? "has no tokenizer.json; wanted a folder that transformers saved"
                                          : "is no folder; wanted one with tokenizer.json");
  files_[kTokenizer] = read_whole(folder + "/" + kTokenizer);
  for (const char* name : kFiles)
    if (fs::exists(folder + "/" + name)) files_[name] = read_whole(folder + "/" + name);
  read_chat_templates(folder);
  try {
    bpe_ = std::make_unique<Bpe>(files_[kTokenizer]);
  } catch (const std::runtime_error& error) {
    fail(folder + "/" + kTokenizer, error.what());
  }
  check_added(folder);
  eos_ = named(folder, "eos_token", -1);
  if (eos_ < 0)
    fail(folder,
         "nothing names the token that ends a sequence: neither eos_token in tokenizer_config.json or "
         "special_tokens_map.json nor eos_token_id in generation_config.json or config.json");
  pad_ = named(folder, "pad_token", eos_);
  ends_ = {eos_};
  for (const int64_t id : ids_of(folder + "/" + kGeneration, "eos_token_id"))
    if (std::find(ends_.begin(), ends_.end(), id) == ends_.end()) ends_.push_back(id);
  Hash hash;
  hash.add(files_[kTokenizer]);
  hash.add(static_cast<uint64_t>(eos_));
  hash.add(static_cast<uint64_t>(pad_));
  for (size_t i = 1; i < ends_.size(); ++i) hash.add(static_cast<uint64_t>(ends_[i]));
  digest_ = hash.value;
}

int64_t Pretrained::named(const std::string& folder, const char* name, int64_t otherwise) const {
  for (const char* file : {kConfig, "special_tokens_map.json"}) {
    const auto found = files_.find(file);
    if (found == files_.end()) continue;
    const std::string path = folder + "/" + file;
    const std::string token = token_name(path, read_object(path, found->second), name);
    if (token.empty()) continue;
    const int64_t id = bpe_->id_of(token);
    if (id < 0) fail(path, std::string(name) + " is \"" + excerpt(token) + "\", which tokenizer.json does not have");
    return id;
  }
  for (const char* file : {kGeneration, "config.json"})
    if (const auto ids = ids_of(folder + "/" + file, std::string(name) + "_id"); !ids.empty()) return ids[0];
  return otherwise;
}

// The ids of one number or a list of them; none where there is no such file or key.
std::vector<int64_t> Pretrained::ids_of(const std::string& file, const std::string& key) const {
  if (!fs::exists(file)) return {};
  const Json json = read_object(file, read_whole(file));
  const Json value = json.value(key, Json());
  std::vector<int64_t> ids;
  for (const Json& id : value.is_array() ? value : value.is_null() ? Json::array() : Json::array({value})) {
    if (!id.is_number_integer() || id < 0 || id >= bpe_->size() || bpe_->name(id.get<int64_t>()).empty())
      fail(file, key + " is " + excerpt(value.dump()) + (value.is_array() ? ", of which " + excerpt(id.dump()) : "") +
                     (value.is_array() ? " is none that tokenizer.json has" : ", which tokenizer.json does not have") +
                     "; it has ids 0 … " + std::to_string(bpe_->size() - 1));
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

void Pretrained::read_chat_templates(const std::string& folder) {
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder + "/" + kTemplates, none))
    if (entry.path().extension() == ".jinja" && entry.is_regular_file())
      files_[std::string(kTemplates) + "/" + entry.path().filename().string()] = read_whole(entry.path());
}

bool Pretrained::has_chat_template() const {
  const auto next = files_.lower_bound(std::string(kTemplates) + "/");
  if (files_.contains("chat_template.jinja") || (next != files_.end() && next->first.starts_with(kTemplates)))
    return true;
  const auto config = files_.find(kConfig);
  return config != files_.end() && !read_object(config->first, config->second).value("chat_template", Json()).is_null();
}

// transformers adds to the vocabulary what tokenizer_config.json names beyond it; here both have to say the same.
void Pretrained::check_added(const std::string& folder) const {
  const auto found = files_.find(kConfig);
  if (found == files_.end()) return;
  const std::string path = folder + "/" + kConfig;
  const Json json = read_object(path, found->second);
  const auto added = json.find("added_tokens_decoder");
  if (added == json.end() || !added->is_object()) return;
  for (const auto& [id, token] : added->items()) {
    const std::string name = token_name(path, *added, id.c_str());
    if (std::to_string(bpe_->id_of(name)) != id)
      fail(path, "added_tokens_decoder gives \"" + excerpt(name) + "\" the id " + excerpt(id) +
                     ", and tokenizer.json does not");
  }
}

void Pretrained::save(const std::string& folder) const {
  for (const auto& [name, content] : files_) {
    fs::create_directories(fs::path(folder + "/" + name).parent_path());
    write_durably(folder + "/" + name, content);
  }
  if (files_.contains(kConfig)) return;
  const Json config{{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"eos_token", bpe_->name(eos_)},
                    {"pad_token", bpe_->name(pad_)},
                    {"clean_up_tokenization_spaces", false}};
  write_durably(folder + "/" + kConfig, config.dump(2) + "\n");
}

}  // namespace isentrope::data
