// Checkpoints that `transformers` opens: a folder of safetensors, configuration and tokenizer, plus what a
// resumed run needs.
//
//   <run>/checkpoints/<phase>-<step, 6 digits>/
//     model.safetensors, config.json, generation_config.json   the model (LlamaForCausalLM), Decoder::folded_weights()
//     tokenizer files                                          data::Tokenizer::save
//     trainer.safetensors, trainer.json                        CheckpointState
//     config.yaml                                              the run's resolved configuration
//     DONE                                                     written last; a folder without it is never used
//
// A checkpoint is written into a folder beside its place (.tmp), brought to disk file by file, and renamed.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "csrc/data/tokenizer.h"
#include "csrc/model/decoder.h"
#include "csrc/train/config.h"

namespace isentrope::train {

// Where a run stands: after `step` steps of phase number `phase`.
struct CheckpointState {
  int64_t phase = 0;
  std::string phase_name;
  bool phase_finished = false;
  int64_t step = 0;  // steps done within the phase
  uint64_t seed = 0;
  std::map<std::string, torch::Tensor> optimizer;  // Optimizer::state(); empty where the phase is finished
  std::map<std::string, torch::Tensor> source;     // BatchSource::state()
  std::map<std::string, torch::Tensor> extra;      // anything else the trainer needs to go on
};

// <run_dir>/checkpoints/<phase>-<step>.
std::string checkpoint_dir(const std::string& run_dir, const std::string& phase, int64_t step);

// Writes the folder dir (its parents are made), in the place of one that stands there. Where writing fails,
// nothing of it is left, what stood there stays, and std::runtime_error names the file, the bytes needed and
// those free.
void save_checkpoint(const std::string& dir, const CheckpointState& state, const model::Decoder& decoder,
                     const data::Tokenizer& tokenizer, const TrainConfig& config);

// All throw std::runtime_error that names the folder and what is wrong: not complete, truncated, of another
// format.
CheckpointState load_checkpoint_state(const std::string& dir);
model::DecoderConfig read_model_config(const std::string& dir);  // from config.json, vocabulary included
// Copies the weights into decoder; one with layers of learned spectral norm still needs restore_sigma or start_sigma, since
// these are folded. Weights of another model: the error lists the first names and shapes that
// differ.
void load_weights(const std::string& dir, model::Decoder& decoder);

// The complete checkpoint that is furthest in the run: by phase, then step, then finished. nullopt if there
// is none.
std::optional<std::string> find_latest(const std::string& run_dir);

// Removes checkpoints of unfinished phases but for the newest `keep` of each phase, and folders that a killed
// trainer left half written.
void prune_checkpoints(const std::string& run_dir, int64_t keep);

// Whether transformers has a family whose model computes what this one does.
bool opens_in_transformers(const model::DecoderConfig& config);

}  // namespace isentrope::train
