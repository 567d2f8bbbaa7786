// Which files data.jsonl reads, and how: several, patterns, folders by split, compressed, with broken lines.
#include "csrc/data/jsonl_files.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "csrc/data/jsonl.h"
#include "csrc/data/source.h"
#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

using Texts = std::set<std::string>;

std::string line_of(const std::string& prompt) {
  return R"({"prompt": ")" + prompt + R"(", "completion": "c"})" + "\n";
}

// One member.
std::string gzip(const std::string& text) {
  z_stream stream{};
  deflateInit2(&stream, Z_DEFAULT_COMPRESSION, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

class JsonlFilesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "isentrope_jsonl_files_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ + "/" + name;
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  std::vector<std::string> at(std::vector<std::string> names) const {
    for (std::string& name : names) name = folder_ + (name.empty() ? "" : "/" + name);
    return names;
  }
  // All of the files is for training.
  JsonlConfig whole(const std::vector<std::string>& names) const {
    return {.path = at(names), .validation_fraction = 0, .test_fraction = 0};
  }
  static Texts prompts(const JsonlConfig& config, Split split = Split::train) {
    const Jsonl source(config, 1, split);
    Texts found;
    for (const Example& example : source.take(0, source.size())) found.insert(example.prompt);
    return found;
  }
  std::vector<std::string> lines(const std::string& path) const {
    LineFile file(path);
    std::vector<std::string> lines;
    for (std::string line; file.next(line);) lines.push_back(line);
    return lines;
  }

  std::string folder_;
};

TEST_F(JsonlFilesTest, SeveralFilesAndPatternsInOrderEachOnce) {
  write("b/2.jsonl", line_of("b2"));
  write("b/1.jsonl", line_of("b1"));
  write("a.jsonl", line_of("a") + line_of("aa"));
  JsonlConfig config = whole({"b/*.jsonl", "a.jsonl", "b/1.jsonl", "b/../a.jsonl"});
  std::vector<std::string> names;
  for (const JsonlFile& file : find_jsonl(config.path, "path"))
    names.push_back(std::filesystem::path(file.path).filename());
  EXPECT_EQ(names, (std::vector<std::string>{"1.jsonl", "2.jsonl", "a.jsonl"}));
  const Jsonl source(config, 1, Split::train);
  EXPECT_EQ(source.size(), 4);
  ASSERT_EQ(source.notes().size(), 1u);
  expect_all(source.notes()[0], {"training examples are of 3 files", "1.jsonl 1, ", "a.jsonl 2"});
  EXPECT_TRUE(Jsonl(whole({"a.jsonl"}), 1, Split::train).notes().empty());
  expect_all(message([&] { prompts(whole({"c*.jsonl"})); }), {"no file matches", "c*.jsonl", "data.jsonl.path"});
  write("b/3.jsonl", "{}\n");
  expect_all(message([&] { prompts(config); }), {"b/3.jsonl:1", "\"prompt\" is missing"});
}

TEST_F(JsonlFilesTest, AFolderHasSplitsByName) {
  write("train-00000-of-00002.jsonl", line_of("t0"));
  write("train-00001-of-00002.jsonl.gz", gzip(line_of("t1")));
  write("more/part.jsonl", line_of("t2"));
  write("validation/0.jsonl", line_of("v"));
  write("set.Test.jsonl", line_of("s"));
  write("README.md", "no data");
  write(".cache/train.jsonl", line_of("hidden"));
  JsonlConfig config{.path = at({""})};
  EXPECT_EQ(prompts(config), (Texts{"t0", "t1", "t2"}));
  EXPECT_EQ(prompts(config, Split::validation), (Texts{"v"}));
  EXPECT_EQ(prompts(config, Split::test), (Texts{"s"}));
  config.validation_fraction = 0.5;
  expect_all(message([&] { prompts(config); }), {"validation_fraction", "validation/0.jsonl", "leave"});
  config.validation_fraction = {};
  config.validation_path = write("own.jsonl", line_of("o"));
  EXPECT_EQ(prompts(config), (Texts{"t0", "t1", "t2"})) << "neither those of its own path nor those by name";
  EXPECT_EQ(prompts(config, Split::validation), (Texts{"o"}));
  config.validation_path = folder_;
  EXPECT_EQ(prompts(config, Split::test), (Texts{"s"}));
}

TEST_F(JsonlFilesTest, HeldOutPathsAreNotTrainedOn) {
  for (const char* name : {"1", "2", "3"}) write(std::string(name) + ".jsonl", line_of(name));
  JsonlConfig config{.path = at({"*.jsonl"}), .validation_path = at({"2.jsonl"})[0], .test_path = at({"3.jsonl"})[0]};
  EXPECT_EQ(prompts(config), (Texts{"1"}));
  EXPECT_EQ(prompts(config, Split::validation), (Texts{"2"}));
  config.path = at({"2.jsonl"});
  EXPECT_EQ(prompts(config), (Texts{"2"})) << "a file that is named itself counts";
  config.path = at({"[23].jsonl"});
  expect_all(message([&] { prompts(config); }), {"2.jsonl", "name files for training"});
  config.validation_path = write("dev/train.jsonl", line_of("x"));
  config.validation_path = folder_ + "/dev";
  expect_all(message([&] { prompts(config, Split::validation); }), {"none of the 1 files", "validation_path"});
  std::filesystem::create_directories(folder_ + "/empty");
  expect_all(message([&] { prompts(whole({"empty"})); }), {"empty", "no file that ends in .jsonl"});
}

TEST_F(JsonlFilesTest, GzipIsReadAsPlainTextIs) {
  std::string text = "\xEF\xBB\xBF";
  for (int i = 0; i < 20000; ++i) text += line_of(std::to_string(i * 7919LL));
  text += "last";
  const auto plain = lines(write("plain.jsonl", text));
  ASSERT_EQ(plain.size(), 20001u);
  EXPECT_EQ(plain[0][0], '{') << "no byte order mark";
  EXPECT_EQ(lines(write("one.jsonl.gz", gzip(text))), plain);
  EXPECT_EQ(lines(write("members.jsonl.gz", gzip(text.substr(0, 777)) + gzip("") + gzip(text.substr(777)))), plain);
  EXPECT_EQ(lines(write("padded.jsonl.gz", gzip(text) + std::string(5000, '\0'))), plain);
}

TEST_F(JsonlFilesTest, DamagedGzipIsToldByItsFile) {
  std::string text;
  for (int i = 0; i < 3000; ++i) text += line_of(std::to_string(i * 7919LL));
  const std::string good = gzip(text);
  const auto told = [&](const std::string& bytes) {
    write("bad.jsonl.gz", bytes);
    return message([&] { prompts(whole({"bad.jsonl.gz"})); });
  };
  for (const size_t size : {good.size() - 1, good.size() - 9, good.size() / 2, size_t{5}})
    expect_all(told(good.substr(0, size)), {"bad.jsonl.gz", "end too early"});
  std::string flipped = good;
  flipped[good.size() - 6] ^= 1;  // of the check sum
  expect_all(told(flipped), {"bad.jsonl.gz", "damaged"});
  expect_all(told(good + "garbage"), {"bad.jsonl.gz", "damaged"});
  expect_all(told(text), {"bad.jsonl.gz", ".gz", "none"});
  expect_all(told(""), {"bad.jsonl.gz", "empty"});
}

TEST_F(JsonlFilesTest, BrokenLinesAreSkippedAndCounted) {
  const Tokenizer tokenizer({.characters = "pqc."});
  const Use use{.tokenizer = &tokenizer, .context = 4, .learnt = true};
  DataConfig config;
  config.jsonl = whole({"a.jsonl", "b.jsonl"});
  write("a.jsonl", line_of("p") + "{\"prompt\": \"p\"\n" + line_of("q"));
  write("b.jsonl", line_of("x") + "\n" + line_of("pq"));  // x is outside the alphabet
  expect_all(message([&] { make_source(config, 1, Split::train, &use); }), {"a.jsonl:2", "not JSON"});
  config.on_error = "skip";
  const auto source = make_source(config, 1, Split::train, &use);
  EXPECT_EQ(source->size(), 3);
  EXPECT_EQ(source->skipped(), 2);
  expect_all(source->notes().at(1), {"2 lines", "on_error", "a.jsonl:2: not JSON"});

  write("b.jsonl", line_of("ppppp"));
  expect_all(message([&] { make_source(config, 1, Split::train, &use); }),
             {"b.jsonl:1", "the context holds 4"});  // that is for truncation to say
  write("a.jsonl", "{}\n");
  write("b.jsonl", "[]\n");
  expect_all(message([&] { make_source(config, 1, Split::train, &use); }), {"all 2 lines", "a.jsonl:1: the key"});
}

TEST_F(JsonlFilesTest, CutCompletionsAreCounted) {
  const Tokenizer tokenizer({.characters = "pc."});
  const Use use{.tokenizer = &tokenizer, .context = 4, .learnt = true, .truncation = "truncate"};
  DataConfig config;
  config.jsonl = whole({"a.jsonl"});
  write("a.jsonl", line_of("p") + line_of("ppp") + R"({"prompt": "pp", "completion": "ccc"})");
  const auto source = make_source(config, 1, Split::train, &use);
  ASSERT_EQ(source->notes().size(), 1u);
  expect_all(source->notes()[0], {"2 of 3 training examples", "are cut", "truncate"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
