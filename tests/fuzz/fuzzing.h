// What the targets of libFuzzer share. Each defines LLVMFuzzerTestOneInput, which gives one reader an input: it may be read or be
// refused, and whatever else happens (a crash, an exception of another kind, a sanitizer's finding, too long, too large) is a fault.
#pragma once
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/message.h"

namespace isentrope::fuzz {

// Ends the process as a fault, with what was expected.
[[noreturn]] inline void fault(const std::string& what) {
  std::fprintf(stderr, "fault: %s\n", what.c_str());
  std::abort();
}
inline void expect(bool holds, const char* what) {
  if (!holds) fault(what);
}

// The input's parts, which a byte 0xFF separates, since it stands in no UTF-8; the last takes the rest.
inline std::vector<std::string> parts_of(const uint8_t* data /* [size] */, size_t size, size_t parts) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> found(parts);
  for (size_t i = 0; i < parts; ++i) {
    const size_t end = i + 1 < parts ? rest.find('\xFF') : std::string_view::npos;
    found[i] = rest.substr(0, end);
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
  return found;
}

// A folder of this process, in memory where the machine has such a place.
class Folder {
 public:
  Folder() {
    std::string pattern =
        (std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : "/tmp") + std::string("/fuzz-XXXXXX");
    if (!::mkdtemp(pattern.data())) fault("no folder for files can be made");
    path_ = pattern;
  }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string write(const char* name, std::string_view content) const {
    const std::string file = path_ + "/" + name;
    std::ofstream(file, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
    return file;
  }
  void remove(const char* name) const { ::unlink((path_ + "/" + name).c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Whether read() came to its end. A refusal is a std::runtime_error or a std::invalid_argument, told in one line.
template <class Read>
bool reads(Read&& read) {
  const auto refused = [](const std::exception& error) {
    const std::string told = message_of();
    if (told.empty() || told.find('\n') != std::string::npos) fault("the refusal is no line: " + told);
    if (told.starts_with("an assumption of")) fault(std::string("it is told as our own mistake: ") + error.what());
  };
  try {
    read();
    return true;
  } catch (const std::runtime_error& error) {
    refused(error);
  } catch (const std::invalid_argument& error) {
    refused(error);
  }
  return false;
}

}  // namespace isentrope::fuzz
