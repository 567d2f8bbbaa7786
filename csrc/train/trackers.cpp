#include "csrc/train/trackers.h"

#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
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

std::string MetricsConfig::problem() const {
  for (size_t i = 0; i < trackers.size(); ++i)
    if (std::find(trackers.begin(), trackers.begin() + static_cast<std::ptrdiff_t>(i), trackers[i]) !=
        trackers.begin() + static_cast<std::ptrdiff_t>(i))
      return "trackers: " + trackers[i] + " stands there twice; each gets the metrics once";
  return "";
}

std::vector<std::string> MetricsConfig::sinks() const {
  std::vector<std::string> names = trackers;
  if (tensorboard) names.insert(names.begin(), "tensorboard");
  return names;
}

Trackers::Trackers(const MetricsConfig& config, const std::string& run, bool fresh) {
  const std::string python = python_program(),
                    what = config.trackers.empty() ? "metrics.tensorboard: " : "metrics.trackers: ";
  const std::string mend = "; mend it, or turn it off: " +
                           std::string(config.trackers.empty() ? "metrics.tensorboard=false" : "metrics.trackers=[]");
  const std::vector<std::string> sinks = config.sinks();
  for (const std::string& name : sinks)
    targets_ += (targets_.empty() ? "" : ", ") + (name == "tensorboard" ? run + "/tensorboard" : name);
  std::vector<std::string> words{python, "-m", "isentrope.trackers", run};
  words.insert(words.end(), sinks.begin(), sinks.end());
  words.insert(words.end(), {"--project=" + config.project, "--timeout=" + std::to_string(config.timeout_s)});
  if (fresh) words.emplace_back("--new");
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
  std::vector<char*> command;
  for (std::string& word : words) command.push_back(word.data());
  command.push_back(nullptr);
  const int error = ::posix_spawnp(&process_, python.c_str(), &files, &attributes, command.data(), environ);
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
  if (answer.empty()) answer = python + " -m isentrope.trackers ended before it was ready";
  throw std::runtime_error(what + answer + mend);
}

Trackers::~Trackers() {
  if (socket_ >= 0) end();
}

int Trackers::end() {
  ::close(socket_);  // the process sees the end of its input
  socket_ = -1;
  int status = 0;
  while (::waitpid(process_, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

void Trackers::write(const std::string& line) {
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
                   "warning: the writer of %s has ended (%s); training goes on without it. The next "
                   "--resume writes all of it.\n",
                   targets_.c_str(), how.c_str());
      return;
    }
    sent += static_cast<size_t>(now);
  }
}

}  // namespace isentrope::train
