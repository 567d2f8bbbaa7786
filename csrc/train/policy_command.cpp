// isentrope evaluate … --policy: policies that ask questions by a table, in the environments twenty_questions and diagnosis.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "csrc/data/source.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"
#include "csrc/rl/question_policy.h"
#include "csrc/train/commands.h"
#include "csrc/train/config.h"
#include "csrc/train/interval.h"
#include "csrc/train/key_words.h"
#include "csrc/train/process.h"
#include "csrc/train/run_checkpoints.h"

namespace isentrope::train {
namespace {

using Json = nlohmann::ordered_json;

rl::QuestionPolicy parse_policy(const std::string& text) {
  const bool bare = text.substr(0, text.find(',')).find('=') == std::string::npos;
  return parse_keys<rl::QuestionPolicy>("policy", (bare ? "kind=" : "") + text, "conformal,alpha=0.1");
}

data::QuestionTable table_of(const rl::EnvironmentConfig& environment, const data::Example& example) {
  if (const auto* questions = environment.get<rl::TwentyQuestions>())
    return rl::questions_table(example.columns, questions->noise);
  return data::diagnosis_table(example.columns);
}

// Conversations of examples, with seeds of the purpose and their number.
class Tasks {
 public:
  Tasks(const rl::EnvironmentConfig& config, uint64_t seed, data::Purpose purpose)
      : config_(config),
        environment_(std::visit([](const auto& kind) { return kind.make(); }, config.value)),
        seed_(seed),
        purpose_(purpose) {}
  rl::QuestionTask open(const data::Example& example, size_t number) const {
    rl::QuestionTask task{.table = table_of(config_, example)};
    task.hidden = task.table.find(example.answer);
    data::Stream stream(seed_, purpose_, number, /*b=*/25);
    const uint64_t high = stream.bits();
    task.episode = environment_->reset(example, high << 32 | stream.bits(), nullptr);
    return task;
  }

 private:
  const rl::EnvironmentConfig& config_;
  std::shared_ptr<const rl::Environment> environment_;
  uint64_t seed_;
  data::Purpose purpose_;
};

// Sums over conversations behind t questions, and where the rule stops.
struct PolicyFigures {
  std::vector<double> right, covered, size, entropy;  // [T + 1]
  double questions = 0, stopped_right = 0, stopped_covered = 0, gained = 0;
  std::vector<double> thresholds = {};  // [T + 1]
  double power = 1;
  double conversations = 0;

  explicit PolicyFigures(size_t lengths) : right(lengths), covered(lengths), size(lengths), entropy(lengths) {}
  void add(const rl::QuestionRecord& record, const rl::EnvironmentScores& scores) {
    for (size_t t = 0; t < right.size(); ++t) {
      right[t] += record.right[t];
      covered[t] += record.covered[t];
      size[t] += record.size[t];
      entropy[t] += record.entropy[t];
    }
    questions += static_cast<double>(record.stopped);
    stopped_right += scores.at("answer");
    stopped_covered += record.covered[record.stopped];
    gained += scores.at("information_gain");
    ++conversations;
  }
  void average() {
    for (std::vector<double>* sums : {&right, &covered, &size, &entropy})
      for (double& x : *sums) x /= conversations;
    for (double* sum : {&questions, &stopped_right, &stopped_covered, &gained}) *sum /= conversations;
  }
  Json json(const std::string& policy) const {
    Json thresholds_json = Json::array();  // null: no object is left out
    for (const double q : thresholds) thresholds_json.push_back(std::isinf(q) ? Json(nullptr) : Json(q));
    return {{"policy", policy},
            {"power", power},
            {"right", right},
            {"covered", covered},
            {"set_size", size},
            {"entropy", entropy},
            {"threshold", thresholds_json},
            {"stopped",
             {{"questions", questions},
              {"right", stopped_right},
              {"covered", stopped_covered},
              {"information_gain", gained}}}};
  }
  std::string text(const std::string& policy) const {
    char line[200];
    std::string all =
        "\n" + policy + "\n  questions    right  95 % interval  covered  objects in the set  entropy, nats\n";
    const auto add_line = [&](const std::string& head, double share, double cover, const std::string& rest) {
      const Interval interval = wilson(share, conversations);
      std::snprintf(line, sizeof(line), "  %-9s  %7.4f  %.4f–%.4f  %7.4f  %s\n", head.c_str(), share, interval.low,
                    interval.high, cover, rest.c_str());
      all += line;
    };
    for (size_t t = 0; t < right.size(); ++t) {
      char rest[80];
      std::snprintf(rest, sizeof(rest), "%18.3f  %13.4f", size[t], entropy[t]);
      add_line(std::to_string(t), right[t], covered[t], rest);
    }
    char rest[120];
    std::snprintf(rest, sizeof(rest), "  stopped behind %.3f questions, information gained %.4f", questions, gained);
    add_line("stopped", stopped_right, stopped_covered, rest);
    return all;
  }
};

// What is said up to where the policy stops, each turn as a line of JSON for data.jsonl; the environment's scores then.
rl::EnvironmentScores speak(rl::QuestionTask& task, const rl::QuestionRecord& record, const data::Example& example,
                            std::string* lines) {
  std::string before = example.prompt;
  const auto say = [&](const std::string& turn) {
    if (lines) *lines += Json{{"prompt", before}, {"completion", turn}, {"answer", example.answer}}.dump() + "\n";
    before += turn + task.episode->step(turn).text;
  };
  for (size_t t = 0; t < record.stopped; ++t) say("?" + std::to_string(record.asked[t]) + "\n");
  say("!" + task.table.names[record.named[record.stopped]]);
  return task.episode->scores;
}

}  // namespace

int policy_command(const std::string& path, const EvaluateOptions& options) {
  const TrainConfig config = std::filesystem::is_directory(path) ? config_of(resolve_checkpoint(path), options.words)
                                                                 : read_config(path, options.words);
  const PhaseConfig& phase = config.phases.back();
  std::vector<rl::QuestionPolicy> policies;
  for (const std::string& word : options.policies) try {
      policies.push_back(parse_policy(word));
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("--").append(error.what()));
    }
  const bool asks = phase.environment && (phase.environment->get<rl::TwentyQuestions>() != nullptr ||
                                          phase.environment->get<rl::Diagnosis>() != nullptr);
  if (!asks || !phase.data.episodes || phase.data.episodes->kind() != phase.environment->kind())
    throw std::runtime_error("--policy: phase " + phase.name + " has " +
                             (phase.environment ? "the environment " + phase.environment->kind() : "no environment") +
                             "; wanted environment twenty_questions or diagnosis, with data.episodes of the same kind");
  const auto split = options.split == "test" ? data::Split::test : data::Split::validation;
  const auto held_out = data::make_source(phase.data, /*seed=*/0, split);
  const auto training = data::make_source(phase.data, config.run.seed, data::Split::train);
  const std::vector<data::Example> examples = held_out->take(0, std::min(config.test.prompts, held_out->size()));
  if (std::ssize(examples) < config.test.prompts)
    std::fprintf(stderr,
                 "isentrope: warning: test.prompts: %lld are asked for, and there are %zu (data.episodes.held_out)\n",
                 static_cast<long long>(config.test.prompts), examples.size());
  const Tasks judged(*phase.environment, config.run.seed, data::Purpose::evaluation);
  const Tasks calibrating(*phase.environment, config.run.seed, data::Purpose::example);
  const auto in_table = std::ssize(judged.open(examples.front(), 0).table.questions);
  const int64_t room = std::min(in_table, rl::limits_of(*phase.environment).turns - 1);

  std::optional<DurableFile> out;
  if (!options.completions.empty()) out.emplace(options.completions, 0);
  Json found_json = Json::array();
  std::string text = phase.name + " " + options.split + ": " + std::to_string(examples.size()) + " conversations of " +
                     phase.environment->kind() + "\n";
  for (size_t p = 0; p < policies.size(); ++p) {
    const rl::QuestionPolicy& policy = policies[p];
    if (policy.questions > room)
      throw std::runtime_error("--policy: questions is " + std::to_string(policy.questions) +
                               "; the table and environment.turns leave " + std::to_string(room));
    const int64_t questions = policy.questions > 0 ? policy.questions : room;
    const std::vector<data::Example> drawn = training->take(0, policy.calibration);
    std::vector<rl::QuestionTask> calibration;
    for (size_t i = 0; i < drawn.size(); ++i) calibration.push_back(calibrating.open(drawn[i], i));
    const rl::QuestionPlayer player(policy, std::move(calibration), questions, config.run.seed);
    PolicyFigures found(static_cast<size_t>(questions) + 1);
    found.thresholds = player.thresholds();
    found.power = player.power();
    std::string lines;
    for (size_t i = 0; i < examples.size(); ++i) {
      rl::QuestionTask whole = judged.open(examples[i], i), again = judged.open(examples[i], i);
      const rl::QuestionRecord record = player.play(whole, i);
      found.add(record, speak(again, record, examples[i], out && p + 1 == policies.size() ? &lines : nullptr));
    }
    found.average();
    if (out) out->write(lines.data(), std::ssize(lines));
    found_json.push_back(found.json(options.policies[p]));
    text += found.text(options.policies[p]);
  }
  if (out) out->commit();
  const Json object{{"phase", phase.name},
                    {"split", options.split},
                    {"environment", phase.environment->kind()},
                    {"conversations", examples.size()},
                    {"policies", found_json}};
  print(options.json ? object.dump() + "\n" : text);
  return 0;
}

}  // namespace isentrope::train
