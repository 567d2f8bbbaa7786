#include "csrc/data/jsonl.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "csrc/data/shuffle.h"
#include "csrc/data/split.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

// "; did you mean data/train.jsonl?", or that the folder is not there.
std::string suggestion(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  std::error_code failed;
  fs::directory_iterator entries(folder, failed);
  if (failed) return "; there is no folder " + folder.string();
  const std::string wanted = fs::path(path).filename().string();
  std::string best;
  size_t least = 0;
  for (const auto& entry : entries) {
    if (!entry.is_regular_file(failed)) continue;
    const std::string name = entry.path().filename().string();
    const size_t d = edit_distance(wanted, name);
    if (best.empty() || d < least || (d == least && name < best)) {
      best = name;
      least = d;
    }
  }
  if (best.empty()) return "; the folder " + folder.string() + " has no files";
  return "; the nearest name there is " + (fs::path(path).parent_path() / best).string();
}

std::optional<std::string> text_at(const Json& object, const std::string& key, bool integers,
                                   const std::string& where) {
  const auto value = object.find(key);
  if (value == object.end() || value->is_null()) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  if (integers && value->is_number_integer()) return value->dump();
  throw std::runtime_error(where + ": \"" + key + "\" is a JSON " + value->type_name() + "; it must be a string" +
                           (integers ? " or an integer" : ""));
}

Example parse(const JsonlConfig& config, const std::string& line, const std::string& where) {
  Json object;
  try {
    object = Json::parse(line);
  } catch (const Json::parse_error& error) {
    const std::string what = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 9: …"
    const size_t column = what.find("column");
    throw std::runtime_error(where + ": not JSON at " + (column == std::string::npos ? what : what.substr(column)));
  }
  if (!object.is_object())
    throw std::runtime_error(where + ": a JSON " + std::string(object.type_name()) +
                             "; each line must hold one object");
  const auto prompt = text_at(object, config.prompt_key, false, where);
  const auto completion = text_at(object, config.completion_key, false, where);
  const auto answer = text_at(object, config.answer_key, true, where);
  if (!prompt) throw std::runtime_error(where + ": the key \"" + config.prompt_key + "\" is missing");
  if (prompt->empty()) throw std::runtime_error(where + ": \"" + config.prompt_key + "\" is empty");
  if (!completion && !answer)
    throw std::runtime_error(where + ": the key \"" + config.completion_key + "\" is missing, and there is no \"" +
                             config.answer_key + "\" either");
  return {*prompt, completion.value_or(""), answer.value_or("")};
}

std::vector<Example> read(const JsonlConfig& config, const std::string& path) {
  if (!std::filesystem::is_regular_file(path))
    throw std::runtime_error("jsonl: " + path + " is not a file" + suggestion(path));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("jsonl: " + path + " cannot be read");
  std::vector<Example> examples;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    examples.push_back(parse(config, line, path + ":" + std::to_string(number)));
  }
  if (examples.empty()) throw std::runtime_error("jsonl: " + path + ":1: the file holds no example");
  return examples;
}

}  // namespace

std::string JsonlConfig::problem() const {
  if (path.empty()) return "path is empty; give the file of the training examples";
  for (const double share : {validation_fraction, test_fraction})
    if (!(share >= 0 && share <= 1)) return "validation_fraction and test_fraction are in 0 … 1";
  const double held_out = (validation_path.empty() ? validation_fraction : 0) + (test_path.empty() ? test_fraction : 0);
  if (held_out >= 1) return "validation_fraction + test_fraction leave nothing of path for training";
  if (prompt_key.empty() || completion_key.empty() || answer_key.empty())
    return "prompt_key, completion_key and answer_key may not be empty";
  if (prompt_key == completion_key || prompt_key == answer_key || completion_key == answer_key)
    return "prompt_key, completion_key and answer_key must differ";
  return "";
}

Jsonl::Jsonl(const JsonlConfig& config, uint64_t seed, Split split) : seed_(seed), split_(split) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("jsonl: " + wrong);
  const std::string& own = split == Split::validation ? config.validation_path : config.test_path;
  const char* name = split == Split::train ? "training" : split == Split::validation ? "validation" : "test";
  if (split != Split::train && !own.empty()) {
    examples_ = read(config, own);
    return;
  }
  const double validation = config.validation_path.empty() ? config.validation_fraction : 0;
  const double test = config.test_path.empty() ? config.test_fraction : 0;
  examples_ = read(config, config.path);
  const size_t all = examples_.size();
  std::erase_if(examples_, [&](const Example& e) { return split_of(e.prompt, validation, test) != split; });
  if (examples_.empty())
    throw std::runtime_error(
        "jsonl: none of the " + std::to_string(all) + " examples of " + config.path + " falls into the " + name +
        " split; change validation_fraction or test_fraction, or give " + "validation_path and test_path");
}

std::vector<Example> Jsonl::take(int64_t first, int64_t count) const {
  if (first < 0 || count < 0)
    throw std::invalid_argument("jsonl: take(" + std::to_string(first) + ", " + std::to_string(count) +
                                ") is negative");
  std::vector<Example> examples;
  examples.reserve(static_cast<size_t>(count));
  const auto n = static_cast<uint64_t>(size());
  std::optional<Shuffle> order;
  for (auto i = static_cast<uint64_t>(first); i < static_cast<uint64_t>(first + count); ++i) {
    if (!order || i % n == 0) order.emplace(seed_, i / n, n);
    examples.push_back(examples_[split_ == Split::train ? (*order)(i % n) : i % n]);
  }
  return examples;
}

}  // namespace isentrope::data
