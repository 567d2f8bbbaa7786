#include "csrc/train/chat_template.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "csrc/train/trackers.h"

namespace isentrope::train {
namespace {

using Json = nlohmann::json;

constexpr int kNoPackage = 3;  // exit code of the next
// Runs the file by its path: importing the package would load torch. The working folder's modules take no one's place.
constexpr const char* kProgram =
    "import sys; sys.path[:] = [place for place in sys.path if place]\n"
    "import importlib.util, os.path, runpy\n"
    "found = importlib.util.find_spec('isentrope')\n"
    "file = found and os.path.join(os.path.dirname(found.origin), 'chat_template.py')\n"
    "if not file or not os.path.isfile(file): sys.exit(3)\n"
    "runpy.run_path(file, run_name='__main__')\n";

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

// A file without a name, at its beginning.
File file_with(const std::string& text) {
  File file(std::tmpfile(), &std::fclose);
  if (!file || std::fwrite(text.data(), 1, text.size(), file.get()) != text.size() || std::fflush(file.get()) != 0 ||
      ::lseek(::fileno(file.get()), 0, SEEK_SET) != 0)
    throw std::runtime_error(std::string("no temporary file: ") + std::strerror(errno));
  ::fcntl(::fileno(file.get()), F_SETFD, FD_CLOEXEC);
  return file;
}

// What Python says to the input.
std::string answered(const std::string& input) {
  const std::string python = python_program(), mend = "; name a Python that has isentrope in ISENTROPE_PYTHON";
  const File in = file_with(input);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error(std::string("no pipe: ") + std::strerror(errno));
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, ::fileno(in.get()), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDOUT_FILENO);
  const char* command[] = {python.c_str(), "-c", kProgram, nullptr};
  pid_t process = 0;
  const int error = ::posix_spawnp(&process, python.c_str(), &files, nullptr, const_cast<char**>(command), environ);
  posix_spawn_file_actions_destroy(&files);
  ::close(ends[1]);
  if (error != 0) {
    ::close(ends[0]);
    throw std::runtime_error(python + " cannot be started: " + std::strerror(error) + mend);
  }
  std::string text;
  std::vector<char> part(1 << 16);
  for (;;) {
    const ssize_t got = ::read(ends[0], part.data(), part.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    text.append(part.data(), static_cast<size_t>(got));
  }
  ::close(ends[0]);
  int status = 0;
  while (::waitpid(process, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoPackage)
    throw std::runtime_error(python + " has no package isentrope that renders chat templates" + mend);
  if (status != 0)
    throw std::runtime_error(python + " ended with " +
                             (WIFSIGNALED(status) ? "signal " + std::to_string(WTERMSIG(status))
                                                  : "exit code " + std::to_string(WEXITSTATUS(status))) +
                             " while it rendered");
  return text;
}

data::Rendering rendering_of(const Json& answer) {
  if (answer.contains("problem")) return {.problem = answer["problem"].get<std::string>()};
  data::Rendering rendering;
  for (const Json& turn : answer.at("turns"))
    rendering.turns.push_back({turn.at(0).get<std::string>(), turn.at(1).get<bool>()});
  rendering.completion = answer.at("completion").get<std::string>();
  rendering.end = answer.at("end").get<std::string>();
  return rendering;
}

std::vector<data::Rendering> render(const Json& header, const std::vector<data::Conversation>& conversations) {
  std::string input = header.dump() + "\n";
  for (const data::Conversation& one : conversations) input.append(one).append("\n");
  std::istringstream lines(answered(input));
  std::vector<data::Rendering> renderings;
  for (std::string line; std::getline(lines, line);) {
    const Json answer = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!answer.is_object()) throw std::runtime_error("Python wrote something else than JSON: " + line.substr(0, 200));
    if (answer.contains("fatal")) throw std::runtime_error(answer["fatal"].get<std::string>());
    renderings.push_back(rendering_of(answer));
  }
  if (renderings.size() != conversations.size())
    throw std::runtime_error("Python rendered " + std::to_string(renderings.size()) + " of " +
                             std::to_string(conversations.size()) + " conversations");
  return renderings;
}

}  // namespace

data::Renderer chat_template_of(const std::string& wanted, const data::Tokenizer& tokenizer, const std::string& key) {
  if (wanted == "none" || (wanted == "default" && !tokenizer.has_chat_template())) return {};
  Json ends = Json::array();
  for (const int64_t id : tokenizer.end_ids()) ends.push_back(tokenizer.text_of(id, false));
  const Json header{{"folder", tokenizer.kind() == "pretrained" ? Json(tokenizer.config().pretrained) : Json()},
                    {"template", wanted == "default" ? Json() : Json(wanted)},
                    {"ends", ends}};
  return [header, key](const std::vector<data::Conversation>& conversations) {
    try {
      return render(header, conversations);
    } catch (const std::exception& error) {
      throw std::runtime_error(key + ": " + error.what());
    }
  };
}

data::Renderer renderer_of(const data::DataConfig& data, const data::Tokenizer& tokenizer) {
  if (!data.jsonl) return {};
  return chat_template_of(data.jsonl->chat_template, tokenizer, "data.jsonl.chat_template");
}

}  // namespace isentrope::train
