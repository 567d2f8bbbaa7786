#include "csrc/data/corpus.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <stdexcept>

#include "csrc/data/split.h"

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

CorpusFile described(const fs::path& path, const std::string& name) {
  return {path.string(), name, static_cast<int64_t>(fs::file_size(path)),
          static_cast<int64_t>(fs::last_write_time(path).time_since_epoch().count())};
}

// Every file below folder whose name ends in one of suffixes, by name.
std::vector<CorpusFile> files_below(const std::string& folder, const std::vector<std::string>& suffixes,
                                    const std::vector<std::string>& exclude) {
  std::vector<CorpusFile> files;
  fs::recursive_directory_iterator entry(folder);
  for (; entry != fs::recursive_directory_iterator(); ++entry) {
    const std::string name = entry->path().filename().string();
    if (entry->is_directory()) {
      if (name.starts_with('.') || contains(exclude, name)) entry.disable_recursion_pending();
    } else if (entry->is_regular_file() && !name.starts_with('.') && has_suffix(name, suffixes)) {
      files.push_back(described(entry->path(), entry->path().lexically_relative(folder).generic_string()));
    }
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return files;
}

std::vector<std::string> matches(const std::string& pattern) {
  glob_t found{};
  const int failed = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  ::globfree(&found);
  if (failed != 0 && failed != GLOB_NOMATCH)
    throw std::runtime_error("corpus: the pattern " + pattern + " could not be searched: " + std::strerror(errno));
  return paths;
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

// Held while shards are looked for and written: one process writes, the others wait and then find them.
class CacheLock {
 public:
  explicit CacheLock(const std::string& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    const std::string file = folder + "/lock";
    if (!error) fd_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0 || ::flock(fd_, LOCK_EX) != 0) {
      const std::string reason = error ? error.message() : std::strerror(errno);
      if (fd_ >= 0) ::close(fd_);
      throw std::runtime_error("corpus: the cache " + folder + " cannot be used: " + reason +
                               "; name another folder in data.corpus.cache");
    }
  }
  ~CacheLock() { ::close(fd_); }
  CacheLock(const CacheLock&) = delete;
  CacheLock& operator=(const CacheLock&) = delete;

 private:
  int fd_ = -1;
};

const char* name_of(Split split) {
  return split == Split::train ? "train" : split == Split::validation ? "validation" : "test";
}

// What the a shard is made of, in two hashes: the configuration gives it its name, the files' state its fingerprint.
std::string shard_name(const CorpusConfig& config, const Tokenizer& tokenizer) {
  Hash hash;
  for (const auto* list : {&config.paths, &config.suffixes, &config.exclude, &config.python_sources}) {
    for (const std::string& text : *list) hash.add(text);
    hash.add(list->size());
  }
  hash.add(std::bit_cast<uint64_t>(config.validation_fraction));
  hash.add(std::bit_cast<uint64_t>(config.test_fraction));
  hash.add(fs::current_path().string());
  const TokenizerConfig& tokens = tokenizer.config();
  for (const std::string& text : {tokens.kind, tokens.characters, tokens.eos}) hash.add(text);
  std::array<char, 17> name{};
  std::snprintf(name.data(), name.size(), "%016llx", static_cast<unsigned long long>(hash.value));
  return name.data();
}

uint64_t fingerprint_of(const std::vector<CorpusFile>& files) {
  Hash hash;
  for (const CorpusFile& file : files) {
    hash.add(file.path);
    hash.add(file.name);
    hash.add(static_cast<uint64_t>(file.bytes));
    hash.add(static_cast<uint64_t>(file.modified));
  }
  return hash.value;
}

void write_shard(const std::string& shard, uint64_t fingerprint, const std::vector<CorpusFile>& files,
                 const CorpusConfig& config, const Tokenizer& tokenizer, Split split) {
  std::vector<CorpusFile> own;
  int64_t bytes = 0;
  for (const CorpusFile& file : files)
    if (file.bytes > 0 && split_of(file.name, config.validation_fraction, config.test_fraction) == split) {
      own.push_back(file);
      bytes += static_cast<int64_t>(sizeof(uint16_t)) * (file.bytes + 1);
    }
  TokenShardWriter writer(shard, fingerprint, bytes);
  for (const CorpusFile& file : own) {
    std::vector<int64_t> tokens;
    try {
      tokens = tokenizer.encode(read_whole(file.path));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error("corpus: " + file.path + ": " + error.what());
    }
    tokens.push_back(tokenizer.eos_id());
    writer.write(tokens);
  }
  writer.commit();
}

}  // namespace

std::string CorpusConfig::problem() const {
  if (paths.empty() && python_sources.empty())
    return "paths is empty; name files or folders, or write python_sources: [stdlib]";
  for (const std::string& package : python_sources)
    if (package.empty() ||
        !std::all_of(package.begin(), package.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; }))
      return "python_sources holds \"" + package + "\", which is no name of a package, such as torch";
  for (const double share : {validation_fraction, test_fraction})
    if (!(share >= 0 && share <= 1)) return "validation_fraction and test_fraction are in 0 … 1";
  if (validation_fraction + test_fraction >= 1) return "validation_fraction + test_fraction leave nothing for training";
  for (const std::string& path : paths)
    if (path.empty() || path.find("**") != std::string::npos)
      return "paths holds \"" + path + "\"; a folder is searched with all that is below it: name the folder itself";
  if (cache.empty()) return "cache is empty; name a folder for the token shards";
  return "";
}

std::vector<CorpusFile> find_files(const CorpusConfig& config) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("corpus: " + wrong);
  std::vector<CorpusFile> files;
  std::set<std::string> met;  // by their true paths
  const auto add = [&](const std::vector<CorpusFile>& more) {
    for (const CorpusFile& file : more)
      if (met.insert(fs::canonical(file.path).string()).second) files.push_back(file);
  };
  for (const std::string& path : config.paths) {
    const bool pattern = path.find_first_of("*?[") != std::string::npos && !fs::exists(path);
    if (!pattern && !fs::exists(path))
      throw std::runtime_error("corpus: there is no file or folder " + path + " (seen from " +
                               fs::current_path().string() + "); mend data.corpus.paths");
    std::vector<CorpusFile> found;
    for (const std::string& place : pattern ? matches(path) : std::vector<std::string>{path}) {
      if (fs::is_directory(place))
        for (CorpusFile& file : files_below(place, config.suffixes, config.exclude)) found.push_back(std::move(file));
      else
        found.push_back(described(place, fs::path(place).filename().string()));
    }
    if (found.empty())
      throw std::runtime_error(
          "corpus: no file " +
          (pattern ? "matches " + path : "below " + path + " ends in one of " + joined(config.suffixes)) +
          "; mend data.corpus.paths or data.corpus.suffixes");
    add(found);
  }
  for (const std::string& package : config.python_sources)
    add(files_below(python_sources(package), {".py"},
                    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}));
  return files;
}

std::shared_ptr<const TokenShard> open_corpus(const CorpusConfig& config, const Tokenizer& tokenizer, Split split) {
  const std::vector<CorpusFile> files = find_files(config);
  const uint64_t fingerprint = fingerprint_of(files);
  const std::string shard = config.cache + "/" + shard_name(config, tokenizer) + "." + name_of(split) + ".tokens";
  const CacheLock lock(config.cache);
  if (TokenShard::fingerprint_of(shard) == fingerprint) {
    try {
      return std::make_shared<const TokenShard>(shard);
    } catch (const std::runtime_error&) {  // damaged: a cache is made anew
    }
  }
  write_shard(shard, fingerprint, files, config, tokenizer, split);
  return std::make_shared<const TokenShard>(shard);
}

}  // namespace isentrope::data
