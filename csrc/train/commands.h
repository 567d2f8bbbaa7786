// The commands of the tool `isentrope`. Each returns the exit code of the process, prints with print() of csrc/train/process.h alone,
// and throws what went wrong.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "csrc/train/given_rewards.h"

namespace isentrope::train {

struct TrainConfig;

struct TrainOptions {
  std::string program = "isentrope";  // as it was called, for the commands that a run prints
  std::string config;
  std::vector<std::string> overrides;
  bool resume = false, quiet = false;
  GivenRewards rewards;
};
// Trains to the end, or until a signal asks it to stop (csrc/train/process.h): then the step is finished, a checkpoint written, and
// 128 + the signal's number returned; or until its time is up (csrc/train/time_limit.h), and kTryAgain returned.
int train_command(const TrainOptions& options);

// Prints the resolved configuration with the origin of each value; explain: every key there is instead.
int config_command(const std::string& config, const std::vector<std::string>& overrides, bool explain);

// Looks at configuration, machine and data as a run does before it begins, and prints what each phase takes of memory and time. Throws
// what a run would be refused for.
int plan_command(const std::string& config, const std::vector<std::string>& overrides);

struct SampleOptions {
  std::vector<std::string> prompts;
  std::string file;            // of further prompts, data::read_prompts(); "" for none
  bool json = false;           // csrc/train/completions.h instead of text
  bool chat = false;           // prompts are what a user says, or messages, and the model's chat template renders them
  bool repeat_prompt = false;  // each is fed twice, a line break between; not with chat
  std::string system = "";     // what stands before them as the system's message; "" for none
  int64_t samples = 1;
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0;
  double repetition_penalty = 1.0;
  int64_t max_new_tokens = 0, min_new_tokens = 0;
  std::vector<std::string> stop, bad_words;
  std::string probe;   // file of csrc/train/probe.h, which says temperature and length by prompt; "" for none
  std::string prune;   // words of csrc/train/prune_words.h; "" for none
  std::string prefix;  // file of embeddings that stand before every prompt; "" for none
  uint64_t seed = 1;
  GivenRewards rewards;  // each tells its score of every completion
};
// checkpoint, here and below: a checkpoint's folder, or a run's folder for its newest. Completions go to standard output by the order
// of their prompts; all prompts are looked at before the first is completed.
int sample_command(const std::string& checkpoint, const SampleOptions& options);

struct EvaluateOptions {
  std::vector<std::string>
      words;  // the configuration, or none for the one that the checkpoint was trained with; then overrides
  std::string split = "test";  // or validation
  std::string
      completions;  // file that gets every answer, csrc/train/completions.h with decoding (greedy or sampled), score and
                    // right; "" for none
  bool json = false;                       // one object in full digits instead of a table with intervals
  std::vector<std::string> policies = {};  // words of --policy, in the place of a model; none: the checkpoint's
  GivenRewards rewards;
};
// Evaluates a checkpoint on held-out data of the configuration's last phase.
int evaluate_command(const std::string& checkpoint, const EvaluateOptions& options);
// Evaluates policies that ask questions by the table of a task (csrc/rl/question_policy.h) in the last phase's environment. path: a
// configuration, or a checkpoint or run for its own; of words its overrides. completions: gets the turns of the last policy, up to where
// it stops, as data.jsonl reads them.
int policy_command(const std::string& path, const EvaluateOptions& options);

struct ProbeOptions {
  std::vector<std::string> words;  // as those of EvaluateOptions
  std::string output;
  int64_t prompts = 300, samples = 10;
  double accuracy = 0.5, hard = 0.25;
  std::optional<double> entropy = {};
  int64_t width = 256, epochs = 100;
  double least = 0.5;
  uint64_t seed = 1;
  GivenRewards rewards;
};
// Trains a probe (csrc/train/probe.h) of answers that are sampled to training prompts of the configuration's last phase.
int probe_command(const std::string& checkpoint, const ProbeOptions& options);

struct CompressOptions {
  std::string data;   // file of data::read_prompts()
  double rate = 0.5;  // of words that stay
  std::vector<std::string>
      force_keep;  // words that stay whatever the model says, by data::compared_word; marks: words that hold them
  bool keep_digits = false;         // words with a digit stay
  std::string compute = "float32";  // of the operands of products, as model.compute
  bool json = false;
};
// Prints each text of a file without the words that the labels of an encoder's tokens would have go first.
int compress_command(const std::string& checkpoint, const CompressOptions& options);

// The configuration that words name, or a checkpoint's own, with the overrides behind it.
TrainConfig config_of(const std::string& checkpoint, const std::vector<std::string>& words);

// Writes the model of a checkpoint, an adapter merged, as a folder of its own (csrc/train/checkpoint.h, save_model).
int export_command(const std::string& checkpoint, const std::string& folder);

// Hands over to `python -m isentrope.NAME`, which finds in ISENTROPE_PROGRAM how this program was called.
int python_command(const std::string& program, const std::string& name, const std::vector<std::string>& arguments);

// Hands over to `python -m isentrope`, which runs this command line with functions in Python.
[[noreturn]] void command_in_python(const std::string& program, const std::vector<std::string>& arguments);

int version_command();

}  // namespace isentrope::train
