// rollouts/<phase>.jsonl: the completions of the steps that rollout.save_every names, one object a line (csrc/train/completions.h).
//
// The file belongs to the run as metrics.jsonl does: a step that is broken off leaves no line of it, and a resumed run goes on behind
// the lines that stood there at its checkpoint. These are known by their number of bytes and their digest, so that a file of any
// size is cut without being parsed or held in memory.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/train/metrics.h"

namespace isentrope::train {

class RolloutLog {
 public:
  // kept: what the file holds of the steps before. Throws std::runtime_error where other bytes stand there, or the file is no
  // regular one; where there is none, lost() is true, and nothing is kept. No file is made or changed.
  RolloutLog(const std::string& file, const Metrics::Place& kept);

  const std::string& file() const { return file_; }
  bool lost() const { return lost_; }
  const Metrics::Place& kept() const { return kept_; }

  void cut();  // removes what stands behind the lines kept
  void write(
      const std::string& line);  // makes the folder and the file where they are not there; throws as Metrics does
  void commit();                 // the step is whole: its lines are kept
  void back() noexcept;          // it is broken off: they are taken back

 private:
  std::string file_;
  Metrics::Place kept_;
  bool lost_ = false;
  std::unique_ptr<Metrics> lines_;  // once something was written
};

// Removes the files of phases that have still to begin. Throws std::runtime_error where one cannot be removed.
void remove_rollouts(const std::vector<std::string>& files);

}  // namespace isentrope::train
