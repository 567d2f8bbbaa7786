#include "csrc/train/plan.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <stdexcept>

#include "csrc/model/bfloat16_linear.h"
#include "csrc/model/page_table.h"
#include "csrc/train/block_cache.h"
#include "csrc/train/flops.h"
#include "csrc/train/snapshot.h"
#include "csrc/train/weight_list.h"

namespace isentrope::train {
namespace {

double number(int64_t value) { return static_cast<double>(value); }

constexpr double kFloat = 4, kInteger = 8;

// How many numbers the model's parts have.
struct Sizes {
  double matrices = 0;   // of the blocks
  double embedding = 0;  // with the head
  double adapter = 0;    // of model.lora, which is trained in the place of all else
  bool lora = false;
  TrainedNumbers trained = {};
  double all() const { return matrices + embedding + adapter; }
  double apart() const { return lora ? adapter : all(); }  // what a reference or a checkpoint has of its own
};

Sizes sizes_of(const model::DecoderConfig& m, int64_t vocabulary) {
  const double C = number(m.hidden_size), mlp = number(m.mlp_numbers());
  double matrices = 0;
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const model::MixerShape mixer = model::mixer_shape(m, i);
    matrices += C * number(mixer.rows() + mixer.output) + number(mixer.others) + mlp + 2 * C;
  }
  Sizes sizes{.matrices = matrices,
              .embedding = (m.tie_word_embeddings ? 1 : 2) * number(vocabulary) * C,
              .adapter = number(numbers_of_adapter(m)),
              .lora = m.lora.has_value()};
  if (m.compose || m.train_only || !m.freeze.empty())
    sizes.trained = trained_numbers(m, vocabulary);
  else
    sizes.trained = {.all = sizes.apart(),
                     .gradients = sizes.apart(),
                     .embedding = sizes.lora ? 0 : sizes.embedding,
                     .largest = sizes.lora ? 0 : number(vocabulary) * C};
  return sizes;
}

// gate and up, or what stands before another activation (of relu behind it) and its product's input. narrow: as below.
double kept_of_mlp(const model::DecoderConfig& m, bool narrow) {
  const double before = number(m.intermediate_size), behind = m.swiglu() ? before : narrow ? before / 2 : before;
  if (m.merged_mlp()) return number(m.hidden_size);
  return m.activation == "relu" && !narrow ? behind : before + behind;
}

// Numbers that the backward pass of one block keeps of a token. The norms' outputs and the MLP's product are made again in it
// (csrc/model/origin.h), or kept where they are a few MB in all, which this leaves out.
double kept_of_block(const model::DecoderConfig& m, int64_t layer) {
  const double C = number(m.hidden_size);
  const model::MixerShape mixer = model::mixer_shape(m, layer);
  const bool narrow = m.compute == "bfloat16" && model::takes_bfloat16_weights();
  const double single = 2 * C + mixer.kept + kept_of_mlp(m, narrow);  // with the two sums
  if (!narrow) return single;
  // What products and attention take is kept in half as many bytes, where the processor has such products.
  const double halved = mixer.attends ? number(mixer.rows() + mixer.output) / 2 : 0;
  return single - halved - (m.norm == "none" ? C : 0);
}

// Those of the gradients that are there at once within the backward pass of one block.
double passing_of_block(const model::DecoderConfig& m) {
  return 2 * number(m.hidden_size) + (m.merged_mlp() ? number(m.hidden_size) : 3 * number(m.intermediate_size));
}

// Rows of an update that an example of its data has.
int64_t rows_of_example(const PhaseConfig& phase) {
  if (phase.objective.of_matches()) return 1 + phase.objective.contrastive.positives;
  return phase.objective.kind == "dpo" ? 2 : 1;
}

// Tokens that are computed together, and whether they are all that a rank has of an update.
struct Micro {
  double tokens;
  bool whole;
};

Micro micro_of(const PhaseConfig& phase, const Lengths& lengths, int64_t context, double ranks) {
  const double update = phase.rollout ? number(phase.rollout->prompts) * number(phase.rollout->num_generations) /
                                            number(phase.rollout->mini_batches)
                                      : number(phase.batch.sequences * rows_of_example(phase));
  const double rows = std::ceil(update / ranks);
  double width = std::max(lengths.longest, 1.0), all = rows * width;
  const double micro = number(phase.batch.micro_tokens);
  if (phase.data.packing) {
    width = std::max(width, std::min(micro > 0 ? micro : number(context), rows * lengths.mean));
    all = std::max(width, rows * lengths.mean);
  }
  const double fit = micro > 0 ? std::max(1.0, std::floor(micro / width)) * width : all;
  return {std::min(all, fit), all <= fit};
}

// Keys and values of all sequences that are generated at a time, as csrc/rl/rollout.cpp lays them out, and the packed weights.
double rollout_memory(const TrainConfig& config, const PhaseConfig& phase, const Lengths& lengths, double weights,
                      double ranks) {
  const model::DecoderConfig& m = config.model;
  const rl::CacheConfig& cache = phase.rollout ? phase.rollout->cache : phase.pairs->cache;
  const double bytes = cache.dtype == "bfloat16" ? 2 : kFloat;
  // Sequences of a thread: DecodeModel::preferred_rows.
  const double at_a_time = cache.dtype == "bfloat16" && model::takes_bfloat16_weights() ? 64 : 24;
  const double threads = number(at::get_num_threads());
  const double page = number(model::kPagePositions),
               pages = number(model::pages_of(static_cast<int64_t>(lengths.longest)));
  const double drawn = phase.rollout
                           ? number(phase.rollout->prompts) * number(phase.rollout->num_generations)
                           : number(phase.pairs->prompts) *
                                 number(std::max(phase.pairs->samples, phase.pairs->steps * phase.pairs->branches));
  const double rows = std::ceil(drawn / ranks);
  const double tokens = cache.cache_tokens > 0 ? number(cache.cache_tokens)
                                               : (std::min(rows, at_a_time * threads) + threads) * (pages + 1) * page;
  // A state of each sequence, that of the prompt in hand and, where they branch, those of `window` tokens before (rollout_worker.cpp).
  double cached = 0, states = 0;
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const model::MixerShape mixer = model::mixer_shape(m, i);
    cached += number(mixer.cached), states += number(mixer.state);
  }
  const auto branch = phase.rollout ? phase.rollout->branch : std::nullopt;
  const double sequences =
      (std::min(rows, at_a_time * threads) + threads) * (branch ? 2 * number(branch->window + 1) : 1);
  return tokens * cached * bytes + sequences * states * kFloat + weights * bytes;
}

struct Remedy {
  std::string setting;
  double total;  // bytes of the run with it
};

}  // namespace

MemoryPlan memory_plan(const TrainConfig& config, const PhaseConfig& phase, const Lengths& lengths, int64_t ranks) {
  const model::DecoderConfig& m = config.model;
  const int64_t vocabulary = std::max(m.vocabulary, data::Tokenizer(config.tokenizer).size());
  const Sizes sizes = sizes_of(m, vocabulary);
  const double weights = kFloat * sizes.all(), layers = number(m.num_hidden_layers), C = number(m.hidden_size);
  // Copies of the blocks' weights in bfloat16, for the products of both passes (csrc/model/bfloat16_training.h); a reference has
  // them for the forward pass alone, and with model.lora it shares them, as it shares the weights.
  const bool narrow = m.compute == "bfloat16" && model::takes_bfloat16_weights(), reference = phase.needs_reference();
  const auto [tokens, whole] = micro_of(phase, lengths, m.max_position_embeddings, number(ranks));
  // In a pass that uses each weight once they are there one after the other.
  const bool single = m.recompute == "none" && !sizes.lora && (phase.batch.micro_tokens == 0 || (whole && ranks == 1));
  const double copies = narrow && !single ? 2 * (reference && !sizes.lora ? 3 : 2) * sizes.matrices : 0;
  const double trained = sizes.trained.all, apart = sizes.apart();
  const double moments = phase.optimizer.kind == "adamw"  ? 2 * trained
                         : phase.optimizer.kind == "muon" ? trained + sizes.trained.embedding
                                                          : trained;
  MemoryPlan plan{.phase = phase.name};
  plan.weights = weights + (reference ? kFloat * apart : 0) + copies;
  // The largest tensor has one owner.
  const double n = number(ranks),
               owned = ranks > 1 ? std::min(std::max(trained / n, sizes.trained.largest), trained) : trained;
  // θ*, Ω, φ and Σ g² (csrc/train/consolidation.h), of which a step changes the last.
  const double kept_of_tasks = phase.optimizer.consolidation ? 4 * trained : 0;
  plan.optimizer = kFloat * (moments + kept_of_tasks) * owned / trained;
  const int64_t updates = phase.rollout ? phase.rollout->mini_batches * phase.rollout->epochs : 1;
  plan.snapshot = keeps_copies(config, phase, updates, ranks)
                      ? kFloat * (trained + (moments + kept_of_tasks / 4) * owned / trained)
                      : 0;
  // With learned spectral norms a checkpoint has the matrices twice, folded and as they are.
  if (config.run.checkpoint_every > 0)
    plan.checkpoint = kFloat * (apart + moments + kept_of_tasks + (reference ? apart : 0) +
                                (m.sigma_reparam.any() ? sizes.matrices + sizes.embedding : 0));
  double all = 0, largest_block = 0;
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const double block = kept_of_block(m, i);
    all += block, largest_block = std::max(largest_block, block);
  }
  const double kept = m.recompute == "blocks" ? layers * 2 * C + largest_block : all;  // of a block its input
  const double logits = m.fused_head ? 0 : 2 * number(vocabulary);
  const double batch = kInteger * 2 * tokens;
  plan.gradients = kFloat * (ranks > 1 ? sizes.trained.gradients + trained + n * owned : sizes.trained.gradients);
  plan.of_head = sizes.trained.embedding == 0
                     ? 0
                     : (narrow ? 1.5 : 1) * kFloat * number(vocabulary) * C;  // narrow: in bfloat16 first
  plan.in_turn = ranks == 1 && whole;
  plan.at_once = plan.snapshot > 0 && (updates > 1 || !keeps_tensor_memory());
  plan.activations = kFloat * tokens * (kept + std::max(passing_of_block(m), 2 * C + logits) + 2 * C) + batch;
  if (!phase.draws()) return plan;
  MemoryPlan rollouts = plan;
  rollouts.activations = rollout_memory(config, phase, lengths, sizes.all(), n);
  rollouts.of_rollouts = true;
  return rollouts.total() > plan.total() ? rollouts : plan;
}

MemoryPlan memory_plan(const TrainConfig& config, const std::vector<PhaseData>& phases, int64_t ranks) {
  MemoryPlan most;
  const size_t first = config.phases.size() - phases.size();
  for (size_t i = 0; i < phases.size(); ++i) {
    const MemoryPlan plan = memory_plan(config, config.phases[first + i], phases[i].lengths, ranks);
    if (plan.total() > most.total()) most = plan;
  }
  return most;
}

double least_seconds(const TrainConfig& config, const PhaseConfig& phase, const Lengths& lengths, double product_rate) {
  StepWork work{.reference = phase.needs_reference()};
  const double rows = phase.rollout ? number(phase.rollout->prompts) * number(phase.rollout->num_generations)
                                    : number(phase.batch.sequences);
  work.tokens = rows * lengths.mean;
  work.learnt = rows * (lengths.mean - lengths.prompt);
  const auto length = static_cast<int64_t>(lengths.mean);
  work.mixing = rows * attention_flops(
                           config.model, [&](int64_t window) { return attention_pairs(length, window); }, lengths.mean);
  work.generated = phase.rollout ? work.learnt : 0;
  model::DecoderConfig model = config.model;
  model.vocabulary = std::max(model.vocabulary, data::Tokenizer(config.tokenizer).size());
  const double again = model.recompute == "blocks" ? 4.0 / 3 : 1;
  return number(phase.steps) * again * model_flops(model, work) / product_rate;
}

std::string bytes_text(double bytes) {
  char text[32];
  constexpr double kMiB = 1 << 20;
  if (bytes < 1024 * kMiB)
    std::snprintf(text, sizeof(text), "%.0f MiB", std::max(bytes / kMiB, 1.0));
  else
    std::snprintf(text, sizeof(text), bytes < 1e15 ? "%.1f GiB" : "%.2g GiB", bytes / 1024 / kMiB);
  return text;
}

std::string to_text(const MemoryPlan& p) {
  const std::string snapshot = "copies before the update " + bytes_text(p.snapshot),
                    activations =
                        (p.of_rollouts ? "cache and weights of rollouts " : "activations ") + bytes_text(p.activations);
  const char* const gone = p.of_rollouts                  ? " (gone by then)"
                           : p.in_turn && p.snapshot == 0 ? " (as activations go)"
                                                          : "";
  return bytes_text(p.total()) + ": weights " + bytes_text(p.weights) + ", gradients " +
         bytes_text(p.gradients + p.of_head) + gone + ", optimiser " + bytes_text(p.optimizer) + ", " +
         (p.snapshot == 0              ? activations
          : p.at_once                  ? snapshot + ", " + activations
          : p.snapshot > p.activations ? snapshot + " (" + activations + " are gone by then)"
                                       : activations + " (" + snapshot + " take their place)") +
         (p.checkpoint > 0 ? "; and " + bytes_text(p.checkpoint) + " while a checkpoint is written" : "");
}

namespace {

// The settings that make the run smaller, each alone, those that make it fit first, then the smallest.
std::vector<Remedy> remedies(const TrainConfig& config, const std::vector<PhaseData>& phases, const MemoryPlan& plan,
                             double room, int64_t ranks) {
  std::vector<Remedy> found;
  const auto in_phase = [&](TrainConfig& c) -> PhaseConfig& {
    return *std::find_if(c.phases.begin(), c.phases.end(), [&](const PhaseConfig& p) { return p.name == plan.phase; });
  };
  // change(config, value) with the largest value of a falling row that fits, or else its last.
  const auto try_values = [&](const std::string& key, std::vector<int64_t> values,
                              const std::function<void(TrainConfig&, int64_t)>& change) {
    Remedy best{"", plan.total()};
    for (const int64_t value : values) {
      TrainConfig changed = config;
      change(changed, value);
      const double total = memory_plan(changed, phases, ranks).total();
      if (total >= 0.98 * best.total) continue;
      best = {key + "=" + std::to_string(value), total};
      if (total <= room) break;
    }
    if (!best.setting.empty()) found.push_back(best);
  };
  const auto halves = [](int64_t from, int64_t to) {
    std::vector<int64_t> values;
    for (int64_t value = from / 2; value >= to && value > 0; value /= 2) values.push_back(value);
    return values;
  };
  TrainConfig now = config;
  const PhaseConfig& phase = in_phase(now);
  const std::string at = "phases." + phase.name + ".";
  const size_t place = phases.size() - static_cast<size_t>(now.phases.data() + now.phases.size() - &phase);
  const auto longest = static_cast<int64_t>(phases[place].lengths.longest);
  const int64_t rows = phase.rollout
                           ? phase.rollout->prompts * phase.rollout->num_generations / phase.rollout->mini_batches
                           : phase.batch.sequences;
  const int64_t micro = phase.batch.micro_tokens > 0 ? phase.batch.micro_tokens : 2 * rows * longest;
  try_values(at + "batch.micro_tokens", halves(micro, longest),
             [&](TrainConfig& c, int64_t value) { in_phase(c).batch.micro_tokens = value; });
  if (phase.rollout)
    try_values(at + "rollout.cache_tokens", halves(phase.rollout->cache.cache_tokens, 4 * longest),
               [&](TrainConfig& c, int64_t value) { in_phase(c).rollout->cache.cache_tokens = value; });
  const auto try_once = [&](const std::string& setting, const std::function<void(TrainConfig&)>& change) {
    TrainConfig changed = config;
    change(changed);
    const double total = memory_plan(changed, phases, ranks).total();
    if (total < 0.98 * plan.total()) found.push_back({setting, total});
  };
  try_once("model.recompute=blocks", [](TrainConfig& c) { c.model.recompute = "blocks"; });
  try_once("model.fused_head=true", [](TrainConfig& c) { c.model.fused_head = true; });
  if (!phase.rollout)
    try_values(at + "batch.sequences", halves(phase.batch.sequences, 1),
               [&](TrainConfig& c, int64_t value) { in_phase(c).batch.sequences = value; });
  try_values("model.num_hidden_layers", halves(config.model.num_hidden_layers, 1),
             [](TrainConfig& c, int64_t value) { c.model.num_hidden_layers = value; });
  try_values("model.intermediate_size", halves(config.model.intermediate_size, 1),
             [](TrainConfig& c, int64_t value) { c.model.intermediate_size = value; });
  std::stable_sort(found.begin(), found.end(), [&](const Remedy& a, const Remedy& b) {
    const bool fits = a.total <= room, other = b.total <= room;
    return fits != other ? fits : !fits && a.total < b.total;
  });
  return found;
}

}  // namespace

bool checkpoint_copy_fits(const TrainConfig& config, const std::vector<PhaseData>& phases, double has, double baseline,
                          bool on_device, const RankCounts& ranks) {
  const size_t first = config.phases.size() - phases.size();
  for (size_t i = 0; i < phases.size(); ++i) {
    const MemoryPlan plan = memory_plan(config, config.phases[first + i], phases[i].lengths, ranks.all);
    const double others = number(ranks.here - 1) * ((on_device ? 0 : plan.total()) + baseline);
    // The first rank has the checkpoint, and gets the moments of the others for it.
    const double copy = plan.checkpoint + (ranks.all > 1 ? number(ranks.all - 1) * plan.optimizer : 0);
    if ((on_device ? 0 : plan.total()) + copy + baseline > has - others) return false;
  }
  return true;
}

void check_memory(const TrainConfig& config, const std::vector<PhaseData>& phases, double has, double baseline,
                  const RankCounts& ranks) {
  const MemoryPlan plan = memory_plan(config, phases, ranks.all);
  const double room = has / number(ranks.here) - baseline;
  if (plan.total() <= room) return;
  std::string text = "the run does not fit into memory: phase " + plan.phase + " needs about " + to_text(plan) +
                     "; the machine has " + bytes_text(has) +
                     (ranks.here > 1 ? " for " + std::to_string(ranks.here) + " ranks, each of which takes that" : "") +
                     ", of which the program itself takes " + bytes_text(baseline);
  const std::vector<Remedy> all = remedies(config, phases, plan, room, ranks.all);
  const auto fit = std::count_if(all.begin(), all.end(), [&](const Remedy& one) { return one.total <= room; });
  constexpr size_t kNamed = 3;
  const size_t named = std::min(kNamed, fit > 0 ? static_cast<size_t>(fit) : all.size());
  if (named > 0) text += fit > 0 ? ". It fits with" : ". None of these alone suffices, but each makes it smaller:";
  for (size_t i = 0; i < named; ++i)
    text += (i == 0 ? " " : fit > 0 ? " or " : ", ") + all[i].setting + " (" + bytes_text(all[i].total) + ")";
  throw std::runtime_error(text);
}

}  // namespace isentrope::train
