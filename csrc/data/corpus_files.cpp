// Which files a corpus is made of.

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <set>
#include <stdexcept>

#include "csrc/data/corpus.h"
#include "csrc/data/glob_paths.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

namespace fs = std::filesystem;

bool contains(const std::vector<std::string>& list, const std::string& name) {
  return std::find(list.begin(), list.end(), name) != list.end();
}

bool has_suffix(const std::string& name, const std::vector<std::string>& suffixes) {
  return suffixes.empty() ||
         std::any_of(suffixes.begin(), suffixes.end(), [&](const auto& suffix) { return name.ends_with(suffix); });
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "any name" : text;
}

[[noreturn]] void cannot_read(const fs::path& path, const std::string& why) {
  throw std::runtime_error("corpus: " + path.string() + " cannot be read: " + why +
                           "; mend it, or leave it out of data.corpus.paths (data.corpus.exclude leaves folders out)");
}

std::map<std::string, int64_t> counted(const std::vector<fs::path>& files) {
  std::map<std::string, int64_t> suffixes;
  for (const fs::path& file : files) ++suffixes[file.extension().string()];
  return suffixes;
}

CorpusFile described(const fs::path& path, const std::string& name) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  const auto modified = error ? fs::file_time_type() : fs::last_write_time(path, error);
  if (error) cannot_read(path, error.message());
  return {path.string(), name, static_cast<int64_t>(bytes), static_cast<int64_t>(modified.time_since_epoch().count())};
}

// What folders hold beside the files that count.
struct PassedOver {
  std::vector<fs::path> otherwise;     // files whose names end otherwise
  std::vector<std::string> irregular;  // no regular files
};

// Every file below folder whose name ends in one of suffixes, by name.
std::vector<CorpusFile> files_below(const std::string& folder, const std::vector<std::string>& suffixes,
                                    const std::vector<std::string>& exclude, PassedOver& passed) {
  std::vector<CorpusFile> files;
  std::error_code error;
  std::string at = folder;  // a folder that cannot be opened is told when the search goes on from it
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    at = entry->path().string();
    std::error_code none;
    if (entry->is_directory(none)) {
      if (name.starts_with('.') || contains(exclude, name)) entry.disable_recursion_pending();
    } else if (name.starts_with('.')) {
      continue;
    } else if (!has_suffix(name, suffixes)) {
      if (entry->is_regular_file(none)) passed.otherwise.push_back(entry->path());
    } else if (entry->is_regular_file(none)) {
      files.push_back(described(entry->path(), entry->path().lexically_relative(folder).generic_string()));
    } else {
      passed.irregular.push_back(at);
    }
  }
  if (error) cannot_read(at, error.message());
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return files;
}

// The folder of a package; found, not imported.
std::string python_sources(const std::string& package) {
  const std::string ask = package == "stdlib"
                              ? "python3 -c 'import sysconfig; print(sysconfig.get_paths()[\"stdlib\"])'"
                              : "python3 -c 'import importlib.util; print(importlib.util.find_spec(\"" + package +
                                    "\").submodule_search_locations[0])'";
  std::string folder;
  if (std::FILE* answer = ::popen((ask + " 2>/dev/null").c_str(), "r")) {
    std::array<char, 4096> line{};
    if (std::fgets(line.data(), line.size(), answer)) folder = line.data();
    ::pclose(answer);
  }
  folder.erase(folder.find_last_not_of("\n") + 1);
  if (!fs::is_directory(folder))
    throw std::runtime_error(
        "corpus: python_sources: `" + ask + "` should print a folder and printed \"" + folder + "\"; install " +
        (package == "stdlib" ? "python3" : package + " for the python3 on the PATH") + ", or name folders in paths");
  return folder;
}

// The files that one path names: itself, those of a folder, those that match a pattern.
std::vector<CorpusFile> files_at(const std::string& path, const std::string& key, const CorpusConfig& config,
                                 PassedOver& passed) {
  std::error_code error;
  const bool exists = fs::exists(path, error), pattern = path.find_first_of("*?[") != std::string::npos && !exists;
  if (error) cannot_read(excerpt(path, 200), error.message());
  if (!pattern && !exists)
    throw std::runtime_error("corpus: there is no file or folder " + excerpt(path, 200) + " (seen from " +
                             fs::current_path().string() + "); mend data.corpus." + key);
  std::vector<CorpusFile> found;
  for (const std::string& place : pattern ? glob_paths("corpus", path) : std::vector<std::string>{path}) {
    if (fs::is_directory(place, error))
      for (CorpusFile& file : files_below(place, config.suffixes, config.exclude, passed))
        found.push_back(std::move(file));
    else if (!fs::is_regular_file(place, error))
      cannot_read(place, "it is neither a file nor a folder, but a device, a pipe or the like");
    else
      found.push_back(described(place, fs::path(place).filename().string()));
  }
  if (!found.empty()) return found;
  const LeftOutFiles others{.suffixes = counted(passed.otherwise)};
  throw std::runtime_error(
      "corpus: no file " +
      (pattern ? "matches " + path : "below " + path + " ends in one of " + joined(config.suffixes)) +
      (others.suffixes.empty() ? "" : " (there are " + others.told() + ")") + "; mend data.corpus." + key +
      " or data.corpus.suffixes");
}

}  // namespace

int64_t LeftOutFiles::by_suffix() const {
  int64_t sum = 0;
  for (const auto& [suffix, count] : suffixes) sum += count;
  return sum;
}

std::string LeftOutFiles::told() const {
  constexpr size_t kTold = 5;  // suffixes: what a line has room for
  std::vector<std::pair<int64_t, std::string>> order;
  for (const auto& [suffix, count] : suffixes) order.emplace_back(-count, suffix);
  std::sort(order.begin(), order.end());
  std::string text;
  int64_t rest = by_suffix();
  for (size_t i = 0; i < std::min(order.size(), kTold); ++i) {
    const auto& [count, suffix] = order[i];
    text += (i ? ", " : "") + std::to_string(-count) + (suffix.empty() ? " without a suffix" : " " + excerpt(suffix));
    rest += count;
  }
  return text + (rest > 0 ? ", " + std::to_string(rest) + " of other suffixes" : "");
}

std::string CorpusConfig::problem() const {
  if (paths.empty() && python_sources.empty())
    return "paths is empty; name files or folders, or write python_sources: [stdlib]";
  for (const std::string& package : python_sources)
    if (package.empty() ||
        !std::all_of(package.begin(), package.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; }))
      return "python_sources holds \"" + package + "\", which is no name of a package, such as torch";
  for (const HeldOutKeys& keys : {validation(), test()}) {
    if (const std::string wrong = keys.problem(); !wrong.empty()) return wrong;
    if (keys.path.find("**") != std::string::npos)
      return keys.name + "_path is \"" + keys.path +
             "\"; a folder is searched with all that is below it: name the folder itself";
  }
  if (validation().share() + test().share() >= 1)
    return "validation_fraction + test_fraction leave nothing for training";
  for (const std::string& path : paths)
    if (path.empty() || path.find("**") != std::string::npos)
      return "paths holds \"" + path + "\"; a folder is searched with all that is below it: name the folder itself";
  if (cache.empty()) return "cache is empty; name a folder for the token shards";
  return "";
}

std::vector<CorpusFile> find_files(const CorpusConfig& config, LeftOutFiles* left_out) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("corpus: " + wrong);
  std::set<std::string> met;  // by their true paths
  PassedOver passed;
  const auto true_path = [](const fs::path& path) {
    std::error_code error;
    const std::string name = fs::canonical(path, error).string();
    if (error) cannot_read(path, error.message());
    return name;
  };
  const auto add = [&](std::vector<CorpusFile>& files, Split own, std::vector<CorpusFile> more) {
    for (CorpusFile& file : more) {
      file.own = own;
      if (met.insert(true_path(file.path)).second) files.push_back(std::move(file));
    }
  };
  std::vector<CorpusFile> held_out, files;
  for (const auto& [keys, own] : {std::pair{config.validation(), Split::validation}, {config.test(), Split::test}})
    if (!keys.path.empty()) add(held_out, own, files_at(keys.path, keys.name + "_path", config, passed));
  for (const std::string& path : config.paths) add(files, Split::train, files_at(path, "paths", config, passed));
  for (const std::string& package : config.python_sources) {
    PassedOver not_told;  // of a package nobody expects but its sources
    add(files, Split::train,
        files_below(python_sources(package), {".py"},
                    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}, not_told));
    passed.irregular.insert(passed.irregular.end(), not_told.irregular.begin(), not_told.irregular.end());
  }
  if (files.empty())
    throw std::runtime_error(
        "corpus: every file of data.corpus.paths is one of validation_path or test_path, which are not trained on; "
        "name "
        "others");
  files.insert(files.end(), held_out.begin(), held_out.end());
  if (left_out) {
    std::vector<fs::path> others;  // each once, and none that another path names
    for (const fs::path& path : passed.otherwise)
      if (met.insert(true_path(path)).second) others.push_back(path);
    *left_out = {.suffixes = counted(others), .irregular = passed.irregular};
  }
  return files;
}

}  // namespace isentrope::data
