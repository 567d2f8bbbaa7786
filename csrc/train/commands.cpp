#include "csrc/train/commands.h"

#include <ATen/Version.h>
#include <torch/cuda.h>
#include <torch/version.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "build_summary.h"
#include "csrc/durable_file.h"
#include "csrc/rl/rollout.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {
namespace {

std::atomic<bool> interrupted = false;

// The first signal asks the trainer to stop after its step; a second one ends the process as usual.
void ask_to_stop(int number) {
  interrupted = true;
  std::signal(number, SIG_DFL);
}

std::string resolve(const std::string& path) {
  if (std::filesystem::exists(path + "/DONE")) return path;
  if (const auto latest = find_latest(path)) return *latest;
  throw std::runtime_error(path + ": neither a complete checkpoint nor the folder of a run that has one");
}

model::Decoder load_model(const std::string& checkpoint) {
  model::Decoder decoder(read_model_config(checkpoint), 0);
  load_weights(checkpoint, decoder);
  return decoder;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += " " + word;
  return text;
}

// "eval/pass@k" → "pass@k"
std::string short_name(const std::string& name) { return name.substr(name.find('/') + 1); }

nlohmann::ordered_json to_json(const std::string& phase, const std::string& split, const Evaluation& evaluation) {
  nlohmann::ordered_json line{{"phase", phase}, {"split", split}};
  for (const auto& [name, value] : in_order(evaluation)) line[short_name(name)] = value;
  return line;
}

// One row a phase, below the names of what was measured.
void print_results(const std::vector<std::pair<std::string, Evaluation>>& results) {
  std::string shown;  // the names that stand above
  for (const auto& [phase, evaluation] : results) {
    std::string names, row;
    char cell[32];
    for (const auto& [name, value] : in_order(evaluation)) {
      if (name == "eval/k") continue;  // it stands in the name of pass@8
      const bool pass = name == "eval/pass@k";
      const std::string heading =
          pass ? "pass@" + std::to_string(std::llround(evaluation.at("eval/k"))) : short_name(name);
      std::snprintf(cell, sizeof(cell), " %13s", heading.c_str());
      names += cell;
      std::snprintf(cell, sizeof(cell), " %13.4g", value);
      row += cell;
    }
    if (names != shown) std::printf("\n%-14s%s\n", "after phase", names.c_str());
    std::printf("%-14s%s\n", phase.c_str(), row.c_str());
    shown = names;
  }
}

// What the steps of a grpo phase say of reward and entropy, or why they say nothing. last: its last step.
void print_law(const PhaseConfig& phase, const Record& last) {
  if (phase.objective.kind != "grpo") return;
  std::printf("\nReward over entropy, phase %s: ", phase.name.c_str());
  const auto at = [&](const char* name) { return last.values.at(std::string("law/") + name); };
  if (const std::string reason = phase.holds_entropy(); !reason.empty())
    std::printf("no law fitted, since %s\n", reason.c_str());
  else if (!last.values.contains("law/a"))
    std::printf("no law fitted, since it takes three steps with entropies that differ\n");
  else
    std::printf("R = %.3g - %.3g exp(H), ceiling %.3g at H = 0 (R2 %.2f, RMSE %.3g)%s\n", at("b"), at("a"),
                at("ceiling"), at("r2"), at("rmse"),
                at("a") > 0 ? "" : ". It rose with the entropy: the law does not hold here");
}

void print_warnings(const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings) std::fprintf(stderr, "isentrope: warning: %s\n", warning.c_str());
}

}  // namespace

int train_command(const std::string& config, const std::vector<std::string>& overrides, bool resume, bool quiet) {
  Trainer trainer(read_config(config, overrides), resume);
  Console console(quiet);
  print_warnings(warnings(trainer.config()));
  for (const std::string& note : trainer.notes()) console.print(note);
  Record last;  // step
  interrupted = false;
  std::signal(SIGINT, ask_to_stop);
  std::signal(SIGTERM, ask_to_stop);
  const std::string again = "isentrope train " + config + joined(overrides) + " --resume";

  while (!trainer.finished()) {
    const PhaseConfig& phase = trainer.config().phases[trainer.phase()];
    console.begin_phase(phase.name, phase.steps, trainer.steps_done());
    for (const size_t current = trainer.phase(); !trainer.finished() && trainer.phase() == current && !interrupted;)
      for (const Record& record : trainer.advance()) {
        console.step(record);
        if (record.split.empty()) last = record;
      }
    console.end_phase();
    if (interrupted && !trainer.finished()) {
      const std::string checkpoint = trainer.save();
      console.print(checkpoint.empty() ? "Stopped before the first step." : "Stopped. Checkpoint: " + checkpoint);
      console.print("Resume:  " + again);
      return 130;
    }
  }

  nlohmann::ordered_json summary = nlohmann::ordered_json::array();
  for (const auto& [phase, result] : trainer.results()) summary.push_back(to_json(phase, "test", result));
  write_durably(trainer.config().run.dir + "/summary.json", summary.dump(2) + "\n");
  if (!quiet) {
    print_results(trainer.results());
    print_law(trainer.config().phases.back(), last);
    const std::string checkpoint = *find_latest(trainer.config().run.dir);
    std::printf("\nCheckpoint  %s\n", checkpoint.c_str());
    std::printf("Resume      %s phases.%s.steps=N\n", again.c_str(), trainer.config().phases.back().name.c_str());
    std::printf("Sample      isentrope sample %s --prompt '...'\n", checkpoint.c_str());
    std::printf("Python      transformers.AutoModelForCausalLM.from_pretrained('%s')\n", checkpoint.c_str());
  }
  return 0;
}

int config_command(const std::string& config, const std::vector<std::string>& overrides, bool explain) {
  const std::string text = explain ? explain_config() : print_config_with_origins(config, overrides);
  if (!explain) print_warnings(warnings(read_config(config, overrides)));
  std::fwrite(text.data(), 1, text.size(), stdout);
  return 0;
}

int sample_command(const std::string& path, const SampleOptions& options) {
  const std::string checkpoint = resolve(path);
  const model::Decoder decoder = load_model(checkpoint);
  const data::Tokenizer tokenizer = data::Tokenizer::load(checkpoint);
  std::vector<std::vector<int64_t>> prompts;
  for (const std::string& prompt : options.prompts) prompts.push_back(tokenizer.encode(prompt));
  const rl::SamplingConfig sampling{options.temperature, options.top_k, options.top_p, options.max_new_tokens};
  for (const auto& completion :
       rl::rollout(decoder, prompts, options.samples, sampling, {tokenizer.eos_id()}, {.seed = options.seed}))
    std::printf("%s%s%s\n", options.prompts[completion.prompt].c_str(), tokenizer.decode(completion.tokens).c_str(),
                completion.stopped ? "" : "  [cut at the length limit]");
  return 0;
}

int evaluate_command(const std::string& path, const std::string& file, const std::vector<std::string>& overrides,
                     const std::string& split) {
  const std::string checkpoint = resolve(path);
  const TrainConfig config = read_config(file, overrides);
  const PhaseConfig& phase = config.phases.back();
  const data::Tokenizer tokenizer = data::Tokenizer::load(checkpoint);
  if (!phase.data.has(split == "test" ? data::Split::test : data::Split::validation))
    throw std::runtime_error(file + ": the data of phase " + phase.name + " have no part for " + split +
                             "; give it a fraction above 0 or a file of its own");
  const auto held_out =
      held_out_of(config, phase, tokenizer, split == "test" ? data::Split::test : data::Split::validation);
  const Evaluation result = held_out->evaluate(load_model(checkpoint), config.test);
  std::printf("%s\n", to_json(phase.name, split, result).dump().c_str());
  return 0;
}

int report_command(const std::vector<std::string>& arguments) {
  const std::string python = python_program();
  std::vector<std::string> words{python, "-m", "isentrope.report"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> command;
  for (std::string& word : words) command.push_back(word.data());
  command.push_back(nullptr);
  ::execvp(python.c_str(), command.data());
  throw std::runtime_error("report: " + python + " cannot be started: " + std::strerror(errno) +
                           "; name a Python that has isentrope in ISENTROPE_PYTHON");
}

int version_command() {
  std::printf("isentrope %s\n", ISENTROPE_VERSION);
  std::printf("torch %s\n", TORCH_VERSION);
  std::printf("CPU instruction set: %s\n", at::get_cpu_capability().c_str());
  std::printf("build: %s\n", ISENTROPE_BUILD_SUMMARY);
  std::printf("CUDA devices: %zu\n", static_cast<size_t>(torch::cuda::device_count()));
  return 0;
}

}  // namespace isentrope::train
