// Conversations: how they are rendered, what of them is learnt, and what is refused.
#include "csrc/data/messages.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "csrc/data/collate.h"
#include "csrc/data/fit.h"
#include "csrc/data/jsonl.h"
#include "csrc/data/sequence.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace {

const std::vector<Message> kTwoTurns{
    {"system", "Add."}, {"user", "2+2="}, {"assistant", "4"}, {"user", "3+3="}, {"assistant", "6"}};

// Each token as text, the end of sequence as ■; in brackets what is learnt.
std::string shown(const Example& example, const Tokenizer& tokenizer) {
  const Sequence sequence = sequence_of(example, tokenizer);
  EXPECT_EQ(sequence.ids.size(), sequence.learnt.size());
  std::string text;
  for (size_t i = 0; i < sequence.ids.size(); ++i) {
    const bool learnt = sequence.learnt[i], before = i > 0 && sequence.learnt[i - 1];
    if (learnt != before) text += learnt ? "[" : "]";
    text += sequence.ids[i] == tokenizer.eos_id() ? "■" : tokenizer.decode({sequence.ids[i]});
  }
  return text + (sequence.learnt.back() ? "]" : "");
}

class MessagesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "isentrope_messages_" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".jsonl";
  }
  void TearDown() override { std::filesystem::remove(path_); }
  Example read(const std::string& line) const {
    std::ofstream(path_, std::ios::binary) << line << "\n";
    return Jsonl({.path = {path_}, .validation_fraction = 0, .test_fraction = 0}, 1, Split::train).take(0, 1)[0];
  }
  std::string error_of(const std::string& line) const {
    return message([&] { read(line); });
  }
  std::string path_;
  Tokenizer bytes_{{.kind = "bytes"}};
};

TEST_F(MessagesTest, AssistantsAreLearntWithTheEndOfEveryTurn) {
  EXPECT_EQ(shown(render(kTwoTurns), bytes_), "system: Add.\nuser: 2+2=\nassistant: [4■]\nuser: 3+3=\nassistant: [6■]");
  EXPECT_EQ(shown(render({{"user", "a"}, {"assistant", "b"}}), bytes_), "user: a\nassistant: [b■]");
  const Example asked = render({{"assistant", "hello"}, {"user", "a"}});
  EXPECT_EQ(asked.completion, "");
  EXPECT_EQ(asked.prompt, "assistant: hello\nuser: a\nassistant: ");
  EXPECT_EQ(prompt_ids(asked, bytes_).size(), asked.prompt.size() + 1) << "with the end of the first turn";
}

TEST_F(MessagesTest, AReadConversationIsABatch) {
  const Example example =
      read(R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, )"
           R"({"role": "user", "content": "c"}, {"role": "assistant", "content": "de", "name": "x"}], "answer": 5})");
  EXPECT_EQ(example.completion, "de");
  EXPECT_EQ(example.answer, "5");
  EXPECT_EQ(example.prompt, "user: a\nassistant: b\nuser: c\nassistant: ");
  const Batch batch = collate({example}, bytes_, 100);
  const auto learnt = batch.target.masked_select(batch.target != kIgnore);
  EXPECT_EQ(bytes_.decode({learnt.data_ptr<int64_t>(), learnt.data_ptr<int64_t>() + learnt.numel()}),
            "b" + bytes_.eos() + "de" + bytes_.eos());
  // Position t of the target speaks of the token behind position t of the tokens.
  const torch::Tensor next = batch.tokens.slice(1, 1), told = batch.target.slice(1, 0, next.size(1));
  EXPECT_TRUE(torch::equal(next.masked_select(told != kIgnore), told.masked_select(told != kIgnore)));
}

TEST_F(MessagesTest, LengthCountsAllTurns) {
  const Example example = render(kTwoTurns);
  const auto length = static_cast<int64_t>(sequence_of(example, bytes_).ids.size());
  Use use{.tokenizer = &bytes_, .context = length, .learnt = true};
  EXPECT_TRUE(fits(example, use));
  --use.context;
  expect_all(message([&] { fits(example, use); }), {("have " + std::to_string(length) + " tokens").c_str()});
  const Tokenizer letters({.characters = "user:aitn\n 4."});
  expect_all(message([&] {
               fits(render({{"user", "4"}, {"assistant", "4.4"}, {"user", "4"}, {"assistant", "4"}}),
                    {.tokenizer = &letters, .context = 99, .learnt = true});
             }),
             {"4.4", "ends a sequence"});
}

TEST_F(MessagesTest, WhatIsWrongIsNamed) {
  const std::string user = R"({"role": "user", "content": "a"})", at = "messages";
  EXPECT_EQ(error_of(R"({"messages": [)" + user + R"(], "answer": "5"})"), "no error");
  EXPECT_EQ(error_of(R"({"messages": null, "prompt": "p", "completion": "c"})"), "no error");
  expect_all(error_of(R"({"messages": [)" + user + "]}"), {".jsonl:1", "not an assistant's", "\"answer\""});
  expect_all(error_of(R"({"messages": []})"), {":1", "\"messages\" is empty"});
  expect_all(error_of(R"({"messages": "hi"})"), {":1", "\"messages\" is a JSON string"});
  expect_all(error_of(R"({"messages": [)" + user + R"(, 5]})"), {"messages[1] is a JSON number"});
  expect_all(error_of(R"({"messages": [)" + user + R"(, {"role": "bot", "content": "b"}]})"),
             {"messages[1].role is \"bot\"", "assistant"});
  expect_all(error_of(R"({"messages": [{"content": "b"}]})"), {"messages[0].role is missing"});
  expect_all(error_of(R"({"messages": [{"role": "user"}]})"), {"messages[0].content is missing"});
  expect_all(error_of(R"({"messages": [{"role": "user", "content": [1]}]})"),
             {"messages[0]", "\"content\" is a JSON array"});
  expect_all(error_of(R"({"messages": [)" + user + R"(, {"role": "assistant", "content": ""}]})"),
             {"messages[1].content is empty"});
  expect_all(error_of(R"({"messages": [)" + user + R"(, {"role": "assistant", "content": "x", "tool_calls": [1]}]})"),
             {"messages[1] has tool_calls"});
  expect_all(error_of(R"({"messages": [)" + user + R"(], "prompt": "p"})"), {"\"prompt\" stands beside \"messages\""});
}

}  // namespace
}  // namespace isentrope::data
