// Writing beside training: one checkpoint at a time, in a thread of its own. Training waits for the copy that is written
// (csrc/train/checkpoint.h: copy_of) and not for the disk; a second checkpoint waits for the first. The thread has less right to the
// cores than training (a niceness of 10).
#pragma once
#include <functional>
#include <future>
#include <optional>
#include <string>

namespace isentrope::train {

// A class for one thread. Its destructor waits for the write under way.
class CheckpointWriter {
 public:
  struct Written {
    std::string dir;
    std::string error;  // why it is not there; "" where it is whole
  };

  // Calls write() in another thread, which may use what it owns and what nobody changes meanwhile; what it throws is Written::error.
  // None may be under way: wait() comes first. Without beside, and where the system has no thread to give, it is called before this
  // returns.
  void begin(const std::string& dir, const std::function<void()>& write, bool beside = true);

  // The write that has ended since it began, each once: what the first gives the second does not.
  std::optional<Written> ended();  // now; nullopt while it goes on
  std::optional<Written> wait();   // once it has

 private:
  std::string dir_;
  std::future<std::string> writing_;  // its error
};

}  // namespace isentrope::train
