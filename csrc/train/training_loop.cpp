// Trainer::advance and Trainer::step.
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <new>
#include <nlohmann/json.hpp>

#include "csrc/data/random.h"
#include "csrc/model/single_pass.h"
#include "csrc/train/completions.h"
#include "csrc/train/composition.h"
#include "csrc/train/finite.h"
#include "csrc/train/flops.h"
#include "csrc/train/mixer_figures.h"
#include "csrc/train/phase.h"
#include "csrc/train/process.h"
#include "csrc/train/update_figures.h"

namespace isentrope::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::string first_non_finite(const model::Decoder& model) {
  if (const std::string weight = first_non_finite_weight(model); !weight.empty()) return "weight " + weight;
  for (const auto& parameter : model->named_parameters())
    if (parameter.value().grad().defined() && !all_finite(parameter.value().grad()))
      return "gradient of " + parameter.key();
  return "the loss itself";
}

// sigmas: as the last power step gave them.
std::vector<SigmaFigures> sigma_figures(const model::Decoder& model, const std::vector<double>& sigmas) {
  std::vector<SigmaFigures> figures;
  for (const model::SigmaLayer& layer : model->sigma_layers()) {
    figures.push_back({layer.name, sigmas[figures.size()], layer.gamma.item<double>()});
    if (model->config().sigma_reparam.svd)
      figures.back().svd = at::linalg_svdvals(layer.weight.to(torch::kCPU, torch::kFloat64)).max().item<double>();
  }
  return figures;
}

// Room in metrics.jsonl for the figures that the line has when the update is made, of time and of mixers: 13 keys, two dozen digits each.
constexpr int64_t kTimes = 768;

// What an update of so many learnt tokens has to be computed.
StepWork of_update(const model::DecoderConfig& config, const data::Batch& update, double learnt) {
  StepWork work{.learnt = learnt};
  const torch::Tensor real = update.real();
  if (update.position.defined()) {
    work.tokens = real.sum().item<double>();
    work.mixing = attention_flops(
        config, [&](int64_t window) { return packed_pairs(update.position, real, window); }, work.tokens);
    return work;
  }
  const torch::Tensor lengths = real.sum(1).to(torch::kCPU);  // [B]
  for (int64_t row = 0; row < lengths.numel(); ++row) {
    const int64_t length = lengths.const_data_ptr<int64_t>()[row];
    const auto tokens = static_cast<double>(length);
    work.tokens += tokens;
    work.mixing += attention_flops(
        config, [&](int64_t window) { return attention_pairs(length, window); }, tokens);
  }
  return work;
}

void fit_law(rl::EntropyLaw& law, std::map<std::string, double>& values) {
  if (!values.contains("entropy/mean") || !values.contains("reward/mean")) return;
  law.add(values.at("entropy/mean"), values.at("reward/mean"));
  if (const auto fit = law.fit())
    values.insert({{"law/a", fit->a},
                   {"law/b", fit->b},
                   {"law/ceiling", fit->ceiling()},
                   {"law/r2", fit->r2},
                   {"law/rmse", fit->rmse}});
}

}  // namespace

// What the updates of a step have made.
struct Trainer::Learnt {
  double lr = 0;
  bool goes_back =
      false;  // something can refuse behind an update: each is applied, and the weights before the first are kept
  UpdateFigures figures = {};
  StepWork work = {};
  std::optional<AttentionStatistics> attention = {};
  std::optional<StateStatistics> states = {};
  std::vector<double> sigmas = {};
  double sigma_seconds = 0;
  std::map<std::string, double> noise = {}, inside = {};
  double inside_seconds = 0;
  std::vector<std::string> warnings = {};
  std::vector<torch::Tensor> weighed = {};  // [B, T] of each update of the first epoch, where completions are saved
};

// One training step, top to bottom: data, then for each of its updates loss, gradients, and new weights. The only update of a step
// comes last, behind all that can refuse; where something can refuse behind one, the weights before it are kept.
Record Trainer::step() {
  const Clock::time_point start = Clock::now();
  const int64_t sent_before = ranks_->bytes_sent();
  const PhaseConfig& phase = open_->config;
  open_->saved.clear();
  open_->optimizer.zero_grad();  // those of the step before are not wanted beside what is drawn
  data::StepData data = open_->source->next(step_);
  const double source_seconds = seconds_since(start);
  open_->objective->begin(step_, model_, data.updates);

  Learnt learnt{.lr = phase.optimizer.lr * learning_rate_share(phase.schedule, step_, phase.steps),
                .goes_back = keeps_copies(config_, phase, static_cast<int64_t>(data.updates.size()), ranks_->size()),
                .work = {.reference = open_->reference.has_value()}};
  for (size_t u = 0; u < data.updates.size(); ++u)
    if (const double divergence = learn(data.updates[u], u, learnt);
        phase.objective.max_kl && divergence > *phase.objective.max_kl)
      break;
  if (learnt.goes_back)
    if (const std::string bad = first_non_finite_weight(model_); !bad.empty())
      throw NonFinite("the weight " + bad + " is not finite after the update");
  save_rollouts(data.updates, learnt);

  std::map<std::string, double> values = std::move(data.stats);
  learnt.figures.into(values);
  values.merge(learnt.noise);
  values.merge(learnt.inside);
  if (step_ == 0) values.insert(open_->mined.begin(), open_->mined.end());
  if (learnt.attention) learnt.attention->alarms = open_->follows.alarm.look(step_ + 1, *learnt.attention);
  if (phase.holds_entropy().empty()) fit_law(open_->follows.law, values);
  values["lr"] = learnt.lr;
  StepWork& work = learnt.work;
  work.generated = values.contains("generated") ? values["generated"] : 0;
  if (work.generated > 0) values["rollout_tokens_per_s"] = work.generated / source_seconds;
  if (!ranks_->alone()) values["ranks/bytes"] = ranks_->sum(static_cast<double>(ranks_->bytes_sent() - sent_before));
  Record record = record_of(std::move(values), std::move(learnt.attention), learnt.sigmas, data.warnings);
  record.states = std::move(learnt.states);
  record.warnings.insert(record.warnings.end(), learnt.warnings.begin(), learnt.warnings.end());
  if (!learnt.goes_back && !data.updates.empty()) {
    metrics_->make_room(static_cast<int64_t>(to_json(record).size()) + kTimes);
    apply_update();
    open_->made = true;
  }
  record.values.merge(mixer_figures(model_));
  const double seconds = seconds_since(start);
  record.values["tokens_per_s"] = work.tokens / seconds;
  record.values["mfu"] = model_flops(config_.model, work) / seconds / header_.product_rate;
  if (!learnt.sigmas.empty()) record.values["sigma/time_share"] = learnt.sigma_seconds / seconds_since(start);
  if (learnt.inside_seconds > 0) {
    record.values["representation/time_share"] = learnt.inside_seconds / seconds;
    const int64_t every = config_.metrics.representation.every;
    if (const std::string slow = slow_look(learnt.inside_seconds, seconds - learnt.inside_seconds, every);
        step_ + 1 == 2 * every && !slow.empty())  // the second of the phase: the first one warms up
      record.of_times.push_back(slow);
  }
  record.values["time_s"] = seconds_since(begun_);
  return record;
}

void Trainer::apply_update() {
  open_->optimizer.apply();
  model_->take_seen([&](torch::Tensor& x) { ranks_->sum(x); });
  if (composition_) composition_->apply();
}

// Update number u of the step: its loss and gradients, what the optimiser asks of them and, where the step can be gone back from, new
// weights. Returns how far its policy was from the one that drew, kl/k3; 0 where there is no policy.
double Trainer::learn(const data::Batch& given, size_t u, Learnt& learnt) {
  const PhaseConfig& phase = open_->config;
  const data::Batch update = given.to(model_->embedding().device());
  open_->optimizer.zero_grad(), model_->forget_seen();
  const bool clips = config_.model.attention.qk_clip > 0,
             looks = u == 0 && due(phase.objective.attention_entropy.every) && (attends_ || has_states_);
  const bool measures = u == 0 && due(config_.metrics.gradient_noise_scale);
  if (measures) open_->optimizer.gradients().measure();
  if (u == 0 && due(config_.metrics.representation.every)) tell_inside(update, learnt);
  const int64_t micro = phase.batch.micro_tokens;
  const model::SinglePass single(config_.model.recompute == "none" && (micro == 0 || update.tokens.numel() <= micro));
  AttentionWatch watch(looks && phase.objective.attention_entropy.bound, looks && has_states_);
  auto stats = open_->objective->backward(model_, update, seed_of(phase.name, data::Purpose::selection, step_, u),
                                          looks || clips ? &watch : nullptr, &open_->optimizer.gradients());
  if (!std::isfinite(stats["loss"]))
    throw NonFinite("the loss is not finite; first bad tensor: " + first_non_finite(model_));
  if (learnt.goes_back && u == 0) open_->before.take();
  stats["grad_norm"] = open_->optimizer.ask(learnt.lr, /*bounded=*/!learnt.goes_back,
                                            {seed_of(phase.name, data::Purpose::gradient, step_, u), step_});
  if (phase.optimizer.noise) stats["added_noise/ratio"] = open_->optimizer.noise_ratio();
  if (const auto held = open_->optimizer.held()) stats["consolidation/penalty"] = *held;
  if (measures) tell_noise(update, stats["grad_norm"], learnt);
  if (looks && attends_) learnt.attention = watch.statistics();
  if (looks && has_states_) learnt.states = watch.states();
  if (learnt.goes_back) {
    apply_update();
    if (clips) stats["qk_clip/heads"] = static_cast<double>(model_->qk_clip(watch.statistics().max_logit));
    const Clock::time_point updated = Clock::now();
    learnt.sigmas = power_step();
    learnt.sigma_seconds += seconds_since(updated);
  }
  if (!open_->saved.empty() && u < static_cast<size_t>(phase.rollout->mini_batches))
    if (const torch::Tensor weighed = open_->objective->weighed(); weighed.defined()) learnt.weighed.push_back(weighed);
  open_->source->observe(stats);
  const double divergence = stats.contains("kl/k3") ? stats.at("kl/k3") : 0;
  const auto tokens = stats.extract("tokens");  // for the means alone, not a figure to be told
  const double counts = tokens ? tokens.mapped() : (update.target != data::kIgnore).sum().item<double>();
  learnt.figures.add(std::move(stats), counts);
  learnt.work += of_update(config_.model, update, counts);
  return divergence;
}

// The completions of a step that saves them, with what its updates made their tokens weigh.
void Trainer::save_rollouts(const std::vector<data::Batch>& updates, const Learnt& learnt) {
  rl::take_rows(updates, learnt.weighed, open_->saved, &rl::SavedRollout::weight);
  for (const rl::SavedRollout& one : open_->saved)
    if (ranks_->first()) open_->rollouts->write(line_of(to_json(open_->config.name, step_ + 1, one, tokenizer_)));
}

// From the first pass of each rank over the update, whose gradient has that norm; a verb of Ranks.
void Trainer::tell_noise(const data::Batch& update, double norm, Learnt& learnt) {
  const auto own = open_->optimizer.gradients().measured().value_or(GradientNoise::Part{});
  std::vector<double> numbers(2 * static_cast<size_t>(ranks_->size()));
  numbers[2 * ranks_->rank()] = own.squares, numbers[2 * ranks_->rank() + 1] = own.sequences;
  ranks_->sum(numbers);
  std::vector<GradientNoise::Part> parts;
  for (size_t i = 0; i < numbers.size(); i += 2) parts.push_back({.squares = numbers[i], .sequences = numbers[i + 1]});
  const auto found = GradientNoise::find(parts, sequences_of(update.target), norm);
  if (!found) return;
  open_->follows.noise.add(*found);
  learnt.noise = {{"gradient_noise/trace", found->trace}, {"gradient_noise/square", found->square}};
  if (const auto scale = open_->follows.noise.scale()) learnt.noise["gradient_noise_scale"] = *scale;
}

// Of the weights before the update. A verb of Ranks.
void Trainer::tell_inside(const data::Batch& update, Learnt& learnt) {
  const Clock::time_point start = Clock::now();
  const RepresentationConfig& config = config_.metrics.representation;
  learnt.inside = look_inside(config, model_, update, open_->config.batch.micro_tokens, *ranks_);
  if (const std::string few = too_few_tokens(learnt.inside, config_.model.hidden_size);
      step_ + 1 == config.every && !few.empty())  // the first of the phase
    learnt.warnings.push_back(few);
  learnt.inside_seconds = seconds_since(start);
}

// The line of the step in hand, but for times.
Record Trainer::record_of(std::map<std::string, double> values, std::optional<AttentionStatistics> attention,
                          const std::vector<double>& sigmas, const std::vector<std::string>& of_source) {
  const std::string& phase = open_->config.name;
  std::vector<std::string> warnings = open_->follows.watch.look(phase, values);
  for (const std::string& text : of_source) warnings.push_back("phases." + phase + "." + text);
  warnings.insert(warnings.end(), lost_.begin() + static_cast<std::ptrdiff_t>(lost_told_), lost_.end());
  Record record{.phase = phase,
                .step = step_ + 1,
                .values = std::move(values),
                .attention = std::move(attention),
                .global_step = steps_of_run_ + 1};
  if (due(config_.model.sigma_reparam.every)) record.sigma = sigma_figures(model_, sigmas);
  record.warnings = std::move(warnings);
  return record;
}

void Trainer::sync_reference() {
  const auto& config = open_->config.objective.reference;
  if (open_->reference && config && config->sync_every > 0 && step_ % config->sync_every == 0)
    mix_into(*open_->reference, config->mixup);
}

// A step and its line, or neither. Behind the update of a step that keeps nothing to go back to only the write can fail, for which
// there was room: then the step stands.
void Trainer::whole_step(std::vector<Record>& records) {
  const Metrics::Place metrics_before = metrics_->place();
  const Follows follows = open_->follows;
  const auto methods = open_->objective->state();
  open_->made = false;
  const auto stand = [&] {
    lost_told_ = lost_.size();
    open_->before.drop();
    open_->source->commit();
    open_->rollouts->commit();
    metrics_of_step_ = metrics_->place();
    samples_of_step_ = samples_->place();
    ++step_;
    ++steps_of_run_;
    evaluated_ = tested_ = false;
    sync_reference();
  };
  try {
    ranks_->together([&] { write(step(), records); });
  } catch (...) {
    metrics_->back_to(metrics_before);
    const std::string place = "step " + std::to_string(step_ + 1);
    if (open_->made) {
      stand();
      rethrow_with_place(place + ", which was made, and its line is lost");
    }
    open_->rollouts->back();
    open_->before.restore();
    if (composition_) composition_->apply();
    open_->optimizer.zero_grad();
    open_->follows = follows;
    open_->objective->restore(methods);
    rethrow_with_place(place);
  }
  stand();
}

bool Trainer::at_end() const { return step_ >= open_->config.steps || stopped_; }

// Validation and test that are due after step_. Their lines are written together, so that none stands there twice where one of
// them fails and is made again.
void Trainer::evaluate_due(std::vector<Record>& records) {
  const PhaseConfig& phase = open_->config;
  const EvaluationConfig& evaluation = phase.evaluation;
  std::vector<Record> made;
  std::vector<std::string> shown;
  const auto evaluate_all = [&] {
    if (!evaluated_ && open_->validation && evaluation.every > 0 && step_ % evaluation.every == 0 &&
        step_ >= evaluation.from) {
      made.push_back(evaluate("validation", shown));
      stopped_ = phase.stop && phase.stop->reached(made.back().values);
    }
    if (at_end() && !tested_ && open_->test) {
      made.push_back(evaluate("test", shown));
      Evaluation result = made.back().values;
      result.erase("time_s");
      const auto of_phase = [&](const auto& one) { return one.first == phase.name; };
      results_.erase(std::remove_if(results_.begin(), results_.end(), of_phase), results_.end());
      results_.push_back({phase.name, result});
    }
    for (const std::string& line : shown) samples_->write(line);
    for (Record& line : made) write(std::move(line), records);
  };
  try {
    ranks_->together(evaluate_all);
  } catch (...) {
    metrics_->back_to(metrics_of_step_);
    samples_->back_to(samples_of_step_);
    rethrow_with_place("evaluation after step " + std::to_string(step_));
  }
  evaluated_ = true;
  tested_ = at_end();
}

Record Trainer::evaluate(const std::string& split, std::vector<std::string>& shown) {
  const bool test = split == "test";
  std::vector<Sample> samples;
  Evaluation found =
      (test ? open_->test : open_->validation)
          ->evaluate(model_, test ? config_.test : open_->config.evaluation, &samples, nullptr, nullptr, *ranks_);
  if (test) tell_tasks(found);
  if (!samples.empty()) shown.push_back(to_json(open_->config.name, step_, split, samples));
  found["time_s"] = seconds_since(begun_);
  return {.phase = open_->config.name,
          .step = step_,
          .values = std::move(found),
          .split = split,
          .global_step = steps_of_run_};
}

void Trainer::write(Record line, std::vector<Record>& records) {
  const std::string text = to_json(line);
  metrics_->write(text);
  if (trackers_) trackers_->write(text);
  records.push_back(std::move(line));
}

int Trainer::agree_on_stop(int asked) const {
  if (ranks_->alone()) return asked;
  constexpr int kStops[] = {SIGTERM, SIGINT, SIGHUP, kTryAgain};
  std::vector<double> by;
  for (const int one : kStops) by.push_back(one == asked);
  ranks_->sum(by);
  for (size_t i = 0; i < by.size(); ++i)
    if (by[i] > 0) return kStops[i];
  return 0;
}

std::vector<Record> Trainer::advance() {
  const Working working(working_);
  std::vector<Record> records;
  if (finished()) return records;
  take_note(writer_.ended());
  if (!open_) ranks_->together([&] { open_phase(nullptr); });
  if (!open_->source) try {
      ranks_->together([&] { make_pairs(); });
    } catch (...) {
      rethrow_with_place("pairs");
    }
  const Clock::time_point start = Clock::now();  // of what every step takes: pairs are drawn once
  if (evaluated_ && !at_end()) whole_step(records);
  // The second where a resumed configuration ends the phase at the step that it stands at.
  if (!evaluated_ || (at_end() && !tested_)) evaluate_due(records);

  if (at_end()) {
    open_->optimizer.zero_grad();
    checkpoint(true);
    leave_task();
    ended_.push_back(open_->config.name);
    open_.reset();
    ++phase_;
    step_ = 0;
    if (finished()) {
      trackers_.reset();  // all is written when the run is
      if (ranks_->first()) write_summary();
    }
  } else if (config_.run.checkpoint_every > 0 && step_ % config_.run.checkpoint_every == 0) {
    checkpoint(false, /*beside=*/true);
  }
  time_limit_.stepped(seconds_since(start));
  return records;
}

// What an error says of the state before it.
std::string Trainer::save_last_whole() {
  try {
    if (step_ > 0) checkpoint(false);
  } catch (const std::exception& error) {
    if (!ranks_->broken()) return ". The state before it could not be saved: " + std::string(error.what());
  }
  std::error_code error;
  if (last_checkpoint_.empty()) return ". There is no checkpoint yet.";
  return std::filesystem::exists(last_checkpoint_, error)
             ? ". The last good checkpoint is " + last_checkpoint_ + "."
             : ". The last checkpoint, " + last_checkpoint_ + ", was removed or renamed.";
}

// Within a handler: saves the last whole state and throws the error on, with its place and the name of what was saved. What is
// neither ours nor torch's, such as an exception of Python, goes on as it is.
void Trainer::rethrow_with_place(const std::string& place) {
  const std::string saved = save_last_whole(), where = "phase " + open_->config.name + ", " + place + ": ";
  try {
    throw;
  } catch (const c10::Error& error) {
    throw std::runtime_error(where + error.what_without_backtrace() + saved);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(where + error.what() + saved);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(where + error.what() + saved);
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(where + "the memory does not suffice" + saved);
  }
}

}  // namespace isentrope::train
