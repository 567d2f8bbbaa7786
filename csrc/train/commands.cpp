#include "csrc/train/commands.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/cuda.h>
#include <torch/version.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "build_summary.h"
#include "csrc/message.h"
#include "csrc/rl/rollout.h"
#include "csrc/train/completions.h"
#include "csrc/train/flops.h"
#include "csrc/train/machine_memory.h"
#include "csrc/train/model_config.h"
#include "csrc/train/plan.h"
#include "csrc/train/process.h"
#include "csrc/train/progress.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/summary.h"
#include "csrc/train/task_files.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {
namespace {

// ---- the commands that a run prints: each can be given to a shell as it stands -------------------------------------

// This command line with --resume. without: the key of an override that is left out.
std::string resume_command(const TrainOptions& options, const std::string& without = "") {
  std::string command = shell_quoted(options.program) + " train " + shell_quoted(options.config);
  for (const std::string& word : options.overrides)
    if (without.empty() || !word.starts_with(without + "=")) command.append(" ").append(shell_quoted(word));
  for (const std::string& word : options.rewards.words) command.append(" --reward ").append(shell_quoted(word));
  return command + " --resume";
}

// The beginning of a prompt that the phase learnt from; of text the first character of the alphabet.
std::string prompt_of(const TrainConfig& config, const PhaseConfig& phase, const data::Tokenizer& tokenizer) {
  std::string prompt;
  if (!phase.data.text()) try {
      prompt = data::make_source(phase.data, static_cast<uint64_t>(config.run.seed), data::Split::train)
                   ->take(0, 1)[0]
                   .prompt;
    } catch (const std::exception&) {  // the file may have gone since
    }
  constexpr int64_t kShown = 60;  // what a line has room for
  const int64_t most = std::min(kShown, config.model.max_position_embeddings / 2);
  std::string shown;
  for (const std::string& point : data::code_points(prompt)) {
    const bool plain = printable(point) == point && point != "\n" && point != "\t";
    if (!plain || static_cast<int64_t>(shown.size() + point.size()) > most) break;
    shown += point;
  }
  if (!shown.empty()) return shown;
  return tokenizer.kind() == "characters" ? data::code_points(tokenizer.config().characters).front() : "a";
}

// What can be done with a run that has ended.
std::string next_commands(const TrainOptions& options, const Trainer& trainer) {
  const TrainConfig& config = trainer.config();
  const PhaseConfig& phase = config.phases.back();
  const std::string& checkpoint = trainer.last_checkpoint();
  const std::string steps = "phases." + phase.name + ".steps", folder = shell_quoted(checkpoint);
  std::string text;
  const auto line = [&](const char* name, const std::string& what) { text.append(name).append(what); };
  line("\nCheckpoint  ", checkpoint);
  line("\nResume      ", resume_command(options, steps) + " " + steps + "=" + std::to_string(2 * phase.steps));
  line("\nSample      ", shell_quoted(options.program) + " sample " + folder + " --prompt " +
                             shell_quoted(prompt_of(config, phase, trainer.tokenizer())));
  using nlohmann::json;  // its texts are also Python's
  const std::string name = json(checkpoint).dump(-1, ' ', false, json::error_handler_t::replace);
  const std::string trust = opens_in_transformers(config.model) ? "" : ", trust_remote_code=True";
  const std::string load =
      "import transformers; print(transformers.AutoModelForCausalLM.from_pretrained(" + name + trust + "))";
  line("\nPython      ", shell_quoted(python_program()) + " -c " + shell_quoted(load));
  return text;
}

void check_completions(const std::string& file, const PhaseConfig& phase) {
  std::error_code error;
  const auto there = std::filesystem::symlink_status(file, error);
  if (phase.data.text())
    throw std::runtime_error("--completions: phase " + phase.name +
                             " learns text, and its evaluation completes nothing");
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there))
    throw std::runtime_error("--completions: " + file + " is no regular file; name one, or a new one");
}

void print_warnings(const std::vector<std::string>& warnings) {
  for (const std::string& warning : warnings) std::fprintf(stderr, "isentrope: warning: %s\n", warning.c_str());
}

}  // namespace

int train_command(const TrainOptions& options) {
  TrainConfig config = read_config(options.config, options.overrides);
  const auto functions = load_rewards(options.rewards, config);
  Trainer trainer(config, options.resume, functions);
  if (!trainer.ranks().first())
    write_output_to(trainer.dir() + "/ranks/" + std::to_string(trainer.ranks().rank()) + ".log");
  FileScreen screen;
  Console console(screen, options.quiet);
  print_warnings(trainer.warnings());
  for (const std::string& note : trainer.notes()) console.print(note);
  Progress progress(trainer, console);
  const StopSignals stop;
  int stopped = 0;

  try {
    const auto asked = [&] { return stop.received() ? stop.received() : trainer.out_of_time() ? kTryAgain : 0; };
    while (!trainer.finished() && !(stopped = trainer.agree_on_stop(asked()))) {
      progress.before_step();
      progress.after_step(trainer.advance());
    }
  } catch (...) {
    const std::string& checkpoint = trainer.last_checkpoint();
    if (!checkpoint.empty() && message_of().find(checkpoint) == std::string::npos)  // what Python raises names none
      console.print("Checkpoint: " + checkpoint + "\nResume:  " + resume_command(options));
    throw;
  }
  progress.end_phase();
  if (!trainer.finished()) {
    const std::string checkpoint = trainer.save();
    const std::string why = stopped != kTryAgain ? "Stopped" : "Stopped ahead of the time limit (run.save_before_s)";
    console.print(checkpoint.empty() ? why + " before the first step." : why + ". Checkpoint: " + checkpoint);
    console.print("Resume:  " + resume_command(options));
    print_warnings(trainer.wait());
    return stopped == kTryAgain ? kTryAgain : StopSignals::exit_code(stopped);
  }
  console.print(progress.results() + next_commands(options, trainer));
  if (const std::vector<std::string>& lost = trainer.wait(); !lost.empty()) {
    std::string text =
        "the run has ended and its last checkpoint is whole, but not every one before it could be written:";
    for (const std::string& one : lost) text += "\n  " + one;
    throw std::runtime_error(text);
  }
  if (console.lost() && console.lost() != EPIPE)
    throw std::runtime_error(std::string("standard output cannot be written: ") + std::strerror(console.lost()) +
                             "; the run is whole, and its results stand in " + trainer.config().run.dir +
                             "/summary.json");
  return 0;
}

int config_command(const std::string& config, const std::vector<std::string>& overrides, bool explain) {
  const std::string text = explain ? explain_config() : print_config_with_origins(config, overrides);
  if (!explain) print_warnings(warnings(read_config(config, overrides)));
  print(text);
  return 0;
}

int plan_command(const std::string& file, const std::vector<std::string>& overrides) {
  TrainConfig config = read_config(file, overrides);
  const data::Tokenizer tokenizer(config.tokenizer);
  config.model.vocabulary = std::max(config.model.vocabulary, tokenizer.size());
  if (config.run.threads > 0) at::set_num_threads(static_cast<int>(config.run.threads));
  check_machine(config, RankCounts());
  make_task_files(config);
  const DataReport data = check_data(config, tokenizer, rewards_in_name_alone(config));
  print_warnings(data.warnings);
  const double baseline = resident_memory(), has = machine_memory();
  const bool cuda = config.run.device != "cpu" && torch::cuda::is_available();
  if (!cuda) check_memory(config, data.phases, has, baseline);
  const bool waits = !checkpoint_copy_fits(config, data.phases, has, baseline, cuda);
  const double rate = measured_product_rate(cuda ? torch::kCUDA : torch::kCPU, config.model.compute);
  std::string text;
  for (size_t i = 0; i < config.phases.size(); ++i) {
    const PhaseConfig& phase = config.phases[i];
    const Lengths& lengths = data.phases[i].lengths;
    text += phase.name + "\n  memory  about " + to_text(memory_plan(config, phase, lengths)) + "\n  time    at least " +
            time_text(least_seconds(config, phase, lengths, rate)) + " for the products of " +
            std::to_string(phase.steps) + " steps\n";
  }
  char machine[64];
  std::snprintf(machine, sizeof(machine), ", products %.3g GFLOP/s\n", rate / 1e9);
  if (waits) text += kWaits + "\n";
  if (!cuda)
    text += "machine\n  memory  " + bytes_text(has) + ", the program itself takes " + bytes_text(baseline) + machine;
  print(text);
  return 0;
}

TrainConfig config_of(const std::string& checkpoint, const std::vector<std::string>& words) {
  const bool named = !words.empty() && (words[0].find('=') == std::string::npos || std::filesystem::exists(words[0]));
  const std::string file = named ? words[0] : checkpoint + "/config.yaml";
  if (!named && !std::filesystem::exists(file))
    throw std::runtime_error(checkpoint + " holds no configuration; name one behind it");
  return read_config(file, {words.begin() + named, words.end()});
}

int evaluate_command(const std::string& path, const EvaluateOptions& options) {
  const std::string checkpoint = resolve_checkpoint(path);
  TrainConfig config = config_of(checkpoint, options.words);
  const PhaseConfig& phase = config.phases.back();
  const data::Tokenizer tokenizer =  // transformers saves a model without one
      std::filesystem::exists(checkpoint + "/tokenizer.json") ? load_tokenizer(checkpoint)
                                                              : data::Tokenizer(config.tokenizer);
  const auto split = options.split == "test" ? data::Split::test : data::Split::validation;
  if (!phase.data.has(split))
    throw std::runtime_error(checkpoint + ": the data of phase " + phase.name + " have no part for " + options.split +
                             "; give it a fraction above 0 or a file of its own");
  const auto rewards = load_rewards(options.rewards, config);
  make_task_files(config);
  const auto held_out = held_out_of(config, phase, tokenizer, split, rewards);
  print_warnings(held_out->shortages(config.test, "test"));
  std::optional<DurableFile> out;
  if (!options.completions.empty()) {
    check_completions(options.completions, phase);
    out.emplace(options.completions, 0);  // what cannot be written is told before the evaluation
  }
  std::vector<Answer> answers;
  Intervals intervals;
  const Evaluation result = held_out->evaluate(load_model(checkpoint, tokenizer.size()), config.test, nullptr,
                                               out ? &answers : nullptr, &intervals);
  for (const Answer& answer : answers) {
    nlohmann::ordered_json line = to_json(answer.group, answer.prompt, answer.completion, tokenizer);
    line["decoding"] = answer.greedy ? "greedy" : "sampled";
    line["score"] = answer.score ? nlohmann::ordered_json(*answer.score) : nlohmann::ordered_json(nullptr);
    line["right"] = rl::is_right(answer.score);
    const std::string text = line_of(line) + "\n";
    out->write(text.data(), static_cast<int64_t>(text.size()));
  }
  if (out) out->commit();
  print(options.json ? evaluation_json(phase.name, options.split, result, intervals) + "\n"
                     : evaluation_table(phase.name, options.split, result, intervals));
  return 0;
}

int export_command(const std::string& path, const std::string& folder) {
  const std::string checkpoint = resolve_checkpoint(path);
  const data::Tokenizer tokenizer = load_tokenizer(checkpoint);
  save_model(folder, load_model(checkpoint, tokenizer.size()), tokenizer);
  print(checkpoint + " → " + folder + "\n");
  return 0;
}

namespace {

[[noreturn]] void go_on_in_python(const std::string& what, std::vector<std::string> words) {
  const std::string python = python_program();
  words.insert(words.begin(), python);
  std::vector<char*> command;
  for (std::string& word : words) command.push_back(word.data());
  command.push_back(nullptr);
  ::execvp(python.c_str(), command.data());
  throw std::runtime_error(what + ": " + python + " cannot be started: " + std::strerror(errno) +
                           "; name a Python that has isentrope in ISENTROPE_PYTHON");
}

}  // namespace

int python_command(const std::string& program, const std::string& name, const std::vector<std::string>& arguments) {
  ::setenv("ISENTROPE_PROGRAM", program.c_str(), 1);
  std::string module = "isentrope." + name;
  std::replace(module.begin(), module.end(), '-', '_');
  std::vector<std::string> words{"-m", module};
  words.insert(words.end(), arguments.begin(), arguments.end());
  go_on_in_python(name, words);
}

void command_in_python(const std::string& program, const std::vector<std::string>& arguments) {
  // A json.py of the working folder must not take the place of Python's; python/isentrope/__main__.py takes the mark away.
  ::setenv("PYTHONSAFEPATH", "isentrope", /*replace=*/0);
  std::vector<std::string> words{"-X", "isentrope_program=" + program, "-m", "isentrope"};
  words.insert(words.end(), arguments.begin(), arguments.end());
  go_on_in_python("a reward in Python", words);
}

int version_command() {
  std::string text = "isentrope " ISENTROPE_VERSION "\ntorch " TORCH_VERSION "\nCPU instruction set: ";
  text +=
      at::get_cpu_capability() + "\nranks: " + Ranks::build() + "\nbuild: " ISENTROPE_BUILD_SUMMARY "\nCUDA devices: ";
  print(text + std::to_string(torch::cuda::device_count()) + "\n");
  return 0;
}

}  // namespace isentrope::train
