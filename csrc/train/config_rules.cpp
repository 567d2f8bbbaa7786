// What the keys of a run must be together: the rules of RunConfig, PhaseConfig and TrainConfig.
#include <algorithm>
#include <cctype>
#include <cstdio>

#include "csrc/message.h"
#include "csrc/rl/text_rules.h"
#include "csrc/train/config.h"
#include "csrc/train/family.h"
#include "csrc/train/prefix.h"
#include "csrc/train/probe.h"

namespace isentrope::train {

// A folder's name may have 255 bytes on most systems, and a checkpoint's has the step behind it.
constexpr size_t kLongestName = 100;

std::string RunConfig::problem() const {
  if (time_limit_s == 0 || save_before_s < time_limit_s) return "";
  char text[160];
  std::snprintf(text, sizeof(text),
                "save_before_s: %g s before the end of %g s (time_limit_s) leave no time to train; give it less",
                save_before_s, time_limit_s);
  return text;
}

namespace {

// Whether a weight looks at nothing but what an sft phase has (csrc/methods/method.h).
bool of_targets(const methods::Weight& one) {
  return std::visit(
      []<class M>(const M&) {
        return requires { M::kOfTargets; };
      },
      one.value);
}

std::string listed_of_targets() {
  std::string list;
  methods::Weight::each([&]<class M>(const M&) {
    if constexpr (requires { M::kOfTargets; }) list += (list.empty() ? "" : " or ") + std::string(M::kKind);
  });
  return list;
}

}  // namespace

bool built_in_reward(const std::string& kind) { return rl::is_built_in(kind); }

bool StopConfig::reached(const Evaluation& evaluation) const {
  return (!sampled || evaluation.at("eval/sampled") >= *sampled) &&
         (!greedy || evaluation.at("eval/greedy") >= *greedy) &&
         (!bits_per_byte || evaluation.at("eval/bits_per_byte") <= *bits_per_byte);
}

rl::SamplingConfig PhaseConfig::sampling(const data::Tokenizer& tokenizer) const {
  const rl::SamplingConfig own = rollout ? rollout->sampling : pairs ? pairs->sampling : rl::SamplingConfig();
  return environment ? rl::with_environment(own, *environment, tokenizer) : rl::with_rules(own, tokenizer);
}

namespace {

bool looks_at_turns(const methods::Advantage& method) {
  return std::visit(
      [](const auto& one) {
        if constexpr (requires { one.needs_turns(); })
          return one.needs_turns();
        else
          return false;
      },
      method.value);
}

methods::Listed listed(const std::string& kind, const auto& value) {
  methods::Listed one{.kind = kind};
  std::visit(
      [&]<class M>(const M& method) {
        if constexpr (requires { method.op; }) one.detail = method.op;
        if constexpr (std::is_same_v<M, methods::Correction>) one.detail = method.mode;
        if constexpr (std::is_same_v<M, methods::TurnCredit>) one.detail = method.score;
        if constexpr (requires { method.scope; }) one.micro = method.scope == "micro";
      },
      value);
  return one;
}

// What does not go together with an environment, or without one.
std::string environment_problem(const PhaseConfig& phase) {
  const std::vector<rl::RewardConfig> scores = phase.scores();
  const auto named = [&](const std::string& name) {
    return std::any_of(scores.begin(), scores.end(),
                       [&](const auto& one) { return one.kind == "environment" && one.name == name; });
  };
  if (!phase.environment) {
    for (const rl::RewardConfig& one : scores)
      if (one.kind == "environment")
        return "reward: environment takes the score " + one.name + " of an environment, and the phase has none";
    for (const methods::Advantage& one : phase.advantage)
      if (looks_at_turns(one))
        return "advantage: " + one.kind() + " looks at the turns of conversations, and the phase has no environment";
    return "";
  }
  if (phase.objective.kind != "grpo" && phase.objective.kind != "sft" && !phase.pairs)
    return "environment: belongs to grpo and sft phases and to dpo phases with pairs, and objective.kind is " +
           phase.objective.kind;
  std::vector<std::string> known = rl::scores_of(*phase.environment);
  std::string list = "limit";
  for (const std::string& name : known) list += ", " + name;
  for (const rl::RewardConfig& one : scores)
    if (one.kind == "environment" && !known.empty() && one.name != "limit" &&
        std::find(known.begin(), known.end(), one.name) == known.end())
      return "reward: the environment " + phase.environment->kind() + " has no score " + excerpt(one.name) +
             "; it has " + list;
  for (const methods::Advantage& one : phase.advantage)
    if (const auto* credit = one.get<methods::TurnCredit>();
        credit && !known.empty() && std::find(known.begin(), known.end(), credit->score) == known.end())
      return "advantage: turn_credit: the environment " + phase.environment->kind() + " has no score " +
             excerpt(credit->score) + " of turns; it has " + list.substr(std::string("limit, ").size());
  const rl::ConversationConfig& limits = rl::limits_of(*phase.environment);
  if (phase.rollout && limits.at_limit == "penalise" && !named("limit"))
    return "environment.at_limit: penalise lowers the score `limit`, which no reward takes; write reward: [{kind: "
           "environment, name: limit, weight: 1}]";
  if (phase.rollout && !phase.rollout->sampling.stop.empty())
    return "rollout.stop: with an environment environment.stop says what ends a turn; leave it out";
  if (phase.rollout && phase.rollout->branch) return "rollout.branch: conversations do not branch; leave it out";
  return "";
}

}  // namespace

methods::Chosen PhaseConfig::chosen() const {
  methods::Chosen chosen{.loss = objective.loss,
                         .inner_policy = objective.inner_policy.has_value(),
                         .micro_loss = objective.selects() && objective.scope == "micro",
                         .cut = batch.micro_tokens > 0};
  for (const rl::Shaping& one : methods().reward) chosen.reward.push_back(listed(one.kind(), one.value));
  for (const methods::Advantage& one : advantage) chosen.advantage.push_back(listed(one.kind(), one.value));
  for (const methods::Weight& one : weight) chosen.weight.push_back(listed(one.kind(), one.value));
  for (const methods::EntropyControl& one : objective.entropy) chosen.entropy.push_back(listed(one.kind(), one.value));
  for (const rl::RewardConfig& one : scores()) chosen.scores += one.weight != 0;
  return chosen;
}

std::string PhaseConfig::problem() const {
  const bool plain =
      std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; });
  if (name.empty()) return "the phase has no name; write name: " + objective.kind;
  if (!plain) return "name: '" + excerpt(name) + "' names folders; use letters, digits, _ and - alone";
  if (name.size() > kLongestName)
    return "name: '" + excerpt(name) + "' names folders; use at most " + std::to_string(kLongestName) + " letters";

  if (objective.kind == "grpo") {
    if (!rollout) return "a grpo phase needs a rollout section (rollout: {} takes the defaults)";
    if (scores().empty()) return "a grpo phase needs a reward, such as reward: [{kind: answer}]";
    if (const std::string problem = methods().problem(*rollout); !problem.empty()) return problem;
  } else {
    if (rollout) return "rollout belongs to grpo phases, and objective.kind is " + objective.kind;
    if (!reward.empty() && !pairs) return "reward belongs to grpo phases, and objective.kind is " + objective.kind;
    if (!advantage.empty()) return "advantage belongs to grpo phases, and objective.kind is " + objective.kind;
    if (!weight.empty() && objective.kind != "sft")
      return "weight belongs to grpo and sft phases, and objective.kind is " + objective.kind;
    for (const methods::Weight& one : weight)
      if (!of_targets(one))
        return "weight: " + one.kind() +
               " looks at advantages or at the policy that drew, and an sft phase has neither; wanted " +
               listed_of_targets();
  }
  if (const std::string problem = pairs_problem(*this); !problem.empty()) return problem;
  if (const std::string problem = methods::problem_of(chosen()); !problem.empty()) return problem;
  if (std::any_of(objective.entropy.begin(), objective.entropy.end(),
                  [](const auto& one) { return one.kind() == "ceeh"; }) &&
      !std::any_of(reward.begin(), reward.end(), [](const auto& one) { return one.kind() == "ceeh"; }) &&
      !std::any_of(advantage.begin(), advantage.end(), [](const auto& one) { return one.kind() == "ceeh"; }))
    return "objective.entropy: ceeh weighs tokens of hard prompts, and nothing says which these are; write a "
           "{kind: ceeh} under reward or advantage, whose record does";
  const std::vector<rl::RewardConfig> scores = this->scores();
  if (!scores.empty() && std::all_of(scores.begin(), scores.end(), [](const auto& r) { return r.weight == 0; }))
    return "reward: every weight is 0, so that all completions are equally good; give one of them a weight";
  const auto steers = [](const auto& entry) {
    const auto* ares = entry.template get<methods::AresConfig>();
    return ares && ares->kl;
  };
  if (std::any_of(reward.begin(), reward.end(), steers) && objective.ref_kl_coef == 0)
    return "reward: ares.kl steers the weight of the divergence from the reference, and objective.ref_kl_coef is "
           "0; give it a value above 0 (published: 1e-2)";
  if (objective.kind == "grpo" && objective.reference && !needs_reference())
    return "objective.reference: ref_kl_coef is 0, so that there is no divergence, and no reward measures one; give it "
           "a "
           "value above 0, or reward a {kind: kl}";
  const auto chooses = [](const methods::Weight& entry) { return entry.get<methods::Random>() != nullptr; };
  if (std::any_of(weight.begin(), weight.end(), chooses) && !objective.selects())
    return "weight: random takes the place of the tokens that the losses clip_cov and kl_cov select, and "
           "objective.loss is " +
           objective.loss;
  if (const std::string problem = environment_problem(*this); !problem.empty()) return problem;
  const bool masked = objective.kind == "mlm", pretrain = masked || objective.kind == "pretrain";
  if (pretrain && !data.text())
    return "data: a phase of kind " + objective.kind + " learns text; write data: {corpus: {paths: [...]}}" +
           (masked ? "" : ", or hmm: {}");
  if (!pretrain && objective.kind != "distill" && data.text())
    return std::string("data: ") + (data.corpus ? "corpus" : "hmm") +
           " belongs to pretrain, distill and mlm phases, and objective.kind is " + objective.kind;
  if (masked && data.hmm)
    return "data: the tokenizer of hmm has no mask token, and its filter tells the loss of what follows, not of what "
           "is "
           "masked; hmm belongs to pretrain phases";
  if (objective.kind == "tag" && !data.jsonl)
    return "data: a tag phase learns from texts and their compressions; write data: {jsonl: {path: ...}}, whose lines "
           "have a prompt, the text, and a completion, the compression";
  if (objective.of_matches() && !data.jsonl)
    return "data: a contrastive phase learns from prompts and the texts that match them; write data: {jsonl: {path: "
           "...}}, whose lines have a prompt and positives, a list of texts";
  if (data.packing && objective.kind != "sft" && objective.kind != "distill")
    return "data: packing belongs to sft and distill phases, and objective.kind is " + objective.kind +
           (pretrain ? ", whose windows have no padding" : "") + "; leave it out";
  if (stop && !stop->sampled && !stop->greedy && !stop->bits_per_byte)
    return "stop: name at least one of sampled, greedy, bits_per_byte";
  if (stop && (objective.of_encoders() || objective.of_matches()))
    return "stop: it knows no value of a phase of kind " + objective.kind + "; leave it out";
  if (stop && (data.text() ? stop->sampled || stop->greedy : stop->bits_per_byte.has_value()))
    return "stop: a pretrain phase stops at bits_per_byte, others at sampled and greedy; objective.kind is " +
           objective.kind;
  if (stop && evaluation.every == 0)
    return "stop: it is looked at after evaluations, and evaluation.every is 0; give evaluation.every the "
           "steps between";
  if (stop && evaluation.skip) return "stop: it is looked at after evaluations, and evaluation.skip is true";
  if (evaluates() && !data.has(data::Split::validation))
    return "evaluation.every: " + std::to_string(evaluation.every) +
           " asks for validation, and the data hold none (the fraction is 0); give a fraction or validation_path, or "
           "write evaluation: {every: 0}";
  return "";
}

namespace {

// What is wrong with texts that end completions, or that they may not hold.
std::string texts_problem(const rl::SamplingConfig& sampling, const data::Tokenizer& tokenizer) {
  try {
    rl::with_rules(sampling, tokenizer);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

// What of the rollouts depends on the model.
std::string sampling_problem(const rl::SamplingConfig& sampling, const TrainConfig& config) {
  if (sampling.min_new_tokens >= config.model.max_position_embeddings)
    return "min_new_tokens: " + std::to_string(sampling.min_new_tokens) +
           " leaves no room for a prompt in model.max_position_embeddings (" +
           std::to_string(config.model.max_position_embeddings) + ")";
  const data::Tokenizer tokenizer(config.tokenizer);
  const int64_t vocabulary = tokenizer.size();
  if (sampling.min_p == 1)
    return "min_p: 1 takes the likeliest token always, so that the completions of a prompt are all the same; a policy "
           "learns from how they differ";
  if (sampling.top_p <= 1.0 / static_cast<double>(vocabulary))
    return "top_p: the likeliest of " + std::to_string(vocabulary) +
           " tokens always has so much, so that the completions of a prompt are all the same; a policy learns from how "
           "they "
           "differ";
  return texts_problem(sampling, tokenizer);
}

// What of a phase asks for rows of a softmax, or pages of a cache, that a model of these mixers does not have.
std::string mixers_problem(const PhaseConfig& phase, const model::DecoderConfig& model) {
  int64_t cached = 0;
  for (int64_t i = 0; i < model.num_hidden_layers; ++i) cached += model::mixer_shape(model, i).cached;
  if (phase.rollout && phase.rollout->cache.cache_tokens > 0 && cached == 0)
    return "rollout.cache_tokens: no layer of model.mixers keeps keys and values in pages, and a state has one size "
           "whatever the length; leave it out";
  const std::string& kind = phase.objective.kind;
  if (const int64_t layer = model::undecodable_layer(model); layer >= 0 && kind != "pretrain")
    return "objective.kind: " + kind + ", and in layer " + std::to_string(layer) + " (" + model.mixer_of(layer) +
           ") a token sees later ones, so that no completion can be drawn; train on text (pretrain), or write "
           "model.routed.assign: argmax";
  const auto& entropy = phase.objective.attention_entropy;
  if (entropy.coef > 0 && model::attending_layers(model) == 0)
    return "objective.attention_entropy.coef: no layer of model.mixers is of kind softmax or softmax_rnn, and the "
           "entropy of the "
           "others' weights is not defined; leave it at 0";
  for (size_t j = 0; j < phase.weight.size(); ++j) {
    const auto* attention = phase.weight[j].get<methods::AttentionEntropy>();
    if (attention == nullptr) continue;
    const int64_t layer = attention->layer;
    const bool there = layer < 0 ? model::attending_layers(model) > 0
                                 : layer >= model.num_hidden_layers || model::mixer_shape(model, layer).attends;
    if (!there)
      return "weight." + std::to_string(j) +
             ".layer: the layer's mixer is no softmax, whose rows have an entropy; "
             "name one that is";
  }
  return "";
}

// What of a phase does not go with a model whose tokens see those behind them, or with one whose do not.
std::string encoder_problem(const PhaseConfig& phase, const model::DecoderConfig& model,
                            const data::TokenizerConfig& tokenizer) {
  const std::string& kind = phase.objective.kind;
  if (!phase.objective.of_matches() && phase.objective.of_encoders() == model.causal)
    return "objective.kind: " + kind +
           (model.causal
                ? " learns from what stands behind a token, and model.causal is true; write model.causal: false"
                : " foretells what stands behind a token, which an encoder (model.causal: false) sees; wanted "
                  "mlm, tag or contrastive");
  if (kind == "tag" && model.num_labels != 2)
    return "objective.kind: tag tells two classes, dropped and kept, and model.num_labels is " +
           std::to_string(model.num_labels) + "; write model.num_labels: 2";
  if (!model.causal && phase.objective.attention_entropy.bound)
    return "objective.attention_entropy.bound: is of causal rows, and model.causal is false; leave it at false";
  if (kind == "mlm") try {
      data::masking_of(phase.objective.masking, data::Tokenizer(tokenizer));
    } catch (const std::invalid_argument& error) {
      return "objective." + std::string(error.what());
    }
  return "";
}

std::string evaluation_problem(const EvaluationConfig& evaluation, const PhaseConfig& phase,
                               const data::TokenizerConfig& tokenizer, const model::DecoderConfig& model) {
  for (const auto& [key, given] :
       {std::pair{"repeat_prompt", evaluation.repeat_prompt}, {"prune", evaluation.prune.has_value()}})
    if (given && (phase.data.text() || phase.objective.of_encoders() || phase.objective.of_matches()))
      return std::string(key) + ": the data of phase " + phase.name + " are text, which has no prompts; leave it out";
  if (evaluation.prune)
    if (const std::string wrong = model::problem_of(*evaluation.prune, model); !wrong.empty()) return "prune." + wrong;
  if (!evaluation.probe.empty()) try {
      load_probe(evaluation.probe, model.hidden_size);
    } catch (const std::exception& error) {
      return "probe: " + std::string(error.what());
    }
  if (evaluation.stop.empty() && evaluation.bad_words.empty()) return "";
  return texts_problem({.stop = evaluation.stop, .bad_words = evaluation.bad_words}, data::Tokenizer(tokenizer));
}

// What of phase number i does not go with the phases before it, as tasks of one sequence.
std::string tasks_problem(const TrainConfig& config, size_t i) {
  const PhaseConfig& phase = config.phases[i];
  const std::string path = "phases." + std::to_string(i);
  if (config.test.tasks && !config.test.skip && !phase.data.has(data::Split::test))
    return "test.tasks: evaluates on the test data of every phase, and those of phase " + phase.name +
           " have none; give them a test_fraction or test_path, or leave test.tasks out";
  const auto& own = phase.optimizer.consolidation;
  const bool before = i > 0 && config.phases[i - 1].optimizer.consolidation;
  if (before && !own)
    return path +
           ".optimizer.consolidation: the phase before it has consolidation and this one has not, so that what is "
           "held would be lost; write it here too (strength: 0 holds nothing)";
  if (!own || own->restart != "slow") return "";
  if (!before && (i > 0 || config.run.start.empty()))
    return path +
           ".optimizer.consolidation.restart: slow, and no phase before it has slow weights; write restart: fast, "
           "or consolidation there too";
  if (config.model.sigma_reparam.any())
    return path +
           ".optimizer.consolidation.restart: slow changes weights between updates, which model.sigma_reparam does "
           "not follow; write restart: fast";
  return "";
}

}  // namespace

std::string TrainConfig::problem() const {
  if (!model.pretrained.empty() && !run.start.empty())
    return "run.start: names weights to start from, and so does model.pretrained; leave one of the two out";
  if (model.lora && model.pretrained.empty())
    return "model.lora: trains a term beside weights that stay as they are, and model.pretrained names none; name a "
           "model there";
  if (const Family& family = family_of(model); model.family != "auto" && !family.misfit(model).empty())
    return "model.family: " + model.family + " has no models with model." + family.misfit(model) +
           " as it is written here; write family: auto";
  if (phases.empty()) return "phases: there is none; a run needs at least one";
  for (size_t i = 0; i < phases.size(); ++i) {
    const PhaseConfig& phase = phases[i];
    const std::string path = "phases." + std::to_string(i);
    for (size_t j = 0; j < i; ++j)
      if (phases[j].name == phase.name)
        return path + ".name: '" + phase.name + "' is the name of phases." + std::to_string(j) +
               " too; checkpoints and metrics need one name a phase";
    if (const std::string& kind = phase.objective.kind;
        i == 0 && (kind == "grpo" || kind == "dpo") && run.start.empty() && model.pretrained.empty())
      return path + ": a " + kind +
             " phase improves a model that was trained before; put an sft phase before it, or name a "
             "checkpoint in run.start or a model in model.pretrained";
    if (const std::string wrong = encoder_problem(phase, model, tokenizer); !wrong.empty()) return path + "." + wrong;
    if (const auto& inner = phase.objective.inner_policy; inner && inner->layer >= model.num_hidden_layers)
      return path + ".objective.inner_policy.layer: " + std::to_string(inner->layer) + "; the model has blocks 0 to " +
             std::to_string(model.num_hidden_layers - 1);
    for (size_t j = 0; j < phase.reward.size(); ++j) try {
        rl::RewardEntry entry = phase.reward[j];
        rl::bind(entry, data::Tokenizer(tokenizer));
      } catch (const std::invalid_argument& error) {
        return path + ".reward." + std::to_string(j) + "." + error.what();
      }
    for (size_t j = 0; j < phase.advantage.size(); ++j) try {
        if (!rl::looks_into_texts(phase.advantage[j])) continue;
        const data::Tokenizer own(tokenizer);
        methods::Advantage entry = phase.advantage[j];
        rl::bind(entry, own);
      } catch (const std::invalid_argument& error) {
        return path + ".advantage." + std::to_string(j) + "." + error.what();
      }
    if (metrics.gradient_noise_scale > 0 && phase.objective.of_matches())
      return "metrics.gradient_noise_scale: the gradient of " + path +
             " is no mean over sequences, since every prompt is compared with every text; leave it out";
    if (metrics.gradient_noise_scale > 0 && phase.rollout && phase.rollout->tempered)
      return "metrics.gradient_noise_scale: the gradient of " + path +
             " is that of rollout.tempered too, whose completions are none of the update's; leave one of them out";
    if (const std::string wrong = mixers_problem(phase, model); !wrong.empty()) return path + "." + wrong;
    if (phase.objective.kind == "pretrain" && model::any_mixer(model, &model::MixerShape::reads_prefix)) try {
        prefix_tokens(model, model.max_position_embeddings);
      } catch (const std::invalid_argument& error) {
        return "model." + std::string(error.what());
      }
    const auto draw_problem = [&](const std::string& section, const rl::SamplingConfig& sampling) -> std::string {
      if (const std::string wrong = sampling_problem(sampling, *this); !wrong.empty())
        return path + "." + section + "." + wrong;
      if (sampling.max_new_tokens < model.max_position_embeddings) return "";
      return path + "." + section + ".max_new_tokens: " + std::to_string(sampling.max_new_tokens) +
             " leaves no room for a prompt in model.max_position_embeddings (" +
             std::to_string(model.max_position_embeddings) + ")";
    };
    for (const std::string& wrong : {phase.rollout ? draw_problem("rollout", phase.rollout->sampling) : "",
                                     phase.pairs ? draw_problem("pairs", phase.pairs->sampling) : ""})
      if (!wrong.empty()) return wrong;
    if (const std::string wrong = evaluation_problem(phase.evaluation, phase, tokenizer, model); !wrong.empty())
      return path + ".evaluation." + wrong;
    if (phase.evaluation.tasks)
      return path +
             ".evaluation.tasks: belongs to test, which is made at the end of each phase; write test.tasks: true";
    if (const std::string wrong = tasks_problem(*this, i); !wrong.empty()) return wrong;
    if (phase.evaluation.max_new_tokens >= model.max_position_embeddings)
      return path + ".evaluation.max_new_tokens: " + std::to_string(phase.evaluation.max_new_tokens) +
             " leaves no room for a prompt in model.max_position_embeddings (" +
             std::to_string(model.max_position_embeddings) + ")";
  }
  if (const std::string wrong = evaluation_problem(test, phases.back(), tokenizer, model); !wrong.empty())
    return "test." + wrong;
  if (test.max_new_tokens >= model.max_position_embeddings)
    return "test.max_new_tokens: " + std::to_string(test.max_new_tokens) +
           " leaves no room for a prompt in model.max_position_embeddings (" +
           std::to_string(model.max_position_embeddings) + ")";
  return "";
}

}  // namespace isentrope::train
