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
#include <set>
#include <stdexcept>

#include "csrc/data/jsonl_files.h"
#include "csrc/data/messages.h"
#include "csrc/data/shuffle.h"
#include "csrc/data/split.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

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
constexpr size_t kToldFiles = 8;  // of a list of files, what a note has room for

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

std::vector<Message> messages_of(const Json& list, const std::string& key, const std::string& where) {
  static const std::set<std::string> kRoles{"system", "user", "assistant", "tool"};
  const std::string name = where + ": \"" + excerpt(key) + "\"";
  if (!list.is_array() || list.empty())
    throw std::runtime_error(name + " is " + (list.is_array() ? "empty" : std::string("a JSON ") + list.type_name()) +
                             "; it must be a list of {\"role\": …, \"content\": …}");
  std::vector<Message> messages;
  for (const Json& one : list) {
    const std::string at = where + ": " + excerpt(key) + "[" + std::to_string(messages.size()) + "]";
    if (!one.is_object()) throw std::runtime_error(at + " is a JSON " + one.type_name() + "; it must be an object");
    const auto role = text_at(one, "role", false, at), content = text_at(one, "content", false, at);
    if (!role || !kRoles.contains(*role))
      throw std::runtime_error(at + ".role is " + (role ? isentrope::quoted(*role) : "missing") +
                               "; it must be system, user, assistant or tool");
    if (const auto calls = one.find("tool_calls"); calls != one.end() && !calls->is_null())
      throw std::runtime_error(at + " has tool_calls, which no rendering here shows; write them into its content");
    if (!content || (*role == "assistant" && content->empty()))
      throw std::runtime_error(at + ".content is " + (content ? "empty, and an assistant's is learnt" : "missing"));
    messages.push_back({*role, *content});
  }
  return messages;
}

// Prompt and completion, or what a conversation has in their place.
Example text_of(const JsonlConfig& config, const Json& object, const std::string& where) {
  const auto list = object.find(config.messages_key);
  const bool conversation = list != object.end() && !list->is_null();
  if (!conversation) {
    const std::string prompt = prompt_of(object, config.prompt_key, where);
    return {prompt, text_at(object, config.completion_key, false, where).value_or(""), ""};
  }
  for (const std::string& other : {config.prompt_key, config.completion_key})
    if (object.contains(other))
      throw std::runtime_error(where + ": \"" + excerpt(other) + "\" stands beside \"" + excerpt(config.messages_key) +
                               "\"; leave one of the two out");
  return render(messages_of(*list, config.messages_key, where));
}

Example parse(const JsonlConfig& config, const std::string& line, bool columns, const std::string& where) {
  const Json object = object_of(line, where);
  Example example = text_of(config, object, where);
  const auto answer = text_at(object, config.answer_key, true, where);
  const bool completion = object.contains(config.completion_key) && !object[config.completion_key].is_null();
  if (example.completion.empty() && !completion && !answer && object.contains(config.messages_key))
    throw std::runtime_error(where + ": the last of \"" + excerpt(config.messages_key) +
                             "\" is not an assistant's, and there is no \"" + excerpt(config.answer_key) + "\" either");
  if (example.completion.empty() && !completion && !answer)
    throw std::runtime_error(where + ": the key \"" + excerpt(config.completion_key) +
                             "\" is missing, and there is no \"" + excerpt(config.answer_key) + "\" either");
  for (const char* name : kOfRewards)
    if (columns && object.contains(name))
      throw std::runtime_error(where + ": the key \"" + name +
                               "\" has the name of what a reward function finds in meta " +
                               "beside the keys of an example (docs/rewards.md); rename it");
  example.answer = answer.value_or("");
  if (columns) example.columns = line;
  return example;
}

struct Line {
  size_t file;     // of the list
  int64_t number;  // in the file, from 1
  Example example;
};

struct Lines {
  std::vector<Line> lines;
  int64_t skipped = 0;
  std::string first_skipped;  // what is wrong with it
};

Lines read(const JsonlConfig& config, bool columns, bool skip, const std::vector<JsonlFile>& files) {
  Lines read;
  for (size_t i = 0; i < files.size(); ++i) {
    LineFile file(files[i].path);
    const size_t before = read.lines.size();
    const int64_t skipped = read.skipped;
    for (std::string line; file.next(line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      try {
        read.lines.push_back({i, file.number(), parse(config, line, columns, file.where())});
      } catch (const std::runtime_error& error) {
        if (!skip) throw;
        if (++read.skipped == 1) read.first_skipped = error.what();
      }
    }
    if (read.lines.size() == before && read.skipped == skipped)
      throw std::runtime_error("jsonl: " + files[i].path + ":1: the file holds no example");
  }
  if (read.lines.empty())
    throw std::runtime_error("jsonl: all " + std::to_string(read.skipped) + " lines of " + files.front().path +
                             (files.size() > 1 ? " and the other files" : "") +
                             " are broken and skipped (data.on_error: skip); the first: " + read.first_skipped);
  return read;
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
      throw std::runtime_error("prompts: " + excerpt(path, 300) + " is not a file" + nearest_file(path));
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
  if (path.empty() || std::find(path.begin(), path.end(), "") != path.end())
    return "path is empty; give the file of the training examples, several, a pattern or a folder";
  for (const HeldOutKeys& keys : {validation(), test()})
    if (const std::string wrong = keys.problem(); !wrong.empty()) return wrong;
  if (validation().share() + test().share() >= 1)
    return "validation_fraction + test_fraction leave nothing of path for training";
  const std::set<std::string> keys{messages_key, prompt_key, completion_key, answer_key};
  if (keys.contains("")) return "messages_key, prompt_key, completion_key and answer_key may not be empty";
  if (keys.size() < 4) return "messages_key, prompt_key, completion_key and answer_key must differ";
  return "";
}

bool JsonlConfig::has(Split split) const {
  if (split == Split::train) return true;
  return split == Split::validation ? validation().any() : test().any();
}

namespace {

// What the files of one split are, and the shares of the held-out parts in them.
struct Found {
  std::vector<JsonlFile> files;
  double validation = 0, test = 0;
  bool shared = false;  // with the other splits
  std::string told;     // "a.jsonl", "3 files such as a.jsonl"
};

std::string told(const std::vector<JsonlFile>& files) {
  const std::string first = excerpt(files.front().path, 300);
  return files.size() == 1 ? first : std::to_string(files.size()) + " files such as " + first;
}

// The files of a held-out part's own path: of a folder those that its name says, and those that say none.
std::vector<JsonlFile> own_files(const HeldOutKeys& keys, Split split) {
  std::vector<JsonlFile> files = find_jsonl({keys.path}, keys.name + "_path");
  const size_t all = files.size();
  std::erase_if(files, [&](const JsonlFile& file) { return file.split && file.split != split; });
  if (files.empty())
    throw std::runtime_error("jsonl: none of the " + std::to_string(all) + " files of " + excerpt(keys.path, 300) +
                             " is for " + keys.name + " by its name (data.jsonl." + keys.name + "_path)");
  return files;
}

// The same to leave them out elsewhere: what is not there has none.
std::vector<JsonlFile> others(const HeldOutKeys& keys, Split split) {
  try {
    return keys.path.empty() ? std::vector<JsonlFile>() : own_files(keys, split);
  } catch (const std::runtime_error&) {
    return {};
  }
}

Found find(const JsonlConfig& config, Split split) {
  Found found;
  const HeldOutKeys keys = split == Split::test ? config.test() : config.validation();
  if (split != Split::train && !keys.path.empty()) {
    found.files = own_files(keys, split);
    found.told = told(found.files);
    return found;
  }
  std::vector<JsonlFile> all = find_jsonl(config.path, "path");
  const std::string first = told(all);
  std::vector<JsonlFile> validation = others(config.validation(), Split::validation),
                         test = others(config.test(), Split::test);
  std::error_code error;
  for (const auto* held_out : {&validation, &test})
    for (const JsonlFile& own : *held_out)
      std::erase_if(all, [&](const JsonlFile& file) {
        return file.found && std::filesystem::equivalent(file.path, own.path, error);
      });
  const auto take = [&](std::vector<JsonlFile>& part, Split of, const HeldOutKeys& keys) {
    std::vector<JsonlFile> named;
    for (const JsonlFile& file : all)
      if (file.split == of) named.push_back(file);
    std::erase_if(all, [&](const JsonlFile& file) { return file.split == of; });
    if (!part.empty()) return 0.0;  // from its own path
    if (!named.empty() && keys.fraction.value_or(0) > 0)
      throw std::runtime_error("jsonl: " + keys.name + "_fraction is a share of the training files, and path holds " +
                               told(named) + " for " + keys.name + " by name; leave " + keys.name + "_fraction out");
    part = named;
    return part.empty() ? keys.share() : 0.0;
  };
  found.validation = take(validation, Split::validation, config.validation());
  found.test = take(test, Split::test, config.test());
  found.files = split == Split::validation ? validation : split == Split::test ? test : all;
  found.shared = found.files.empty() || split == Split::train;
  if (found.shared) found.files = all;
  if (found.files.empty())
    throw std::runtime_error("jsonl: path names " + first +
                             ", which the held-out parts have by path or name; name "
                             "files for training beside them");
  found.told = told(found.files);
  return found;
}

}  // namespace

Jsonl::Jsonl(const JsonlConfig& config, uint64_t seed, Split split, const Use* use, bool skip)
    : seed_(seed), split_(split) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("jsonl: " + wrong);
  const Found found = find(config, split);
  Lines read = data::read(config, use && use->columns, skip, found.files);
  std::vector<Line>& lines = read.lines;
  if (found.shared) keep_split(lines, found.validation, found.test, split, found.told);
  skipped_ = read.skipped;
  first_skipped_ = read.first_skipped;
  std::vector<int64_t> counts(found.files.size());
  for (Line& line : lines) {
    try {
      bool cut = false;
      if (use && !fits(line.example, *use, &cut)) {
        ++left_out_;
        continue;
      }
      cut_ += cut;
    } catch (const std::invalid_argument& error) {
      const std::string what = found.files[line.file].path + ":" + std::to_string(line.number) + ": " + error.what();
      if (!skip || dynamic_cast<const TooLong*>(&error)) throw std::runtime_error("jsonl: " + what);
      if (++skipped_ == 1) first_skipped_ = what;
      continue;
    }
    ++counts[line.file];
    line.example.split = split;
    examples_.push_back(std::move(line.example));
  }
  if (examples_.empty())
    throw std::runtime_error("jsonl: all " + std::to_string(left_out_) + " " + part(split) + " examples of " +
                             found.told + " are too long for the context (" + std::to_string(use->context) +
                             " tokens) and are left out (data.truncation: drop)" +
                             (skipped_ > 0 ? ", but for " + std::to_string(skipped_) +
                                                 " broken ones (data.on_error: skip), the first: " + first_skipped_
                                           : "; raise model.max_position_embeddings"));
  if (found.files.size() == 1) return;
  for (size_t i = 0; i < std::min(counts.size(), kToldFiles); ++i)
    files_ += (i > 0 ? ", " : "") + excerpt(found.files[i].path) + " " + std::to_string(counts[i]);
  if (counts.size() > kToldFiles) files_ += ", and " + std::to_string(counts.size() - kToldFiles) + " more";
  files_ = std::to_string(found.files.size()) + " files: " + files_;
}

std::vector<std::string> Jsonl::notes() const {
  std::vector<std::string> notes;
  if (!files_.empty()) notes.push_back(part(split_) + " examples are of " + files_);
  if (skipped_ > 0)
    notes.push_back(std::to_string(skipped_) + " lines of the " + part(split_) +
                    " files are broken and skipped (data.on_error: skip); the first: " + first_skipped_);
  if (cut_ > 0)
    notes.push_back(
        std::to_string(cut_) + " of " + std::to_string(size()) + " " + part(split_) +
        " examples are too long for model.max_position_embeddings, and the ends of their completions are cut "
        "(data.truncation: truncate)");
  return notes;
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
