#include "csrc/train/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
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
  dir = fs::path(dir).lexically_normal().string();
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

// Whether fd is the file that stands under that name now.
bool stands_at(int fd, const std::string& file) {
  struct stat open {
  }, named{};
  return ::fstat(fd, &open) == 0 && ::stat(file.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

bool holds_run(const RunFolder& folder) {
  std::error_code error;
  const auto size = fs::file_size(folder.metrics(), error);
  if (!error && size > 0) return true;
  return !fs::is_empty(folder.dir() + "/checkpoints", error) && !error;
}

}  // namespace

RunFolder::RunFolder(const std::string& dir, bool resume, bool owner) : owner_(owner) {
  std::error_code error;
  if (!dir.empty()) dir_ = fs::absolute(dir, error).lexically_normal().string();
  while (dir_.size() > 1 && dir_.back() == '/') dir_.pop_back();
  if (dir_.empty() || dir_ == "/")
    throw std::runtime_error("run.dir: \"" + dir + "\" is no folder for a run; name one, such as runs/first");
  if (!owner_) return;
  try {
    for (fs::path at = dir_; !fs::exists(at, error) && at.has_relative_path(); at = at.parent_path())
      made_.push_back(at.string());
    fs::create_directories(dir_, error);
    if (error)
      throw std::runtime_error(dir + ": the run's folder cannot be made: " + error.message() + "; see run.dir");

    // The lock belongs to the open file: the system lets go of it when the process ends, however it ends.
    const std::string file = dir_ + "/lock";
    for (;;) {
      made_lock_ = !fs::exists(file, error);
      lock_ = open_file(file, O_RDWR | O_CREAT);
      if (lock_ < 0) throw std::runtime_error(file + ": cannot be opened: " + std::strerror(errno));
      if (::flock(lock_, LOCK_EX | LOCK_NB) != 0) {
        const int reason = errno;
        made_lock_ = false;
        made_.clear();
        if (reason != EWOULDBLOCK) throw std::runtime_error(file + ": cannot be locked: " + std::strerror(reason));
        std::string holder = read_whole(file);
        holder.erase(holder.find_last_not_of(" \n") + 1);
        throw std::runtime_error(dir + ": another trainer (process " + (holder.empty() ? "unknown" : holder) +
                                 ") is running in this folder. Wait for it, stop it and add --resume, or give this "
                                 "run another folder: " +
                                 another(dir));
      }
      if (stands_at(lock_, file)) break;
      ::close(lock_);  // another trainer, which could not begin, removed it between open and flock
    }

    if (!resume && holds_run(*this))
      throw std::runtime_error(dir +
                               ": this folder already holds a run. Add --resume to go on with it, or give this "
                               "run another folder: " +
                               another(dir));
    const std::string pid = std::to_string(::getpid()) + "\n";
    if (::ftruncate(lock_, 0) != 0 || ::pwrite(lock_, pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size()))
      throw std::runtime_error(file + ": cannot be written: " + std::strerror(errno));
  } catch (...) {
    leave();
    throw;
  }
}

void RunFolder::begin() {
  std::error_code error;
  for (const std::string name : {"checkpoints", "rollouts", "pairs"})
    if (const std::string folder = dir_ + "/" + name;
        fs::exists(folder, error) && (!fs::is_directory(folder, error) || ::access(folder.c_str(), W_OK | X_OK) != 0))
      throw std::runtime_error(folder + ": is no folder that can be written to, and " + name +
                               " belong there; move it away, or change its rights");
  for (const std::string& file : {metrics(), samples(), config(), dir_ + "/summary.json"})
    if (fs::exists(file, error) && !fs::is_regular_file(file, error))
      throw std::runtime_error(file + ": is no regular file, and the run writes one of that name; move it away");
  for (const std::string& file : {metrics(), samples(), config()})
    before_[file] = fs::exists(file, error) ? std::optional(read_whole(file)) : std::nullopt;
}

void RunFolder::keep() {
  kept_ = true;
  before_.clear();
}

void RunFolder::check() const {
  if (owner_ && !stands_at(lock_, dir_ + "/lock"))
    throw std::runtime_error(dir_ +
                             ": the run's folder, or the file lock in it, was removed or renamed while the run goes "
                             "on; put it back and add --resume, or begin a new run");
}

void RunFolder::leave() noexcept {
  std::error_code ignored;
  if (!kept_) {
    for (const auto& [file, text] : before_) try {
        if (!text)
          fs::remove(file, ignored);
        else if (!fs::exists(file, ignored) || read_whole(file) != *text)
          write_durably(file, *text);
      } catch (...) {  // the disk does not take it back; nothing better can be done
      }
    if (made_lock_) fs::remove(dir_ + "/lock", ignored);
    for (const std::string& folder : made_) fs::remove(folder, ignored);  // those that are empty
  }
  if (lock_ >= 0) ::close(lock_);
}

RunFolder::~RunFolder() { leave(); }

}  // namespace isentrope::train
