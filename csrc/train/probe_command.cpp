// isentrope probe: a probe that tells hard prompts from easy ones before anything is drawn (csrc/train/probe.h).
#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>

#include "csrc/train/checkpoint.h"
#include "csrc/train/commands.h"
#include "csrc/train/probe.h"
#include "csrc/train/process.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/task_files.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {
namespace {

// A prompt, and what its samples say of it.
struct Asked {
  std::vector<int64_t> tokens;
  double right = 0, samples = 0, entropy = 0, drawn = 0;
  double accuracy() const { return right / samples; }
  double mean_entropy() const { return entropy / std::max(drawn, 1.0); }
};

std::vector<Asked> asked_of(const std::vector<Answer>& answers) {
  std::vector<Asked> asked;
  int64_t group = -1;
  for (const Answer& answer : answers) {
    if (answer.greedy) continue;
    if (answer.group != group) {
      group = answer.group;
      asked.push_back({.tokens = answer.prompt_tokens});
    }
    Asked& one = asked.back();
    one.right += rl::is_right(answer.score);
    ++one.samples;
    for (const float H : answer.completion.entropy) one.entropy += H, ++one.drawn;
  }
  return asked;
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x[x.size() / 2];
}

}  // namespace

int probe_command(const std::string& path, const ProbeOptions& options) {
  const std::filesystem::path out = options.output;
  std::error_code error;
  if (std::filesystem::is_directory(out, error) ||
      (out.has_parent_path() && !std::filesystem::is_directory(out.parent_path(), error)))
    throw std::runtime_error("--output " + options.output + ": is a folder, or its folder is not there; name a file");
  const std::string checkpoint = resolve_checkpoint(path);
  TrainConfig config = config_of(checkpoint, options.words);
  const PhaseConfig& phase = config.phases.back();
  const data::Tokenizer tokenizer = load_tokenizer(checkpoint);
  const auto rewards = load_rewards(options.rewards, config);
  make_task_files(config);
  if (phase.data.text())
    throw std::runtime_error("probe: phase " + phase.name +
                             " learns text, and has no prompts that can be answered right");
  const auto prompts = held_out_of(config, phase, tokenizer, data::Split::train, rewards);
  const model::Decoder model = load_model(checkpoint, tokenizer.size());

  EvaluationConfig draws = config.test;
  draws.probe.clear();
  draws.prompts = 1;  // greedy answers say nothing here
  draws.sampled_prompts = options.prompts;
  draws.num_generations = options.samples;
  std::vector<Answer> answers;
  prompts->evaluate(model, draws, nullptr, &answers);
  const std::vector<Asked> asked = asked_of(answers);

  ProbeLabels labels{.accuracy = options.accuracy, .hard = options.hard};
  std::vector<double> entropies;
  for (const Asked& one : asked) entropies.push_back(one.mean_entropy());
  labels.entropy = options.entropy.value_or(entropies.empty() ? 0 : median(entropies));
  // Every fifth prompt is kept apart, to be judged by.
  std::vector<std::vector<int64_t>> learnt, apart;
  std::vector<int64_t> learnt_labels, apart_labels;
  std::array<int64_t, 3> count{};
  for (size_t i = 0; i < asked.size(); ++i) {
    const int64_t label = labels.of(asked[i].accuracy(), asked[i].mean_entropy());
    ++count[label];
    (i % 5 == 4 ? apart : learnt).push_back(asked[i].tokens);
    (i % 5 == 4 ? apart_labels : learnt_labels).push_back(label);
  }
  char text[400];
  std::snprintf(text, sizeof(text),
                "%zu prompts x %lld samples: %lld easy, %lld normal, %lld hard (entropy at most %.4g nats)\n",
                asked.size(), static_cast<long long>(options.samples), static_cast<long long>(count[kProbeEasy]),
                static_cast<long long>(count[kProbeNormal]), static_cast<long long>(count[kProbeHard]), labels.entropy);
  const int64_t most = *std::max_element(count.begin(), count.end());
  if (asked.size() < 5 || most == static_cast<int64_t>(asked.size()))
    throw std::runtime_error(
        "probe: " + std::string(text) +
        "nothing is to be told apart; ask more prompts, of more than one difficulty (--prompts), or "
        "draw the lines elsewhere (--accuracy, --entropy, --hard)");

  Probe probe = train_probe(hidden_of(model, learnt), learnt_labels,
                            {.width = options.width, .epochs = options.epochs, .seed = options.seed});
  probe.least = options.least;
  const torch::Tensor found = probe.probabilities(hidden_of(model, apart)).argmax(1).contiguous();
  std::array<int64_t, 3> of_apart{};
  int64_t right = 0;
  for (size_t i = 0; i < apart.size(); ++i) {
    ++of_apart[apart_labels[i]];
    right += found.const_data_ptr<int64_t>()[i] == apart_labels[i];
  }
  const auto share = [&](int64_t n) { return 100.0 * static_cast<double>(n) / static_cast<double>(apart.size()); };
  const std::string heading = text;
  std::snprintf(text, sizeof(text), "%zu of them kept apart: %.1f %% told right, %.1f %% by the commonest class\n",
                apart.size(), share(right), share(*std::max_element(of_apart.begin(), of_apart.end())));
  save_probe(options.output, probe);
  print(heading + text + options.output + "\n");
  return 0;
}

}  // namespace isentrope::train
