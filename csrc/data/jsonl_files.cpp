#include "csrc/data/jsonl_files.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <stdexcept>

#include "csrc/data/glob_paths.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void cannot_read(const std::string& path, const std::string& why) {
  throw std::runtime_error("jsonl: " + excerpt(path, 300) + " cannot be read: " + why);
}

bool is_jsonl(const std::string& name) { return name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"); }

// The split that a name says by its last word that says one: "data/train-00000-of-00002.jsonl".
std::optional<Split> split_said(const std::string& name) {
  static const std::vector<std::pair<Split, std::set<std::string>>> kWords{
      {Split::train, {"train", "training"}},
      {Split::validation, {"validation", "valid", "val", "dev"}},
      {Split::test, {"test", "testing", "eval", "evaluation"}}};
  std::optional<Split> said;
  std::string word;
  for (size_t i = 0; i <= name.size(); ++i) {
    if (i < name.size() && std::isalnum(static_cast<unsigned char>(name[i]))) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(name[i])));
      continue;
    }
    for (const auto& [split, words] : kWords)
      if (words.contains(word)) said = split;
    word.clear();
  }
  return said;
}

std::vector<JsonlFile> files_below(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::error_code none;
    if (entry->is_directory(none)) {
      if (name.starts_with('.')) entry.disable_recursion_pending();
    } else if (!name.starts_with('.') && is_jsonl(name) && entry->is_regular_file(none)) {
      names.push_back(entry->path().lexically_relative(folder).generic_string());
    }
  }
  if (error) cannot_read(folder, error.message());
  if (names.empty())
    throw std::runtime_error("jsonl: the folder " + excerpt(folder, 300) +
                             " holds no file that ends in .jsonl or .jsonl.gz");
  std::sort(names.begin(), names.end());
  std::vector<JsonlFile> files;
  for (const std::string& name : names) files.push_back({(fs::path(folder) / name).string(), split_said(name), true});
  return files;
}

}  // namespace

std::string nearest_file(const std::string& path) {
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

std::vector<JsonlFile> find_jsonl(const std::vector<std::string>& paths, const std::string& key) {
  std::vector<JsonlFile> files;
  std::set<std::string> met;
  const auto add = [&](const JsonlFile& file) {
    std::error_code error;
    const fs::path true_path = fs::canonical(file.path, error);
    if (met.insert(error ? file.path : true_path.string()).second) files.push_back(file);
  };
  for (const std::string& path : paths) {
    std::error_code error;
    const bool exists = fs::exists(path, error), pattern = !exists && path.find_first_of("*?[") != std::string::npos;
    const std::vector<std::string> places = pattern ? glob_paths("jsonl", path) : std::vector<std::string>{path};
    if (places.empty())
      throw std::runtime_error("jsonl: no file matches " + excerpt(path, 300) + " (data.jsonl." + key + ", seen from " +
                               fs::current_path().string() + ")");
    for (const std::string& place : places) {
      if (fs::is_directory(place, error))
        for (const JsonlFile& file : files_below(place)) add(file);
      else if (fs::is_regular_file(place, error))
        add({place, std::nullopt, pattern});
      else
        throw std::runtime_error("jsonl: " + excerpt(place, 300) + " is not a file" + nearest_file(place));
    }
  }
  return files;
}

// ---- lines -----------------------------------------------------------------------------------------------------------

// zlib's own reader of files takes what is no gzip for plain text, and ends at a damaged member without a word.
class LineFile::Gzip {
 public:
  Gzip(std::ifstream& file, const std::string& path) : file_(file), path_(path) {
    constexpr int kGzip = 16;  // of zlib.h: added to the window's bits, a gzip header is wanted
    if (::inflateInit2(&stream_, MAX_WBITS + kGzip) != Z_OK) throw std::bad_alloc();
  }
  ~Gzip() { ::inflateEnd(&stream_); }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  bool next(std::string& line) {
    line.clear();
    for (;;) {
      const auto end = std::find(at_, filled_, '\n');
      line.append(at_, end);
      at_ = end;
      if (at_ != filled_) {
        ++at_;
        return true;
      }
      if (!fill()) return !line.empty();
    }
  }

 private:
  bool read() {
    if (stream_.avail_in > 0) return true;
    file_.read(in_.data(), static_cast<std::streamsize>(in_.size()));
    if (file_.bad()) cannot_read(path_, std::strerror(errno));
    stream_.next_in = reinterpret_cast<Bytef*>(in_.data());
    stream_.avail_in = static_cast<uInt>(file_.gcount());
    return stream_.avail_in > 0;
  }

  // The next decompressed bytes; false at the end of the last member.
  bool fill() {
    stream_.next_out = reinterpret_cast<Bytef*>(out_.data());
    stream_.avail_out = static_cast<uInt>(out_.size());
    while (stream_.avail_out == out_.size()) {
      if (!read()) {
        if (!begun_) return padded("it is empty, and a .gz file is not");
        cannot_read(path_, "the compressed data end too early; the file is incomplete");
      }
      if (!begun_ && members_ > 0 && *stream_.next_in == 0) {  // zeros fill up the block of a tape
        ++stream_.next_in, --stream_.avail_in;
        continue;
      }
      begun_ = true;
      const int result = ::inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_STREAM_END) {
        begun_ = false;
        ++members_;
        ::inflateReset(&stream_);
      } else if (result == Z_MEM_ERROR) {
        throw std::bad_alloc();
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        cannot_read(path_, std::string("its name ends in .gz, and the compressed data are damaged or none (") +
                               (stream_.msg ? stream_.msg : "zlib") + ")");
      }
    }
    at_ = out_.data();
    filled_ = out_.data() + (out_.size() - stream_.avail_out);
    return true;
  }
  bool padded(const char* otherwise) const {
    if (members_ == 0) cannot_read(path_, otherwise);
    return false;
  }

  std::ifstream& file_;
  const std::string& path_;
  z_stream stream_{};
  bool begun_ = false;   // within a member
  int64_t members_ = 0;  // that are whole
  std::array<char, 1 << 15> in_{};
  std::array<char, 1 << 16> out_{};
  const char *at_ = out_.data(), *filled_ = at_;
};

LineFile::LineFile(const std::string& path) : path_(path), file_(path, std::ios::binary) {
  if (!file_) cannot_read(path, std::strerror(errno));
  if (path.ends_with(".gz")) gzip_ = std::make_unique<Gzip>(file_, path_);
}

LineFile::~LineFile() = default;

bool LineFile::next(std::string& line) {
  const bool there = gzip_ ? gzip_->next(line) : static_cast<bool>(std::getline(file_, line));
  if (!there && !gzip_ && file_.bad()) cannot_read(path_, std::strerror(errno));
  if (!there) return false;
  if (++number_ == 1 && line.starts_with("\xEF\xBB\xBF")) line.erase(0, 3);  // a byte order mark
  return true;
}

}  // namespace isentrope::data
