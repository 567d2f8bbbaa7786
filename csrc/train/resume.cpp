#include "csrc/train/resume.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <stdexcept>

#include "csrc/train/adapter.h"
#include "csrc/train/config_values.h"
#include "csrc/train/json_file.h"
#include "csrc/train/run_checkpoints.h"

namespace isentrope::train {
namespace {

using Values = std::map<std::string, std::string>;

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// "model.rope_theta: 10000.0 → 500.0"; values may be as long as an alphabet.
std::string change(const std::string& key, const std::string& was, const std::string& is) {
  const auto shown = [](const std::string& value) {
    constexpr size_t kShown = 60;
    if (value.size() <= kShown) return value;
    size_t end = kShown;
    while (end > 0 && (static_cast<unsigned char>(value[end]) & 0xC0) == 0x80) --end;  // not within a character
    return value.substr(0, end) + "…";
  };
  return key + ": " + shown(was) + " → " + shown(is);
}

// At most a screen of lines, each indented.
std::string listed(const std::vector<std::string>& lines) {
  constexpr size_t kShown = 20;
  std::string text;
  for (size_t i = 0; i < std::min(lines.size(), kShown); ++i) text += "\n  " + lines[i];
  if (lines.size() > kShown) text += "\n  and " + std::to_string(lines.size() - kShown) + " more";
  return text;
}

// ---- what gives weights their meaning -----------------------------------------------------------------------------

// The tokenizer that lies beside the weights. Where it is of another program, the configuration's is taken on trust, and that is
// told.
std::optional<data::Tokenizer> stored_tokenizer(Standing& standing) {
  const std::string& dir = standing.from;
  if (!exists(dir + "/tokenizer.json")) return std::nullopt;  // transformers saves a model without one
  if (exists(dir + "/DONE")) return load_tokenizer(dir);
  try {
    return load_tokenizer(dir);
  } catch (const std::runtime_error& error) {
    standing.notes.push_back(std::string(error.what()) + "; the configuration's tokenizer is taken in its place");
    return std::nullopt;
  }
}

// Throws where the weights in standing.from would mean something else under this configuration.
void require_same_meaning(Standing& standing, const TrainConfig& config, const data::Tokenizer& tokenizer) {
  const std::string& dir = standing.from;
  std::vector<std::string> differences;
  const auto compare = [&](const std::string& key, const std::string& was, const std::string& is) {
    if (was != is) differences.push_back(change(key, was, is));
  };
  if (const auto stored = stored_tokenizer(standing)) {
    compare("tokenizer.kind", stored->kind(), tokenizer.kind());
    if (differences.empty() && stored->kind() == "pretrained" && stored->digest() != tokenizer.digest())
      differences.push_back(change("tokenizer.pretrained", "the tokenizer in the checkpoint",
                                   "another, in " + tokenizer.config().pretrained));
    if (differences.empty() && stored->kind() == "characters") {
      compare("tokenizer.characters", stored->config().characters, tokenizer.config().characters);
      compare("tokenizer.eos", stored->eos(), tokenizer.eos());
    }
  }
  model::DecoderConfig stored = read_model_config(standing.weights);
  // What weights may begin as: an encoder, with labels. Within a run neither key changes (kFreeOfModel).
  if (!config.model.causal) stored.causal = false;
  if (stored.num_labels == 0) stored.num_labels = config.model.num_labels;
  const Values was = values_of(stored), is = values_of(config.model);
  // Keys of a kind of mixer say nothing where no layer is of that kind.
  const auto& mixers = config.model.mixers;
  const auto idle = [&](const std::string& key) {
    const std::string section = key.substr(0, key.find('.'));
    return model::is_mixer_kind(section) && std::find(mixers.begin(), mixers.end(), section) == mixers.end();
  };
  for (const std::string& key : keys_of_meaning())
    if (!idle(key)) compare("model." + key, was.at(key), is.at(key));
  if (config.model.attention.temperature == "row")
    compare("model.max_position_embeddings", was.at("max_position_embeddings"), is.at("max_position_embeddings"));
  standing.vocabulary = stored.vocabulary;  // an embedding may have more rows than there are tokens
  if (differences.empty() && stored.vocabulary < tokenizer.size())
    compare("tokens", std::to_string(stored.vocabulary), std::to_string(tokenizer.size()));
  if (!differences.empty())
    throw std::runtime_error(dir +
                             ": its weights are of another model than the configuration's (checkpoint → "
                             "configuration):" +
                             listed(differences) + "\nWrite the checkpoint's values, or train a model anew");
}

// ---- resume -------------------------------------------------------------------------------------------------------

// Keys of model that may change within a run; every other one changes what weights or places in the data mean.
const std::set<std::string> kFreeOfModel{"model.pretrained",
                                         "model.family",
                                         "model.initializer_range",
                                         "model.fused_head",
                                         "model.recompute",
                                         "model.compute",
                                         "model.lora.from",
                                         "model.attention.qk_clip",
                                         "model.sigma_reparam.gamma_init",
                                         "model.sigma_reparam.sigma_grad",
                                         "model.sigma_reparam.steps_max",
                                         "model.sigma_reparam.tolerance",
                                         "model.sigma_reparam.every",
                                         "model.sigma_reparam.svd"};

// Why a phase that is under way cannot go on with another value of a key; "" where it can. key: below the phase.
std::string fixed_within_phase(const std::string& key, const std::string& was, const std::string& is) {
  if (key == "objective.kind" || key == "optimizer.kind" || key == "objective.attention_entropy.learn_threshold")
    return "the state kept is of the other";
  const bool switched = (was == "0.0") != (is == "0.0");
  if (key == "objective.attention_entropy.coef" && switched) return "thresholds are kept where it is above 0";
  if (key == "objective.ref_kl_coef" && was == "0.0") return "the reference is kept where it is above 0";
  if (key.starts_with("data.reasoning_gym.") && key != "data.reasoning_gym.cache")
    return "it gives another stream of examples";
  if (key.starts_with("data.episodes.") && key != "data.episodes.held_out")
    return "it gives another stream of examples";
  if (key.starts_with("pairs.")) return "its pairs are drawn by the other";
  if (key.starts_with("data.tint.") && key != "data.tint.held_out") return "it gives another stream of examples";
  return "";
}

class Comparison {
 public:
  Comparison(const TrainConfig& config, const CheckpointState& state) : was_(state.config), is_(values_of(config)) {}

  bool differs(const std::string& key) const {
    const auto a = was_.find(key), b = is_.find(key);
    return (a == was_.end() ? "null" : a->second) != (b == is_.end() ? "null" : b->second);
  }
  // Sorts every difference into what is refused and what is told. ended: phases that nothing can change any more; current: the
  // phase that goes on, "" where one begins.
  void sort(const std::vector<std::string>& ended, const std::string& current) {
    std::set<std::string> keys;
    for (const auto* values : {&was_, &is_})
      for (const auto& [key, value] : *values) keys.insert(key);
    for (const std::string& key : keys) {
      const auto was = was_.find(key), is = is_.find(key);
      if (key == "run.dir" || key.starts_with("tokenizer.") || !differs(key)) continue;
      if (was != was_.end() && is != is_.end())
        if (const std::string reason = refusal(key, was->second, is->second, ended, current); !reason.empty()) {
          refused.push_back(change(key, was->second, is->second) + "  (" + reason + ")");
          continue;
        }
      if (!of_phase_not_in_both(key))
        told.push_back(
            change(key, was == was_.end() ? "not there" : was->second, is == is_.end() ? "not there" : is->second));
    }
  }
  std::vector<std::string> refused, told;

 private:
  static std::string refusal(const std::string& key, const std::string& was, const std::string& is,
                             const std::vector<std::string>& ended, const std::string& current) {
    if (key == "run.seed") return "every draw hangs on it";
    if (key.starts_with("model.") && !kFreeOfModel.contains(key))
      return "weights or places in the data mean another thing";
    for (const std::string& phase : ended)
      if (const std::string prefix = "phases." + phase + "."; key.starts_with(prefix)) {
        if (key.compare(prefix.size(), 5, "data.") == 0) return "";  // where files stand now
        return "the phase has ended";
      }
    const std::string prefix = "phases." + current + ".";
    return key.starts_with(prefix) ? fixed_within_phase(key.substr(prefix.size()), was, is) : "";
  }
  // Phases that came or went are told by their names, not by each of their keys.
  bool of_phase_not_in_both(const std::string& key) const {
    if (!key.starts_with("phases.")) return false;
    const std::string phase = key.substr(0, key.find('.', 7));
    return was_.contains(phase + ".steps") != is_.contains(phase + ".steps");
  }

  const Values& was_;
  const Values is_;
};

size_t place_of(const TrainConfig& config, const std::string& phase) {
  size_t place = 0;
  while (place < config.phases.size() && config.phases[place].name != phase) ++place;
  return place;
}

// The folder of the weights that the adapter in a checkpoint belongs to: where they were, or else where the configuration says that
// they are now. Of a checkpoint without an adapter, itself.
std::string weights_of(const TrainConfig& config, const std::string& from) {
  const bool adapter = is_adapter(from);
  if (adapter != config.model.lora.has_value())
    throw std::runtime_error(from +
                             (adapter ? ": holds an adapter, and model.lora is not written; write it as it was"
                                      : ": holds all weights, and model.lora trains an adapter; leave it out") +
                             ", or begin a new run from it: run.dir=… model.pretrained=" + from);
  if (!adapter) return from;
  const std::string name = name_of_base(from);
  return exists(name) ? name : resolve_checkpoint(config.model.pretrained);
}

// Test results that the checkpoint kept, in the order of the phases.
void take_results(const TrainConfig& config, Standing& standing) {
  std::vector<std::string> names = standing.state.ended;
  for (const PhaseConfig& phase : config.phases)
    if (!contains(names, phase.name)) names.push_back(phase.name);
  for (const std::string& name : names) {
    const std::string prefix = kResult + name + "/";
    Evaluation result;
    for (const auto& [key, x] : standing.state.extra)
      if (key.starts_with(prefix) && x.numel() == 1) result[key.substr(prefix.size())] = x.item<double>();
    if (!result.empty()) standing.results.push_back({name, result});
  }
}

Standing resumed(const TrainConfig& config, const data::Tokenizer& tokenizer, const std::string& from) {
  Standing now{.from = from, .weights = weights_of(config, from), .state = load_checkpoint_state(from)};
  const CheckpointState& state = now.state;
  const std::string& name = state.phase_name;
  require_same_meaning(now, config, tokenizer);
  now.phase = place_of(config, name);
  if (now.phase == config.phases.size())
    throw std::runtime_error(from + " stands in phase '" + name +
                             "', which this configuration does not have; put it back, or begin a new run from these "
                             "weights: run.start=" +
                             from);
  for (size_t i = now.phase + 1; i < config.phases.size(); ++i)
    if (contains(state.ended, config.phases[i].name))
      throw std::runtime_error("phase '" + config.phases[i].name + "' has ended in this run and stands behind '" +
                               name + "' now, in which the run is; put the phases back in their order");

  Comparison comparison(config, state);
  const PhaseConfig& phase = config.phases[now.phase];
  bool other_end = false;  // whether the end of the phase was moved
  for (const char* key : {"steps", "stop", "stop.sampled", "stop.greedy", "stop.bits_per_byte"})
    other_end = other_end || comparison.differs("phases." + name + "." + key);
  now.goes_on = !state.phase_finished || (other_end && phase.steps > state.step);
  now.ended = state.ended;
  if (!now.goes_on) now.ended.push_back(name);
  comparison.sort(now.ended, now.goes_on ? name : "");
  if (!comparison.refused.empty())
    throw std::runtime_error(from +
                             ": the run cannot go on from it with these keys changed (checkpoint → configuration):" +
                             listed(comparison.refused) +
                             "\nPut them back, or begin a new run from its weights: run.dir=… run.start=" + from);

  for (const std::string& one : state.ended)
    if (place_of(config, one) == config.phases.size())
      now.notes.push_back("phase '" + one + "' has ended in this run and is no longer in the configuration");
  for (size_t i = 0; i < now.phase; ++i)
    if (const std::string& one = config.phases[i].name; !state.numbers.contains(one))
      now.notes.push_back("phase '" + one + "' stands before '" + name + "', in which the run is, and is not trained");
  if (state.version != ISENTROPE_VERSION) now.notes.push_back(change("isentrope", state.version, ISENTROPE_VERSION));
  if (!comparison.told.empty()) now.notes.push_back("changed since the checkpoint:" + listed(comparison.told));

  now.numbers = state.numbers;
  int64_t next = 0;
  for (const auto& [one, number] : now.numbers) next = std::max(next, number + 1);
  for (const PhaseConfig& one : config.phases)
    if (!now.numbers.contains(one.name)) now.numbers[one.name] = next++;
  if (now.goes_on) {
    now.step = state.step;
    if (state.phase_finished)
      now.notes.push_back("phase '" + name + "' had ended and goes on from step " + std::to_string(state.step) +
                          " to " + std::to_string(phase.steps) + "; its schedule is that of " +
                          std::to_string(phase.steps) + " steps from here on");
  } else if (++now.phase == config.phases.size()) {
    now.notes.push_back("every phase has ended: there is nothing to do, and nothing is changed. phases." + name +
                        ".steps=N with N above " + std::to_string(state.step) + " trains longer");
  }
  take_results(config, now);
  return now;
}

// ---- run.start, model.pretrained ----------------------------------------------------------------------------------------------------

Standing started(const TrainConfig& config, const data::Tokenizer& tokenizer) {
  const bool pretrained = !config.model.pretrained.empty();
  Standing now{.from = resolve_checkpoint(pretrained ? config.model.pretrained : config.run.start)};
  now.weights = now.from;
  require_same_meaning(now, config, tokenizer);
  if (pretrained) {
    now.notes.push_back("start from " + now.from + ", its weights alone");
    return now;
  }
  const bool own = exists(now.from + "/DONE");
  if (own) now.state = load_checkpoint_state(now.from);
  const std::string& name = now.state.phase_name;
  const size_t place = own ? place_of(config, name) : config.phases.size();
  std::string note = "start from " + now.from + ": ";
  if (place + 1 < config.phases.size()) {
    now.phase = place + 1;
    take_results(config, now);
    note += "phases up to its own, '" + name + "', are skipped";
  } else {
    note += "its weights alone are taken and all phases run, since " +
            (!own                           ? "no trainer wrote it"
             : place < config.phases.size() ? "its phase '" + name + "' is the last one"
                                            : "its phase '" + name + "' is not in this configuration");
  }
  now.notes.push_back(note);
  return now;
}

}  // namespace

Standing find_standing(const TrainConfig& config, const data::Tokenizer& tokenizer, const std::string& run_dir,
                       bool resume) {
  if (resume)
    if (const auto latest = find_latest(run_dir)) {
      if (const std::string foreign = foreign_file(*latest); !foreign.empty())
        throw std::runtime_error(*latest + "/" + foreign +
                                 ": stands in the checkpoint that the run would go on from, and its DONE does not "
                                 "list it: the trainer did not write it. Move it out of the folder; the rest of the "
                                 "checkpoint is whole");
      return resumed(config, tokenizer, *latest);
    }
  Standing now = config.run.start.empty() && config.model.pretrained.empty() ? Standing{} : started(config, tokenizer);
  if (resume) now.notes.push_back("there is no checkpoint in " + run_dir + " to go on from; the run begins");
  for (size_t i = 0; i < config.phases.size(); ++i) now.numbers[config.phases[i].name] = static_cast<int64_t>(i);
  return now;
}

}  // namespace isentrope::train
