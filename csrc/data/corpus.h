// A corpus of text files, as tokens: found, split, tokenized once into shards (token_shard.h), then mapped.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/token_shard.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::data {

struct CorpusConfig {
  std::vector<std::string> paths = {};
  std::vector<std::string> suffixes = {".txt"};
  std::vector<std::string> exclude = {};
  std::vector<std::string> python_sources = {};
  double validation_fraction = 0.05;
  double test_fraction = 0.05;
  std::string cache = "runs/tokens";

  template <class Visitor>
  void visit(Visitor& v) {
    v("paths", paths,
      "Files, folders (searched with all that is below them, hidden names left out) and patterns such as "
      "text/*.txt; relative to the folder the trainer is started in.");
    v("suffixes", suffixes,
      "How the names of a folder's files end; empty for all files. A file named in paths counts anyway.");
    v("exclude", exclude, "Names of folders that are left out wherever they stand below a folder of paths.");
    v("python_sources", python_sources,
      "Add the sources (.py), without tests, of packages of the python3 on the PATH, by name; stdlib is its standard "
      "library.");
    v("validation_fraction", validation_fraction,
      "Share of the files held out for validation; a hash of a file's path below its folder chooses, and where it "
      "chooses "
      "none, the file that is nearest. Of fewer than three files each is cut: its end is held out. 0: no validation.",
      between(0, 1));
    v("test_fraction", test_fraction, "The same for test.", between(0, 1));
    v("cache", cache,
      "Folder of the token shards, two bytes a token; they are used again until a file or the tokenizer "
      "changes.");
  }
  std::string problem() const;
  bool has(Split split) const {  // whether the keys leave anything for it
    return split == Split::train || (split == Split::validation ? validation_fraction : test_fraction) > 0;
  }
};

struct CorpusFile {
  std::string path;  // to open it
  std::string name;  // below its folder; decides its split
  int64_t bytes;
  int64_t modified;  // nanoseconds of the system's clock
};

// The files of a corpus: paths in the order of the configuration, Python packages last, the files of each by
// name. A file that is met twice counts once. Throws std::invalid_argument for a config with a problem() and
// std::runtime_error for a path that does not exist, a path or pattern without a file, a missing python3, and a package that it does not have.
// What is no regular file (a device, a pipe, a broken link) is left out of folders, and refused where it is named itself.
// left_out: is told of each.
std::vector<CorpusFile> find_files(const CorpusConfig& config, std::vector<std::string>* left_out = nullptr);

// The tokens of one split: the files of it in the order of find_files, each ended by the tokenizer's end of
// sequence; empty files are left out. Shards are written into config.cache where there is none of the same files
// (path, size, time of change), splits and tokenizer; processes that want the same at once wait for the first.
// Throws as find_files does, and std::runtime_error with the file for text that the tokenizer does not take and
// for a cache that cannot be written.
std::shared_ptr<const TokenShard> open_corpus(const CorpusConfig& config, const Tokenizer& tokenizer, Split split);

}  // namespace isentrope::data
