#include "csrc/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#include "csrc/durable_file.h"
#include "csrc/message.h"

namespace isentrope::train {
namespace fs = std::filesystem;

namespace {

// "run.dir=…-2", a folder that is not there yet, as a shell and then YAML read it back.
std::string another(std::string dir) {
  while (dir.size() > 1 && dir.back() == '/') dir.pop_back();
  dir += '-';
  int number = 2;
  while (fs::exists(dir + std::to_string(number))) ++number;
  dir += std::to_string(number);
  if (dir.find_first_of(":#[]{},&*!|>'\"%@`?\\\n") != std::string::npos || dir.starts_with(" ") ||
      dir.starts_with("-")) {
    for (size_t at = 0; (at = dir.find('\'', at)) != std::string::npos; at += 2) dir.insert(at, 1, '\'');
    dir.insert(0, 1, '\'').push_back('\'');
  }
  return shell_quoted("run.dir=" + dir);
}

}  // namespace

RunFolder::RunFolder(const std::string& dir, bool resume) : dir_(dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) throw std::runtime_error(dir + ": the run's folder cannot be made: " + error.message() + "; see run.dir");

  // The lock belongs to the open file: the system lets go of it when the process ends, however it ends.
  const std::string file = dir + "/lock";
  lock_ = open_file(file, O_RDWR | O_CREAT);
  if (lock_ < 0) throw std::runtime_error(file + ": cannot be opened: " + std::strerror(errno));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(lock_);
    if (reason != EWOULDBLOCK) throw std::runtime_error(file + ": cannot be locked: " + std::strerror(reason));
    std::string holder = read_whole(file);
    holder.erase(holder.find_last_not_of(" \n") + 1);
    throw std::runtime_error(dir + ": another trainer (process " + (holder.empty() ? "unknown" : holder) +
                             ") is running in this folder. Wait for it, stop it and add --resume, or give this run "
                             "another folder: " +
                             another(dir));
  }

  const bool used = fs::exists(metrics()) || fs::exists(dir + "/checkpoints");
  if (used && !resume) {
    ::close(lock_);
    throw std::runtime_error(dir +
                             ": this folder already holds a run. Add --resume to go on with it, or give this "
                             "run another folder: " +
                             another(dir));
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (::ftruncate(lock_, 0) != 0 || ::pwrite(lock_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    const int reason = errno;
    ::close(lock_);
    throw std::runtime_error(file + ": cannot be written: " + std::strerror(reason));
  }
}

RunFolder::~RunFolder() { ::close(lock_); }

}  // namespace isentrope::train
