#include "csrc/train/tensorboard.h"

#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace isentrope::train {

std::string python_program() {
  const char* named = std::getenv("ISENTROPE_PYTHON");
  return named && *named ? named : "python3";
}

TensorBoard::TensorBoard(const std::string& run) : run_(run) {
  const std::string python = python_program(), what = "metrics.tensorboard: ";
  const std::string mend = "; mend it, or turn it off: metrics.tensorboard=false";
  int ends[2];  // ours, and the standard input and output of the process
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    throw std::runtime_error(what + "no socket: " + std::strerror(errno));
  socket_ = ends[0];
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDOUT_FILENO);
  posix_spawnattr_t attributes;  // a process group of its own: Ctrl-C reaches the trainer alone
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  const char* command[] = {python.c_str(), "-m", "isentrope.tensorboard", run.c_str(), nullptr};
  const int error =
      ::posix_spawnp(&process_, python.c_str(), &files, &attributes, const_cast<char**>(command), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&files);
  ::close(ends[1]);
  if (error != 0) {
    ::close(socket_);
    throw std::runtime_error(what + python + " cannot be started: " + std::strerror(error) +
                             "; name a Python that has isentrope in ISENTROPE_PYTHON" + mend);
  }

  // "ready", or what is wrong.
  std::string answer;
  char text[512];
  while (answer != "ready\n") {
    const ssize_t got = ::recv(socket_, text, sizeof(text), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    answer.append(text, static_cast<size_t>(got));
  }
  if (answer == "ready\n") return;
  end();
  while (!answer.empty() && answer.back() == '\n') answer.pop_back();
  if (answer.empty()) answer = python + " -m isentrope.tensorboard ended before it was ready";
  throw std::runtime_error(what + answer + mend);
}

TensorBoard::~TensorBoard() {
  if (socket_ >= 0) end();
}

int TensorBoard::end() {
  ::close(socket_);  // the process sees the end of its input
  socket_ = -1;
  int status = 0;
  while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

void TensorBoard::write(const std::string& line) {
  if (socket_ < 0) return;
  const std::string text = line + "\n";
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t now = ::send(socket_, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (now < 0 && errno == EINTR) continue;
    if (now < 0) {
      const int status = end();
      const std::string how = WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                                  : "exit code " + std::to_string(WEXITSTATUS(status));
      std::fprintf(stderr,
                   "warning: the writer of %s/tensorboard has ended (%s); training goes on without it. The next "
                   "--resume writes all of it.\n",
                   run_.c_str(), how.c_str());
      return;
    }
    sent += static_cast<size_t>(now);
  }
}

}  // namespace isentrope::train
