// The folder of a run, held by one trainer at a time.
//
//   <dir>/lock            locked while a trainer runs; the process id of the last one
//   <dir>/metrics.jsonl   csrc/train/metrics.h
//   <dir>/samples.jsonl   csrc/train/samples.h
//   <dir>/rollouts/       csrc/train/rollout_log.h, with rollout.save_every
//   <dir>/pairs/          csrc/train/pairs_file.h, of dpo phases with pairs
//   <dir>/tensorboard/    csrc/train/trackers.h, with metrics.tensorboard
//   <dir>/trackers.json   the same, with metrics.trackers
//   <dir>/checkpoints/    csrc/train/checkpoint.h
//   <dir>/config.yaml     the resolved configuration
//   <dir>/ranks/          <rank>.log: what the other processes of the run have to say
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace isentrope::train {

class RunFolder {
 public:
  // Creates the folder and takes its lock. Throws std::runtime_error where another trainer holds it (naming
  // its process id), where the folder already holds a run (a line of metrics or a checkpoint) and resume is false, and where it
  // cannot be made or locked. resume of a folder without a run is a new run.
  // owner: whether this process is the one that may change it; of one that is not, all that follows does nothing.
  RunFolder(const std::string& dir, bool resume, bool owner = true);
  // Without keep() the folder is left as it was found: the files as begin() saw them, and no lock and folder of its own making.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  void begin();        // before the first change of the files below
  void keep();         // the run goes on from them
  void check() const;  // throws std::runtime_error where the folder is no longer the one that was opened

  const std::string& dir() const { return dir_; }  // absolute: a change of the working folder does not move it
  std::string metrics() const { return dir_ + "/metrics.jsonl"; }
  std::string samples() const { return dir_ + "/samples.jsonl"; }
  std::string rollouts(const std::string& phase) const { return dir_ + "/rollouts/" + phase + ".jsonl"; }
  std::string pairs(const std::string& phase) const { return dir_ + "/pairs/" + phase + ".jsonl"; }
  std::string config() const { return dir_ + "/config.yaml"; }

 private:
  void leave() noexcept;

  std::string dir_;
  bool owner_;
  int lock_ = -1;
  bool made_lock_ = false, kept_ = false;
  std::vector<std::string> made_;  // folders, the innermost first
  std::map<std::string, std::optional<std::string>> before_;
};

}  // namespace isentrope::train
