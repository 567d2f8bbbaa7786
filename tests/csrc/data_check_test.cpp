// What is asked of machine, rewards and data before a run begins, and runs without evaluations.
#include "csrc/train/data_check.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "csrc/message.h"
#include "csrc/train/trainer.h"
#include "tests/csrc/message.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;

const char* const kConfig = R"yaml(run: {threads: 1}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 32, max_position_embeddings: 24}
tokenizer: {characters: "0123456789+-=:."}
phases:
  - name: sft
    objective: {kind: sft}
    data: {jsonl: {path: sft.jsonl, validation_fraction: 0, test_fraction: 0}}
    batch: {sequences: 2}
    steps: 2
  - name: grpo
    objective: {kind: grpo}
    data: {jsonl: {path: grpo.jsonl, validation_path: validation.jsonl, test_path: test.jsonl}}
    rollout: {prompts: 2, num_generations: 2, max_new_tokens: 4}
    reward: [{kind: answer, pattern: "([0-9]+)"}]
    evaluation: {every: 1, prompts: 2, sampled_prompts: 2, num_generations: 2}
    steps: 1
test: {prompts: 2, sampled_prompts: 2, num_generations: 2}
)yaml";
const std::string kExample = R"({"prompt": "61+4=", "completion": "65.", "answer": "65"})";
const std::string kLong = R"({"prompt": "1234567890+1234567890123=", "completion": "65.", "answer": "65"})";

class DataCheck : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = fs::temp_directory_path() / ("isentrope_data_check_" + std::to_string(::getpid()) + "_" + info->name());
    fs::create_directories(dir_);
    before_ = fs::current_path();
    fs::current_path(dir_);
    write("run.yaml", kConfig);
    for (const char* name : {"sft.jsonl", "grpo.jsonl", "validation.jsonl", "test.jsonl"})
      write(name, kExample + "\n" + R"({"prompt": "9+9=", "completion": "18", "answer": 18})" + "\n");
  }
  void TearDown() override {
    fs::current_path(before_);
    fs::remove_all(dir_);
  }
  void write(const std::string& name, const std::string& text) const { std::ofstream(dir_ / name) << text; }

  DataReport checked(const std::vector<std::string>& overrides = {}) const {
    const TrainConfig config = read_config("run.yaml", overrides);
    return check_data(config, data::Tokenizer(config.tokenizer), {});
  }
  std::vector<std::string> check(const std::vector<std::string>& overrides = {}) const {
    return checked(overrides).notes;
  }
  std::string error(const std::vector<std::string>& overrides = {}) const {
    return message([&] { check(overrides); });
  }

  fs::path dir_, before_;
};

void expect_readable(const std::string& message) {
  for (const char* raw : {"std::", "bad_alloc", "map::at", "vector::", "basic_string", "c10", "Exception raised from",
                          "filesystem error", "json.exception"})
    EXPECT_EQ(message.find(raw), std::string::npos) << message.substr(0, 2000);
  EXPECT_LT(message.size(), 2000u) << message.substr(0, 300);
  EXPECT_EQ(utf8_end(message), message.size()) << message;
}

TEST_F(DataCheck, GoodDataPass) { EXPECT_EQ(check(), std::vector<std::string>{}); }

TEST_F(DataCheck, EveryFileOfEveryPhaseIsLookedAtWithItsLine) {
  struct Case {
    std::string line;
    const char* said;
  };
  const std::vector<Case> everywhere{
      {R"({"prompt": "7×8=", "completion": "56.", "answer": "56"})", "character '×' (U+00D7) at place 2"},
      {R"({"prompt": "1=", "completion": "5.", "answer": "5", "prompt": "2="})", "the key \"prompt\" is written twice"},
      {R"({"prompt": "", "completion": "5.", "answer": "5"})", "\"prompt\" is empty"},
      {"{\"prompt\": \"\xff\"}", "not JSON"},
      {"{\"prompt\": \"" + std::string(3000000, 'x') + "\", \"completion\": \"5\", \"answer\": \"5\"}",
       "character 'x'"},
      {"{\"prompt\": \"" + std::string(3000000, '1') + "\", \"completion\": \"5\", \"answer\": \"5\"}", "3000000"},
      {kLong, "25"}};
  for (const char* file : {"sft.jsonl", "grpo.jsonl", "validation.jsonl", "test.jsonl"}) {
    std::vector<Case> cases = everywhere;
    if (std::string(file) == "sft.jsonl") {
      cases.push_back({R"({"prompt": "1=", "answer": "5"})", "the completion is empty, and it is what is learnt"});
      cases.push_back({R"({"prompt": "1=", "completion": "8.5."})", "the completion \"8.5.\" goes on behind \".\""});
      cases.push_back(
          {R"({"prompt": "123456789012345678901=", "completion": "12."})", "have 25 tokens (22 of prompt)"});
    } else {
      cases.push_back({R"({"prompt": "1=", "completion": "8."})", "the answer is missing"});
      cases.push_back({R"({"prompt": "1=", "answer": "8:5"})", "the answer \"8:5\" is no integer"});
      cases.push_back({R"({"prompt": "1=", "answer": "8.5"})", "the answer \"8.5\" goes on behind \".\""});
    }
    for (const Case& wrong : cases) {
      write(file, kExample + "\n\n" + wrong.line + "\n");
      const std::string said = error();
      EXPECT_NE(said.find(std::string(file) + ":3: "), std::string::npos) << file << ": " << said.substr(0, 500);
      EXPECT_NE(said.find(wrong.said), std::string::npos) << file << ": " << said.substr(0, 500);
      expect_readable(said);
    }
    write(file, kExample + "\n");
  }
  fs::remove("test.jsonl");
  EXPECT_NE(error().find("phase grpo: jsonl: test.jsonl is not a file"), std::string::npos) << error();
}

TEST_F(DataCheck, RewardsOfLaterPhasesAreLookedAt) {
  const std::string said = error({"phases.grpo.reward=[{kind: mine}]"});
  EXPECT_NE(said.find("phase grpo: reward: no kind \"mine\""), std::string::npos) << said;
  EXPECT_NE(error({"phases.grpo.rollout.cache_tokens=48"}).find("no error"), std::string::npos);
  write("grpo.jsonl",
        kExample + "\n" + R"({"prompt": "12345678901234567=", "completion": "65.", "answer": "65"})" + "\n");
  EXPECT_NE(
      error({"phases.grpo.rollout.cache_tokens=48"}).find("cannot hold a sequence of 22 tokens; wanted at least 64"),
      std::string::npos);
}

TEST_F(DataCheck, WhatIsTooLongIsLeftOutEverywhereAndTold) {
  std::vector<std::string> drop;
  for (const char* phase : {"sft", "grpo"}) drop.push_back(std::string("phases.") + phase + ".data.truncation=drop");
  for (const char* file : {"sft.jsonl", "grpo.jsonl", "validation.jsonl", "test.jsonl"})
    write(file, kExample + "\n" + kLong + "\n");
  const std::vector<std::string> notes = check(drop);
  ASSERT_EQ(notes.size(), 4u);
  EXPECT_EQ(notes[0],
            "phase sft: 1 of 2 training examples are too long for model.max_position_embeddings (24) and are left out "
            "(data.truncation: drop)");
  EXPECT_EQ(notes[3],
            "phase grpo: 1 of 2 test prompts are too long for model.max_position_embeddings (24) and are left out "
            "(data.truncation: drop)");
  Trainer trainer(read_config("run.yaml", drop), false);  // batches of one would be all too long half of the time
  while (!trainer.finished()) trainer.advance();
  EXPECT_EQ(trainer.results().size(), 2u);
  write("grpo.jsonl", kLong + "\n");
  const std::string said = error(drop);
  EXPECT_NE(said.find("jsonl: all 1 training examples of grpo.jsonl are too long"), std::string::npos) << said;
}

TEST_F(DataCheck, SplitsAndTheirSizesAreKnown) {
  write("grpo.jsonl", kExample + "\n" + kLong + "\n" + kExample + "\n");
  const DataReport found = checked({"phases.grpo.data.truncation=drop"});
  ASSERT_EQ(found.phases.size(), 2u);
  EXPECT_EQ(found.phases[0].phase, "sft");
  ASSERT_EQ(found.phases[0].splits.size(), 1u) << "no evaluation, and test data are those of the last phase";
  EXPECT_EQ(found.phases[0].splits[0].examples, 2);
  const std::vector<SplitSize>& splits = found.phases[1].splits;
  ASSERT_EQ(splits.size(), 3u);
  EXPECT_EQ(splits[0].split, data::Split::train);
  EXPECT_EQ(splits[0].examples, 2);
  ASSERT_EQ(splits[0].left_out.size(), 1u);
  EXPECT_EQ(splits[0].left_out[0].count, 1);
  EXPECT_EQ(splits[0].left_out[0].reason, "too long for model.max_position_embeddings (data.truncation: drop)");
  EXPECT_EQ(splits[1].split, data::Split::validation);
  EXPECT_EQ(splits[2].split, data::Split::test);
  for (const SplitSize& size : splits) EXPECT_EQ(size.examples + size.tokens + size.files, 2);
  EXPECT_EQ(
      Trainer(read_config("run.yaml", {"run.dir=out", "phases.grpo.data.truncation=drop"}), false).data()[1].phase,
      "grpo");
}

TEST_F(DataCheck, TextIsCountedInFilesAndTokens) {
  fs::create_directories("text/held");
  for (const char* name : {"a.txt", "b.txt", "held/v.txt"}) write(std::string("text/") + name, std::string(99, '1'));
  for (const char* name : {"c.md", "d.md", "Makefile"}) write(std::string("text/") + name, "1");
  const std::string corpus =
      "data: {corpus: {paths: [text], validation_path: text/held, test_fraction: 0.25, cache: tokens}}";
  write("text.yaml", R"yaml(run: {threads: 1}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 32, max_position_embeddings: 24}
tokenizer: {kind: bytes}
phases:
  - {name: text, objective: {kind: pretrain}, )yaml" +
                         corpus + ", evaluation: {every: 1, windows: 5}, steps: 2}\ntest: {windows: 2}\n");
  const TrainConfig config = read_config("text.yaml");
  const DataReport found = check_data(config, data::Tokenizer(config.tokenizer), {});
  const std::vector<SplitSize>& splits = found.phases.at(0).splits;
  ASSERT_EQ(splits.size(), 3u);
  EXPECT_EQ(splits[0].files, 1);
  EXPECT_EQ(splits[0].tokens, 100);
  EXPECT_EQ(splits[0].examples, 5);
  ASSERT_EQ(splits[0].left_out.size(), 1u);
  EXPECT_EQ(splits[0].left_out[0].count, 3);
  EXPECT_EQ(splits[1].tokens, 100);
  EXPECT_EQ(splits[2].files, 1);
  EXPECT_EQ(found.notes, std::vector<std::string>{"phase text: 3 files in the folders of data.corpus are none of "
                                                  "data.corpus.suffixes, and are left out: 2 .md, 1 without a suffix"});
  EXPECT_TRUE(found.warnings.empty());
  const TrainConfig more = read_config("text.yaml", {"phases.text.evaluation.windows=6", "test.windows=64"});
  EXPECT_EQ(check_data(more, data::Tokenizer(more.tokenizer), {}).warnings,
            (std::vector<std::string>{
                "phases.text.evaluation.windows: 6 are asked for, and the validation text has 5, which are all used",
                "test.windows: 64 are asked for, and the test text has 5, which are all used"}));
  const TrainConfig wide = read_config("text.yaml", {"model.max_position_embeddings=512"});
  expect_all(message([&] { check_data(wide, data::Tokenizer(wide.tokenizer), {}); }),
             {"phase text: corpus: the training tokens are 100", "3 files", "2 .md"});
}

TEST_F(DataCheck, AskingForMorePromptsThanThereAreIsTold) {
  EXPECT_TRUE(checked().warnings.empty());
  EXPECT_EQ(checked({"phases.grpo.evaluation.prompts=3", "test.sampled_prompts=64"}).warnings,
            (std::vector<std::string>{
                "phases.grpo.evaluation.prompts: 3 are asked for, and the validation data have 2, which are all used",
                "test.sampled_prompts: 64 are asked for, and the test data have 2, which are all used"}));
  // Thirty of three terms; of two no more than 15 different ones belong to the split.
  const std::vector<std::string> tint{"phases.grpo.data={tint: {terms: [2, 3], mix: example, held_out: 30}}",
                                      "phases.grpo.reward=[{kind: answer}]",
                                      "tokenizer.characters=0123456789abcdefgh+-=:A.",
                                      "model.max_position_embeddings=64",
                                      "phases.grpo.evaluation.prompts=61",
                                      "phases.sft.data={tint: {terms: [2, 3], mix: example}}"};
  EXPECT_EQ(
      checked(tint).warnings,
      (std::vector<std::string>{
          "phases.grpo.evaluation.prompts: 61 are asked for, and the validation data have 45, which are all used; "
          "data.tint.held_out is 30, and few different problems make fewer"}));
}

TEST_F(DataCheck, CompletionsWhoseLossIsToldAreLookedAt) {
  const std::vector<std::string> sft{
      "phases.sft.data={jsonl: {path: sft.jsonl, validation_path: validation.jsonl, "
      "test_fraction: 0}}",
      "phases.sft.evaluation={every: 1, prompts: 2, sampled_prompts: 2, num_generations: 1}"};
  EXPECT_EQ(error(sft), "no error");
  for (const char* wrong : {R"({"prompt": "1=", "completion": "×", "answer": "5"})",
                            R"({"prompt": "1=", "completion": "8.5.", "answer": "5"})",
                            R"({"prompt": "123456789012345678901=", "completion": "12.", "answer": "5"})"}) {
    write("validation.jsonl", kExample + "\n" + wrong + "\n");
    EXPECT_NE(error(sft).find("phase sft: jsonl: validation.jsonl:2: "), std::string::npos) << error(sft);
  }
  std::vector<std::string> drop = sft;
  drop[0].insert(drop[0].rfind('}'), ", truncation: drop");
  drop.push_back("phases.grpo.data.truncation=drop");
  EXPECT_EQ(error(drop), "no error");
  EXPECT_EQ(checked(drop).phases[0].splits[1].examples, 2) << "it is answered, and its loss does not count";
}

TEST_F(DataCheck, WithoutHeldOutDataARunTrainsAndSaysSo) {
  const std::vector<std::string> none{
      "phases.grpo.data={jsonl: {path: grpo.jsonl, validation_fraction: 0, test_fraction: 0}}",
      "phases.grpo.evaluation={every: 0}"};
  EXPECT_EQ(check(none), std::vector<std::string>{"no evaluation on test data: the data of the last phase have none"});
  Trainer trainer(read_config("run.yaml", none), false);
  size_t lines = 0;
  while (!trainer.finished())
    for (const Record& record : trainer.advance()) {
      EXPECT_EQ(record.split, "");
      ++lines;
    }
  EXPECT_EQ(lines, 3u);
  EXPECT_TRUE(trainer.results().empty());
  fs::remove("test.jsonl");
  EXPECT_EQ(check({"test.skip=true"}), std::vector<std::string>{"no evaluation on test data (test.skip)"});
}

TEST_F(DataCheck, ARunThatCannotBeginWritesNothing) {
  write("test.jsonl", "{\"prompt\": 1}\n");
  EXPECT_THROW(Trainer(read_config("run.yaml", {"run.dir=out"}), false), std::runtime_error);
  EXPECT_FALSE(fs::exists("out/metrics.jsonl") || fs::exists("out/config.yaml") || fs::exists("out/checkpoints"));
}

TEST_F(DataCheck, SizesThatNoMachineHasAreRefusedBeforeTheyAreAskedFor) {
  for (const auto& overrides : std::vector<std::vector<std::string>>{
           {"model.num_hidden_layers=1024", "model.hidden_size=131072", "model.num_attention_heads=512"},
           {"model.intermediate_size=1048576", "model.num_hidden_layers=1024", "model.hidden_size=65536",
            "model.num_attention_heads=256"},
           {"phases.grpo.rollout={prompts: 1048576, num_generations: 65536, max_new_tokens: 4}"},
           {"model.num_hidden_layers=1024",
            "phases.grpo.rollout={prompts: 2, num_generations: 2, max_new_tokens: 4, cache_tokens: 2000000000}"}}) {
    std::vector<std::string> cpu = overrides;
    cpu.push_back("run.device=cpu");
    const std::string said = message([&] { check_machine(read_config("run.yaml", cpu), RankCounts()); });
    expect_all(said, {"the run does not fit into memory", "GiB", "the machine has"});
    expect_readable(said);
  }
  EXPECT_EQ(message([&] { check_machine(read_config("run.yaml", {"run.device=cpu"}), RankCounts()); }), "no error");
}

TEST_F(DataCheck, AGpuThatIsNotThereIsTold) {
  const std::string said = message([&] { check_machine(read_config("run.yaml", {"run.device=cuda"}), RankCounts()); });
  if (said == "no error") GTEST_SKIP() << "this machine has a GPU";
  expect_all(said, {"run.device", "no GPU", "run.device=cpu"});
  expect_readable(said);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
