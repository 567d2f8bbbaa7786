#include "csrc/train/checkpoint_writer.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <system_error>

#include "csrc/message.h"

namespace isentrope::train {
namespace {

// Where every core is busy the thread takes a tenth of one beside training, not half of it: by the weights of Linux' scheduler, 110
// for a niceness of 10 to 1024 for 0. A niceness of 19, a hundredth, could outlast the seconds that a cluster gives a run to stop, and
// cannot be taken back. Once training waits for the write, it has the core to itself.
void step_back() {
  constexpr int kNiceness = 10;
  const auto own = static_cast<id_t>(::syscall(SYS_gettid));
  ::setpriority(PRIO_PROCESS, own, ::getpriority(PRIO_PROCESS, own) + kNiceness);  // of the thread, as Linux has it
}

std::string error_of(const std::function<void()>& write) {
  try {
    write();
  } catch (...) {
    return message_of();
  }
  return "";
}

}  // namespace

void CheckpointWriter::begin(const std::string& dir, const std::function<void()>& write, bool beside) {
  if (writing_.valid()) throw std::logic_error(dir_ + ": is being written, and " + dir + " begins");
  dir_ = dir;
  if (beside) try {
      // Its argument is the thread's: what the function owns goes when it has ended, not when that is asked for.
      writing_ = std::async(
          std::launch::async,
          [](std::function<void()> mine) {
            step_back();
            return error_of(mine);
          },
          write);
      return;
    } catch (const std::system_error&) {  // no thread
    }
  std::promise<std::string> done;
  done.set_value(error_of(write));
  writing_ = done.get_future();
}

std::optional<CheckpointWriter::Written> CheckpointWriter::ended() {
  if (!writing_.valid() || writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return std::nullopt;
  return wait();
}

std::optional<CheckpointWriter::Written> CheckpointWriter::wait() {
  if (!writing_.valid()) return std::nullopt;
  return Written{dir_, writing_.get()};
}

}  // namespace isentrope::train
