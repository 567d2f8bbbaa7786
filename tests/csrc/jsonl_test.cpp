// Examples from JSONL files, and the choice of a source.
#include "csrc/data/jsonl.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/data/source.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

class JsonlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        ::testing::TempDir() + "isentrope_jsonl_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << text;
    return folder_ + "/" + name;
  }
  // n examples with the prompts "0=" … and no held-out part.
  JsonlConfig numbered(int n) const {
    std::string text;
    for (int i = 0; i < n; ++i)
      text += "{\"prompt\": \"" + std::to_string(i) + "=\", \"completion\": \"" + std::to_string(i) + ".\"}\n";
    return {.path = {write("numbered.jsonl", text)}, .validation_fraction = 0, .test_fraction = 0};
  }
  static std::string error_of(const JsonlConfig& config, Split split = Split::train) {
    return message([&] { Jsonl(config, 1, split); });
  }
  std::string message_of(const std::string& text) const { return error_of({.path = {write("data.jsonl", text)}}); }

  std::string folder_;
};

std::vector<std::string> prompts(const std::vector<Example>& examples) {
  std::vector<std::string> result;
  for (const Example& example : examples) result.push_back(example.prompt);
  return result;
}

TEST_F(JsonlTest, ReadsItsKeys) {
  const std::string path = write("data.jsonl",
                                 "{\"question\": \"ß\\n\", \"text\": \"two\", \"gold\": 12345678901234567890}\r\n"
                                 "\n"
                                 "{\"question\": \"q\", \"gold\": \"7\", \"more\": [1]}");
  const JsonlConfig config = {.path = {path},
                              .validation_fraction = 0,
                              .test_fraction = 0,
                              .prompt_key = "question",
                              .completion_key = "text",
                              .answer_key = "gold"};
  const Jsonl source(config, 1, Split::train);
  ASSERT_EQ(source.size(), 2);
  auto examples = source.take(0, 2);
  if (examples[0].prompt == "q") std::swap(examples[0], examples[1]);
  EXPECT_EQ(examples[0].prompt, "ß\n");
  EXPECT_EQ(examples[0].completion, "two");
  EXPECT_EQ(examples[0].answer, "12345678901234567890");
  EXPECT_EQ(examples[1].completion, "");
  EXPECT_EQ(examples[1].answer, "7");
}

TEST_F(JsonlTest, EachEpochIsAnotherPermutation) {
  const JsonlConfig config = numbered(31);
  const Jsonl source(config, 1, Split::train);
  const auto first = prompts(source.take(0, 31)), second = prompts(source.take(31, 31));
  EXPECT_NE(first, second);
  EXPECT_NE(first, prompts(Jsonl(config, 2, Split::train).take(0, 31)));
  EXPECT_EQ(std::set<std::string>(first.begin(), first.end()).size(), 31u);
  EXPECT_EQ(std::set<std::string>(second.begin(), second.end()).size(), 31u);
}

TEST_F(JsonlTest, TakeIsOneStreamHoweverItIsCut) {
  const Jsonl source(numbered(7), 3, Split::train);
  const auto whole = prompts(source.take(0, 60));
  for (const int64_t piece : {1, 2, 5, 7, 33}) {
    std::vector<std::string> joined;
    for (int64_t first = 0; first < 60; first += piece)
      for (const auto& prompt : prompts(source.take(first, std::min(piece, 60 - first)))) joined.push_back(prompt);
    EXPECT_EQ(joined, whole) << "in pieces of " << piece;
  }
  EXPECT_TRUE(source.take(3, 0).empty());
  EXPECT_THROW(source.take(-1, 1), std::invalid_argument);
}

TEST_F(JsonlTest, RanksTogetherReadWhatOneRankReads) {
  const Jsonl source(numbered(13), 3, Split::train);
  const int64_t world = 3, n = 4;
  std::vector<std::string> joined;
  for (int64_t step = 0; step < 5; ++step)
    for (int64_t rank = 0; rank < world; ++rank)
      for (const auto& prompt : prompts(source.take((step * world + rank) * n, n))) joined.push_back(prompt);
  EXPECT_EQ(joined, prompts(source.take(0, 5 * world * n)));
}

TEST_F(JsonlTest, SplitsAreDisjointAndWhole) {
  JsonlConfig config = numbered(400);
  config.validation_fraction = 0.2;
  config.test_fraction = 0.1;
  std::multiset<std::string> all;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    const Jsonl source(config, 1, split);
    for (const auto& prompt : prompts(source.take(0, source.size()))) all.insert(prompt);
  }
  EXPECT_EQ(all.size(), 400u);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 400u);
  const Jsonl validation(config, 1, Split::validation), other_seed(config, 2, Split::validation);
  EXPECT_NEAR(validation.size(), 80, 40);
  EXPECT_EQ(prompts(validation.take(0, validation.size())),
            prompts(other_seed.take(validation.size(), validation.size())));
}

TEST_F(JsonlTest, NoSplitOfASmallFileIsEmptyByChance) {
  for (int n = 4; n <= 40; ++n) {
    JsonlConfig config = numbered(n);
    config.validation_fraction = config.test_fraction = 0.05;
    std::multiset<std::string> all;
    for (const Split split : {Split::train, Split::validation, Split::test}) {
      const Jsonl source(config, 1, split), again(config, 2, split);
      EXPECT_GE(source.size(), 1) << n;
      EXPECT_EQ(source.size(), again.size());
      for (const auto& prompt : prompts(source.take(0, source.size()))) all.insert(prompt);
    }
    EXPECT_EQ(all.size(), static_cast<size_t>(n));
    EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), static_cast<size_t>(n));
  }
  JsonlConfig config = {.path = {write("one.jsonl", "{\"prompt\": \"p\", \"completion\": \"c\"}\n")}};
  EXPECT_EQ(Jsonl(config, 1, Split::train).size(), 1);
  expect_all(error_of(config, Split::test), {"none of the 1", "too few different prompts"});
}

TEST_F(JsonlTest, AUseIsAskedOfEveryExample) {
  const Tokenizer tokenizer({.characters = "0123456789=."});
  const Use learnt{.tokenizer = &tokenizer, .context = 5, .learnt = true, .truncation = "drop"};
  JsonlConfig config = numbered(12);  // "9=9." has 4 tokens, "10=10." 6
  const Jsonl source(config, 1, Split::train, &learnt);
  EXPECT_EQ(source.size(), 10);
  EXPECT_EQ(source.left_out(), 2);
  const Use strict{.tokenizer = &tokenizer, .context = 5, .learnt = true};
  expect_all(message([&] { Jsonl(config, 1, Split::train, &strict); }),
             {"numbered.jsonl:11: ", "6 tokens (3 of prompt)"});
  const Use prompt{.tokenizer = &tokenizer, .context = 3, .learnt = false};
  expect_all(message([&] { Jsonl(config, 1, Split::train, &prompt); }), {"numbered.jsonl:11: ", "leaves no room"});
}

TEST_F(JsonlTest, ASplitMayHaveItsOwnFile) {
  JsonlConfig config = numbered(31);
  config.validation_fraction = {};
  config.validation_path = write("validation.jsonl", "{\"prompt\": \"v\", \"completion\": \"v\"}\n");
  EXPECT_EQ(Jsonl(config, 1, Split::train).size(), 31);
  EXPECT_EQ(prompts(Jsonl(config, 1, Split::validation).take(0, 2)), (std::vector<std::string>{"v", "v"}));
  expect_all(error_of(config, Split::test), {"none of the 31", "test split", "test_path"});
}

TEST_F(JsonlTest, AFractionBesideAPathIsRefused) {
  for (const std::string part : {"validation", "test"}) {
    JsonlConfig config{.path = {"a"}, .validation_path = "v", .test_path = "t"};
    EXPECT_EQ(config.problem(), "");
    (part == "test" ? config.test_fraction : config.validation_fraction) = 0;
    expect_all(config.problem(), {part.c_str(), "_fraction", "leave one of the two out"});
  }
  EXPECT_EQ(JsonlConfig{.path = {"a"}}.validation().share(), 0.05);
}

TEST_F(JsonlTest, ColumnsAreKeptForThoseWhoReadThem) {
  const std::string line = R"({"prompt": "p", "answer": 12, "tags": ["x", {"n": 1e5}], "none": null})";
  const JsonlConfig config{.path = {write("columns.jsonl", line + "\n")}, .validation_fraction = 0, .test_fraction = 0};
  const Tokenizer tokenizer({.kind = "bytes"});
  Use use{.tokenizer = &tokenizer, .context = 30, .learnt = false};
  EXPECT_EQ(Jsonl(config, 1, Split::train, &use).take(0, 1)[0].columns, "");
  use.columns = true;
  const Example example = Jsonl(config, 1, Split::train, &use).take(0, 1)[0];
  EXPECT_EQ(example.columns, line);
  EXPECT_EQ(example.answer, "12");
  EXPECT_EQ(example.split, Split::train);
  JsonlConfig held_out = config;
  held_out.validation_path = held_out.path.front();
  held_out.validation_fraction = {};
  EXPECT_EQ(Jsonl(held_out, 1, Split::validation, &use).take(0, 1)[0].split, Split::validation);
  for (const char* name : {"split", "finished"}) {
    const std::string path =
        write("taken.jsonl", line + "\n" + R"({"prompt": "p", "answer": "1", ")" + name + "\": 1}\n");
    const JsonlConfig taken{.path = {path}, .validation_fraction = 0, .test_fraction = 0};
    expect_all(message([&] { Jsonl(taken, 1, Split::train, &use); }), {"taken.jsonl:2", name, "rename it"});
    use.columns = false;
    EXPECT_EQ(Jsonl(taken, 1, Split::train, &use).size(), 2) << "nobody reads it";
    use.columns = true;
  }
}

TEST_F(JsonlTest, AnAbyssOfListsIsRefused) {
  const auto nested = [](size_t depth) {
    return R"({"prompt": "p", "answer": "1", "x": )" + std::string(depth, '[') + std::string(depth, ']') + "}\n";
  };
  expect_all(message_of(nested(100000)), {"data.jsonl:1", "more than 100 within one another"});
  EXPECT_EQ(message_of(nested(98)), "no error");
}

TEST_F(JsonlTest, ErrorsNameFileAndLine) {
  const std::string good = "{\"prompt\": \"p\", \"completion\": \"c\"}\n";
  expect_all(message_of(good + "{\"prompt\": \"p\", }\n"), {"data.jsonl:2", "column 17"});
  expect_all(message_of(good + "\n" + "{\"completion\": \"c\"}\n"), {"data.jsonl:3", "\"prompt\" is missing"});
  expect_all(message_of("{\"prompt\": \"p\"}\n"), {"data.jsonl:1", "\"completion\" is missing", "\"answer\""});
  expect_all(message_of("{\"prompt\": 5, \"completion\": \"c\"}\n"),
             {"data.jsonl:1", "\"prompt\" is a JSON number", "string"});
  expect_all(message_of("{\"prompt\": \"p\", \"answer\": 0.5}\n"),
             {"data.jsonl:1", "\"answer\"", "string or an integer"});
  expect_all(message_of("{\"prompt\": \"\", \"completion\": \"c\"}\n"), {"data.jsonl:1", "\"prompt\" is empty"});
  expect_all(message_of("{\"prompt\": \"p\", \"answer\": 1, \"x\": {\"prompt\": 1}, \"prompt\": \"q\"}\n"),
             {"data.jsonl:1", "\"prompt\" is written twice"});
  expect_all(message_of("[1]\n"), {"data.jsonl:1", "array", "object"});
  expect_all(message_of("{\"prompt\": \"\xff\"}\n"), {"data.jsonl:1", "not JSON"});
  expect_all(message_of("{\"prompt\": \"p\", \"answer\": 1e999}\n"), {"data.jsonl:1: holds a number beyond"});
  expect_all(message_of("\n \n"), {"data.jsonl:1", "no example"});
}

TEST_F(JsonlTest, AMissingFileIsToldWithTheNearestName) {
  write("train.jsonl", "{}");
  write("other.txt", "{}");
  expect_all(error_of({.path = {folder_ + "/trian.jsonl"}}), {"trian.jsonl", "nearest", "/train.jsonl"});
  expect_all(error_of({.path = {folder_ + "/absent/train.jsonl"}}), {"no folder", "absent"});
  expect_all(error_of({.path = {folder_ + "/other"}}), {"not a file"});
}

TEST_F(JsonlTest, ChecksBetweenKeys) {
  expect_all(error_of({}), {"path is empty"});
  JsonlConfig config = numbered(3);
  config.validation_fraction = config.test_fraction = 0.5;
  expect_all(error_of(config), {"validation_fraction", "nothing"});
  config = numbered(3);
  config.answer_key = "prompt";
  expect_all(error_of(config), {"must differ"});
}

TEST_F(JsonlTest, OneSourceIsChosen) {
  DataConfig config;
  expect_all(config.problem(), {"tint:", "jsonl:", "corpus:"});
  config.jsonl = numbered(3);
  EXPECT_EQ(config.problem(), "");
  EXPECT_EQ(make_source(config, 1, Split::train)->size(), 3);
  config.tint.emplace();
  expect_all(config.problem(), {"more than one"});
  EXPECT_THROW(make_source(config, 1, Split::train), std::invalid_argument);
  config.jsonl.reset();
  EXPECT_EQ(make_source(config, 1, Split::train)->size(), 0);
  EXPECT_EQ(make_source(config, 1, Split::test)->size(), 1024);
  config.tint->terms = {};
  expect_all(config.problem(), {"tint: terms"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
