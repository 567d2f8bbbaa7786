// A corpus of text files, as tokens: found, split, tokenized once into shards (token_shard.h), then mapped.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/split.h"
#include "csrc/data/token_shard.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::data {

struct CorpusConfig {
  std::vector<std::string> paths = {};
  std::string validation_path = "";
  std::string test_path = "";
  std::vector<std::string> suffixes = {".txt"};
  std::vector<std::string> exclude = {};
  std::vector<std::string> python_sources = {};
  std::optional<double> validation_fraction = {};
  std::optional<double> test_fraction = {};
  std::string cache = "runs/tokens";

  template <class Visitor>
  void visit(Visitor& v) {
    v("paths", paths,
      "Files, folders (searched with all that is below them, hidden names left out) and patterns such as "
      "text/*.txt; relative to the folder the trainer is started in.");
    v("validation_path", validation_path,
      "File, folder or pattern of the validation text; empty to take a share of paths. Its files are not trained on, "
      "whatever paths says.");
    v("test_path", test_path, "The same for test.");
    v("suffixes", suffixes,
      "How the names of a folder's files end; empty for all files. A file named in paths counts anyway.");
    v("exclude", exclude, "Names of folders that are left out wherever they stand below a folder of paths.");
    v("python_sources", python_sources,
      "Add the sources (.py), without tests, of packages of the python3 on the PATH, by name; stdlib is its standard "
      "library.");
    v("validation_fraction", validation_fraction,
      "Share of the files held out for validation where validation_path is empty; 0.05 where it is not written. A hash "
      "of a file's path below its folder chooses, and where it chooses none, the file that is nearest. Of fewer than "
      "three "
      "files each is cut: its end is held out. 0: no validation.",
      between(0, 1));
    v("test_fraction", test_fraction, "The same for test, where test_path is empty.", between(0, 1));
    v("cache", cache,
      "Folder of the token shards, two bytes a token, or four of a vocabulary above 65,536; they are used again until "
      "a file or the tokenizer "
      "changes.");
  }
  HeldOutKeys validation() const { return {"validation", validation_path, validation_fraction}; }
  HeldOutKeys test() const { return {"test", test_path, test_fraction}; }
  std::string problem() const;
  bool has(Split split) const {  // whether the keys leave anything for it
    return split == Split::train || (split == Split::validation ? validation() : test()).any();
  }
};

struct CorpusFile {
  std::string path;  // to open it
  std::string name;  // below its folder; decides its split
  int64_t bytes;
  int64_t modified;          // nanoseconds of the system's clock
  Split own = Split::train;  // validation, test: the one that has a path of its own, which named the file
};

// What a search of folders passed over. Hidden names and excluded folders are not counted.
struct LeftOutFiles {
  std::map<std::string, int64_t> suffixes =
      {};                                   // files whose names end otherwise than in CorpusConfig::suffixes, by suffix
  std::vector<std::string> irregular = {};  // what is no regular file: a device, a pipe, a broken link

  int64_t by_suffix() const;
  std::string told() const;  // of suffixes, the most frequent first: "3 .md, 1 .py, 1 without a suffix"
};

// The files of a corpus: paths in the order of the configuration, then Python packages, validation_path and test_path, the files
// of each by name. A file that is met twice counts once, and for validation_path, test_path and paths in this order.
// Throws std::invalid_argument for a config with a problem() and std::runtime_error for a path that does not exist, a path or
// pattern without a file, paths whose files are all held out, a missing python3, and a package that it does not have.
// What is no regular file is left out of folders, and refused where it is named itself. left_out: what of folders does not count.
std::vector<CorpusFile> find_files(const CorpusConfig& config, LeftOutFiles* left_out = nullptr);

// How many of the files belong to a split, in whole or in part; empty ones do not count.
int64_t count_files(const std::vector<CorpusFile>& files, const CorpusConfig& config, Split split);

// The tokens of one split: the files of it in the order of find_files, each ended by the tokenizer's end of
// sequence; empty files are left out. Shards are written into config.cache where there is none of the same files
// (path, size, time of change), splits and tokenizer; processes that want the same at once wait for the first.
// Throws as find_files does, and std::runtime_error with the file for text that the tokenizer does not take and
// for a cache that cannot be written.
std::shared_ptr<const TokenShard> open_corpus(const CorpusConfig& config, const Tokenizer& tokenizer, Split split);

}  // namespace isentrope::data
