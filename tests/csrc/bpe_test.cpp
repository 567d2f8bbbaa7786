// Tokenizers of tokenizer.json: small ones written by hand, and what is refused. tests/python/test_tokenizer.py compares larger
// ones with the package tokenizers.
#include "csrc/data/bpe.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "csrc/data/pretrained.h"
#include "csrc/data/text_stream.h"
#include "csrc/durable_file.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

using Ids = std::vector<int64_t>;
using Json = nlohmann::json;

// Bytes 0 … 255 as their names in GPT-2's alphabet with ids of their own, then ab (256), abc (257), Ġa (258), <end> (259).
Json small() {
  static const Json json = [] {
    Json vocabulary;
    std::string names;
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printed = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const uint32_t c = printed ? b : next++;
      std::string name{static_cast<char>(c)};
      if (c >= 0x80) name = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
      vocabulary[name] = b;
    }
    vocabulary["ab"] = 256, vocabulary["abc"] = 257, vocabulary["Ġa"] = 258;
    return Json{{"added_tokens", {{{"id", 259}, {"content", "<end>"}, {"special", true}}}},
                {"normalizer", nullptr},
                {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
                {"post_processor", nullptr},
                {"decoder", {{"type", "ByteLevel"}}},
                {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", {"a b", "ab c", "Ġ a"}}}}};
  }();
  return json;
}

std::string folder(const char* name, const Json& tokenizer, const Json& config) {
  const std::string path = ::testing::TempDir() + "isentrope_bpe_" + name;
  std::filesystem::remove_all(path);
  std::filesystem::create_directories(path);
  write_durably(path + "/tokenizer.json", tokenizer.dump(1));
  if (!config.is_null()) write_durably(path + "/tokenizer_config.json", config.dump(1));
  return path;
}

// What a tokenizer puts before a text is not put before what goes on behind text, and is where a special token stands between.
TEST(Bpe, TextThatGoesOnHasNothingBeforeIt) {
  constexpr auto behind = PreTokenizer::Place::behind, within = PreTokenizer::Place::within;
  Json json = small();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  const Bpe spaced(json.dump());
  EXPECT_EQ(spaced.encode("ab"), (Ids{' ', 256}));
  EXPECT_EQ(spaced.encode("ab", behind), (Ids{256}));
  EXPECT_EQ(spaced.encode("ab<end>ab", behind), (Ids{256, 259, ' ', 256}));
  json["pre_tokenizer"] = nullptr;
  json["normalizer"] = {{"type", "Prepend"}, {"prepend", "x"}};
  const Bpe prepended(json.dump());
  EXPECT_EQ(prepended.encode("ab<end>ab"), (Ids{'x', 256, 259, 'x', 256}));
  EXPECT_EQ(prepended.encode("ab<end>ab", behind), (Ids{256, 259, 'x', 256}));
  json["normalizer"] = nullptr;
  for (const char* scheme : {"always", "first"}) {
    json["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "x"}, {"prepend_scheme", scheme}, {"split", false}};
    const Bpe meta(json.dump());
    EXPECT_EQ(meta.encode("ab"), (Ids{'x', 256}));
    EXPECT_EQ(meta.encode("ab", behind), (Ids{256}));
    EXPECT_EQ(meta.encode("ab", within).size(), std::string(scheme) == "first" ? 1u : 2u);
  }
  EXPECT_TRUE(spaced.added(259));
  EXPECT_FALSE(spaced.added(256));
}

TEST(Bpe, MergesByRankAndSplitsBefore) {
  const Bpe bpe(small().dump());
  EXPECT_EQ(bpe.size(), 260);
  EXPECT_EQ(bpe.encode("abcab"), (Ids{257, 256}));
  EXPECT_EQ(bpe.encode("x a"), (Ids{'x', 258}));
  EXPECT_EQ(bpe.encode(" ab"), (Ids{' ', 256})) << "ab has the lower rank, and takes the a";
  EXPECT_EQ(bpe.encode("ab<end>c"), (Ids{256, 259, 'c'}));
  EXPECT_TRUE(bpe.encode("").empty());
}

TEST(Bpe, BytesThatAreNoCharacterAreEncodedAsTheyAre) {
  const Bpe bpe(small().dump());
  EXPECT_EQ(bpe.encode("ab\xFF\xC3"), (Ids{256, 0xFF, 0xC3}));
  EXPECT_EQ(bpe.encode("\xE2\x82 a"), (Ids{0xE2, 0x82, 258}));
  EXPECT_EQ(bpe.encode("a\xFF"
                       "b"),
            (Ids{'a', 0xFF, 'b'}))
      << "what stands on either side is a text by itself";
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  std::string text;
  for (const int64_t id : bpe.encode(all)) text += bpe.piece(id);
  EXPECT_EQ(text, all);
}

TEST(Bpe, AVeryLongWordTakesNoSquareOfItsLength) {
  const Bpe bpe(small().dump());
  std::string word;
  for (int i = 0; i < 1 << 20; ++i) word += "abc"[i % 3];
  EXPECT_EQ(bpe.encode(word).size(), (1u << 20) / 3 + 1);
}

TEST(Bpe, ThreadsEncodeAlike) {
  const Bpe bpe(small().dump());
  std::string text;
  for (int i = 0; i < 20000; ++i) text += (i % 7 == 0 ? " ab" : i % 5 == 0 ? "abc " : "x") + std::to_string(i % 1000);
  const Ids wanted = bpe.encode(text);
  std::vector<Ids> found(4);
  std::vector<std::thread> threads;
  for (Ids& ids : found) threads.emplace_back([&] { ids = bpe.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& ids : found) EXPECT_EQ(ids, wanted);
}

TEST(Bpe, RefusesByName) {
  const auto refused = [](const Json& patch) {
    Json json = small();
    json.merge_patch(patch);
    return message<std::runtime_error>([&] { Bpe(json.dump()); });
  };
  expect_all(message([] { Bpe("[]"); }), {"not a JSON object"});
  expect_all(message([] { Bpe("{"); }), {"damaged"});
  expect_all(message([] { Bpe("{}"); }), {"no model"});
  expect_all(message([] { Bpe(std::string(100000, '[')); }), {"100 deep"});
  expect_all(refused({{"model", {{"type", "WordPiece"}}}}), {"WordPiece", "BPE"});
  expect_all(refused({{"model", {{"dropout", 0.1}}}}), {"dropout", "0.1"});
  expect_all(refused({{"model", {{"end_of_word_suffix", "</w>"}}}}), {"end_of_word_suffix", "</w>"});
  expect_all(refused({{"model", {{"unk_token", "<unk>"}}}}), {"unk_token", "<unk>"});
  expect_all(refused({{"model", {{"merges", {"a z"}}}}}), {"merge 0", "\"az\""});
  expect_all(refused({{"model", {{"merges", {"a b c"}}}}}), {"merge 0", "a b c"});
  expect_all(refused({{"model", {{"vocab", {{"a", -1}}}}}}), {"\"a\"", "-1"});
  expect_all(refused({{"model", {{"vocab", {{"a", 98}}}}}}), {"98", "\"a\"", "\"b\""});
  expect_all(refused({{"normalizer", {{"type", "Nmt"}}}}), {"Nmt", "NFKC", "Replace"});
  expect_all(refused({{"pre_tokenizer", {{"type", "BertPreTokenizer"}}}}), {"BertPreTokenizer", "ByteLevel"});
  expect_all(refused({{"post_processor", {{"type", "BertProcessing"}}}}), {"BertProcessing", "TemplateProcessing"});
  expect_all(refused({{"decoder", {{"type", "WordPiece"}}}}), {"WordPiece", "ByteLevel"});
  expect_all(refused({{"decoder", nullptr}}), {"decoder is null"});
  expect_all(refused({{"added_tokens", {{{"id", 3}, {"content", "<x>"}}}}}), {"<x>", "3"});
  expect_all(refused({{"added_tokens", {{{"id", 2000000000}, {"content", "<x>"}}}}}), {"2000000000"});
  for (const char* pattern : {"[a&&b]", "[a[b]]", "\\X", "[\\P{L}]", "(?m:a)", "(", "a)", "[a", "\\"}) {
    const Json split{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
    expect_all(refused({{"pre_tokenizer", split}}), {"pattern", pattern});
  }
}

TEST(SplitPattern, ReadsWhatTheTwoEnginesReadOtherwise) {
  const auto all = [](const char* expression, std::string_view text) {
    const SplitPattern pattern(expression);
    SplitPattern::Room room;
    std::vector<std::string> found;
    for (size_t from = 0, begin, end; pattern.find(text, from, room, begin, end) && end > begin; from = end)
      found.emplace_back(text.substr(begin, end - begin));
    return found;
  };
  using Texts = std::vector<std::string>;
  EXPECT_EQ(all("\\p{N}{1,3}+", "1234567"), (Texts{"1234567"}));
  EXPECT_EQ(all("(?:a{2})+", "aaaaa"), (Texts{"aaaa"}));
  EXPECT_EQ(all("a{,2}b", "aaab"), (Texts{"aab"}));
  EXPECT_EQ(all("\\h+", "0aFg"), (Texts{"0aF"}));
  EXPECT_EQ(all("\\s+", "a\u180E\u3000b"), (Texts{"\u3000"}));
  EXPECT_EQ(all("\\p{L}+", "\u1C89a\U00010D4A"), (Texts{"\u1C89a\U00010D4A"})) << "letters of Unicode 16";
  EXPECT_EQ(all("[^\\p{L}]+", "\u1C89+"), (Texts{"+"}));
  EXPECT_EQ(all("\\u0061\\x62\\x{63}", "abc"), (Texts{"abc"}));
}

TEST(Pretrained, TakesEndAndPaddingFromWhereTheyAreNamed) {
  const std::string named = folder("named", small(), {{"eos_token", {{"content", "<end>"}}}, {"pad_token", "!"}});
  EXPECT_EQ(Pretrained(named).eos_id(), 259);
  EXPECT_EQ(Pretrained(named).pad_id(), '!');
  const std::string map = folder("map", small(), Json::object());
  write_durably(map + "/special_tokens_map.json", R"({"eos_token": "ab"})");
  EXPECT_EQ(Pretrained(map).eos_id(), 256);
  EXPECT_EQ(Pretrained(map).pad_id(), 256) << "where nothing names padding";
  const std::string generation = folder("generation", small(), nullptr);
  write_durably(generation + "/generation_config.json", R"({"eos_token_id": [259, 256], "pad_token_id": 0})");
  EXPECT_EQ(Pretrained(generation).eos_id(), 259) << "of a list the first";
  EXPECT_EQ(Pretrained(generation).end_ids(), (Ids{259, 256}));
  EXPECT_EQ(Pretrained(named).end_ids(), (Ids{259}));
  EXPECT_EQ(Pretrained(generation).pad_id(), 0);

  expect_all(message([&] { Pretrained(folder("none", small(), Json::object())); }), {"nothing names the token"});
  expect_all(message([&] {
               Pretrained(folder("lost", small(), {{"eos_token", "</s>"}}));
             }),
             {"tokenizer_config.json", "eos_token", "</s>"});
  expect_all(message([&] {
               Pretrained(folder("pad", small(), {{"eos_token", "<end>"}, {"pad_token", "<pad>"}}));
             }),
             {"pad_token", "<pad>"});
  const std::string beyond = folder("beyond", small(), nullptr);
  write_durably(beyond + "/config.json", R"({"eos_token_id": 260})");
  expect_all(message([&] { Pretrained{beyond}; }), {"config.json", "eos_token_id", "260", "259"});
  expect_all(message([&] { Pretrained("/nowhere"); }), {"/nowhere"});
}

TEST(Pretrained, IsATokenizerThatIsKeptByteByByte) {
  Json json = small();
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {{{"SpecialToken", {{"id", "<end>"}}}}, {{"Sequence", {{"id", "A"}}}}}},
                            {"special_tokens", {{"<end>", {{"ids", {259}}}}}}};
  const std::string from = folder("from", json, {{"eos_token", "<end>"}, {"note", "kept"}});
  write_durably(from + "/chat_template.jinja", "{{ messages }}");
  const Tokenizer tokenizer({.pretrained = from});
  EXPECT_EQ(tokenizer.kind(), "pretrained");
  EXPECT_EQ(tokenizer.size(), 260);
  EXPECT_EQ(tokenizer.eos(), "<end>");
  EXPECT_EQ(tokenizer.pad_id(), tokenizer.eos_id());
  EXPECT_EQ(tokenizer.encode("ab"), (Ids{256}));
  EXPECT_EQ(tokenizer.encode_prompt("ab"), (Ids{259, 256}));
  EXPECT_EQ(tokenizer.encode_prompt("<end>ab"), (Ids{259, 256})) << "not twice";
  EXPECT_EQ(tokenizer.decode({256, 259, 0xC3, 0xA9}), "ab<end>é");
  EXPECT_EQ(tokenizer.bytes_of(256), 2);
  EXPECT_EQ(tokenizer.bytes_of(259), 0);
  expect_all(message([&] { tokenizer.decode({260}); }), {"260", "259"});

  const std::string to = folder("to", json, nullptr);
  tokenizer.save(to);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"})
    EXPECT_EQ(read_whole(to + "/" + file), read_whole(from + "/" + file)) << file;
  EXPECT_EQ(Tokenizer::load(to).digest(), tokenizer.digest());

  EXPECT_EQ((TokenizerConfig{.kind = "bytes", .pretrained = "x"}.problem()),
            "kind is bytes, and pretrained names a folder (x); leave one of them out");
  EXPECT_NE((TokenizerConfig{.kind = "pretrained"}.problem()), "");
  EXPECT_NE((TokenizerConfig{.eos = ".", .pretrained = "x"}.problem()), "");
}

TEST(TextStream, GivesWholeCharacters) {
  const Tokenizer bytes({.kind = "bytes"});
  const std::string text = "aé€😀\xFF\xC3(\xE2\x82";
  TextStream stream(bytes);
  std::vector<std::string> parts;
  for (const int64_t id : bytes.encode(text)) parts.push_back(stream.push(id));
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "", "é", "", "", "€", "", "", "", "😀", "\xFF", "", "\xC3(", "", ""}));
  EXPECT_EQ(stream.flush(), "\xE2\x82");
  EXPECT_EQ(stream.flush(), "");
  std::string joined;
  for (const std::string& part : texts_of(bytes, bytes.encode(text))) joined += part;
  EXPECT_EQ(joined, text);
  EXPECT_EQ(texts_of(bytes, bytes.encode("\xED\xA0")), (std::vector<std::string>{"", "\xED\xA0"}))
      << "half a surrogate pair is no beginning of a character";
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
