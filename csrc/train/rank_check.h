// What the ranks of a run must have in common, and what their number must be: looked at before anything is changed.
#pragma once
#include <map>
#include <optional>
#include <string>

#include "csrc/data/batch.h"
#include "csrc/train/config.h"
#include "csrc/train/distributed.h"
#include "csrc/train/resume.h"

namespace isentrope::train {

// Called by all ranks. Throws std::runtime_error on all of them where one has another program, or another value of a key
// (run.threads aside) than the first rank: names rank, key and both values; where an update of a phase has fewer sequences than there
// are ranks; and where an objective speaks of micro-batches (scope: micro; a penalty on the entropy of attention with
// batch.micro_tokens), since those of several ranks are not those of one.
void check_ranks(const TrainConfig& config, const Ranks& ranks);

// The same of what they found on their disks, which no configuration tells: the checkpoint to go on from, by its name and the digest of
// its files (a folder of transformers has none), and the training examples of a phase.
void check_standing(const Standing& standing, const Ranks& ranks);
void check_examples(const std::string& phase, std::optional<int64_t> digest, const data::BatchSource& source,
                    const Ranks& ranks);

// How many ranks have this one's name of the machine. Called by all ranks.
int64_t ranks_on_this_machine(const Ranks& ranks);

// What differs between two ranks, a line each; "" where nothing does.
std::string difference(const std::map<std::string, std::string>& first, const std::map<std::string, std::string>& own,
                       int64_t rank);

}  // namespace isentrope::train
