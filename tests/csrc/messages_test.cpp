// Conversations: how they are rendered, what of them is learnt, and what is refused.
#include "csrc/data/messages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "csrc/data/collate.h"
#include "csrc/data/fit.h"
#include "csrc/data/jsonl.h"
#include "csrc/data/sequence.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

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

// ---- by a chat template ----------------------------------------------------------------------------------------------

// A renderer that gives the JSON that it was given as the prompt, and refuses what holds "bad".
std::vector<Rendering> rendered(const std::vector<Conversation>& conversations) {
  std::vector<Rendering> renderings;
  for (const Conversation& one : conversations) {
    if (one.find("bad") != std::string::npos)
      renderings.push_back({.problem = "template.jinja, line 3: bad"});
    else
      renderings.push_back(
          {.problem = "", .turns = {{one, false}, {"4|", true}, {" so ", false}}, .completion = "6", .end = "|"});
  }
  return renderings;
}

class TemplatedTest : public MessagesTest {
 protected:
  std::unique_ptr<Jsonl> source(const std::string& lines, bool skip = false, double held_out = 0,
                                Split split = Split::train) const {
    std::ofstream(path_, std::ios::binary) << lines;
    const Use use{.tokenizer = &bytes_, .context = 1000, .learnt = true, .chat = rendered};
    return std::make_unique<Jsonl>(JsonlConfig{.path = {path_}, .validation_fraction = held_out, .test_fraction = 0}, 1,
                                   split, &use, skip);
  }
  const std::string user_ = R"({"role": "user", "content": "a"})", said_ = R"({"role": "assistant", "content": "b"})";
};

TEST_F(TemplatedTest, WhatTheTemplateWroteIsTheSequence) {
  const auto examples = source(R"({"messages": [)" + user_ + "," + said_ + R"(], "tools": [1], "more": 2})" + "\n" +
                               R"({"prompt": "p", "completion": "c"})" + "\n" + R"({"prompt": [)" + user_ +
                               R"(], "completion": [)" + said_ + "]}\n");
  std::vector<std::string> told;
  for (const Example& example : examples->take(0, 3)) told.push_back(shown(example, bytes_));
  std::sort(told.begin(), told.end());
  EXPECT_EQ(told[0], "p[c■]") << "what is no conversation is as it was";
  EXPECT_EQ(told[1],
            R"({"learnt_from":1,"messages":[{"content":"a","role":"user"},{"content":"b","role":"assistant"}]})"
            "[4|] so [6|■]");
  EXPECT_EQ(told[2], R"({"messages":[{"content":"a","role":"user"},{"content":"b","role":"assistant"}],"tools":[1]})"
                     "[4|] so [6|■]");
}

TEST_F(TemplatedTest, WhatTheTemplateRefusesIsALineOfTheFile) {
  const std::string good = R"({"messages": [)" + user_ + "," + said_ + "]}\n";
  const std::string bad = R"({"messages": [{"role": "bad", "content": "x"}], "answer": 1})"
                          "\n";
  expect_all(message([&] { source(good + bad); }), {".jsonl:2: template.jinja, line 3: bad"});
  const auto skipped = source(good + bad, /*skip=*/true);
  EXPECT_EQ(skipped->size(), 1);
  EXPECT_EQ(skipped->skipped(), 1);
  expect_all(skipped->notes().at(0), {".jsonl:2: template.jinja"});
  expect_all(message([&] { source(R"({"messages": [5]})"); }), {":1", "messages[0] is a JSON number"});
  expect_all(message([&] { source(R"({"messages": [{"content": "b"}]})"); }), {"messages[0].role is missing"});
  expect_all(message([&] { source(R"({"messages": [)" + user_ + R"(], "prompt": "p"})"); }), {"stands beside"});
  expect_all(message([&] { source(R"({"messages": [)" + user_ + "]}"); }), {"not an assistant's", "\"answer\""});
  expect_all(error_of(R"({"prompt": [)" + user_ + R"(], "completion": "c"})"), {"takes a chat template"});
}

TEST_F(TemplatedTest, EqualPromptsAreOnOneSide) {
  std::string lines;
  for (int i = 0; i < 60; ++i)
    for (const char* answer : {"x", "y"})
      lines += R"({"messages": [{"role": "user", "content": ")" + std::to_string(i) +
               R"("}, {"role": "assistant", "content": ")" + answer + "\"}]}\n";
  std::set<std::string> prompts[2];
  for (const Split split : {Split::train, Split::validation}) {
    const auto part = source(lines, false, 0.3, split);
    for (const Example& example : part->take(0, part->size())) {
      const size_t second = example.prompt.find("},{");  // what the user says stands before it
      prompts[split == Split::train ? 0 : 1].insert(example.prompt.substr(0, second));
    }
    EXPECT_EQ(part->size() % 2, 0);
  }
  for (const std::string& prompt : prompts[0]) EXPECT_FALSE(prompts[1].contains(prompt)) << prompt;
  EXPECT_EQ(prompts[0].size() + prompts[1].size(), 60u);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
