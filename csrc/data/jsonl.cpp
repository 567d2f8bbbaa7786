#include "csrc/data/jsonl.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>
#include <set>
#include <stdexcept>

#include "csrc/data/example_list.h"
#include "csrc/data/jsonl_files.h"
#include "csrc/data/jsonl_line.h"
#include "csrc/data/split.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

constexpr size_t kToldFiles = 8;  // of a list of files, what a note has room for

struct Line {
  size_t file;     // of the list
  int64_t number;  // in the file, from 1
  Example example;
  Conversations conversations = {};  // that are still to be rendered
};

struct Lines {
  std::vector<Line> lines;
  int64_t skipped = 0;
  std::string first_skipped;  // what is wrong with it
};

Lines read(const JsonlConfig& config, const Use* use, bool skip, const std::vector<JsonlFile>& files) {
  const bool columns = use && use->columns;
  Lines read;
  for (size_t i = 0; i < files.size(); ++i) {
    LineFile file(files[i].path);
    const size_t before = read.lines.size();
    const int64_t skipped = read.skipped;
    for (std::string line; file.next(line);) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      try {
        Conversations conversations;
        Example example = example_of(config, line, columns, use && use->positives,
                                     use && use->chat ? &conversations : nullptr, file.where());
        read.lines.push_back({i, file.number(), std::move(example), std::move(conversations)});
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

// Renders the conversations among the lines; those that the template refuses are broken lines.
void render(Lines& read, const Renderer& chat, bool skip, const std::vector<JsonlFile>& files) {
  std::vector<Conversation> conversations;
  for (Line& line : read.lines)
    for (const Conversation& one : {line.conversations.own, line.conversations.rejected})
      if (!one.empty()) conversations.push_back(one);
  if (conversations.empty()) return;
  std::vector<Rendering> renderings = chat(conversations);
  size_t next = 0;
  std::erase_if(read.lines, [&](Line& line) {
    std::string problem;
    const auto render_one = [&](const Conversation& conversation, Example& example) {
      if (conversation.empty()) return;
      Rendering& rendering = renderings.at(next++);
      if (problem.empty()) problem = rendering.problem;
      if (rendering.problem.empty()) apply(std::move(rendering), example);
    };
    render_one(line.conversations.own, line.example);
    if (line.example.rejected) render_one(line.conversations.rejected, *line.example.rejected);
    line.conversations = {};
    if (problem.empty()) return false;
    const std::string what = files[line.file].path + ":" + std::to_string(line.number) + ": " + problem;
    if (!skip) throw std::runtime_error("jsonl: " + what);
    if (++read.skipped == 1) read.first_skipped = what;
    return true;
  });
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

std::vector<Prompt> read_prompts(const std::string& path, bool messages) {
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
      prompts.push_back(prompt_at(line, messages, where));
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
  const std::set<std::string> keys{messages_key, prompt_key, completion_key, answer_key, chosen_key, rejected_key};
  if (keys.contains(""))
    return "messages_key, prompt_key, completion_key, answer_key, chosen_key and rejected_key may not be empty";
  if (chat_template.empty())
    return "chat_template is empty; write default, none, a file, or the name of one of the tokenizer's templates";
  // chosen_key may name the completion's: data with one column for both kinds of phase.
  if (keys.size() < (chosen_key == completion_key ? 5u : 6u))
    return "messages_key, prompt_key, completion_key, answer_key and rejected_key must differ, and chosen_key from all "
           "but completion_key";
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
  Lines read = data::read(config, use, skip, found.files);
  std::vector<Line>& lines = read.lines;
  if (found.shared) keep_split(lines, found.validation, found.test, split, found.told);
  if (use && use->chat) render(read, use->chat, skip, found.files);
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
  return take_of_list(examples_, seed_, split_ == Split::train, first, count);
}

}  // namespace isentrope::data
