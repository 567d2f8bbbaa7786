#include "csrc/train/task_files.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <utility>

#include "csrc/train/trackers.h"

namespace isentrope::train {
namespace {

// The environment, and that a module of the working folder takes no module's place (Python 3.11 and later).
std::vector<std::string> with_safe_path() {
  std::vector<std::string> variables;
  for (char** one = environ; *one; ++one)
    if (std::strncmp(*one, "PYTHONSAFEPATH=", 15) != 0) variables.emplace_back(*one);
  variables.emplace_back("PYTHONSAFEPATH=1");
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> list;
  for (std::string& word : words) list.push_back(word.data());
  list.push_back(nullptr);
  return list;
}

// Runs the command to its end. Returns its exit code, 128 + the number of a signal, and what it said on standard error.
std::pair<int, std::string> run(std::vector<std::string> words) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error(std::string("no pipe: ") + std::strerror(errno));
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDERR_FILENO);
  std::vector<std::string> variables = with_safe_path();
  pid_t process = 0;
  const int error =
      ::posix_spawnp(&process, words[0].c_str(), &files, nullptr, pointers(words).data(), pointers(variables).data());
  posix_spawn_file_actions_destroy(&files);
  ::close(ends[1]);
  std::string said;
  char text[512];
  for (ssize_t got = 1; error == 0 && got != 0;) {
    got = ::read(ends[0], text, sizeof(text));
    if (got > 0) said.append(text, static_cast<size_t>(got));
    if (got < 0 && errno != EINTR) break;
  }
  ::close(ends[0]);
  if (error != 0)
    throw std::runtime_error(words[0] + " cannot be started: " + std::strerror(error) +
                             "; name a Python that has isentrope in ISENTROPE_PYTHON");
  int status = 0;
  while (::waitpid(process, &status, 0) < 0 && errno == EINTR) {
  }
  return {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), said};
}

// The last line of what isentrope.tasks said, without its name.
std::string complaint(std::string said) {
  while (!said.empty() && said.back() == '\n') said.pop_back();
  said.erase(0, said.rfind('\n') + 1);
  const std::string name = "isentrope tasks: ";
  return said.starts_with(name) ? said.substr(name.size()) : said;
}

bool there(const data::JsonlConfig& files) {
  std::error_code error;
  for (const std::string& file : {files.path.front(), files.validation_path, files.test_path})
    if (!file.empty() && !std::filesystem::exists(file, error)) return false;
  return true;
}

}  // namespace

std::vector<std::string> make_task_files(const TrainConfig& config) {
  std::vector<std::string> notes;
  for (const PhaseConfig& phase : config.phases) {
    if (!phase.data.reasoning_gym || there(phase.data.reasoning_gym->files())) continue;
    const data::ReasoningGymConfig& gym = *phase.data.reasoning_gym;
    std::vector<std::string> words{python_program(), "-m", "isentrope.tasks", gym.task};
    for (const auto& [key, value] : gym.settings) words.push_back(key + "=" + value);
    for (const auto& [option, number] : {std::pair{"--size", gym.size},
                                         {"--validation-size", gym.validation_size},
                                         {"--test-size", gym.test_size},
                                         {"--seed", gym.seed}})
      words.insert(words.end(), {option, std::to_string(number)});
    words.insert(words.end(), {"-o", gym.folder()});
    const std::string where = "phase " + phase.name + ": data.reasoning_gym: ";
    std::pair<int, std::string> ended;
    try {
      ended = run(words);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error(where + error.what());
    }
    if (const auto& [code, said] = ended; code != 0)
      throw std::runtime_error(
          where + (said.empty() ? python_program() + " -m isentrope.tasks ended with exit code " + std::to_string(code)
                                : complaint(said)));
    notes.push_back("phase " + phase.name + ": problems of " + gym.task + " were written to " + gym.folder());
  }
  return notes;
}

}  // namespace isentrope::train
