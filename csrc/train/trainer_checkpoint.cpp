// What a checkpoint holds, and when it is written.
#include <filesystem>
#include <memory>

#include "csrc/train/composition.h"
#include "csrc/train/phase.h"
#include "csrc/train/run_checkpoints.h"

namespace isentrope::train {

std::string Trainer::save() {
  const Working working(working_);
  if (open_ && step_ > 0) checkpoint(false);
  return last_checkpoint_;
}

CheckpointState Trainer::state(bool phase_finished) const {
  CheckpointState state;
  state.optimizer = open_->optimizer.state();
  state.phase_name = open_->config.name;
  state.phase_finished = phase_finished;
  // A phase that a stop ended is not known by its steps: where its last checkpoint failed, its evaluation is made again.
  state.evaluated = phase_finished || (evaluated_ && !at_end());
  state.step = step_;
  state.steps_of_run = steps_of_run_;
  state.seed = static_cast<uint64_t>(config_.run.seed);
  state.ended = ended_;
  state.numbers = numbers_;
  for (const auto& [phase, result] : results_)
    for (const auto& [name, value] : result)
      state.extra[kResult + phase + "/" + name] = torch::tensor(value, torch::kFloat64);
  state.extra.merge(model_->sigma_state());
  state.source = open_->source->state();
  state.extra[kMetrics] = torch::tensor((state.evaluated ? metrics_->place() : metrics_of_step_).digest.value());
  state.extra[kSamples] = torch::tensor((state.evaluated ? samples_->place() : samples_of_step_).digest.value());
  if (const Metrics::Place& saved = open_->rollouts->kept(); saved.bytes > 0)
    state.extra[kRollouts] = torch::tensor({saved.bytes, saved.digest.value()}, torch::kInt64);
  if (open_->data_digest) state.extra[kData] = torch::tensor(*open_->data_digest, torch::kInt64);
  if (open_->reference)
    for (const auto& [name, weight] : config_.model.lora && !open_->own_reference()
                                          ? (*open_->reference)->adapter()
                                          : (*open_->reference)->named_weights())
      state.extra[kReference + name] = weight;
  if (config_.model.lora) {
    state.base = base_;
    state.extra[kBase] = torch::tensor(base_digest_, torch::kInt64);
  }
  if (origin_ != 0) state.extra[kOrigin] = torch::tensor(origin_, torch::kInt64);
  if (composition_) state.extra[kCoefficients] = composition_->coefficients().detach();
  state.extra.merge(open_->follows.state());
  state.extra.merge(open_->objective->state());
  if (const torch::Tensor& threshold = open_->objective->attention().threshold(); threshold.defined())
    state.extra[kThreshold] = threshold.detach();
  return state;
}

std::map<std::string, torch::Tensor> Trainer::Follows::state() const {
  std::map<std::string, torch::Tensor> state = alarm.state();
  if (law.points() > 0) state[kLaw] = torch::tensor(law.state(), torch::kFloat64);
  for (const auto& [name, numbers] : {std::pair(kPolicyWatch, watch.state()), {kNoise, noise.state()}})
    if (!numbers.empty()) state[name] = torch::tensor(numbers, torch::kFloat64);
  return state;
}

void Trainer::Follows::restore(const std::map<std::string, torch::Tensor>& state) {
  alarm.restore(state);
  const auto numbers = [&](const std::string& name, auto& of) {
    if (const auto found = state.find(name); found != state.end()) {
      const double* x = found->second.const_data_ptr<double>();
      of.restore({x, x + found->second.numel()});
    }
  };
  numbers(kLaw, law);
  numbers(kPolicyWatch, watch);
  numbers(kNoise, noise);
}

void Trainer::checkpoint(bool phase_finished, bool beside) {
  ranks_->together([&] { make_checkpoint(phase_finished, beside); });
}

void Trainer::make_checkpoint(bool phase_finished, bool beside) {
  take_note(writer_.wait());
  const std::string dir = checkpoint_dir(folder_.dir(), open_->config.name, step_);
  std::error_code error;
  const bool there = dir == last_checkpoint_ && !phase_finished && std::filesystem::exists(dir + "/DONE", error);
  if (ranks_->max(ranks_->first() && there)) return;
  folder_.check();
  std::vector<std::string> phases;
  for (const auto& [name, number] : numbers_) phases.push_back(name);
  // Reads of the trainer what does not change in its life: the tokenizer, the configuration, the name of the folder.
  const auto write = [this, dir, phases](const CheckpointParts& parts) {
    save_checkpoint(dir, parts, tokenizer_, config_);
    prune_checkpoints(folder_.dir(), config_.run.keep, phases);
  };
  CheckpointParts parts = parts_of(state(phase_finished), model_);
  if (!ranks_->first()) {
    if (!beside) last_checkpoint_ = dir;  // one that is written beside training may fail yet
    return;
  }
  if (!beside) {
    write(parts);
    last_checkpoint_ = dir;
    return;
  }
  const auto kept = std::make_shared<const CheckpointParts>(beside_ ? copy_of(std::move(parts)) : std::move(parts));
  writer_.begin(
      dir, [write, kept] { write(*kept); }, beside_);
}

void Trainer::take_note(const std::optional<CheckpointWriter::Written>& written) {
  if (!written) return;
  if (written->error.empty()) {
    last_checkpoint_ = written->dir;
    return;
  }
  lost_.push_back("the checkpoint " + written->dir + " could not be written, and the run goes on: " + written->error +
                  (last_checkpoint_.empty() ? ". There is none before it" : ". " + last_checkpoint_ + " stays"));
}

const std::vector<std::string>& Trainer::wait() {
  const Working working(working_);
  take_note(writer_.wait());
  return lost_;
}

}  // namespace isentrope::train
