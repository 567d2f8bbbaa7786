#include "csrc/durable_file.h"

#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace isentrope {
namespace {

std::string folder_of(const std::string& file) {
  const auto parent = std::filesystem::path(file).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

int open_file(const std::string& file, int flags) {
  const int fd = ::open(file.c_str(), flags | O_CLOEXEC, 0666);
  if (fd < 0 || fd > STDERR_FILENO) return fd;
  const int above = ::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  const int error = errno;
  ::close(fd);
  errno = error;
  return above;
}

bool write_whole(int fd, const void* data, int64_t bytes) {
  constexpr int64_t kLargestWrite = int64_t{1} << 30;  // Linux takes at most 2^31 − 4096 bytes a call
  auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    errno = EIO;  // of a write that takes nothing
    const ssize_t written = ::write(fd, at, static_cast<size_t>(std::min(bytes, kLargestWrite)));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    at += written;
    bytes -= written;
  }
  return true;
}

std::string write_problem(const std::string& file, const std::string& what, int64_t bytes) {
  const int error = errno;
  std::string message = file + ": " + what + ": " + std::strerror(error);
  struct statvfs disk {};
  if ((error == ENOSPC || error == EDQUOT || error == EFBIG) && ::statvfs(folder_of(file).c_str(), &disk) == 0)
    message += " (" + std::to_string(bytes) + " bytes needed, " +
               std::to_string(static_cast<uint64_t>(disk.f_bavail) * disk.f_frsize) + " free; " +
               (error == EFBIG ? "raise the limit on the size of files: ulimit -f" : "make room") +
               ", or name another folder in the configuration: run.dir, data.corpus.cache)";
  return message;
}

DurableFile::DurableFile(const std::string& file, int64_t bytes)
    : file_(file), temporary_(file + ".tmp"), bytes_(bytes) {
  fd_ = open_file(temporary_, O_WRONLY | O_CREAT | O_TRUNC);
  if (fd_ < 0) fail("cannot be opened for writing");
}

DurableFile::~DurableFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

void DurableFile::fail(const char* what) const { throw std::runtime_error(write_problem(temporary_, what, bytes_)); }

void DurableFile::write(const void* data, int64_t bytes) {
  if (!write_whole(fd_, data, bytes)) fail("cannot be written");
}

void DurableFile::overwrite(int64_t offset, const void* data, int64_t bytes) {
  if (::lseek(fd_, offset, SEEK_SET) < 0) fail("cannot be written");
  write(data, bytes);
  if (::lseek(fd_, 0, SEEK_END) < 0) fail("cannot be written");
}

void DurableFile::commit() {
  // Some file systems report a full disk here and not before.
  if (::fsync(fd_) != 0) fail("cannot be brought to disk");
  if (::rename(temporary_.c_str(), file_.c_str()) != 0) fail("cannot be renamed into place");
  ::close(fd_);
  fd_ = -1;
}

void write_durably(const std::string& file, std::string_view content) {
  DurableFile out(file, static_cast<int64_t>(content.size()));
  out.write(content.data(), static_cast<int64_t>(content.size()));
  out.commit();
}

std::string read_whole(const std::string& file) {
  errno = 0;
  std::ifstream in(file, std::ios::binary);
  if (!in || std::filesystem::is_directory(file))
    throw std::runtime_error(file + ": cannot be read: " + std::strerror(errno ? errno : EISDIR));
  return {std::istreambuf_iterator<char>(in), {}};
}

void sync_folder(const std::string& dir) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw std::runtime_error(dir + ": cannot be opened: " + std::strerror(errno));
  // EINVAL: a file system that cannot sync folders has nothing to sync.
  const bool failed = ::fsync(fd) != 0 && errno != EINVAL;
  const int error = errno;
  ::close(fd);
  if (failed) throw std::runtime_error(dir + ": cannot be brought to disk: " + std::strerror(error));
}

}  // namespace isentrope
