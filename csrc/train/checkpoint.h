// Checkpoints that `transformers` opens: a folder of safetensors, configuration and tokenizer, plus what a
// resumed run needs.
//
//   <run>/checkpoints/<phase>-<step, 6 digits>/
//     model.safetensors, config.json, generation_config.json   the model, Decoder::folded_weights(), csrc/train/model_config.h
//     adapter_model.safetensors, adapter_config.json           in place of these three where model.lora is trained: csrc/train/adapter.h
//     tokenizer files                                          data::Tokenizer::save
//     trainer.safetensors, trainer.json                        CheckpointState
//     config.yaml                                              the run's resolved configuration
//     DONE                                                     written last: the digest of every other file, one a line
//
// A checkpoint is written into a folder beside its place (.tmp), brought to disk file by file, and renamed. The digest is FNV-1a
// of 64 bits: it guards against damage, not against people, takes no library, and runs at about the speed of a disk. What is
// read is compared with it first, and is refused where DONE does not list it. Which of a run's checkpoints is the newest:
// csrc/train/run_checkpoints.h. Writing beside training: csrc/train/checkpoint_writer.h.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "csrc/data/tokenizer.h"
#include "csrc/model/decoder.h"
#include "csrc/train/config.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {

// Where a run stands: after `step` steps of a phase.
struct CheckpointState {
  std::string phase_name;
  bool phase_finished = false;
  bool evaluated = true;     // whether the evaluations that are due after the step were made
  int64_t step = 0;          // steps done within the phase
  int64_t steps_of_run = 0;  // and of all phases: the order of a run's checkpoints
  uint64_t seed = 0;
  std::string base = {};                   // with model.lora: the folder of the frozen weights, absolute
  std::vector<std::string> ended;          // phases of the run that ended before this one
  std::map<std::string, int64_t> numbers;  // phase → its number in the seeds of all draws
  std::map<std::string, std::string> config =
      {};                    // values_of() the configuration; save_checkpoint fills it in, as the next
  std::string version = {};  // of the program
  std::map<std::string, torch::Tensor> optimizer;  // Optimizer::state()
  std::map<std::string, torch::Tensor> source;     // BatchSource::state()
  std::map<std::string, torch::Tensor> extra;      // anything else the trainer needs to go on
};

// <run_dir>/checkpoints/<phase>-<step>.
std::string checkpoint_dir(const std::string& run_dir, const std::string& phase, int64_t step);

// What a checkpoint is written from; it knows no live model.
struct CheckpointParts {
  CheckpointState state;
  model::DecoderConfig model;
  NamedTensors weights;  // Decoder::folded_weights(), with model.lora Decoder::adapter()
};

// The state with the weights of decoder, in the memory that they stand in: to be written before training goes on.
CheckpointParts parts_of(CheckpointState state, const model::Decoder& decoder);
// The same on the CPU, in memory of its own: training may go on while it is written, in any thread. What nothing else holds (of a
// state that was gathered for this) is taken as it is.
CheckpointParts copy_of(CheckpointParts parts);

// Writes the folder dir (and the one around it), in the place of one that stands there. Where writing fails, or a weight is not
// finite, nothing of it is left, what stood there stays, and std::runtime_error names the file, the bytes needed and those free.
void save_checkpoint(const std::string& dir, const CheckpointParts& parts, const data::Tokenizer& tokenizer,
                     const TrainConfig& config);

// All that follow throw std::runtime_error that names the file and what is wrong: not complete, damaged, of another format.

void verify_checkpoint(const std::string& dir);  // every file that DONE lists
// The first file in the folder that DONE does not list, relative to it; "" where there is none. Hidden ones (.DS_Store, .cache) are
// passed over: nothing of a checkpoint has such a name.
std::string foreign_file(const std::string& dir);
CheckpointState read_position(const std::string& dir);  // trainer.json alone, without tensors
CheckpointState load_checkpoint_state(const std::string& dir);

// A model's folder that `transformers` or another program wrote is taken here too (csrc/train/family.h, weights.h), and an adapter's
// that PEFT wrote (adapter.h); they have no digests. Of an adapter: the configuration of its base, the tokenizer beside it or else
// beside its base, the weights with the adapter merged.
model::DecoderConfig read_model_config(const std::string& dir);  // from config.json, vocabulary included
data::Tokenizer load_tokenizer(const std::string& dir);
// Its weights as they are saved, with folded spectral norms, and with the adapter that it has. tokens: DecoderConfig::tokens; 0 for
// all that it has.
model::Decoder load_model(const std::string& dir, int64_t tokens = 0);
// Copies the weights into decoder; one with layers of learned spectral norm still needs restore_sigma or start_sigma, since
// these are folded. Weights of another model: csrc/train/weights.h.
void load_weights(const std::string& dir, model::Decoder& decoder);

// Copies A and B into the adapter of decoder, from the folder of a checkpoint with model.lora or of PEFT.
void load_adapter(const std::string& dir, model::Decoder& decoder);

// A model's folder that `transformers` opens, without what a run needs: files as a checkpoint has them, of an adapter merged. Throws
// where dir is there already; where it fails nothing of it is left.
void save_model(const std::string& dir, const model::Decoder& decoder, const data::Tokenizer& tokenizer);

// The first weight that is not finite, with model.lora of the adapter alone; "" where all are.
std::string first_non_finite_weight(const model::Decoder& decoder);

}  // namespace isentrope::train
