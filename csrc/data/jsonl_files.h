// The files of data.jsonl, found and read line by line, plain or compressed (.gz).
#pragma once
#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/example.h"

namespace isentrope::data {

struct JsonlFile {
  std::string path;
  std::optional<Split> split;  // that its name says; of a folder's files alone
  bool found;                  // by a pattern or in a folder, not named itself
};

// A file is itself. Of a folder, with all that is below it, hidden names left out: files that end in .jsonl or .jsonl.gz, each of the
// split that a word of its name, or else of the nearest folder's, says: train, training; validation, valid, val, dev; test, eval,
// evaluation. A pattern is what it matches. In the order of paths, those of one path by name, each once. key: of paths, for errors.
// Throws std::runtime_error for a path that is not there and one without a file.
std::vector<JsonlFile> find_jsonl(const std::vector<std::string>& paths, const std::string& key);

// "; did you mean data/train.jsonl?", or that the folder is not there.
std::string nearest_file(const std::string& path);

// The lines of a file in turn, a byte order mark left out. One whose name ends in .gz is decompressed, all its members one after the
// other. Throws std::runtime_error with the file: it cannot be opened or read, or as .gz is none, is damaged, or ends too early.
class LineFile {
 public:
  explicit LineFile(const std::string& path);
  ~LineFile();
  bool next(std::string& line);               // false at the end
  int64_t number() const { return number_; }  // of the line that next() gave, from 1
  std::string where() const { return path_ + ":" + std::to_string(number_); }

 private:
  class Gzip;
  std::string path_;
  std::ifstream file_;
  std::unique_ptr<Gzip> gzip_;  // null for a plain file
  int64_t number_ = 0;
};

}  // namespace isentrope::data
