#include "csrc/train/trainer.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <dlfcn.h>
#include <torch/cuda.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "csrc/data/contrastive_source.h"
#include "csrc/data/corpus.h"
#include "csrc/data/packed_source.h"
#include "csrc/data/random.h"
#include "csrc/data/sft_source.h"
#include "csrc/data/tag_source.h"
#include "csrc/durable_file.h"
#include "csrc/rl/text_rules.h"
#include "csrc/train/adapter.h"
#include "csrc/train/composition.h"
#include "csrc/train/data_check.h"
#include "csrc/train/finite.h"
#include "csrc/train/flops.h"
#include "csrc/train/machine_memory.h"
#include "csrc/train/pairs_file.h"
#include "csrc/train/phase.h"
#include "csrc/train/rank_check.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/sum_of_squares.h"
#include "csrc/train/summary.h"
#include "csrc/train/task_files.h"
#include "csrc/train/trained_weights.h"
#include "csrc/train/weights.h"

namespace isentrope::train {
namespace {

bool on_gpu(const TrainConfig& config) {
  return config.run.device == "cuda" || (config.run.device == "auto" && torch::cuda::is_available());
}

RunFolder open_folder(const std::string& dir, bool resume, const Ranks& ranks) {
  try {
    return RunFolder(dir, resume, ranks.first());
  } catch (...) {
    ranks.tell();
    throw;
  }
}

// Of objective.reference.from, or of a teacher, which may be another model and must have the vocabulary of this one.
model::DecoderConfig reference_config(const ObjectiveConfig& objective, const std::string& folder,
                                      const model::DecoderConfig& model) {
  model::DecoderConfig found = read_model_config(folder);
  if (found.vocabulary == 0) found.vocabulary = model.vocabulary;
  if (found.token_count() != model.token_count())
    throw std::runtime_error(
        (objective.kind == "distill" ? "objective.distill.teacher: " : "objective.reference.from: ") + folder +
        " has a vocabulary of " + std::to_string(found.token_count()) + " tokens, and the model one of " +
        std::to_string(model.token_count()) + "; a divergence wants the same tokens");
  found.max_position_embeddings = model.max_position_embeddings;
  return found;
}

// The operators of one's own that methods of the phases name. dlopen, as torch.ops.load_library: what a library registers is there
// once it is loaded.
void load_own_methods(const TrainConfig& config) {
  for (const std::string& library : config.run.libraries)
    if (dlopen(std::filesystem::absolute(library).c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr)
      throw std::runtime_error("run.libraries: " + std::string(dlerror()));
  for (const PhaseConfig& phase : config.phases) {
    const auto look = [&](const std::string& list, const auto& entries) {
      for (size_t i = 0; i < entries.size(); ++i)
        std::visit(
            [&](const auto& method) {
              if constexpr (requires { method.missing(); })
                if (const std::string missing = method.missing(); !missing.empty())
                  throw std::runtime_error("phases." + phase.name + "." + list + "." + std::to_string(i) + ": " +
                                           missing);
            },
            entries[i].value);
    };
    look("reward", phase.reward);
    look("advantage", phase.advantage);
    look("weight", phase.weight);
    look("objective.entropy", phase.objective.entropy);
  }
}

}  // namespace

uint64_t derived_seed(uint64_t seed, data::Purpose purpose, uint64_t a, uint64_t b, uint64_t c) {
  data::Stream stream(seed, purpose, a, b, c);
  const uint64_t high = stream.bits();
  return high << 32 | stream.bits();
}

const torch::Tensor& kept(const CheckpointState& state, const std::string& name, const torch::Tensor& like) {
  const auto found = state.extra.find(name);
  if (found == state.extra.end() || found->second.sizes() != like.sizes())
    throw std::runtime_error("the checkpoint of phase '" + state.phase_name + "' does not hold " + name +
                             " as this configuration wants it; put the phase's objective back as it was, or begin a "
                             "new run from these weights (run.start)");
  return found->second;
}

Trainer::Trainer(TrainConfig config, bool resume, const std::map<std::string, rl::RewardFunction>& rewards)
    : config_(std::move(config)),
      ranks_(Ranks::of_environment(config_.run.timeout_s, on_gpu(config_))),
      folder_(open_folder(config_.run.dir, resume, *ranks_)),
      tokenizer_(config_.tokenizer),
      model_(nullptr),
      rewards_(rewards),
      time_limit_(config_.run) {
  const Standing standing = ranks_->together([&] { return prepare(resume); });
  ranks_->together([&] { begin(standing, resume); });
}

// All that can refuse; nothing is changed.
Standing Trainer::prepare(bool resume) {
  check_ranks(config_, *ranks_);
  load_own_methods(config_);
  const RankCounts ranks{ranks_->size(), ranks_on_this_machine(*ranks_)};
  check_machine(config_, ranks);
  if (config_.run.threads > 0) at::set_num_threads(static_cast<int>(config_.run.threads));
  config_.model.vocabulary = tokenizer_.size();
  const Standing standing = find_standing(config_, tokenizer_, folder_.dir(), resume);
  check_same(*ranks_, "run.dir, the checkpoint to go on from",
             standing.from.empty() ? "none" : standing.from + " at step " + std::to_string(standing.step));
  if (standing.vocabulary > 0) config_.model.vocabulary = standing.vocabulary;
  config_.model.tokens = tokenizer_.size();
  phase_ = standing.phase;
  step_ = standing.step;
  ended_ = standing.ended;
  numbers_ = standing.numbers;
  results_ = standing.results;
  notes_ = standing.notes;
  std::vector<std::string> written;  // by one rank, and found by the others
  if (ranks_->first()) written = make_task_files(config_);
  ranks_->barrier();
  if (!ranks_->first()) written = make_task_files(config_);
  notes_.insert(notes_.end(), written.begin(), written.end());
  DataReport data = check_data(config_, tokenizer_, rewards_, phase_);
  notes_.insert(notes_.end(), data.notes.begin(), data.notes.end());
  std::set<std::string> functions;
  for (const auto& [name, function] : rewards_) functions.insert(name);
  warnings_ = train::warnings(config_, functions);
  warnings_.insert(warnings_.end(), data.warnings.begin(), data.warnings.end());
  data_ = std::move(data.phases);
  const bool cuda = on_gpu(config_);
  if (!cuda) check_memory(config_, data_, machine_memory(), resident_memory(), ranks);
  beside_ = config_.run.checkpoint_every > 0 &&
            checkpoint_copy_fits(config_, data_, machine_memory(), resident_memory(), cuda, ranks);
  if (config_.run.checkpoint_every > 0 && !beside_ && !finished()) notes_.push_back(kWaits);
  last_checkpoint_ = standing.from;
  const bool resumed = !standing.from.empty() && (standing.goes_on || !ended_.empty());
  if (resumed) steps_of_run_ = standing.state.steps_of_run;
  if (!standing.goes_on && standing.phase > 0)
    for (const auto& [name, tensor] : standing.state.optimizer)
      if (Consolidation::owns(name)) left_[name] = tensor;
  if (standing.goes_on) evaluated_ = standing.state.evaluated || standing.state.phase_finished;
  // Weights that others replace are not drawn; the directions of learned spectral norms are.
  const bool drawn = standing.from.empty() || config_.model.sigma_reparam.any();
  const uint64_t seed = derived_seed(config_.run.seed, data::Purpose::initialisation, 0);
  model_ = model::Decoder(config_.model, drawn ? std::optional(seed) : std::nullopt);
  attends_ = model::attending_layers(config_.model) > 0;
  for (int64_t i = 0; i < config_.model.num_hidden_layers; ++i)
    has_states_ = has_states_ || model::mixer_shape(config_.model, i).state > 0;
  if (!standing.from.empty()) take_weights(standing);
  if (const auto told = standing.state.extra.find(kOrigin); resumed && told != standing.state.extra.end())
    origin_ = told->second.item<int64_t>();
  else if (!standing.from.empty() && !resumed)
    origin_ = weights_digest(model_->named_weights());
  if (!ranks_->alone()) {
    double squares = 0;
    for (const torch::Tensor& weight : model_->parameters()) squares += sum_of_squares(weight);
    check_same(*ranks_, "the weights that the run begins with", "squares that add up to " + std::to_string(squares));
  }
  model_->to(cuda ? torch::kCUDA : torch::kCPU);
  choose_trained(standing, resumed);
  if (!standing.from.empty() && !resumed) warn_of_ties();
  if (config_.metrics.representation.every > 0) matrices_that_fit(model_, config_.metrics.representation.weights);
  if (!finished()) open_phase(standing.goes_on ? &standing.state : nullptr);
  header_ = describe();
  return standing;
}

// The first change of a file.
void Trainer::begin(const Standing& standing, bool resume) {
  if (!ranks_->first()) {  // what it would write goes nowhere
    metrics_ = std::make_unique<Metrics>("/dev/null");
    samples_ = std::make_unique<Metrics>("/dev/null");
    return;
  }
  if (!finished()) {
    folder_.begin();
    metrics_ = open_log(folder_.metrics(), standing, kMetrics);
    samples_ = open_log(folder_.samples(), standing, kSamples);
    if (!said_before(folder_.metrics(), header_)) metrics_->write_before_next(to_json(header_));
    write_durably(folder_.config(), print_config(config_));
    metrics_of_step_ = metrics_->place();
    samples_of_step_ = samples_->place();
    if (!config_.metrics.sinks().empty())
      trackers_ = std::make_unique<Trackers>(config_.metrics, folder_.dir(), /*fresh=*/!resume);
    cut_rollouts();  // the last, since it cannot be taken back
  } else {
    write_summary();  // a run that was killed behind its last checkpoint has none
  }
  folder_.keep();
}

RunHeader Trainer::describe() const {
  const torch::Device device = model_->embedding().device();
  RunHeader header{.dir = folder_.dir(),
                   .device = device.str(),
                   .instruction_set = at::get_cpu_capability(),
                   .dtype = "float32",
                   .compute = config_.model.compute,
                   .threads = at::get_num_threads(),
                   .ranks = ranks_->size(),
                   .memory_needed = memory_plan(config_, data_, ranks_->size())};
  for (const torch::Tensor& weight : model_->parameters()) header.parameters += weight.numel();
  for (const auto& [name, weight] : trained_parameters()) header.trained += weight.numel();
  if (device.is_cpu()) header.memory = machine_memory();
  if (finished()) return header;
  header.product_rate = ranks_->sum(measured_product_rate(device, config_.model.compute));
  for (size_t i = phase_; i < config_.phases.size(); ++i) {
    header.phases.push_back(phase_header(config_, config_.phases[i], tokenizer_, data_[i - phase_],
                                         seed_of(config_.phases[i].name, data::Purpose::example)));
    header.phases.back().least_seconds =
        least_seconds(config_, config_.phases[i], data_[i - phase_].lengths, header.product_rate);
  }
  return header;
}

// A file of lines as it was when the checkpoint was made.
std::unique_ptr<Metrics> Trainer::open_log(const std::string& file, const Standing& standing, const std::string& key) {
  std::optional<int64_t> wanted;
  if (const auto kept = standing.state.extra.find(key); steps_of_run_ > 0 && kept != standing.state.extra.end())
    wanted = kept->second.item<int64_t>();
  std::error_code error;
  const bool lost = wanted && *wanted != LineDigest().value() && !std::filesystem::exists(file, error);
  if (lost) notes_.push_back(file + " is not there: what it told of the steps before is lost");
  return std::make_unique<Metrics>(
      file, keep_metrics_until(file, ended_, config_.phases[phase_].name, step_, evaluated_, wanted));
}

void Trainer::cut_rollouts() {
  std::vector<std::string> to_come;
  for (const auto& [name, number] : numbers_)
    if (name != open_->config.name && std::find(ended_.begin(), ended_.end(), name) == ended_.end())
      to_come.push_back(folder_.rollouts(name));
  remove_rollouts(to_come);
  open_->rollouts->cut();
}

Trainer::~Trainer() = default;

void Trainer::write_summary() const { write_durably(folder_.dir() + "/summary.json", summary_json(results_)); }

uint64_t Trainer::seed_of(const std::string& phase, data::Purpose purpose, uint64_t b, uint64_t c) const {
  return derived_seed(config_.run.seed, purpose, static_cast<uint64_t>(numbers_.at(phase)), b, c);
}

std::unique_ptr<data::BatchSource> Trainer::source_of(const PhaseConfig& phase, std::optional<int64_t>& digest,
                                                      const std::optional<model::Decoder>& reference) const {
  const uint64_t data_seed = seed_of(phase.name, data::Purpose::example);
  const int64_t context = config_.model.max_position_embeddings;
  if (phase.data.text())
    return std::make_unique<data::PackedSource>(data::open_text(phase.data, tokenizer_, data::Split::train),
                                                phase.batch.sequences, context, data_seed,
                                                masking_of_phase(phase, tokenizer_));
  if (phase.pairs) return source_of_pairs(phase, pairs_of_phase(folder_.pairs(phase.name)).text, digest);
  const data::Use use = use_of(config_, phase, tokenizer_);
  std::shared_ptr<const data::ExampleSource> examples =
      data::make_source(phase.data, data_seed, data::Split::train, &use);
  digest = static_cast<int64_t>(data::stream_digest(*examples));
  if (phase.rollout) {
    rl::RolloutConfig rollout = *phase.rollout;
    rollout.sampling = phase.sampling(tokenizer_);
    rollout.sampling.sum_p2 = methods::Chain(phase.weight).any([]<class M>(const M&) {
      return requires { M::kNeedsOldSumP2; };
    });
    return std::make_unique<rl::RolloutSource>(
        rollout, model_, tokenizer_, examples, rl::RewardSum(phase.scores(), tokenizer_.eos(), rewards_),
        phase.methods(), seed_of(phase.name, data::Purpose::rollout),
        [this](int64_t, const std::vector<rl::SavedRollout>& drawn) { open_->saved = drawn; }, ranks_,
        reference ? std::optional(rl::Reference{*reference, phase.batch.micro_tokens}) : std::nullopt);
  }
  if (phase.objective.kind == "tag")
    return std::make_unique<data::TagSource>(examples, tokenizer_, phase.batch.sequences, context, phase.objective.tag);
  if (phase.objective.of_matches())
    return std::make_unique<data::ContrastiveSource>(examples, tokenizer_, phase.batch.sequences, context,
                                                     phase.objective.contrastive, data_seed);
  const int64_t micro = phase.batch.micro_tokens, row = micro > 0 ? std::min(micro, context) : context;
  return std::make_unique<data::SftSource>(examples, tokenizer_, phase.batch.sequences, context, phase.data.truncation,
                                           phase.data.packing ? row : 0, phase.objective.kind == "dpo");
}

// The reference becomes share · model + (1 − share) · reference.
void Trainer::mix_into(model::Decoder& reference, double share) const {
  const torch::NoGradGuard no_grad;
  const bool lora = config_.model.lora.has_value();
  const auto weights = lora ? model_->adapter() : model_->folded_weights();
  const auto copies = lora ? reference->adapter() : reference->named_weights();
  for (size_t i = 0; i < weights.size(); ++i)
    share == 1 ? copies[i].second.copy_(weights[i].second) : copies[i].second.lerp_(weights[i].second, share);
}

void Trainer::open_phase(const CheckpointState* state) {
  const PhaseConfig& phase = config_.phases[phase_];
  std::optional<model::Decoder> reference;
  if (phase.needs_reference()) {
    torch::NoGradGuard no_grad;
    const std::string from = phase.objective.reference_from();
    const bool lora = config_.model.lora && from.empty();  // what does not change is there once
    if (!from.empty()) {
      const std::string folder = resolve_checkpoint(from);
      reference = model::Decoder(reference_config(phase.objective, folder, config_.model), 0);
      if (!state) load_weights(folder, *reference);
      (*reference)->to(model_->embedding().device());
    } else if (lora) {
      reference = model::Decoder(model_->with_kept_adapter());
    } else {
      model::DecoderConfig plain = config_.model;
      plain.sigma_reparam = {};
      reference = model::Decoder(plain, 0);
      (*reference)->to(model_->embedding().device());
    }
    const auto copies = lora ? (*reference)->adapter() : (*reference)->named_weights();
    if (state)  // in the middle of a phase: as it was
      for (const auto& [name, copy] : copies) torch::Tensor(copy).copy_(kept(*state, kReference + name, copy));
    else if (from.empty())
      mix_into(*reference, 1);
  }

  auto objective =
      make_objective(phase.objective, phase.batch, model_, phase.rollout ? phase.rollout->sampling.temperature : 1.0,
                     phase.objective.has_reference() ? reference : std::nullopt, ranks_, phase.weight);
  auto parameters = trained_parameters();
  if (const torch::Tensor& threshold = objective->attention().threshold();
      threshold.defined() && threshold.requires_grad())
    parameters.push_back({kThreshold, threshold});
  const auto held_out = [&](const PhaseConfig& of, data::Split split) {
    return evaluates(config_, phase, split) ? held_out_of(config_, of, tokenizer_, split, rewards_) : nullptr;
  };
  auto validation = held_out(phase, data::Split::validation), test = held_out(config_.phases.back(), data::Split::test);
  if (phase.objective.kind == "dpo")
    for (HeldOut* one : {validation.get(), test.get()})
      if (auto* prompts = dynamic_cast<HeldOutPrompts*>(one))
        prompts->compare_with(*reference, phase.objective.dpo_beta);
  const auto matrices = muon_matrices(config_.model);
  Optimizer optimizer(phase.optimizer, parameters, trained_ ? trained_->matrices(matrices) : matrices, ranks_);
  std::vector<torch::Tensor> changed;
  for (const auto& [name, parameter] : parameters) changed.push_back(parameter);
  for (const auto& buffer : model_->named_buffers()) changed.push_back(buffer.value());
  for (const torch::Tensor& moment : optimizer.moments()) changed.push_back(moment);

  Metrics::Place saved;
  if (ranks_->first() && state && state->extra.contains(kRollouts)) {
    const torch::Tensor& place = state->extra.at(kRollouts);
    saved = {place[0].item<int64_t>(), LineDigest(place[1].item<int64_t>())};
  }
  auto rollouts = std::make_unique<RolloutLog>(folder_.rollouts(phase.name), saved);
  if (rollouts->lost()) notes_.push_back(rollouts->file() + " is not there: the rollouts that it held are lost");
  std::optional<int64_t> digest;
  std::unique_ptr<data::BatchSource> source;
  if (state || !phase.pairs) source = source_of(phase, digest, reference);  // pairs are drawn by the first step
  if (digest)
    check_same(*ranks_, "phases." + phase.name + ".data, the training examples", "digest " + std::to_string(*digest));
  for (const auto& [name, value] : source ? source->state() : std::map<std::string, torch::Tensor>())
    if (phase.data.text() && value.scalar_type() == torch::kInt64 && value.numel() == 1)
      check_same(*ranks_, "phases." + phase.name + ".data, the text: " + name, std::to_string(value.item<int64_t>()));
  auto open = std::make_unique<Phase>(Phase{.config = phase,
                                            .rollouts = std::move(rollouts),
                                            .source = std::move(source),
                                            .data_digest = digest,
                                            .objective = std::move(objective),
                                            .optimizer = std::move(optimizer),
                                            .validation = std::move(validation),
                                            .test = std::move(test),
                                            .tasks = tasks(),
                                            .reference = reference,
                                            .before = Snapshot(changed)});
  if (!state) begin_task(*open);
  if (state) {
    const auto data = state->extra.find(kData);
    if (digest && data != state->extra.end() && data->second.item<int64_t>() != *digest)
      throw std::runtime_error(
          "phases." + phase.name +
          ".data: its training examples are not those that this run began with, so it cannot go on "
          "as it would have; put the data back as it was, or begin a new run from these weights: "
          "run.start=" +
          last_checkpoint_);
    open->optimizer.restore(state->optimizer);
    open->objective->restore(state->extra);
    open->source->restore(state->source);
    open->follows.restore(state->extra);
    if (const torch::Tensor& threshold = open->objective->attention().threshold(); threshold.defined()) {
      torch::NoGradGuard no_grad;
      torch::Tensor(threshold).copy_(kept(*state, kThreshold, threshold));
    }
  }
  open_ = std::move(open);
  stopped_ = tested_ = false;
}

}  // namespace isentrope::train
