// The command line tool: parse, build, run, close.
#include <malloc.h>

#include <cstdio>

#include "csrc/command_line.h"
#include "csrc/message.h"
#include "csrc/train/commands.h"
#include "csrc/train/process.h"

namespace {

using namespace isentrope;
using namespace isentrope::train;

// What the words of the command line ask for, done. Returns the exit code of the process.
int run(int argc, char** argv) {
  CLI::App app("Isentrope trains transformers without letting their entropy collapse.", "isentrope");
  app.require_subcommand(1);
  std::string config, checkpoint, split = "test";
  std::vector<std::string> overrides;
  bool explain = false;
  TrainOptions training;
  training.program = argv[0];
  SampleOptions sample;

  auto* train = app.add_subcommand("train", "Train from a configuration.");
  train->add_option("config", training.config, "YAML file.")->required();
  train->add_option("overrides", training.overrides, "key.path=value …");
  train->add_flag("--resume", training.resume, "Go on from the newest complete checkpoint of the run folder.");
  train->add_flag("--quiet", training.quiet, "Print warnings and errors alone.");

  auto* show = app.add_subcommand("config", "Print the resolved configuration and where each value came from.");
  show->add_option("config", config, "YAML file.");
  show->add_option("overrides", overrides, "key.path=value …");
  show->add_flag("--explain", explain, "Print every key with default, range and meaning.");

  auto* draw = app.add_subcommand("sample", "Complete prompts with a checkpoint.");
  draw->add_option("checkpoint", checkpoint, "Folder of a checkpoint or of a run.")->required();
  draw->add_option("--prompt", sample.prompts, "A prompt; may be given several times.")
      ->required()
      ->allow_extra_args(false);  // one word each, and taken whole: otherwise [a,b] were two of them
  draw->add_option("--samples", sample.samples, "Completions a prompt.")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  draw->add_option("--temperature", sample.temperature, "0 for the likeliest tokens.")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  draw->add_option("--top-k", sample.top_k, "0 for all tokens.")->capture_default_str()->check(CLI::NonNegativeNumber);
  draw->add_option("--top-p", sample.top_p, "1 for all tokens.")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  draw->add_option("--max-new-tokens", sample.max_new_tokens, "0 for what the context leaves.")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  draw->add_option("--seed", sample.seed, "Fixes the draws.")->capture_default_str();

  auto* judge =
      app.add_subcommand("evaluate", "Accuracy of a checkpoint on held-out prompts, or its loss on held-out text.");
  judge->add_option("checkpoint", checkpoint, "Folder of a checkpoint or of a run.")->required();
  judge->add_option("config", config, "YAML file.")->required();
  judge->add_option("overrides", overrides, "key.path=value …");
  judge->add_option("--split", split, "Held-out part.")
      ->capture_default_str()
      ->check(CLI::IsMember({"validation", "test"}));

  auto* report = app.add_subcommand("report", "Write a page that shows one run or several: loss, entropies, samples.");
  report->prefix_command();  // every argument, --help too, is Python's
  report->set_help_flag();

  app.add_subcommand("version", "Versions, devices, instruction set, backends in the build.");

  if (const auto code = parse(app, argc, argv)) return *code;

  if (*train) return train_command(training);
  if (*show) return config_command(config, overrides, explain);
  if (*draw) return sample_command(checkpoint, sample);
  if (*judge) return evaluate_command(checkpoint, config, overrides, split);
  if (*report) return report_command(report->remaining());
  return version_command();
}

}  // namespace

int main(int argc, char** argv) {
  begin_process();
  // A step frees and asks for the same blocks again: keep them, instead of giving them back to the system and paying
  // their page faults anew.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  try {
    const int code = run(argc, argv);
    end_output();
    return code;
  } catch (...) {
    std::fprintf(stderr, "isentrope: %s\n", message_of().c_str());
    return 1;
  }
}
