// Files that are either whole or not there: written beside their place (.tmp), brought to disk, renamed.
// It knows no room; every room that writes files includes it.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace isentrope {

// Every failure throws std::runtime_error naming the file and the reason; where the disk is full, also the
// bytes needed and those free. Until commit() returns, what stood under the name stays; a writer that is not
// committed leaves nothing.
class DurableFile {
 public:
  DurableFile(const std::string& file, int64_t bytes);  // bytes: the size it will have, for errors
  ~DurableFile();
  DurableFile(const DurableFile&) = delete;
  DurableFile& operator=(const DurableFile&) = delete;
  void write(const void* data /* [bytes] */, int64_t bytes);
  // Replaces bytes that were written before, such as a header that counts what followed it.
  void overwrite(int64_t offset, const void* data /* [bytes] */, int64_t bytes);
  void commit();

 private:
  [[noreturn]] void fail(const char* what) const;
  std::string file_, temporary_;
  int64_t bytes_;
  int fd_;
};

// ::open with O_CLOEXEC and the rights that the umask leaves, for files of the program's own: the descriptor is never one of the
// standard ones, which a process may have been started without; what others write to those would go into the file. −1 and
// errno where it fails.
int open_file(const std::string& file, int flags);

// Writes all, in as many calls as it takes. false and errno where it cannot.
bool write_whole(int fd, const void* data /* [bytes] */, int64_t bytes);

// "FILE: WHAT: <reason of errno>"; where a disk, a quota or a limit is full also the bytes needed and those free, and how to mend it.
std::string write_problem(const std::string& file, const std::string& what, int64_t bytes);

void write_durably(const std::string& file, std::string_view content);
std::string read_whole(const std::string& file);
void sync_folder(const std::string& dir);  // makes renames within dir survive a loss of power

}  // namespace isentrope
