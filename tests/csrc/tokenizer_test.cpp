// The tokenizers and the batches made with it.
#include "csrc/data/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/data/collate.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

using Ids = std::vector<int64_t>;

std::string fresh_folder(const std::string& name) {
  const std::string folder = ::testing::TempDir() + "isentrope_tokenizer_" + name;
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

TEST(Tokenizer, NumbersTheAlphabetFromOne) {
  const Tokenizer tokenizer(TokenizerConfig{});
  EXPECT_EQ(tokenizer.size(), 25);
  EXPECT_EQ(tokenizer.pad_id(), 0);
  EXPECT_EQ(tokenizer.eos(), ".");
  EXPECT_EQ(tokenizer.eos_id(), 24);
  EXPECT_EQ(tokenizer.encode("09ah+-=:A."), (Ids{1, 10, 11, 18, 19, 20, 21, 22, 23, 24}));
  EXPECT_TRUE(tokenizer.encode("").empty());
  EXPECT_EQ(tokenizer.decode({0, 1, 0, 24, 23, 0}), "0.A");
  for (int64_t id = 1; id < tokenizer.size(); ++id) EXPECT_EQ(tokenizer.encode(tokenizer.decode({id})), Ids{id});
}

TEST(Tokenizer, CountsCodePointsNotBytes) {
  const Tokenizer tokenizer({.characters = "aß∑😀\n ", .eos = "∑"});
  EXPECT_EQ(tokenizer.size(), 7);
  EXPECT_EQ(tokenizer.eos_id(), 3);
  EXPECT_EQ(tokenizer.encode("😀ß a\n"), (Ids{4, 2, 6, 1, 5}));
  EXPECT_EQ(tokenizer.decode({4, 2, 6, 1, 5}), "😀ß a\n");
}

TEST(Tokenizer, OfBytesTakesEveryByte) {
  const Tokenizer tokenizer({.kind = "bytes"});
  EXPECT_EQ(tokenizer.size(), 258);
  EXPECT_EQ(tokenizer.pad_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 257);
  EXPECT_EQ(tokenizer.eos(), "<|endoftext|>");
  EXPECT_EQ(tokenizer.encode("A\n"), (Ids{66, 11}));
  EXPECT_EQ(tokenizer.encode("é"), (Ids{0xC3 + 1, 0xA9 + 1}));
  EXPECT_EQ(tokenizer.decode({0, 66, 257, 0}), "A<|endoftext|>");
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(all)), all);
  EXPECT_EQ(tokenizer.encode("<|endoftext|>").size(), 13u) << "a text cannot end itself";
  expect_all(message([&] { tokenizer.decode({258}); }), {"258", "0 … 257"});
}

TEST(Tokenizer, CountsTheBytesOfItsTokens) {
  const Tokenizer bytes({.kind = "bytes"}), characters({.characters = "aß😀."});
  EXPECT_EQ(bytes.bytes_of(0), 0);
  EXPECT_EQ(bytes.bytes_of(1), 1);
  EXPECT_EQ(bytes.bytes_of(256), 1);
  EXPECT_EQ(bytes.bytes_of(257), 0);
  EXPECT_EQ(characters.bytes_of(0), 0);
  EXPECT_EQ(characters.bytes_of(2), 2);
  EXPECT_EQ(characters.bytes_of(3), 4);
  EXPECT_EQ(characters.bytes_of(4), 1) << "the end of sequence is a character of the text";
}

TEST(Tokenizer, NamesWhatIsNotInTheAlphabet) {
  const Tokenizer tokenizer({.characters = "0123.", .eos = ""});
  expect_all(message([&] { tokenizer.encode("12x3"); }),
             {"'x'", "U+0078", "place 3", "12x3", "0123.", "tokenizer.characters"});
  expect_all(message([&] { tokenizer.encode("1∑"); }), {"'∑'", "U+2211", "place 2"});
  expect_all(message([&] { tokenizer.encode("1\n"); }), {"U+000A"});
  expect_all(message([&] { tokenizer.encode("1\xff"); }), {"UTF-8", "byte 1"});
  std::string text(9999, '1');
  text.append("x").append(9999, '2');
  const std::string far = message([&] { tokenizer.encode(text); });
  expect_all(far, {"'x'", "place 10000", "11x22"});
  EXPECT_LT(far.size(), 400u) << "a long text is shown around the place alone";
  expect_all(message([&] { tokenizer.decode({1, 6}); }), {"6", "0 … 5"});
  expect_all(message([&] { tokenizer.decode({-1}); }), {"-1"});
}

TEST(Tokenizer, RefusesABadConfig) {
  const auto wrong = [](const std::string& characters, const std::string& eos) {
    return message([&] { Tokenizer({.characters = characters, .eos = eos}); });
  };
  expect_all(wrong("", ""), {"empty"});
  expect_all(wrong("abca", ""), {"'a'", "1 and 4", "once"});
  expect_all(wrong("abc", "d"), {"'d'", "abc"});
  expect_all(wrong("abc", "ab"), {"one character"});
  expect_all(wrong("a\xc3", ""), {"UTF-8"});
  expect_all(message([&] { Tokenizer({.kind = "words"}); }), {"words", "characters, bytes or pretrained"});
  expect_all(message([&] { Tokenizer({.kind = "bytes", .eos = "."}); }), {"eos", "<|endoftext|>"});
}

TEST(Tokenizer, ComesBackFromItsFolder) {
  for (const TokenizerConfig& config :
       {TokenizerConfig{}, TokenizerConfig{.characters = "z\"\\ ∑a\n", .eos = "a"}, TokenizerConfig{.kind = "bytes"}}) {
    const Tokenizer tokenizer(config);
    const std::string folder = fresh_folder("round");
    tokenizer.save(folder);
    const Tokenizer back = Tokenizer::load(folder);
    EXPECT_EQ(back.config().characters, tokenizer.config().characters);
    EXPECT_EQ(back.config().kind, tokenizer.config().kind);
    EXPECT_EQ(back.eos_id(), tokenizer.eos_id());
    EXPECT_TRUE(std::filesystem::exists(folder + "/special_tokens_map.json"));
  }
}

TEST(Tokenizer, LoadSaysWhatIsWrong) {
  const std::string folder = fresh_folder("broken");
  expect_all(message<std::runtime_error>([&] { Tokenizer::load(folder); }), {"tokenizer.json", "No such file"});
  Tokenizer(TokenizerConfig{}).save(folder);
  std::ofstream(folder + "/tokenizer.json") << "{\"model\": {\"vocab\": {\"<pad>\": 0, \"word\": 1}}}";
  expect_all(message<std::runtime_error>([&] { Tokenizer::load(folder); }), {"word", "one character"});
  std::ofstream(folder + "/tokenizer.json")
      << "{\"decoder\": {\"type\": \"ByteLevel\"}, \"model\": {\"vocab\": {\"<pad>\": 0, \"a\": 1}}}";
  expect_all(message<std::runtime_error>([&] { Tokenizer::load(folder); }), {"258 tokens", "has 2"});
  std::ofstream(folder + "/tokenizer.json") << "{\"model\": ";
  expect_all(message<std::runtime_error>([&] { Tokenizer::load(folder); }), {"not a JSON object"});
  // Of other forms, in words of our own.
  for (const char* vocabulary : {"{\"<pad>\": 0, \"a\": 7}", "{\"<pad>\": 0, \"a\": -1}",
                                 "{\"<pad>\": 0, \"a\": \"1\"}", "{\"<pad>\": 0, \"a\": 1.5}"}) {
    std::ofstream(folder + "/tokenizer.json") << "{\"model\": {\"vocab\": " << vocabulary << "}}";
    expect_all(message<std::runtime_error>([&] { Tokenizer::load(folder); }), {"the id of \"a\" is ", "wanted 0 … 1"});
  }
  for (const char* text :
       {"{\"model\": 1}", "{\"model\": {}}", "{\"decoder\": {\"type\": 1}, \"model\": {\"vocab\": {}}}"}) {
    std::ofstream(folder + "/tokenizer.json") << text;
    const std::string said = message<std::runtime_error>([&] { Tokenizer::load(folder); });
    EXPECT_EQ(said.find("json.exception"), std::string::npos) << said;
  }
  expect_all(message<std::runtime_error>([&] { Tokenizer(TokenizerConfig{}).save(folder + "/absent"); }),
             {"cannot be opened for writing"});
}

const TokenizerConfig kDigits = {.characters = "0123456789+=.", .eos = ""};

Ids row(const torch::Tensor& matrix, int64_t i) {
  const torch::Tensor r = matrix[i].contiguous();
  return {r.data_ptr<int64_t>(), r.data_ptr<int64_t>() + r.numel()};
}

TEST(Collate, ShiftsPadsAndMasks) {
  const Tokenizer tokenizer(kDigits);  // id of a digit: digit + 1; + 11, = 12, . 13
  const Batch batch = collate({{"1+2=", "3.", ""}, {"9=", "9", ""}}, tokenizer, 6);
  ASSERT_EQ(batch.tokens.sizes(), (std::vector<int64_t>{2, 5}));
  ASSERT_EQ(batch.target.sizes(), (std::vector<int64_t>{2, 5}));
  EXPECT_EQ(row(batch.tokens, 0), (Ids{2, 11, 3, 12, 4}));
  EXPECT_EQ(row(batch.target, 0), (Ids{-100, -100, -100, 4, 13}));
  EXPECT_EQ(row(batch.tokens, 1), (Ids{10, 12, 10, 0, 0}));
  EXPECT_EQ(row(batch.target, 1), (Ids{-100, 10, 13, -100, -100}));
  EXPECT_TRUE(torch::equal(batch.lengths, torch::tensor({5, 3}, torch::kInt64)));
  EXPECT_TRUE(torch::equal(batch.rows(1, 2).real()[0], torch::tensor({1, 1, 1, 0, 0}, torch::kBool)));
}

TEST(Collate, TreatsOverlongExamplesAsTold) {
  const Tokenizer tokenizer(kDigits);
  const std::vector<Example> examples = {{"1=", "1", ""}, {"1+2=", "3456", ""}};
  expect_all(message([&] { collate(examples, tokenizer, 8); }),
             {"example 1", "1+2=", "9 tokens", "8", "data.truncation"});
  EXPECT_EQ(collate(examples, tokenizer, 9).size(), 2);
  const Batch dropped = collate(examples, tokenizer, 8, "drop");
  EXPECT_EQ(row(dropped.tokens, 0), (Ids{2, 12, 2}));
  EXPECT_EQ(dropped.size(), 1);
  const Batch cut = collate(examples, tokenizer, 6, "truncate");
  EXPECT_EQ(row(cut.tokens, 1), (Ids{2, 11, 3, 12, 4}));
  EXPECT_EQ(row(cut.target, 1), (Ids{-100, -100, -100, 4, 5}));
  expect_all(message([&] { collate(examples, tokenizer, 2, "drop"); }), {"all 2"});
  expect_all(message([&] { collate(examples, tokenizer, 4, "truncate"); }), {"example 1", "4 of prompt"});
  expect_all(message([&] { collate(examples, tokenizer, 9, "cut"); }), {"truncation", "cut", "truncate"});
}

TEST(Collate, RefusesWhatCannotBeLearnt) {
  const Tokenizer tokenizer(kDigits);
  expect_all(message([&] { collate({{"1=", "", "1"}}, tokenizer, 9); }), {"example 0", "no completion"});
  expect_all(message([&] { collate({{"", "1", ""}}, tokenizer, 9); }), {"empty prompt"});
  expect_all(message([&] { collate({{"1=", "a", ""}}, tokenizer, 9); }), {"'a'"});
  expect_all(message([&] { collate({}, tokenizer, 9); }), {"no examples"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
