// What a run asks of the machine, told before it begins: memory by what takes it, and the least time.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "csrc/train/config.h"
#include "csrc/train/data_check.h"

namespace isentrope::train {

// Those of the run, and those of them on this machine.
struct RankCounts {
  int64_t all = 1, here = 1;
};

// Bytes of a rank on the device at the moment of a phase that needs most, but for the program itself and the data.
struct MemoryPlan {
  std::string phase;
  double weights = 0;  // with the copy of a reference, and those in bfloat16 of model.compute
  double gradients =
      0;  // of several ranks also in the buckets on their way, and what comes of the others (gradients.h)
  double optimizer = 0;  // its moments, of several ranks the share of one
  double snapshot =
      0;  // weights and moments as they were before the first update, of steps that keep them (snapshot.h: keeps_copies)
  double activations =
      0;  // of a micro-batch: what its backward pass needs, or the cache and packed weights of rollouts
  bool of_rollouts = false;
  double of_head = 0;  // gradients: that of the head while it is on its way to the others
  // Whether an update is one pass over one micro-batch on one rank: gradients then take the place of activations, block by block.
  bool in_turn = false;
  // Whether activations are there beside the snapshot: those of the step's second update; and, in a process whose tensors are not in
  // block_cache.h, always, since the heap does not give one's memory to the other.
  bool at_once = false;
  // Beside all of that, on the CPU: what a checkpoint is written from while training goes on (checkpoint.h: copy_of); 0 where none is
  // written within a phase. A run that has no room for it waits for its checkpoints.
  double checkpoint = 0;
  double total() const {
    const double pass = of_head + (in_turn ? std::max(gradients, activations) : gradients + activations);
    return weights + optimizer +
           (of_rollouts ? activations  // gradients of the step before are gone by then
            : at_once   ? snapshot + pass
                        : std::max(snapshot + gradients, pass));
  }
};

// lengths: of the phase's training sequences. ranks: of the run.
MemoryPlan memory_plan(const TrainConfig& config, const PhaseConfig& phase, const Lengths& lengths, int64_t ranks = 1);
// Of the phase that needs most; phases: as check_data found them, the last ones of the configuration.
MemoryPlan memory_plan(const TrainConfig& config, const std::vector<PhaseData>& phases, int64_t ranks = 1);

// Seconds that the phase's products take at so many FLOP/s.
double least_seconds(const TrainConfig& config, const PhaseConfig& phase, const Lengths& lengths, double product_rate);

// Whether the machine has room for the copy of a checkpoint too. has, baseline as below; on_device: the rest lies in a GPU's memory.
bool checkpoint_copy_fits(const TrainConfig& config, const std::vector<PhaseData>& phases, double has, double baseline,
                          bool on_device = false, const RankCounts& ranks = {});

inline const std::string kWaits =
    "training waits for each of its checkpoints: the machine has no room for the copy that one would be written from";

// Throws std::runtime_error where the run takes more than `has` bytes, with up to three settings that make it fit and what it
// takes then, or those that help most where none suffices. baseline: of the program. Each rank on the machine takes as much.
void check_memory(const TrainConfig& config, const std::vector<PhaseData>& phases, double has, double baseline,
                  const RankCounts& ranks = {});

// "1.2 GiB: weights 300 MiB, gradients …"
std::string to_text(const MemoryPlan& plan);
std::string bytes_text(double bytes);

}  // namespace isentrope::train
