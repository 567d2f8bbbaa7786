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

CorpusFile described(const fs::path& path, const std::string& name) {
  std::error_code error;
  const auto bytes = fs::file_size(path, error);
  const auto modified = error ? fs::file_time_type() : fs::last_write_time(path, error);
  if (error) cannot_read(path, error.message());
  return {path.string(), name, static_cast<int64_t>(bytes), static_cast<int64_t>(modified.time_since_epoch().count())};
}

// Every file below folder whose name ends in one of suffixes, by name.
std::vector<CorpusFile> files_below(const std::string& folder, const std::vector<std::string>& suffixes,
                                    const std::vector<std::string>& exclude, std::vector<std::string>* left_out) {
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
    } else if (!name.starts_with('.') && has_suffix(name, suffixes)) {
      if (entry->is_regular_file(none))
        files.push_back(described(entry->path(), entry->path().lexically_relative(folder).generic_string()));
      else if (left_out)
        left_out->push_back(at);
    }
  }
  if (error) cannot_read(at, error.message());
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
  hash.add("no part is empty by chance");  // how files are split: shards that were split otherwise are made anew
  for (const CorpusFile& file : files) {
    hash.add(file.path);
    hash.add(file.name);
    hash.add(static_cast<uint64_t>(file.bytes));
    hash.add(static_cast<uint64_t>(file.modified));
  }
  return hash.value;
}

// A piece of a file: bytes from … to − 1 as shares of its length.
struct Piece {
  const CorpusFile* file;
  double from, to;
};

// What of the files belongs to the split. Whole files do, where there are enough for every part; of fewer each is cut.
std::vector<Piece> pieces_of(const std::vector<CorpusFile>& files, const CorpusConfig& config, Split split) {
  const double validation = config.validation_fraction, test = config.test_fraction, train = 1 - validation - test;
  std::vector<std::string_view> names;
  std::vector<Piece> pieces;
  for (const CorpusFile& file : files)
    if (file.bytes > 0) names.emplace_back(file.name), pieces.push_back({&file, 0, 1});
  const std::set<std::string_view> different(names.begin(), names.end());
  if (different.size() < size_t{1} + (validation > 0) + (test > 0)) {
    for (Piece& piece : pieces) {
      piece.from = split == Split::train ? 0 : split == Split::validation ? train : train + validation;
      piece.to = split == Split::train ? train : split == Split::validation ? train + validation : 1;
    }
    return pieces;
  }
  const std::vector<Split> splits = splits_of(names, validation, test);
  std::vector<Piece> own;
  for (size_t i = 0; i < pieces.size(); ++i)
    if (splits[i] == split) own.push_back(pieces[i]);
  return own;
}

// The place in text nearest below a share of its length where a line begins, or where none does, a character.
size_t cut_at(const std::string& text, double share) {
  const auto at = static_cast<size_t>(share * static_cast<double>(text.size()));
  if (share >= 1 || at == 0) return share >= 1 ? text.size() : 0;
  if (const size_t line = text.rfind('\n', at - 1); line != std::string::npos) return line + 1;
  size_t begin = at;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
  return begin;
}

void write_shard(const std::string& shard, uint64_t fingerprint, const std::vector<Piece>& pieces,
                 const Tokenizer& tokenizer) {
  int64_t bytes = 0;
  for (const Piece& piece : pieces)
    bytes += static_cast<int64_t>(sizeof(uint16_t)) *
             (static_cast<int64_t>((piece.to - piece.from) * static_cast<double>(piece.file->bytes)) + 1);
  TokenShardWriter writer(shard, fingerprint, bytes);
  for (const Piece& piece : pieces) {
    const std::string text = read_whole(piece.file->path);
    const size_t from = cut_at(text, piece.from), to = cut_at(text, piece.to);
    std::vector<int64_t> tokens;
    try {
      tokens = tokenizer.encode(std::string_view(text).substr(from, to - from));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error("corpus: " + piece.file->path + ": " + error.what());
    }
    if (tokens.empty()) continue;
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

std::vector<CorpusFile> find_files(const CorpusConfig& config, std::vector<std::string>* left_out) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("corpus: " + wrong);
  std::vector<CorpusFile> files;
  std::set<std::string> met;  // by their true paths
  const auto add = [&](const std::vector<CorpusFile>& more) {
    for (const CorpusFile& file : more) {
      std::error_code error;
      const std::string true_path = fs::canonical(file.path, error).string();
      if (error) cannot_read(file.path, error.message());
      if (met.insert(true_path).second) files.push_back(file);
    }
  };
  for (const std::string& path : config.paths) {
    std::error_code error;
    const bool exists = fs::exists(path, error), pattern = path.find_first_of("*?[") != std::string::npos && !exists;
    if (error) cannot_read(excerpt(path, 200), error.message());
    if (!pattern && !exists)
      throw std::runtime_error("corpus: there is no file or folder " + excerpt(path, 200) + " (seen from " +
                               fs::current_path().string() + "); mend data.corpus.paths");
    std::vector<CorpusFile> found;
    for (const std::string& place : pattern ? matches(path) : std::vector<std::string>{path}) {
      if (fs::is_directory(place, error))
        for (CorpusFile& file : files_below(place, config.suffixes, config.exclude, left_out))
          found.push_back(std::move(file));
      else if (!fs::is_regular_file(place, error))
        cannot_read(place, "it is neither a file nor a folder, but a device, a pipe or the like");
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
                    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}, left_out));
  return files;
}

std::shared_ptr<const TokenShard> open_corpus(const CorpusConfig& config, const Tokenizer& tokenizer, Split split) {
  const std::vector<CorpusFile> files = find_files(config);
  const uint64_t fingerprint = fingerprint_of(files);
  const std::string shard = config.cache + "/" + shard_name(config, tokenizer) + "." + name_of(split) + ".tokens";
  const CacheLock lock(config.cache);
  std::shared_ptr<const TokenShard> tokens;
  if (TokenShard::fingerprint_of(shard) == fingerprint) {
    try {
      tokens = std::make_shared<const TokenShard>(shard);
    } catch (const std::runtime_error&) {  // damaged: a cache is made anew
    }
  }
  if (!tokens) {
    write_shard(shard, fingerprint, pieces_of(files, config, split), tokenizer);
    tokens = std::make_shared<const TokenShard>(shard);
  }
  const auto all = tokens->tokens();
  const auto largest = all.empty() ? all.end() : std::max_element(all.begin(), all.end());
  if (largest != all.end() && *largest >= tokenizer.size())
    throw std::runtime_error("corpus: " + shard + " is damaged: token " + std::to_string(largest - all.begin()) +
                             " is " + std::to_string(*largest) + ", and the tokenizer has " +
                             std::to_string(tokenizer.size()) + "; delete the file, and it is made anew");
  return tokens;
}

}  // namespace isentrope::data
