#include "csrc/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "csrc/message.h"
#include "csrc/train/commands.h"
#include "csrc/train/process.h"
#include "csrc/train/prune_words.h"

namespace isentrope {
namespace {

// Commands that Python does, each as `python -m isentrope.NAME`.
constexpr std::pair<const char*, const char*> kPythonCommands[]{
    {"report", "Write a page that shows one run or several: loss, entropies, samples."},
    {"compare", "Train configurations with several seeds or values of a key, and print one table."},
    {"doctor", "Say what ails a run by its metrics, with the evidence and the key to change."},
    {"diagnose", "Measure a model inside: entropies, representations, probes, circuits."},
    {"rollouts", "Write the completions that a run saved as a Parquet file."},
    {"pairs", "Make pairs of a better and a worse completion of the completions that a run saved."},
    {"cold-start",
     "Write right answers, of the completions that a run saved, whose length goes with their prompt's difficulty."},
    {"grams", "Write the phrases that right answers plan with, for the method hicra."},
    {"tasks", "Write problems of reasoning-gym as a data set."},
    {"pipeline", "Answer questions by stages of prompts, models and functions, and score the answers."},
    {"budget", "Find samples, model and length of each stage of a pipeline under a budget of FLOPs."},
    {"stability", "Train small models at rising learning rates, and tell which lose their attention."},
    {"merge", "Add what models learnt from a base to the base's weights: task arithmetic."},
    {"import-gguf", "Turn a GGUF file into a folder that transformers opens and a run starts from."},
};

int wrong(const std::string& what, const std::string& command = "") {
  std::fprintf(stderr, "isentrope: %s\nWhat there is:  isentrope %s--help\n", on_a_screen(what).c_str(),
               command.empty() ? "" : (command + " ").c_str());
  return 2;
}

// What is wrong with a word behind --reward; "" where nothing is.
std::string reward_word(const std::string& word) {
  try {
    train::parse_reward_word(word);
    return "";
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

// Parses the words. Returns the exit code where that is all there is to do: 0 after --help, 2 after words that are wrong, which are
// named on standard error with the nearest that there is.
std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands([](CLI::App*) { return true; }))
    commands.push_back(command->get_name());
  const std::string first = argc > 1 ? argv[1] : "";
  if (argc < 2) return wrong("no command was given" + suggestion("", commands, "the commands"));
  if (!first.starts_with("-") && std::find(commands.begin(), commands.end(), first) == commands.end())
    return wrong("there is no command '" + first + "'" + suggestion(first, commands, "the commands"));
  // nan passes the comparisons of a range.
  const CLI::Validator finite(
      [](const std::string& text) {
        double value = 0;
        return CLI::detail::lexical_cast(text, value) && !std::isfinite(value) ? "wanted a finite number, got " + text
                                                                               : std::string();
      },
      "");
  for (CLI::App* command : app.get_subcommands({}))
    for (CLI::Option* option : command->get_options())
      if (option->get_type_name().find("FLOAT") != std::string::npos) option->check(finite);
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      std::ostringstream help;
      app.exit(error, help, help);
      train::print(help.str());
      return 0;
    }
    const CLI::App* command = app.get_subcommands().empty() ? &app : app.get_subcommands().front();
    std::vector<std::string> options;
    for (const CLI::Option* option : command->get_options())
      if (option->get_name().starts_with("-")) options.push_back(option->get_name());
    std::string what = error.what();
    for (const std::string& word : command->remaining())  // what no option took
      if (word.starts_with("-")) {
        const std::string name = word.substr(0, word.find('='));
        what = "there is no option '" + name + "'" + suggestion(name, options, "the options");
      }
    return wrong(what, command == &app ? "" : command->get_name());
  }
}

}  // namespace

int run(int argc, char** argv, const Host& host) {
  using namespace train;
  CLI::App app("Isentrope trains transformers without letting their entropy collapse.", "isentrope");
  app.require_subcommand(1);
  std::string config, checkpoint, folder;
  std::vector<std::string> overrides;
  bool explain = false;
  TrainOptions training;
  training.program = host.program;
  SampleOptions sample;
  EvaluateOptions evaluation;
  ProbeOptions probing;

  auto* train = app.add_subcommand("train", "Train from a configuration.");
  train->add_option("config", training.config, "YAML file.")->required();
  train->add_option("overrides", training.overrides, "key.path=value …");
  train->add_flag("--resume", training.resume, "Go on from the newest complete checkpoint of the run folder.");
  train->add_flag("--quiet", training.quiet, "Print warnings and errors alone.");

  auto* show = app.add_subcommand("config", "Print the resolved configuration and where each value came from.");
  show->add_option("config", config, "YAML file.");
  show->add_option("overrides", overrides, "key.path=value …");
  show->add_flag("--explain", explain, "Print every key with default, range and meaning.");

  auto* plan = app.add_subcommand("plan", "Tell what a run takes of memory and time, and whether it fits.");
  plan->add_option("config", config, "YAML file.")->required();
  plan->add_option("overrides", overrides, "key.path=value …");

  auto* draw = app.add_subcommand("sample", "Complete prompts with a checkpoint.");
  draw->add_option("checkpoint", checkpoint, "Folder of a checkpoint or of a run.")->required();
  draw->add_option("--prompt", sample.prompts, "A prompt; may be given several times.")
      ->allow_extra_args(false);  // one word each, and taken whole: otherwise [a,b] were two of them
  draw->add_option(
      "--prompts", sample.file,
      "File of prompts: .jsonl with {\"prompt\": …} a line, or .txt with one a line; - for standard input.");
  auto* chat = draw->add_flag("--chat", sample.chat,
                              "Prompts are a user's messages, or have \"messages\", in the form of the model's chat "
                              "template; prints answers alone.");
  draw->add_option("--system", sample.system, "The system's message before each prompt; with --chat.")->needs(chat);
  draw->add_flag("--repeat-prompt", sample.repeat_prompt,
                 "Feed each prompt twice, a line break between (JRT-Prompt, arXiv 2407.05483).")
      ->excludes(chat);
  draw->add_flag("--json", sample.json, "Print a JSON object a completion, with log-probability and entropy by token.");
  draw->add_option("--samples", sample.samples, "Completions a prompt.")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  auto* temperature = draw->add_option("--temperature", sample.temperature, "0 for the likeliest tokens.")
                          ->capture_default_str()
                          ->check(CLI::NonNegativeNumber);
  draw->add_option("--probe", sample.probe,
                   "File of isentrope probe: temperature and length as it foretells for each prompt.")
      ->excludes(temperature);
  draw->add_option(
      "--prune", sample.prune,
      "Let later layers read a part of each prompt alone (EntropyPrune): KEY=VALUE,… of layer, keep, matrix, "
      "form, first, as --prune layer=2,keep=0.5; layer=auto is the default.");
  draw->add_option(
          "--prefix", sample.prefix,
          "File .safetensors with embeddings [P, C] that stand before each prompt, as those of an image; --prune "
          "drops of these alone.")
      ->excludes("--probe");
  draw->add_option("--top-k", sample.top_k, "0 for all tokens.")->capture_default_str()->check(CLI::NonNegativeNumber);
  draw->add_option("--top-p", sample.top_p, "1 for all tokens.")->capture_default_str()->check(CLI::Range(0.0, 1.0));
  draw->add_option("--min-p", sample.min_p,
                   "Least probability of a token, as a share of the likeliest one's; 0 for all tokens.")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  draw->add_option("--repetition-penalty", sample.repetition_penalty,
                   "Logits of tokens that are there already are divided by it, or multiplied below 0; 1 for none.")
      ->capture_default_str()
      ->check(CLI::Range(1e-3, 100.0));
  draw->add_option("--stop", sample.stop, "Text that ends a completion; may be given several times.")
      ->allow_extra_args(false);
  draw->add_option("--bad-word", sample.bad_words, "Text that is not drawn; may be given several times.")
      ->allow_extra_args(false);
  draw->add_option("--min-new-tokens", sample.min_new_tokens, "Tokens before which no completion ends.")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  draw->add_option("--max-new-tokens", sample.max_new_tokens, "0 for what the context leaves.")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  draw->add_option("--seed", sample.seed, "Fixes the draws.")->capture_default_str();

  auto* judge =
      app.add_subcommand("evaluate", "Accuracy of a checkpoint on held-out prompts, or its loss on held-out text.");
  judge->add_option("checkpoint", checkpoint, "Folder of a checkpoint or of a run.")->required();
  judge->add_option("config", evaluation.words, "YAML file, or none for the checkpoint's own; then key.path=value …");
  judge->add_option("--split", evaluation.split, "Held-out part.")
      ->capture_default_str()
      ->check(CLI::IsMember({"validation", "test"}));
  judge->add_option("--completions", evaluation.completions, "File that gets every answer, a JSON object a line.");
  bool twice = false;
  judge->add_flag("--repeat-prompt", twice, "Feed each prompt twice, as test.repeat_prompt=true does.");
  std::string pruned;
  judge->add_option("--prune", pruned, "As of isentrope sample; test.prune sets the same.");
  judge
      ->add_option("--policy", evaluation.policies,
                   "Let a policy without a model ask the questions of twenty_questions or diagnosis: conformal, "
                   "information or random, then KEY=VALUE of alpha, temper, …, as --policy conformal,alpha=0.1; may be "
                   "given several times. A YAML file may then stand for the checkpoint.")
      ->allow_extra_args(false);
  judge->add_flag("--json", evaluation.json, "Print one JSON object, every figure in full.");

  auto* probe =
      app.add_subcommand("probe", "Train a probe that tells hard prompts from easy ones before they are answered.");
  probe->add_option("checkpoint", checkpoint, "Folder of a checkpoint or of a run.")->required();
  probe->add_option("config", probing.words, "YAML file, or none for the checkpoint's own; then key.path=value …");
  probe->add_option("-o,--output", probing.output, "File to write, .safetensors.")->required();
  probe->add_option("--prompts", probing.prompts, "Training prompts that are answered.")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  probe->add_option("--samples", probing.samples, "Answers to each.")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  probe->add_option("--accuracy", probing.accuracy, "Least share of right answers to a normal prompt.")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  probe
      ->add_option("--entropy", probing.entropy,
                   "Most entropy of them, nats a token; none for the median of the prompts.")
      ->check(CLI::NonNegativeNumber);
  probe->add_option("--hard", probing.hard, "Share of right answers below which a prompt is hard.")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  probe->add_option("--least", probing.least, "Probability of its class below which a prompt is drawn as normal.")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  probe->add_option("--width", probing.width, "Hidden width of the probe.")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  probe->add_option("--epochs", probing.epochs, "Times that it goes over the prompts.")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  probe->add_option("--seed", probing.seed, "Fixes its weights at the start, and the order.")->capture_default_str();

  CompressOptions compression;
  auto* compress = app.add_subcommand("compress", "Leave out of texts the words that a tagger (objective tag) drops.");
  compress->add_option("checkpoint", checkpoint, "Folder of a checkpoint or of a run.")->required();
  compress
      ->add_option("--data", compression.data,
                   "File of texts: .jsonl with {\"prompt\": …} a line, or .txt with one a line; - for standard input.")
      ->required();
  compress->add_option("--rate", compression.rate, "Share of the words that stays, above 0, at most 1.")
      ->capture_default_str();
  compress
      ->add_option("--force-keep", compression.force_keep,
                   "Word that stays, or marks whose words do; may be given several times.")
      ->allow_extra_args(false);
  compress->add_flag("--force-keep-digits", compression.keep_digits, "Words with a digit stay.");
  compress
      ->add_option("--compute", compression.compute,
                   "Operands of products: float32, or bfloat16, which takes about half the time where the processor "
                   "multiplies it, and may tell words near the threshold otherwise.")
      ->capture_default_str()
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  compress->add_flag("--json", compression.json, "Print an object a text, with the probability of each word.");

  auto* write = app.add_subcommand("export", "Write the model of a checkpoint, an adapter merged, for transformers.");
  write->add_option("checkpoint", checkpoint, "Folder of a checkpoint, of a run, or of an adapter of PEFT.")
      ->required();
  write->add_option("folder", folder, "Folder that is not there yet.")->required();

  for (const auto& [command, rewards] : {std::pair{train, &training.rewards},
                                         {draw, &sample.rewards},
                                         {judge, &evaluation.rewards},
                                         {probe, &probing.rewards}}) {
    command
        ->add_option(
            "--reward", rewards->words,
            "Function in Python, [NAME=]MODULE:FUNCTION or [NAME=]FILE.py:FUNCTION; may be given several times.")
        ->allow_extra_args(false)
        ->check(reward_word);
    rewards->load = host.load;
    rewards->load_environment = host.load_environment;
    rewards->go_on = [&] { command_in_python(host.program, {argv + 1, argv + argc}); };
  }

  for (const auto& [name, what] : kPythonCommands) {
    auto* command = app.add_subcommand(name, what);
    command->prefix_command();  // every argument, --help too, is Python's
    command->set_help_flag();
  }

  app.set_version_flag("--version", "isentrope " ISENTROPE_VERSION, "Print the version of the program.");
  app.add_subcommand("version", "Versions, devices, instruction set, backends in the build.");

  if (const auto code = parse(app, argc, argv)) return *code;

  if (*draw && sample.prompts.empty() && sample.file.empty())
    return wrong("there is no prompt; give --prompt TEXT or --prompts FILE", "sample");

  for (const GivenRewards* rewards : {&training.rewards, &sample.rewards, &evaluation.rewards, &probing.rewards})
    if (!rewards->words.empty() && !rewards->load) rewards->go_on();
  if (*train) return train_command(training);
  if (*show) return config_command(config, overrides, explain);
  if (*plan) return plan_command(config, overrides);
  if (*draw) return sample_command(checkpoint, sample);
  if (twice) evaluation.words.emplace_back("test.repeat_prompt=true");
  if (!pruned.empty()) try {
      evaluation.words.push_back("test.prune=" + to_yaml(parse_prune(pruned)));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("--").append(error.what()));
    }
  if (*judge && !evaluation.policies.empty()) return policy_command(checkpoint, evaluation);
  if (*judge) return evaluate_command(checkpoint, evaluation);
  if (*probe) return probe_command(checkpoint, probing);
  if (*compress) return compress_command(checkpoint, compression);
  if (*write) return export_command(checkpoint, folder);
  const CLI::App* given = app.get_subcommands().front();
  if (given->get_name() == "version") return version_command();
  return python_command(host.program, given->get_name(), given->remaining());
}

}  // namespace isentrope
