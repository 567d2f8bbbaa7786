#include "csrc/train/process.h"

#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>

namespace isentrope::train {
namespace {

constexpr int kStops[] = {SIGINT, SIGTERM, SIGHUP};
struct sigaction before[std::size(kStops)];
std::atomic<int> stop_signal = 0;
std::atomic<double> stop_time = 0;
std::atomic<bool> told_again = false;  // whether a SIGTERM comes to be repeated by those who send it

double now(clockid_t clock = CLOCK_MONOTONIC) {
  struct timespec time {};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

bool repeated(int number) { return told_again && number == SIGTERM && stop_signal == SIGTERM; }

// A signal handler: it may do no more than these calls.
void ask_to_stop(int number) {
  const int error = errno;
  int none = 0;
  if (stop_signal.compare_exchange_strong(none, number)) {
    stop_time = now();
  } else if (constexpr double kEcho = 0.1; number != SIGHUP && !repeated(number) && now() - stop_time > kEcho) {
    std::signal(number, SIG_DFL);
    std::raise(number);  // taken when this handler returns
  }
  errno = error;
}

[[noreturn]] void fail_output(int error) {
  throw std::runtime_error(std::string("standard output cannot be written: ") + std::strerror(error) +
                           "; what should stand there is lost");
}

}  // namespace

void begin_process() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF && ::open("/dev/null", O_RDWR) != fd)
      std::abort();  // the lowest free number
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  // A step frees and asks for the same blocks again: keep them, instead of giving them back to the system and paying
  // their page faults anew.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

StopSignals::StopSignals() {
  stop_signal = 0;
  told_again = std::getenv("TORCHELASTIC_RUN_ID") || std::getenv("SLURM_JOB_ID");
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  action.sa_flags = SA_RESTART;
  for (const int number : kStops) ::sigaddset(&action.sa_mask, number);  // one at a time
  for (size_t i = 0; i < std::size(kStops); ++i) {
    ::sigaction(kStops[i], nullptr, &before[i]);
    if (kStops[i] != SIGHUP || before[i].sa_handler != SIG_IGN) ::sigaction(kStops[i], &action, nullptr);
  }
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < std::size(kStops); ++i)
    if (repeated(kStops[i]))
      std::signal(kStops[i], SIG_IGN);  // the code that the process is about to end with stands
    else
      ::sigaction(kStops[i], &before[i], nullptr);
}

int StopSignals::received() { return stop_signal; }

double seconds_of_process() {
  std::ifstream stat("/proc/self/stat");
  std::string text;
  std::getline(stat, text, '\0');
  std::istringstream fields(text.substr(text.rfind(')') + 1));  // the name before it may hold anything
  constexpr int kStarted =
      22 - 2;  // field 22, counted from the state behind the name: clock ticks since the system started
  std::string field;
  for (int i = 0; i < kStarted; ++i) fields >> field;
  return now(CLOCK_BOOTTIME) - std::strtod(field.c_str(), nullptr) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

void print(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EPIPE) return;
    if (written < 0) fail_output(errno);
    text.remove_prefix(static_cast<size_t>(written));
  }
}

void write_output_to(const std::string& file) {
  std::error_code error;
  std::filesystem::create_directories(std::filesystem::path(file).parent_path(), error);
  const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0 || ::dup2(fd, STDOUT_FILENO) < 0 || ::dup2(fd, STDERR_FILENO) < 0)
    throw std::runtime_error(file + ": cannot be opened: " + std::strerror(errno));
  ::close(fd);
}

void end_output() {
  if (::close(STDOUT_FILENO) != 0 && errno != EINTR && errno != EPIPE) fail_output(errno);
}

}  // namespace isentrope::train
