#include "csrc/data/jsonl.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
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
  if (failed) return "; there is no folder " + excerpt(folder.string(), 300);
  const std::string wanted = fs::path(path).filename().string();
  constexpr size_t kLongestName = 255;
  if (wanted.size() > kLongestName) return "; no file has so long a name";
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
  throw std::runtime_error(where + ": \"" + excerpt(key) + "\" is a JSON " + value->type_name() +
                           "; it must be a string" + (integers ? " or an integer" : ""));
}

// What a reward function is told of a completion beside the columns of its example (docs/rewards.md).
constexpr std::array kOfRewards{"split", "finished"};
// Readers of JSON in C++ and Python go down by calling themselves.
constexpr int kDeepest = 100;

// The JSON of a line. A key that an object holds twice is refused: which of the two is meant nobody knows.
Json parsed(const std::string& line, const std::string& where) {
  std::vector<std::string> keys;  // of the outermost object
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kDeepest)
      throw std::runtime_error(where + ": holds lists or objects more than " + std::to_string(kDeepest) +
                               " within one another");
    if (depth == 1 && event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (std::find(keys.begin(), keys.end(), key) != keys.end())
        throw std::runtime_error(where + ": the key \"" + excerpt(key) + "\" is written twice");
      keys.push_back(key);
    }
    return true;
  };
  try {
    return Json::parse(line, look);
  } catch (const Json::parse_error& error) {
    const std::string what = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 9: …"
    const size_t column = what.find("column");
    throw std::runtime_error(where + ": not JSON at " +
                             excerpt(column == std::string::npos ? what : what.substr(column), 300));
  } catch (const Json::out_of_range&) {  // the only one of parse: 1e999
    throw std::runtime_error(where + ": holds a number beyond ±1.8e308");
  }
}

Json object_of(const std::string& line, const std::string& where) {
  Json object = parsed(line, where);
  if (!object.is_object())
    throw std::runtime_error(where + ": a JSON " + std::string(object.type_name()) +
                             "; each line must hold one object");
  return object;
}

std::string prompt_of(const Json& object, const std::string& key, const std::string& where) {
  const auto prompt = text_at(object, key, false, where);
  if (!prompt) throw std::runtime_error(where + ": the key \"" + excerpt(key) + "\" is missing");
  if (prompt->empty()) throw std::runtime_error(where + ": \"" + excerpt(key) + "\" is empty");
  return *prompt;
}

Example parse(const JsonlConfig& config, const std::string& line, bool columns, const std::string& where) {
  const Json object = object_of(line, where);
  const std::string prompt = prompt_of(object, config.prompt_key, where);
  const auto completion = text_at(object, config.completion_key, false, where);
  const auto answer = text_at(object, config.answer_key, true, where);
  if (!completion && !answer)
    throw std::runtime_error(where + ": the key \"" + excerpt(config.completion_key) +
                             "\" is missing, and there is no \"" + excerpt(config.answer_key) + "\" either");
  for (const char* name : kOfRewards)
    if (columns && object.contains(name))
      throw std::runtime_error(where + ": the key \"" + name +
                               "\" has the name of what a reward function finds in meta " +
                               "beside the keys of an example (docs/rewards.md); rename it");
  return {prompt, completion.value_or(""), answer.value_or(""), columns ? line : ""};
}

struct Line {
  int64_t number;  // in the file, from 1
  Example example;
};

std::vector<Line> read(const JsonlConfig& config, bool columns, const std::string& path) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed))
    throw std::runtime_error("jsonl: " + excerpt(path, 300) + " is not a file" + suggestion(path));
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("jsonl: " + path + " cannot be read: " + std::strerror(errno));
  std::vector<Line> lines;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // a byte order mark
    lines.push_back({number, parse(config, line, columns, path + ":" + std::to_string(number))});
  }
  if (file.bad()) throw std::runtime_error("jsonl: " + path + " cannot be read to its end: " + std::strerror(errno));
  if (lines.empty()) throw std::runtime_error("jsonl: " + path + ":1: the file holds no example");
  return lines;
}

std::string part(Split split) { return split == Split::train ? "training" : name_of(split); }

// Leaves the lines that belong to the split. The shares are those that are taken from this file.
void keep_split(std::vector<Line>& lines, double validation, double test, Split split, const std::string& path) {
  std::vector<std::string_view> prompts;
  for (const Line& line : lines) prompts.emplace_back(line.example.prompt);
  const std::vector<Split> splits = splits_of(prompts, validation, test);
  const size_t all = lines.size();
  size_t kept = 0;
  for (size_t i = 0; i < all; ++i)
    if (splits[i] == split) {
      if (kept != i) lines[kept] = std::move(lines[i]);
      ++kept;
    }
  lines.resize(kept);
  if (lines.empty())
    throw std::runtime_error(
        "jsonl: none of the " + std::to_string(all) + " examples of " + path + " falls into the " + part(split) +
        " split, since it has too few different prompts; add examples, change "
        "validation_fraction or test_fraction (0 for none), or give validation_path and test_path");
}

}  // namespace

std::vector<Prompt> read_prompts(const std::string& path) {
  const bool standard = path == "-";
  const std::string name = standard ? "standard input" : path;
  std::error_code failed;
  std::ifstream file;
  if (!standard) {
    if (!path.ends_with(".jsonl") && !path.ends_with(".txt"))
      throw std::runtime_error("prompts: " + excerpt(path, 300) +
                               " ends in neither .jsonl (objects with a \"prompt\") nor .txt (a prompt a line); rename "
                               "it, or give it to standard input and write -");
    if (std::filesystem::is_directory(path, failed) || !std::filesystem::exists(path, failed))
      throw std::runtime_error("prompts: " + excerpt(path, 300) + " is not a file" + suggestion(path));
    file.open(path, std::ios::binary);
    if (!file) throw std::runtime_error("prompts: " + path + " cannot be read: " + std::strerror(errno));
  }
  std::istream& in = standard ? std::cin : file;
  std::vector<Prompt> prompts;
  std::optional<bool> objects;
  if (!standard) objects = path.ends_with(".jsonl");
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (number == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // a byte order mark
    if (line.ends_with("\r")) line.pop_back();
    if (line.empty()) continue;
    if (!objects) objects = line.starts_with("{");
    const std::string where = name + ":" + std::to_string(number);
    if (!*objects)
      prompts.push_back({where, line});
    else if (line.find_first_not_of(" \t\r") != std::string::npos)
      prompts.push_back({where, prompt_of(object_of(line, where), "prompt", where), line});
  }
  if (in.bad()) throw std::runtime_error("prompts: " + name + " cannot be read to its end: " + std::strerror(errno));
  if (prompts.empty()) throw std::runtime_error("prompts: " + name + " holds no prompt; wanted one a line");
  return prompts;
}

std::string JsonlConfig::problem() const {
  if (path.empty()) return "path is empty; give the file of the training examples";
  for (const HeldOutKeys& keys : {validation(), test()})
    if (const std::string wrong = keys.problem(); !wrong.empty()) return wrong;
  if (validation().share() + test().share() >= 1)
    return "validation_fraction + test_fraction leave nothing of path for training";
  if (prompt_key.empty() || completion_key.empty() || answer_key.empty())
    return "prompt_key, completion_key and answer_key may not be empty";
  if (prompt_key == completion_key || prompt_key == answer_key || completion_key == answer_key)
    return "prompt_key, completion_key and answer_key must differ";
  return "";
}

bool JsonlConfig::has(Split split) const {
  if (split == Split::train) return true;
  return split == Split::validation ? validation().any() : test().any();
}

Jsonl::Jsonl(const JsonlConfig& config, uint64_t seed, Split split, const Use* use) : seed_(seed), split_(split) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("jsonl: " + wrong);
  const std::string& own = split == Split::validation ? config.validation_path : config.test_path;
  const bool shared = split == Split::train || own.empty();
  const std::string& path = shared ? config.path : own;
  std::vector<Line> lines = read(config, use && use->columns, path);
  if (shared) keep_split(lines, config.validation().share(), config.test().share(), split, path);
  for (Line& line : lines) {
    try {
      if (use && !fits(line.example, *use)) {
        ++left_out_;
        continue;
      }
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error("jsonl: " + path + ":" + std::to_string(line.number) + ": " + error.what());
    }
    line.example.split = split;
    examples_.push_back(std::move(line.example));
  }
  if (examples_.empty())
    throw std::runtime_error("jsonl: all " + std::to_string(left_out_) + " " + part(split) + " examples of " + path +
                             " are too long for the context (" + std::to_string(use->context) +
                             " tokens) and are left out (data.truncation: drop); raise model.max_position_embeddings");
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
