// The folder of a run, held by one trainer at a time.
//
//   <dir>/lock            locked while a trainer runs; the process id of the last one
//   <dir>/metrics.jsonl   csrc/train/metrics.h
//   <dir>/samples.jsonl   csrc/train/samples.h
//   <dir>/tensorboard/    csrc/train/tensorboard.h, with metrics.tensorboard
//   <dir>/checkpoints/    csrc/train/checkpoint.h
//   <dir>/config.yaml     the resolved configuration
#pragma once
#include <string>

namespace isentrope::train {

class RunFolder {
 public:
  // Creates the folder and takes its lock. Throws std::runtime_error where another trainer holds it (naming
  // its process id), where the folder already holds a run and resume is false, and where it cannot be made or
  // locked. resume of a folder without a run is a new run.
  RunFolder(const std::string& dir, bool resume);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& dir() const { return dir_; }
  std::string metrics() const { return dir_ + "/metrics.jsonl"; }
  std::string samples() const { return dir_ + "/samples.jsonl"; }
  std::string config() const { return dir_ + "/config.yaml"; }

 private:
  std::string dir_;
  int lock_ = -1;
};

}  // namespace isentrope::train
