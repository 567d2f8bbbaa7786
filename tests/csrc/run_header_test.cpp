// What a run says it is made of, its share of the machine's rate, evaluation lines, and the warnings of a policy that cannot learn.
#include "csrc/train/run_header.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "csrc/durable_file.h"
#include "csrc/train/console.h"
#include "csrc/train/flops.h"
#include "csrc/train/metrics.h"
#include "csrc/train/policy_watch.h"
#include "csrc/train/trainer.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kConfig = R"(
run: {checkpoint_every: 2, device: cpu}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 24, max_position_embeddings: 16}
tokenizer: {characters: "ab=."}
test: {skip: true}
phases:
  - name: sft
    objective: {kind: sft}
    data: {jsonl: {path: DIR/data.jsonl, validation_fraction: 0, test_fraction: 0}}
    batch: {sequences: 4}
    steps: 6
)";

class RunHeaderTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/isentrope_header_XXXXXX";
    dir_ = ::mkdtemp(path);
    std::ofstream data(dir_ + "/data.jsonl");
    for (const char* prompt : {"a=", "b=", "ab=", "ba=", "aab=", "bba=", "abab=", "baba="})
      data << "{\"prompt\": \"" << prompt << "\", \"completion\": \"ab.\"}\n";
    std::string text = kConfig;
    text.replace(text.find("DIR"), 3, dir_);
    std::ofstream(dir_ + "/config.yaml") << text;
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::unique_ptr<Trainer> open(bool resume = false, std::vector<std::string> overrides = {}) const {
    overrides.push_back("run.dir=" + dir_ + "/run");
    return std::make_unique<Trainer>(read_config(dir_ + "/config.yaml", overrides), resume);
  }
  // Numbers (from 0) of the lines that are headers; step: of all lines.
  std::vector<int> headers(int* lines = nullptr) const {
    std::istringstream text(read_whole(dir_ + "/run/metrics.jsonl"));
    std::vector<int> found;
    int number = 0;
    for (std::string line; std::getline(text, line); ++number)
      if (is_header(line)) found.push_back(number);
    if (lines) *lines = number;
    return found;
  }
  std::string dir_;
};

TEST_F(RunHeaderTest, SaysWhatTheRunIsMadeOf) {
  const auto trainer = open();
  const RunHeader& header = trainer->header();
  // Embedding and head 5·16 each, q and o 16·16, k and v 8·16, MLP 3·16·24, three norms of 16.
  EXPECT_EQ(header.parameters, 2 * 5 * 16 + 2 * 256 + 2 * 128 + 3 * 384 + 3 * 16);
  EXPECT_EQ(header.trained, header.parameters);
  EXPECT_EQ(header.device, "cpu");
  EXPECT_GT(header.product_rate, 1e6);
  EXPECT_GT(header.memory_needed.total(), 4.0 * 4 * static_cast<double>(header.parameters - 48));
  EXPECT_GT(header.memory.value(), header.memory_needed.total());
  ASSERT_EQ(header.phases.size(), 1u);
  const PhaseHeader& phase = header.phases[0];
  EXPECT_EQ(phase.train, 8);
  EXPECT_FALSE(phase.validation || phase.test);
  EXPECT_EQ(phase.epochs, 6 * 4 / 8.0);
  EXPECT_EQ(phase.epoch_tokens, 2 * (2 + 3 + 4 + 5) + 8 * 3);
  EXPECT_EQ(phase.example[static_cast<size_t>(phase.prompt) - 1], "=");
  EXPECT_EQ(phase.example.size(), static_cast<size_t>(phase.prompt) + 3);

  const std::string text = to_text(header);
  EXPECT_NE(text.find("weights, all trained, float32\n"), std::string::npos) << text;
  EXPECT_NE(text.find("sft      6 steps of 4 examples; training 8 examples (52 tokens an epoch), 3 epochs; at least "),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("= → a·b·."), std::string::npos) << text;
  const json line = json::parse(to_json(header))["run"];
  EXPECT_EQ(line["parameters"], header.parameters);
  EXPECT_EQ(line["phases"][0]["epochs"], 3.0);
  EXPECT_FALSE(line.contains("dir"));  // a moved folder is the same run
}

TEST_F(RunHeaderTest, StandsFirstAndOnce) {
  auto trainer = open();
  EXPECT_EQ(fs::file_size(dir_ + "/run/metrics.jsonl"), 0u);  // no step, no run
  for (int i = 0; i < 3; ++i) trainer->advance();
  trainer.reset();  // killed after step 3; the checkpoint is of step 2
  EXPECT_EQ(headers(), std::vector<int>{0});
  trainer = open(true);
  trainer->advance();
  int lines = 0;
  EXPECT_EQ(headers(&lines), std::vector<int>{0});
  EXPECT_EQ(lines, 4);
  trainer.reset();

  // What it says has changed: another line, in its place before step 3, and no third one the next time.
  for (int i = 0; i < 2; ++i) {
    trainer = open(true, {"phases.sft.steps=8"});
    trainer->advance();
    trainer.reset();
    EXPECT_EQ(headers(&lines), (std::vector<int>{0, 3})) << i;
    EXPECT_EQ(lines, 5);
  }
  trainer = open(true, {"phases.sft.steps=8"});
  while (!trainer->finished()) trainer->advance();
  EXPECT_EQ(headers(&lines), (std::vector<int>{0, 3}));
  EXPECT_EQ(lines, 10);
}

TEST_F(RunHeaderTest, GoesWithTheLineThatWasNotWritten) {
  Metrics metrics(dir_ + "/m.jsonl");
  metrics.write_before_next("{\"run\": {}}");
  const Metrics::Place before = metrics.place();
  metrics.write("{\"step\": 1}");
  const int64_t digest = metrics.place().digest.value();
  metrics.back_to(before);
  EXPECT_EQ(read_whole(dir_ + "/m.jsonl"), "");
  metrics.write("{\"step\": 1}");
  metrics.write("{\"step\": 2}");
  EXPECT_EQ(read_whole(dir_ + "/m.jsonl"), "{\"run\": {}}\n{\"step\": 1}\n{\"step\": 2}\n");
  LineDigest alone;
  alone.add("{\"step\": 1}");
  EXPECT_EQ(digest, alone.value());  // a header is not in it: threads and machine may change
}

TEST_F(RunHeaderTest, ShareOfTheMachinesRate) {
  EXPECT_EQ(attention_pairs(4, 0), 10);
  EXPECT_EQ(attention_pairs(4, 2), 1 + 2 + 2 + 2);
  EXPECT_EQ(attention_pairs(2, 5), 3);
  model::DecoderConfig m;
  m.num_hidden_layers = 2, m.hidden_size = 16, m.num_attention_heads = 2, m.num_key_value_heads = 1,
  m.intermediate_size = 24, m.vocabulary = 5;
  const double N = 2 * (2 * 256 + 2 * 128 + 3 * 384), head = 5 * 16;
  EXPECT_EQ(model_flops(m, {.tokens = 10, .learnt = 4, .mixing = 4 * 16 * 7}), 6 * (10 * N + 4 * head) + 12 * 16 * 7);
  EXPECT_EQ(model_flops(m, {.tokens = 10, .learnt = 4, .mixing = 4 * 16 * 7, .generated = 3}),
            6 * (10 * N + 4 * head) + 12 * 16 * 7 + 2 * 3 * (N + head));
  EXPECT_EQ(model_flops(m, {.tokens = 10, .learnt = 4, .mixing = 4 * 16 * 7, .reference = true}),
            8 * (10 * N + 4 * head) + 16 * 16 * 7);
  const auto trainer = open();
  const Record step = trainer->advance().front();
  EXPECT_GT(step.values.at("mfu"), 0);
  EXPECT_LT(step.values.at("mfu"), 1);
}

TEST_F(RunHeaderTest, EvaluationsAreLines) {
  std::FILE* out = std::fopen((dir_ + "/out").c_str(), "w");
  {
    FileScreen screen(out);
    Console console(screen, false, 1e9);
    console.begin_phase("grpo", 120);
    console.step({"grpo",
                  20,
                  {{"eval/greedy", 0.8594}, {"eval/pass@1", 0.25}, {"eval/pass@8", 0.5}, {"time_s", 3}},
                  "validation"});
    console.step({"grpo", 120, {{"eval/bits_per_byte", 2.125}, {"time_s", 3}}, "test"});
  }
  std::fclose(out);
  EXPECT_EQ(read_whole(dir_ + "/out"),
            "grpo  20/120  validation  greedy 0.8594  pass@8 0.5\ngrpo 120/120  test  bits_per_byte 2.125\n");
}

// All lines of a step, and of an evaluation after each, on the console too (a run shows one in ten seconds), against the step of a model as small as the
// quickstart's: a promise of at most a hundredth.
TEST_F(RunHeaderTest, LinesAreAHundredthOfAStep) {
  const auto trainer =
      open(false, {"model.num_hidden_layers=3", "model.hidden_size=64", "model.num_attention_heads=4",
                   "model.num_key_value_heads=4", "model.intermediate_size=192", "model.max_position_embeddings=64",
                   "phases.sft.batch.sequences=64", "phases.sft.steps=41"});
  using Clock = std::chrono::steady_clock;
  const auto since = [](Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); };
  std::FILE* out = std::fopen((dir_ + "/out").c_str(), "w");
  std::vector<double> steps, lines;
  const Record evaluation{
      "sft", 40, {{"eval/greedy", 0.8594}, {"eval/pass@1", 0.25}, {"eval/pass@8", 0.5}, {"time_s", 3}}, "validation"};
  {
    Metrics metrics(dir_ + "/again.jsonl");
    FileScreen screen(out);
    Console console(screen, false, 0.0);
    console.begin_phase("sft", 41);
    for (int i = 0; i < 40; ++i) {
      Clock::time_point start = Clock::now();
      const std::vector<Record> records = trainer->advance();
      steps.push_back(since(start));
      start = Clock::now();
      for (const Record& record : records) metrics.write(record), console.step(record);
      metrics.write(evaluation), console.step(evaluation);
      lines.push_back(since(start));
    }
  }
  std::fclose(out);
  std::sort(steps.begin(), steps.end());
  std::sort(lines.begin(), lines.end());
  std::printf("a step %.3f ms, its lines and an evaluation's %.4f ms: %.2f %%\n", 1e3 * steps[20], 1e3 * lines[20],
              100 * lines[20] / steps[20]);
  EXPECT_LE(lines[20], 0.01 * steps[20]);
}

// ---- a policy that cannot learn ---------------------------------------------------------------------------------------

std::map<std::string, double> figures(double flat, double mean, double deviation) {
  return {{"groups/flat", flat}, {"reward/mean", mean}, {"reward/std", deviation}};
}

std::vector<std::string> after(PolicyWatch& watch, int64_t steps, const std::map<std::string, double>& values) {
  std::vector<std::string> told;
  for (int64_t i = 0; i < steps; ++i)
    for (const std::string& text : watch.look("rl", values)) told.push_back(text);
  return told;
}

TEST(PolicyWatch, TellsWhyNothingIsLearntOnce) {
  constexpr int64_t n = PolicyWatch::kSteps;
  const struct {
    std::map<std::string, double> values;
    const char *begins, *key;
  } cases[] = {{figures(1, 0, 0), "the policy never answers right: ", "phases.rl.data: give easier prompts"},
               {figures(1, 1, 0), "the policy always answers right: ", "phases.rl.data: give harder prompts"},
               {figures(1, 0.25, 0), "every reward of the last 10 steps was 0.25", "phases.rl.reward"},
               {figures(1, 0.25, 0.4), "the completions of every prompt had equal rewards", "rollout.temperature"}};
  for (const auto& one : cases) {
    PolicyWatch watch;
    EXPECT_TRUE(after(watch, n - 1, one.values).empty()) << one.begins;
    const auto told = after(watch, 3 * n, one.values);
    ASSERT_EQ(told.size(), 1u) << one.begins;
    EXPECT_TRUE(told[0].starts_with(one.begins)) << told[0];
    EXPECT_NE(told[0].find(one.key), std::string::npos) << told[0];
  }
  PolicyWatch watch;  // one step that teaches begins the count anew
  EXPECT_TRUE(after(watch, n - 1, figures(1, 0, 0)).empty());
  EXPECT_TRUE(after(watch, 1, figures(0.9, 0.1, 0.3)).empty());
  EXPECT_TRUE(after(watch, n - 1, figures(1, 0, 0)).empty());
  EXPECT_TRUE(after(watch, 5 * n, {{"loss", 1}}).empty());  // no policy
}

TEST(PolicyWatch, TellsOnceOfAPolicyThatIsNotTheOneTrained) {
  PolicyWatch watch;
  EXPECT_TRUE(after(watch, 3, {{"mismatch/k3", 0.009}}).empty());
  const auto told = after(watch, 3, {{"mismatch/k3", 0.02}});
  ASSERT_EQ(told.size(), 1u);
  EXPECT_TRUE(told[0].starts_with("the policy that draws is not the one that is trained: ")) << told[0];
  EXPECT_NE(told[0].find("0.02 nats"), std::string::npos) << told[0];
  PolicyWatch resumed;
  resumed.restore(watch.state());
  EXPECT_TRUE(after(resumed, 3, {{"mismatch/k3", 0.02}}).empty());
}

TEST(PolicyWatch, TellsOnceOfATextThatNeverComes) {
  constexpr int64_t n = PolicyWatch::kSteps;
  const struct {
    const char* metric;
    double none, some;
    const char* key;
  } cases[] = {{"pear/tagged", 0, 0.1, "phases.rl.reward, pear: tag"},
               {"empg/steps", 1, 1.5, "phases.rl.advantage, empg: marker"},
               {"hicra/planning", 0, 0.01, "phases.rl.advantage, hicra: grams"}};
  for (const auto& one : cases) {
    PolicyWatch watch;
    EXPECT_TRUE(after(watch, n - 1, {{one.metric, one.none}}).empty()) << one.metric;
    EXPECT_TRUE(after(watch, 1, {{one.metric, one.some}}).empty()) << one.metric;
    EXPECT_TRUE(after(watch, 6, {{one.metric, one.none}}).empty()) << one.metric;
    PolicyWatch resumed;  // which has counted on
    resumed.restore(watch.state());
    EXPECT_TRUE(after(resumed, n - 7, {{one.metric, one.none}}).empty()) << one.metric;
    const auto told = after(resumed, 3 * n, {{one.metric, one.none}});
    ASSERT_EQ(told.size(), 1u) << one.metric;
    EXPECT_NE(told[0].find(one.key), std::string::npos) << told[0];
    EXPECT_NE(told[0].find(one.metric), std::string::npos) << told[0];
    PolicyWatch again;
    again.restore(resumed.state());
    EXPECT_TRUE(after(again, 3 * n, {{one.metric, one.none}}).empty()) << one.metric;
  }
}

TEST(PolicyWatch, GoesOnWhereItWas) {
  PolicyWatch watch, resumed;
  after(watch, 6, figures(1, 0, 0));
  resumed.restore(watch.state());
  EXPECT_TRUE(after(resumed, 3, figures(1, 0, 0)).empty());
  EXPECT_EQ(after(resumed, 1, figures(1, 0, 0)).size(), 1u);
  PolicyWatch again;
  again.restore(resumed.state());
  EXPECT_TRUE(after(again, 20, figures(1, 0, 0)).empty());  // told once
  EXPECT_TRUE(PolicyWatch().state().empty());
  EXPECT_THROW(again.restore({1, 2}), std::runtime_error);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
