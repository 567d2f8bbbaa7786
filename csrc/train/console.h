// What a person sees of a run.
#pragma once
#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/train/metrics.h"
#include "csrc/train/screen.h"

namespace isentrope::train {

// On a terminal: a bar that is redrawn at most ten times a second. Elsewhere: a line
// every `interval` seconds and at the end of a phase. quiet: warnings alone. Once a write has failed, nothing more is written:
// a run does not end because no one can read of it.
class Console {
 public:
  explicit Console(Screen& screen, bool quiet = false, double interval = 10.0);
  ~Console();
  void begin_phase(const std::string& name, int64_t steps, int64_t done = 0);
  // Shows step, reward or loss, entropy, tokens/s and the time left, and prints an evaluation as a line of its own. Prints
  // warnings, those of times too, and warns of an alarm when it begins or changes.
  void step(const Record& record);
  void end_phase();                     // leaves the last line standing
  void print(const std::string& text);  // a line of its own; the bar is cleared before and drawn again after
  void warn(const std::string& text);   // likewise, beside the screen, quiet or not
  int lost() const { return lost_; }    // errno of the write that failed; 0: none has

 private:
  using Clock = std::chrono::steady_clock;
  std::string line(bool bar) const;
  std::string evaluation_line(const Record& record) const;
  void put(const std::string& text);
  void clear();
  void draw();

  Screen& screen_;
  bool quiet_, terminal_;
  double interval_;
  std::string name_;
  int64_t steps_ = 0, first_ = 0;
  Record last_;
  std::vector<std::string> alarms_;  // of the last look at attention
  bool drawn_ = false, in_phase_ = false;
  int lost_ = 0;
  Clock::time_point begun_, shown_;
};

}  // namespace isentrope::train
