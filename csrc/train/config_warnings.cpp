// Keys that are allowed, and do not do what they seem to.
#include <torch/cuda.h>

#include <algorithm>

#include "csrc/model/bfloat16_linear.h"
#include "csrc/train/config.h"
#include "csrc/train/config_fields.h"

namespace isentrope::train {
namespace {

using Warnings = std::vector<std::string>;

std::string text(int64_t value) { return std::to_string(value); }

void of_optimizer(const std::string& path, const PhaseConfig& phase, Warnings& out) {
  const OptimizerConfig& o = phase.optimizer;
  if (o.lr > 1)
    out.push_back(path + ".optimizer.lr: above 1; " +
                  (o.kind != "sgd" ? "every weight moves by about as much in a step, and they begin near 0.02"
                                   : "few losses stand it"));
  // float32 weights of 0.02 are 2e-9 apart.
  if (o.kind != "sgd" && o.lr < 1e-9) out.push_back(path + ".optimizer.lr: below 1e-9 float32 weights do not change");
  if (o.lr * o.weight_decay > 1)
    out.push_back(path +
                  ".optimizer.weight_decay: times lr it is above 1, so that every update changes the sign of the "
                  "weights");
  const ScheduleConfig& s = phase.schedule;
  if (s.warmup_steps > phase.steps)
    out.push_back(path + ".schedule.warmup_steps: " + text(s.warmup_steps) + " steps, and the phase has " +
                  text(phase.steps) + "; the rate never reaches lr");
  if (s.kind == "constant" && s.min_lr_ratio > 0)
    out.push_back(path + ".schedule.min_lr_ratio: a constant schedule does not fall; it has no effect");
}

void of_evaluation(const std::string& path, const PhaseConfig& phase, Warnings& out) {
  const EvaluationConfig& e = phase.evaluation;
  if (!phase.evaluates()) return;
  const int64_t first = (std::max(e.from, e.every) + e.every - 1) / e.every * e.every;
  if (first > phase.steps)
    out.push_back(path + ".evaluation." + (e.from > phase.steps ? "from" : "every") +
                  ": the first evaluation would be at step " + text(first) + ", and the phase has " +
                  text(phase.steps) + "; there is none" + (phase.stop ? ", and stop is never reached" : ""));
}

void of_policy(const std::string& path, const PhaseConfig& phase, const std::set<std::string>& functions,
               Warnings& out) {
  const ObjectiveConfig& o = phase.objective;
  const ObjectiveConfig standard;
  for (const auto& [name, given] : {std::pair{"dpo_loss", o.dpo_loss != standard.dpo_loss},
                                    {"dpo_beta", o.dpo_beta != standard.dpo_beta},
                                    {"dpo_label_smoothing", o.dpo_label_smoothing > 0},
                                    {"dpo_sft_coef", o.dpo_sft_coef > 0}})
    if (given && o.kind != "dpo")
      out.push_back(path + ".objective." + name + ": belongs to dpo phases; it has no effect");
  if (o.kind != "distill" && !o.distill.teacher.empty())
    out.push_back(path + ".objective.distill: belongs to distill phases; it has no effect");
  if (o.kind != "grpo") {
    for (const auto& [name, given] : {std::pair{"entropy", !o.entropy.empty()},
                                      {"ref_kl_coef", o.ref_kl_coef > 0},
                                      {"inner_policy", o.inner_policy.has_value()},
                                      {"dual_clip", o.dual_clip > 0},
                                      {"delta", o.delta.has_value()},
                                      {"clip_high", o.clip_high.has_value()}})
      if (given) out.push_back(path + ".objective." + name + ": belongs to grpo phases; it has no effect");
    return;
  }
  if (o.loss == "clip_higher" && o.clip_high.value_or(o.clip_low) < o.clip_low)
    out.push_back(path + ".objective.clip_high: below clip_low, and the loss clip_higher is there for more room above");
  if (o.clip_low == 1) out.push_back(path + ".objective.clip_low: 1 clips no ratio from below");
  if (o.ref_kl != ObjectiveConfig().ref_kl && o.ref_kl_coef == 0)
    out.push_back(path + ".objective.ref_kl: ref_kl_coef is 0; it has no effect");

  if (o.entropy_keep && o.entropy.empty())
    out.push_back(path + ".objective.entropy_keep: without objective.entropy there is no bonus; it has no effect");

  const rl::RolloutConfig& r = *phase.rollout;
  if (r.num_generations == 1 && !r.allocation &&
      (phase.advantage.empty() || phase.advantage[0].kind() != "reinforce_plus_plus_baseline"))
    out.push_back(path +
                  ".rollout.num_generations: a group of one has nothing to compare with: every completion is pushed by "
                  "its reward "
                  "alone; give 2 or more, or advantage: [{kind: reinforce_plus_plus_baseline}]");
  if (const std::vector<std::string> keys = r.sampling.off_policy(); !keys.empty())
    out.push_back(
        path + ".rollout." + keys.front() + ": with it" +
        (keys.size() > 1 ? ", " + join({keys.begin() + 1, keys.end()}) : "") +
        " completions are not drawn from softmax(logits / temperature), the policy, to whose log-probabilities "
        "the ratios of the loss are; mismatch/* tell how far the two are apart, and weight: [{kind: "
        "correction}] weighs tokens for it");
  if (r.save_every > phase.steps)
    out.push_back(path + ".rollout.save_every: " + text(r.save_every) + ", and the phase has " + text(phase.steps) +
                  " steps; no rollout is saved");
  for (size_t i = 0; i < phase.reward.size(); ++i) {
    const rl::RewardConfig* scores = phase.reward[i].get<rl::RewardConfig>();
    if (scores == nullptr) continue;
    const rl::RewardConfig& reward = *scores;
    const std::string key = path + ".reward." + text(static_cast<int64_t>(i));
    if (reward.weight == 0)
      out.push_back(key + ".weight: 0; the reward " + reward.kind + " is measured and not learnt from");
    const bool cost = reward.kind == "length" || (reward.kind == "environment" && reward.name != "answer");
    if (reward.weight < 0 && !reward.in_python() && !cost)
      out.push_back(key + ".weight: below 0 it punishes what the reward " + reward.kind + " calls right");
    if (!built_in_reward(reward.kind) && !functions.contains(reward.kind))
      out.push_back(
          key + ".kind: \"" + reward.kind +
          "\" is none of exact, answer, solves, format, length, python, nor of the methods that stand in this list "
          "(isentrope config --explain): a function of that name is to be given, by --reward "
          "FILE.py:FUNCTION or to isentrope.Trainer in Python");
  }
}

}  // namespace

std::vector<std::string> warnings(const TrainConfig& config, const std::set<std::string>& functions) {
  Warnings out;
  const model::DecoderConfig& m = config.model;
  if (m.pretrained.empty() && m.attention.window >= m.max_position_embeddings)
    out.push_back("model.attention.window: " + text(m.attention.window) +
                  " is not below model.max_position_embeddings (" + text(m.max_position_embeddings) +
                  "): every query sees all keys");
  if (m.compute == "bfloat16" && config.run.device != "cuda" && !torch::cuda::is_available() &&
      !model::takes_bfloat16_weights())
    out.push_back(
        "model.compute: this processor has no products of bfloat16 (AVX-512 bf16, AMX); operands are rounded to it and "
        "multiplied in float32, which takes longer than float32 alone: write compute: float32");
  if (m.sigma_reparam.any() && m.sigma_reparam.tolerance == 0 && m.sigma_reparam.steps_max > 100)
    out.push_back("model.sigma_reparam.steps_max: with tolerance 0 all " + text(m.sigma_reparam.steps_max) +
                  " power steps are made after every update");
  if (const RepresentationConfig& r = config.metrics.representation; r.every > 0) {
    if (std::all_of(config.phases.begin(), config.phases.end(),
                    [&](const PhaseConfig& p) { return p.steps < r.every; }))
      out.push_back("metrics.representation.every: " + text(r.every) +
                    " steps, and no phase has as many; nothing is measured");
    if (r.tokens <= m.hidden_size)
      out.push_back("metrics.representation.tokens: " + text(r.tokens) + ", and the states have " +
                    text(m.hidden_size) + " features: a rank is " + text(r.tokens - 1) + " at most");
  }
  for (const PhaseConfig& phase : config.phases) {
    const std::string path = "phases." + phase.name;
    of_optimizer(path, phase, out);
    of_evaluation(path, phase, out);
    of_policy(path, phase, functions, out);
    for (const std::string& one : methods::warnings_of(phase.chosen())) out.push_back(path + "." + one);
  }
  return out;
}

}  // namespace isentrope::train
