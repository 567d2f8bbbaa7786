#include "csrc/train/trainer.h"

#include <ATen/Parallel.h>
#include <torch/cuda.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "csrc/data/corpus.h"
#include "csrc/data/packed_source.h"
#include "csrc/data/random.h"
#include "csrc/data/sft_source.h"
#include "csrc/durable_file.h"
#include "csrc/rl/entropy_law.h"
#include "csrc/train/data_check.h"

namespace isentrope::train {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

uint64_t derived_seed(uint64_t seed, data::Purpose purpose, uint64_t a, uint64_t b = 0, uint64_t c = 0) {
  data::Stream stream(seed, purpose, a, b, c);
  const uint64_t high = stream.bits();
  return high << 32 | stream.bits();
}

std::string first_non_finite(const model::Decoder& model) {
  for (const auto& [name, weight] : model->named_weights())
    if (!torch::isfinite(weight).all().item<bool>()) return "weight " + name;
  for (const auto& parameter : model->named_parameters())
    if (parameter.value().grad().defined() && !torch::isfinite(parameter.value().grad()).all().item<bool>())
      return "gradient of " + parameter.key();
  return "the loss itself";
}

// Names under which a checkpoint keeps what the trainer needs beside model, optimiser and source.
const std::string kResult = "result/", kReference = "reference/", kThreshold = "attention_threshold",
                  kLaw = "entropy_law";

constexpr const char* kUnchanged = ". No weight was changed by this update";

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

}  // namespace

std::unique_ptr<HeldOut> held_out_of(const TrainConfig& config, const PhaseConfig& phase,
                                     const data::Tokenizer& tokenizer, data::Split split,
                                     const std::map<std::string, rl::RewardFunction>& rewards) {
  if (phase.data.corpus)
    return std::make_unique<HeldOutText>(data::open_corpus(*phase.data.corpus, tokenizer, split), tokenizer,
                                         config.model.context, phase.batch.sequences,
                                         split == data::Split::test ? "test" : "validation");
  const PhaseConfig& last = config.phases.back();
  const PhaseConfig& answers = phase.rollout ? phase : last;
  return std::make_unique<HeldOutPrompts>(phase.data, answers.reward, rewards, tokenizer, split, config.model.context,
                                          answers.rollout ? answers.rollout->sampling.max_new_tokens : 0,
                                          answers.rollout ? answers.rollout->cache : rl::CacheConfig());
}

struct Trainer::Phase {
  const PhaseConfig& config;
  std::unique_ptr<data::BatchSource> source;
  std::unique_ptr<Objective> objective;
  Optimizer optimizer;
  std::unique_ptr<HeldOut> validation, test;
  std::optional<model::Decoder> reference;
  AttentionAlarm alarm = {};
  rl::EntropyLaw law = {};
};

Trainer::Trainer(TrainConfig config, bool resume, const std::map<std::string, rl::RewardFunction>& rewards)
    : config_(std::move(config)),
      folder_(config_.run.dir, resume),
      tokenizer_(config_.tokenizer),
      model_(nullptr),
      rewards_(rewards) {
  check_machine(config_);
  if (config_.run.threads > 0) at::set_num_threads(static_cast<int>(config_.run.threads));
  config_.model.vocabulary = tokenizer_.size();
  model_ = model::Decoder(config_.model, derived_seed(config_.run.seed, data::Purpose::initialisation, 0));

  std::vector<std::string> names;
  for (const PhaseConfig& phase : config_.phases) names.push_back(phase.name);
  const auto latest = resume ? find_latest(folder_.dir()) : std::nullopt;
  const std::string from = latest.value_or(config_.run.start);
  std::optional<CheckpointState> state;
  if (!from.empty()) {
    state = load_checkpoint_state(from);
    const auto at = std::find(names.begin(), names.end(), state->phase_name);
    if (at == names.end())
      throw std::runtime_error(from + " stands in phase '" + state->phase_name +
                               "', which this configuration does not have");
    load_weights(from, model_);
    if (!model_->restore_sigma(state->extra)) model_->start_sigma(/*gamma_is_sigma=*/true);
    phase_ = at - names.begin();
    step_ = state->step;
    if (state->phase_finished || !latest) ++phase_, step_ = 0;
    for (const std::string& name : names) {
      const std::string prefix = kResult + name + "/";
      Evaluation result;
      for (const auto& [key, x] : state->extra)
        if (key.starts_with(prefix)) result[key.substr(prefix.size())] = x.item<double>();
      if (!result.empty()) results_.push_back({name, result});
    }
    last_checkpoint_ = from;
  }
  const bool cuda = config_.run.device == "cuda" || (config_.run.device == "auto" && torch::cuda::is_available());
  model_->to(cuda ? torch::kCUDA : torch::kCPU);

  notes_ = check_data(config_, tokenizer_, rewards_, phase_);  // before anything is written

  keep_metrics_until(folder_.metrics(), names, static_cast<int64_t>(phase_), step_);
  keep_metrics_until(folder_.samples(), names, static_cast<int64_t>(phase_), step_);
  write_durably(folder_.config(), print_config(config_));
  // Before metrics.jsonl is there: a run that cannot begin leaves no run behind.
  if (config_.metrics.tensorboard && !finished()) tensorboard_ = std::make_unique<TensorBoard>(folder_.dir());
  metrics_ = std::make_unique<Metrics>(folder_.metrics());
  samples_ = std::make_unique<Metrics>(folder_.samples());
  if (!finished()) open_phase(state && !state->phase_finished && latest ? &*state : nullptr);
}

Trainer::~Trainer() = default;

std::unique_ptr<data::BatchSource> Trainer::source_of(const PhaseConfig& phase) const {
  const uint64_t data_seed = derived_seed(config_.run.seed, data::Purpose::example, phase_);
  const int64_t context = config_.model.context;
  if (phase.data.corpus)
    return std::make_unique<data::PackedSource>(data::open_corpus(*phase.data.corpus, tokenizer_, data::Split::train),
                                                phase.batch.sequences, context, data_seed);
  const data::Use use = use_of(config_, phase, tokenizer_);
  std::shared_ptr<const data::ExampleSource> examples =
      data::make_source(phase.data, data_seed, data::Split::train, &use);
  if (phase.rollout)
    return std::make_unique<rl::RolloutSource>(*phase.rollout, model_, tokenizer_, examples,
                                               rl::RewardSum(phase.reward, tokenizer_.eos(), rewards_),
                                               derived_seed(config_.run.seed, data::Purpose::rollout, phase_));
  return std::make_unique<data::SftSource>(examples, tokenizer_, phase.batch.sequences, context, phase.data.overlong);
}

void Trainer::open_phase(const CheckpointState* state) {
  const PhaseConfig& phase = config_.phases[phase_];
  std::optional<model::Decoder> reference;
  if (phase.objective.ref_kl_coef > 0) {
    torch::NoGradGuard no_grad;
    model::DecoderConfig plain = config_.model;
    plain.sigma_reparam = {};
    reference = model::Decoder(plain, 0);
    (*reference)->to(model_->embedding().device());
    const auto weights = model_->folded_weights();
    const auto copies = (*reference)->named_weights();
    for (size_t i = 0; i < weights.size(); ++i)  // in the middle of a phase: as it was at the phase's start
      copies[i].second.copy_(state ? state->extra.at(kReference + weights[i].first) : weights[i].second);
  }

  auto objective = make_objective(phase.objective, phase.batch, model_,
                                  phase.rollout ? phase.rollout->sampling.temperature : 1.0, reference);
  std::vector<std::pair<std::string, torch::Tensor>> parameters;
  for (const auto& parameter : model_->named_parameters()) parameters.push_back({parameter.key(), parameter.value()});
  if (const torch::Tensor& threshold = objective->attention().threshold();
      threshold.defined() && threshold.requires_grad())
    parameters.push_back({kThreshold, threshold});
  const auto held_out = [&](const PhaseConfig& of, data::Split split) {
    return evaluates(config_, phase, split) ? held_out_of(config_, of, tokenizer_, split, rewards_) : nullptr;
  };
  open_ = std::make_unique<Phase>(Phase{.config = phase,
                                        .source = source_of(phase),
                                        .objective = std::move(objective),
                                        .optimizer = Optimizer(phase.optimizer, parameters),
                                        .validation = held_out(phase, data::Split::validation),
                                        .test = held_out(config_.phases.back(), data::Split::test),
                                        .reference = reference});
  if (state) {
    open_->optimizer.restore(state->optimizer);
    open_->source->restore(state->source);
    open_->alarm.restore(state->extra);
    if (const auto law = state->extra.find(kLaw); law != state->extra.end())
      open_->law.restore(
          {law->second.const_data_ptr<double>(), law->second.const_data_ptr<double>() + law->second.numel()});
    if (const torch::Tensor& threshold = open_->objective->attention().threshold(); threshold.defined()) {
      torch::NoGradGuard no_grad;
      torch::Tensor(threshold).copy_(state->extra.at(kThreshold));
    }
  }
}

// One training step, top to bottom: data, then for each of its updates loss, gradients, and new weights.
Record Trainer::step() {
  const Clock::time_point start = Clock::now();
  const PhaseConfig& phase = open_->config;
  const double lr = phase.optimizer.lr * learning_rate_share(phase.schedule, step_, phase.steps);
  data::StepData data = open_->source->next(step_);
  const double source_seconds = seconds_since(start);

  std::map<std::string, double> values = std::move(data.stats);
  std::optional<AttentionStatistics> attention;
  std::vector<double> sigmas;
  double tokens = 0, sigma_seconds = 0;
  const int64_t look = phase.objective.attention_entropy.every;
  const bool clips = config_.model.attention.qk_clip > 0;
  std::map<std::string, double> told;  // of each statistic, in how many updates it was told so far
  for (size_t u = 0; u < data.updates.size(); ++u) {
    const data::Batch update = data.updates[u].to(model_->embedding().device());
    open_->optimizer.zero_grad();
    const uint64_t seed = derived_seed(config_.run.seed, data::Purpose::selection, phase_, step_, u);
    const bool looks = u == 0 && look > 0 && (step_ + 1) % look == 0;
    AttentionWatch watch(looks && phase.objective.attention_entropy.bound);
    auto stats = open_->objective->backward(model_, update, seed, looks || clips ? &watch : nullptr);
    if (!std::isfinite(stats["loss"]))
      fail("the loss is not finite; first bad tensor: " + first_non_finite(model_) + kUnchanged);
    stats["grad_norm"] = open_->optimizer.step(lr);
    if (clips) stats["qk_clip/heads"] = static_cast<double>(model_->qk_clip(watch.statistics().max_logit));
    if (looks) attention = watch.statistics();
    const Clock::time_point updated = Clock::now();
    sigmas = power_step();
    sigma_seconds += seconds_since(updated);
    open_->source->observe(stats);

    for (const auto& [name, value] : stats) {
      const double n = ++told[name];  // the first takes the place of what the source said of it
      double& so_far = values[name];
      so_far = n == 1 ? value : name.ends_with("/max") ? std::max(so_far, value) : so_far + (value - so_far) / n;
    }
    tokens += (update.tokens != tokenizer_.pad_id()).sum().item<double>();
  }
  open_->source->commit();
  if (attention) attention->alarms = open_->alarm.look(step_ + 1, *attention);
  if (phase.holds_entropy().empty() && values.contains("entropy/mean")) {
    open_->law.add(values.at("entropy/mean"), values.at("reward/mean"));
    if (const auto law = open_->law.fit())
      values.insert({{"law/a", law->a},
                     {"law/b", law->b},
                     {"law/ceiling", law->ceiling()},
                     {"law/r2", law->r2},
                     {"law/rmse", law->rmse}});
  }
  values["lr"] = lr;
  const double generated = values.contains("generated") ? values["generated"] : 0;
  if (generated > 0) values["rollout_tokens_per_s"] = generated / source_seconds;
  values["tokens_per_s"] = tokens / seconds_since(start);
  if (!sigmas.empty()) values["sigma/time_share"] = sigma_seconds / seconds_since(start);
  values["time_s"] = seconds_since(begun_);
  Record record{.phase = phase.name, .step = step_ + 1, .values = std::move(values), .attention = std::move(attention)};
  if (const int64_t every = config_.model.sigma_reparam.every; every > 0 && (step_ + 1) % every == 0)
    record.sigma = sigma_figures(model_, sigmas);
  return record;
}

std::vector<double> Trainer::power_step() {
  std::vector<double> sigmas = model_->power_step();
  for (size_t i = 0; i < sigmas.size(); ++i)
    if (!std::isfinite(sigmas[i]))
      fail("the spectral norm of " + model_->sigma_layers()[i].name + " is not finite after the update");
  return sigmas;
}

std::vector<Record> Trainer::advance() {
  if (finished()) return {};
  const PhaseConfig& phase = open_->config;
  std::vector<Record> records;
  const auto record = [&](Record line) {
    const std::string text = to_json(line);
    metrics_->write(text);
    if (tensorboard_) tensorboard_->write(text);
    records.push_back(std::move(line));
  };
  if (step_ < phase.steps) {  // all may be done where the evaluation at the phase's end failed, and the run was resumed
    try {
      record(step());
    } catch (const NonFinite& error) {
      fail(error.what() + std::string(kUnchanged));
    }
    ++step_;
  }

  bool ended = step_ >= phase.steps;
  const EvaluationConfig& evaluation = phase.evaluation;
  try {
    if (open_->validation && step_ % evaluation.every == 0 && step_ >= evaluation.from) {
      record(evaluate("validation"));
      ended = ended || (phase.stop && phase.stop->reached(records.back().values));
    }
    if (ended && open_->test) {
      record(evaluate("test"));
      results_.push_back({phase.name, records.back().values});
      results_.back().second.erase("time_s");
    }
  } catch (...) {  // a reward in Python may fail: what was learnt stays
    checkpoint(false);
    throw;
  }

  if (ended) {
    open_->optimizer.zero_grad();
    checkpoint(true);
    open_.reset();
    ++phase_;
    step_ = 0;
    if (finished())
      tensorboard_.reset();  // all is written when the run is
    else
      open_phase(nullptr);
  } else if (config_.run.checkpoint_every > 0 && step_ % config_.run.checkpoint_every == 0) {
    checkpoint(false);
  }
  return records;
}

std::string Trainer::save() {
  if (!finished() && step_ > 0) checkpoint(false);
  return last_checkpoint_;
}

void Trainer::checkpoint(bool phase_finished) {
  CheckpointState state;
  state.phase = static_cast<int64_t>(phase_);
  state.phase_name = open_->config.name;
  state.phase_finished = phase_finished;
  state.step = step_;
  state.seed = static_cast<uint64_t>(config_.run.seed);
  for (const auto& [phase, result] : results_)
    for (const auto& [name, value] : result)
      state.extra[kResult + phase + "/" + name] = torch::tensor(value, torch::kFloat64);
  state.extra.merge(model_->sigma_state());
  if (!phase_finished) {
    state.optimizer = open_->optimizer.state();
    state.source = open_->source->state();
    if (open_->reference)
      for (const auto& [name, weight] : (*open_->reference)->named_weights()) state.extra[kReference + name] = weight;
    state.extra.merge(open_->alarm.state());
    if (open_->law.points() > 0) state.extra[kLaw] = torch::tensor(open_->law.state(), torch::kFloat64);
    if (const torch::Tensor& threshold = open_->objective->attention().threshold(); threshold.defined())
      state.extra[kThreshold] = threshold.detach();
  }
  const std::string dir = checkpoint_dir(folder_.dir(), state.phase_name, step_);
  if (dir == last_checkpoint_ && !phase_finished) return;
  save_checkpoint(dir, state, model_, tokenizer_, config_);
  prune_checkpoints(folder_.dir(), config_.run.keep);
  last_checkpoint_ = dir;
}

Record Trainer::evaluate(const std::string& split) {
  const bool test = split == "test";
  std::vector<Sample> shown;
  Evaluation found = (test ? open_->test : open_->validation)
                         ->evaluate(model_, test ? config_.test : open_->config.evaluation, &shown);
  if (!shown.empty()) samples_->write(to_json(open_->config.name, step_, split, shown));
  found["time_s"] = seconds_since(begun_);
  return {.phase = open_->config.name, .step = step_, .values = std::move(found), .split = split};
}

void Trainer::fail(const std::string& what) const {
  throw std::runtime_error("phase " + open_->config.name + ", step " + std::to_string(step_ + 1) + ": " + what + ". " +
                           (last_checkpoint_.empty() ? "There is no checkpoint yet."
                                                     : "The last good checkpoint is " + last_checkpoint_ + "."));
}

}  // namespace isentrope::train
