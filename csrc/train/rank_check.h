// What the ranks of a run must have in common, and what their number must be: looked at before anything is changed.
#pragma once
#include <map>
#include <string>

#include "csrc/train/config.h"
#include "csrc/train/distributed.h"

namespace isentrope::train {

// Called by all ranks. Throws std::runtime_error on all of them where one has another program, or another value of a key
// (run.threads aside) than the first rank: names rank, key and both values; where an update of a phase has fewer sequences than there
// are ranks; and where an objective speaks of micro-batches (scope: micro; a penalty on the entropy of attention with
// batch.micro_tokens), since those of several ranks are not those of one.
void check_ranks(const TrainConfig& config, const Ranks& ranks);

// Called by all ranks. Throws std::runtime_error on all of them where one has found something else than the first: of several machines that
// do not see the same files. what: "the weights".
void check_same(const Ranks& ranks, const std::string& what, const std::string& found);

// How many ranks have this one's name of the machine. Called by all ranks.
int64_t ranks_on_this_machine(const Ranks& ranks);

// What differs between the program and configuration of two ranks, a line each; "" where nothing does.
std::string difference(const std::map<std::string, std::string>& first, const std::map<std::string, std::string>& own,
                       int64_t rank);

}  // namespace isentrope::train
