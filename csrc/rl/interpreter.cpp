#include "csrc/rl/interpreter.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "csrc/message.h"
#include "csrc/rl/interpreter_program.h"

extern char** environ;

namespace isentrope::rl {
namespace {

constexpr double kStart_s = 60;  // a machine that is busy starts Python slowly
constexpr double kGrace_s = 30;  // beyond an expression's own time, until the process counts as lost

// A process of Python that answers expressions one behind the other.
class PythonProcess {
 public:
  explicit PythonProcess(const Interpreter& config) : time_s_(config.time_s) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) fail(config, std::strerror(errno));
    socket_ = ends[0];
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETPGROUP);  // its forks go with it, and signals of a terminal pass it by
    std::string words[] = {config.python,
                           "-I",
                           "-S",
                           "-c",
                           kInterpreterProgram,
                           std::to_string(config.time_s),
                           std::to_string(config.memory_mib),
                           std::to_string(config.output)};
    std::vector<char*> command;
    for (std::string& word : words) command.push_back(word.data());
    command.push_back(nullptr);
    const int wrong = ::posix_spawnp(&process_, config.python.c_str(), &actions, &attributes, command.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    ::close(ends[1]);
    if (wrong != 0) {
      process_ = -1;
      ::close(socket_);
      fail(config, std::strerror(wrong));
    }
    if (line(kStart_s) != "ready") {
      end();
      fail(config, "it ended, or did not begin in time");
    }
  }
  ~PythonProcess() { end(); }
  PythonProcess(const PythonProcess&) = delete;
  PythonProcess& operator=(const PythonProcess&) = delete;

  // "" where the process is lost.
  std::string ask(const std::string& expression) {
    const std::string request = std::to_string(expression.size()) + "\n" + expression;
    for (size_t at = 0; at < request.size();) {
      const ssize_t sent = ::send(socket_, request.data() + at, request.size() - at, MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return "";
      at += static_cast<size_t>(sent);
    }
    return line(time_s_ + kGrace_s);
  }

 private:
  [[noreturn]] static void fail(const Interpreter& config, const std::string& what) {
    throw std::runtime_error("environment.python: " + isentrope::quoted(config.python) + " cannot be started: " + what +
                             "; name a Python 3.8 or later");
  }
  void end() {
    if (process_ <= 0) return;
    ::kill(-process_, SIGKILL);
    while (::waitpid(process_, nullptr, 0) < 0 && errno == EINTR) {
    }
    ::close(socket_);
    process_ = -1;
  }
  // The next line without its end; "" where none comes within the seconds.
  std::string line(double seconds) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    for (;;) {
      if (const size_t end = read_.find('\n'); end != std::string::npos) {
        std::string text = read_.substr(0, end);
        read_.erase(0, end + 1);
        return text;
      }
      const double left = std::chrono::duration<double>(until - std::chrono::steady_clock::now()).count();
      if (left <= 0) return "";
      pollfd of{socket_, POLLIN, 0};
      const int ready = ::poll(&of, 1, static_cast<int>(left * 1000) + 1);
      if (ready < 0 && errno == EINTR) continue;
      if (ready <= 0) return "";
      char piece[4096];
      const ssize_t got = ::recv(socket_, piece, sizeof(piece), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return "";
      read_.append(piece, static_cast<size_t>(got));
    }
  }

  double time_s_;
  pid_t process_ = -1;
  int socket_ = -1;
  std::string read_;
};

class Terminal : public Episode {
 public:
  Terminal(const Interpreter& config, std::shared_ptr<const Interpreters> with, std::string answer)
      : named_(config.named_errors), alphabet_(config.alphabet), with_(std::move(with)), answer_(std::move(answer)) {
    scores = {{"answer", 0}, {"calls", 0}, {"errors", 0}, {"ended", 0}};
  }

  Reply step(const std::string& text) override {
    const size_t call = text.rfind('>');
    if (call == std::string::npos || !text.ends_with('\n')) {
      scores["answer"] = text.ends_with("A" + answer_) || text.ends_with("A" + answer_ + "\n") ? 1 : 0;
      return {.done = true};
    }
    ++scores["calls"];
    Outcome found = with_->work_out(text.substr(call + 1, text.size() - call - 2));
    if (found.error.empty() && found.value.find_first_not_of(alphabet_) != std::string::npos) found.error = "output";
    if (found.error.empty()) return {.text = found.value + "\n"};
    ++scores["errors"];
    scores["ended"] += found.error == "time" || found.error == "memory" || found.error == "output";
    return {.text = (named_ ? "?" + found.error : "?") + "\n", .error = true};
  }

 private:
  bool named_;
  std::string alphabet_;
  std::shared_ptr<const Interpreters> with_;
  std::string answer_;
};

class Terminals : public Environment {
 public:
  explicit Terminals(const Interpreter& config) : config_(config), with_(std::make_shared<Interpreters>(config)) {}
  std::unique_ptr<Episode> reset(const data::Example& example, uint64_t, std::string*) const override {
    return std::make_unique<Terminal>(config_, with_, example.answer);
  }

 private:
  Interpreter config_;
  std::shared_ptr<const Interpreters> with_;
};

}  // namespace

struct Interpreters::Pool {
  Interpreter config;
  std::mutex mutex{};
  std::vector<std::unique_ptr<PythonProcess>> idle = {};

  std::unique_ptr<PythonProcess> take() {
    {
      const std::lock_guard lock(mutex);
      if (!idle.empty()) {
        auto one = std::move(idle.back());
        idle.pop_back();
        return one;
      }
    }
    return std::make_unique<PythonProcess>(config);
  }
  void give_back(std::unique_ptr<PythonProcess> one) {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(one));
  }
};

Interpreters::Interpreters(const Interpreter& config) : pool_(new Pool{.config = config}) {}
Interpreters::~Interpreters() = default;

Outcome Interpreters::work_out(const std::string& expression) const {
  auto process = pool_->take();
  const std::string told = process->ask(expression);
  if (told.size() < 2) return {.value = "", .error = "time"};  // the process is lost, and the next call begins another
  pool_->give_back(std::move(process));
  if (told[0] == 'v') return {.value = told.substr(2), .error = ""};
  return {.value = "", .error = told.substr(2)};
}

std::shared_ptr<const Environment> Interpreter::make() const { return std::make_shared<Terminals>(*this); }

}  // namespace isentrope::rl
