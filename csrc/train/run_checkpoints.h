// Which checkpoints a run has, which is its newest, and which are removed.
//
// A run's own are the folders <run>/checkpoints/<phase>-<number> whose trainer.json says the same phase and step. Whatever else
// stands there (a copy under another name, notes, a folder without DONE) is neither taken nor touched. They are in the order of
// the steps that the run had made: names and places of phases may change between two resumptions, that count only grows.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace isentrope::train {

// The newest checkpoint, compared with its digests; nullopt where there is none. Where the newest is damaged, std::runtime_error
// names the file, the whole one before it, and how to take that.
std::optional<std::string> find_latest(const std::string& run_dir);

// path itself where it is a checkpoint's folder (or one that transformers saved), else the newest of the run's folder.
std::string resolve_checkpoint(const std::string& path);

// Removes checkpoints of unfinished phases but for the newest `keep` of each phase, and what a killed trainer left half written
// of these phases (.tmp). Never through a symbolic link. What cannot be removed stays: a run does not end of that.
void prune_checkpoints(const std::string& run_dir, int64_t keep, const std::vector<std::string>& phases);

}  // namespace isentrope::train
