// Text files to token shards: which files, which split, when a shard is used again, and what errors say.
#include "csrc/data/corpus.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/csrc/message.h"

namespace isentrope::data {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

class CorpusTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "isentrope_corpus_" + std::to_string(::getpid()) + "_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(folder_);
    fs::create_directories(folder_ + "/text");
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string write(const std::string& name, const std::string& text) const {
    const std::string path = folder_ + "/text/" + name;
    fs::create_directories(fs::path(path).parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  // The folder as a corpus that is for training alone.
  CorpusConfig config() const {
    return {.paths = {folder_ + "/text"}, .validation_fraction = 0, .test_fraction = 0, .cache = folder_ + "/cache"};
  }
  // The tokens of a split as text, ends of documents as "|".
  std::string text_of(const CorpusConfig& corpus, Split split = Split::train) const {
    const auto shard = open_corpus(corpus, bytes_, split);
    std::string text;
    for (const int64_t token : shard->tokens())
      text += token == bytes_.eos_id() ? "|" : bytes_.decode({static_cast<int64_t>(token)});
    return text;
  }
  Names names_of(const CorpusConfig& corpus) const {
    Names names;
    for (const CorpusFile& file : find_files(corpus)) names.push_back(file.name);
    return names;
  }
  Names shards() const {
    Names names;
    for (const auto& entry : fs::directory_iterator(folder_ + "/cache"))
      if (entry.path().filename() != "lock") names.push_back(entry.path().string());
    return names;
  }

  const Tokenizer bytes_{{.kind = "bytes"}};
  std::string folder_;
};

TEST_F(CorpusTest, JoinsFilesInTheOrderOfTheirNames) {
  write("b.txt", "two");
  write("a/z.txt", "\xff\n");
  write("a.txt", "one");
  write("empty.txt", "");
  write("c.md", "no");
  write(".hidden.txt", "no");
  write(".git/d.txt", "no");
  EXPECT_EQ(names_of(config()), (Names{"a.txt", "a/z.txt", "b.txt", "empty.txt"}));
  EXPECT_EQ(text_of(config()), "one|\xff\n|two|");
}

TEST_F(CorpusTest, TakesFilesFoldersAndPatterns) {
  const std::string a = write("a.txt", "a"), b = write("sub/b.md", "b"), c = write("sub/skip/c.txt", "c");
  write("sub/d.txt", "d");
  CorpusConfig corpus = config();
  corpus.paths = {b, folder_ + "/text/sub", folder_ + "/text/*.txt"};
  EXPECT_EQ(names_of(corpus), (Names{"b.md", "d.txt", "skip/c.txt", "a.txt"}));
  corpus.exclude = {"skip"};
  EXPECT_EQ(names_of(corpus), (Names{"b.md", "d.txt", "a.txt"}));
  corpus.paths = {folder_ + "/text/sub", folder_ + "/text"};
  corpus.suffixes = {};
  EXPECT_EQ(names_of(corpus), (Names{"b.md", "d.txt", "a.txt"})) << "a file that is met twice counts once";
}

TEST_F(CorpusTest, SplitsAreDisjointWholeAndByName) {
  for (int i = 0; i < 200; ++i) write(std::to_string(i) + ".txt", std::to_string(i));
  CorpusConfig corpus = config();
  corpus.validation_fraction = 0.2;
  corpus.test_fraction = 0.1;
  std::multiset<std::string> all;
  std::vector<size_t> sizes;
  for (const Split split : {Split::train, Split::validation, Split::test}) {
    std::string text = text_of(corpus, split);
    sizes.push_back(0);
    for (size_t end; (end = text.find('|')) != std::string::npos; text.erase(0, end + 1), ++sizes.back())
      all.insert(text.substr(0, end));
  }
  EXPECT_EQ(all.size(), 200u);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 200u);
  EXPECT_NEAR(static_cast<double>(sizes[1]), 40, 20);
  EXPECT_NEAR(static_cast<double>(sizes[2]), 20, 15);
  const std::string before = text_of(corpus, Split::validation);
  fs::rename(folder_ + "/text", folder_ + "/moved");
  corpus.paths = {folder_ + "/moved"};
  EXPECT_EQ(text_of(corpus, Split::validation), before) << "the place of the folder does not count";
}

TEST_F(CorpusTest, AShardIsUsedAgainUntilSomethingChanges) {
  const std::string a = write("a.txt", "aa");
  text_of(config());
  ASSERT_EQ(shards().size(), 1u);
  const std::string shard = shards()[0];
  const auto written = [&] { return fs::last_write_time(shard); };
  const auto long_ago = written() - std::chrono::hours(1);
  const auto untouched = [&] {
    fs::last_write_time(shard, long_ago);
    text_of(config());
    return written() == long_ago;
  };
  EXPECT_TRUE(untouched());
  write("b.txt", "b");
  EXPECT_FALSE(untouched());
  EXPECT_EQ(text_of(config()), "aa|b|");
  write("a.txt", "ab");  // of the same length
  fs::last_write_time(a, fs::last_write_time(a) + std::chrono::seconds(1));
  EXPECT_FALSE(untouched());
  EXPECT_EQ(text_of(config()), "ab|b|");
  EXPECT_TRUE(untouched());
  fs::resize_file(shard, fs::file_size(shard) - 1);
  EXPECT_EQ(text_of(config()), "ab|b|") << "a torn shard is written anew";
  {
    std::fstream bytes(shard, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekp(40);
    bytes.put('z');
  }
  EXPECT_EQ(text_of(config()), "ab|b|") << "a shard with another token too";
  std::ofstream(shard) << "rubbish";
  EXPECT_EQ(text_of(config()), "ab|b|");
  EXPECT_EQ(shards().size(), 1u);
  open_corpus(config(), Tokenizer({.characters = "ab."}), Split::train);
  EXPECT_EQ(shards().size(), 2u) << "another tokenizer has a shard of its own";
}

TEST_F(CorpusTest, AMappedShardOutlivesItsReplacement) {
  write("a.txt", "before");
  const auto shard = open_corpus(config(), bytes_, Split::train);
  const uint64_t digest = shard->digest();
  write("a.txt", "after, and longer");
  EXPECT_NE(open_corpus(config(), bytes_, Split::train)->digest(), digest);
  EXPECT_EQ(shard->tokens()[0], bytes_.encode("b")[0]);
  EXPECT_EQ(shard->tokens().size(), 7u);
}

TEST_F(CorpusTest, FindsPythonSources) {
  CorpusConfig corpus = config();
  corpus.paths = {};
  corpus.python_sources = {"stdlib"};
  const Names names = names_of(corpus);
  EXPECT_NE(std::find(names.begin(), names.end(), "json/decoder.py"), names.end());
  for (const std::string& name : names) {
    EXPECT_TRUE(name.ends_with(".py")) << name;
    EXPECT_EQ(("/" + name).find("/test/"), std::string::npos) << name;
    EXPECT_EQ(("/" + name).find("/site-packages/"), std::string::npos) << name;
  }
  corpus.python_sources = {"json", "stdlib"};  // a package of its own, and what it is part of: a file counts once
  const Names both = names_of(corpus);
  EXPECT_EQ(both.front(), "__init__.py");
  EXPECT_EQ(both.size(), names.size());
  corpus.python_sources = {"no_such_package"};
  expect_all(message<std::runtime_error>([&] { find_files(corpus); }),
             {"python_sources", "no_such_package", "install"});
  corpus.python_sources = {"os; rm"};
  expect_all(message([&] { find_files(corpus); }), {"python_sources", "os; rm", "no name of a package"});
  corpus.python_sources = {"stdlib"};
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", folder_.c_str(), 1);
  const std::string without = message<std::runtime_error>([&] { find_files(corpus); });
  ::setenv("PATH", path.c_str(), 1);
  expect_all(without, {"python_sources", "python3", "paths"});
}

TEST_F(CorpusTest, ErrorsNameWhatIsWrong) {
  const auto wrong = [&](const Names& paths) {
    CorpusConfig corpus = config();
    corpus.paths = paths;
    return message([&] { open_corpus(corpus, bytes_, Split::train); });
  };
  write("a.md", "x");
  expect_all(wrong({}), {"paths is empty", "python_sources"});
  expect_all(wrong({folder_ + "/none"}), {"/none", "no file or folder", "data.corpus.paths"});
  expect_all(wrong({folder_ + "/text/*.py"}), {"no file matches", "/text/*.py"});
  expect_all(wrong({folder_ + "/text"}), {"/text", ".txt", "suffixes"});
  expect_all(wrong({"a/**/b"}), {"a/**/b", "name the folder"});
  write("a.txt", "abc");
  CorpusConfig corpus = config();
  expect_all(message([&] { open_corpus(corpus, Tokenizer({.characters = "ab."}), Split::train); }),
             {"a.txt", "'c'", "place 3", "tokenizer.characters"});
  EXPECT_TRUE(shards().empty()) << "nothing of a shard that could not be written is left";
  corpus.validation_fraction = corpus.test_fraction = 0.5;
  expect_all(message([&] { find_files(corpus); }), {"leave nothing"});
  corpus = config();
  corpus.cache = folder_ + "/text/a.txt";
  expect_all(message([&] { open_corpus(corpus, bytes_, Split::train); }), {"cache", "a.txt", "data.corpus.cache"});
}

TEST_F(CorpusTest, WhatIsNoFileIsRefusedOrLeftOutAndTold) {
  const auto wrong = [&](const std::string& path) {
    CorpusConfig corpus = config();
    corpus.paths = {path};
    const std::string said = message([&] { open_corpus(corpus, bytes_, Split::train); });
    EXPECT_EQ(said.find("filesystem error"), std::string::npos) << said;
    EXPECT_LT(said.size(), 1000u);
    return said;
  };
  write("a.txt", "abc");
  const std::string pipe = folder_ + "/text/pipe.txt", link = folder_ + "/text/link.txt",
                    loop = folder_ + "/text/loop.txt";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0666), 0);
  fs::create_symlink(folder_ + "/none", link);
  fs::create_symlink(loop, loop);
  expect_all(wrong("/dev/zero"), {"/dev/zero cannot be read", "a device", "data.corpus.paths"});
  expect_all(wrong(pipe), {"pipe.txt cannot be read", "a pipe"});
  expect_all(wrong(loop), {"loop.txt", "data.corpus.paths"});
  expect_all(wrong(std::string(10000, 'x')), {"cannot be read", "(10000 bytes)"});
  LeftOutFiles left_out;
  const auto files = find_files(config(), &left_out);
  ASSERT_EQ(files.size(), 1u);
  EXPECT_EQ(files[0].name, "a.txt");
  EXPECT_EQ((std::set<std::string>(left_out.irregular.begin(), left_out.irregular.end())),
            (std::set<std::string>{pipe, link, loop}));
  EXPECT_EQ(text_of(config()), "abc|");
}

TEST_F(CorpusTest, FewFilesAreCutAndNoPartIsEmptyByChance) {
  CorpusConfig corpus = config();
  corpus.validation_fraction = corpus.test_fraction = 0.1;
  const std::vector<Split> all{Split::train, Split::validation, Split::test};
  std::string text;
  for (int i = 0; i < 100; ++i) text += "line " + std::to_string(i) + "\n";
  write("a.txt", text);
  std::string joined;
  for (const Split split : all) {
    const std::string part = text_of(corpus, split);
    EXPECT_TRUE(part.ends_with("\n|")) << part << ": cut where a line ends";
    joined += part.substr(0, part.size() - 1);
  }
  EXPECT_EQ(joined, text);
  EXPECT_NEAR(static_cast<double>(text_of(corpus, Split::test).size()), 0.1 * static_cast<double>(text.size()), 10);
  corpus.validation_fraction = corpus.test_fraction = 0;
  EXPECT_EQ(text_of(corpus), text + "|");
  corpus.validation_fraction = corpus.test_fraction = 0.01;
  for (int files = 2; files < 12; ++files) {
    write(std::string(1, static_cast<char>('a' + files)) + ".txt", text);
    for (const Split split : all) EXPECT_FALSE(text_of(corpus, split).empty()) << files;
  }
}

TEST_F(CorpusTest, APartMayHaveAPathOfItsOwn) {
  for (const char* name : {"a.txt", "b.txt", "c.txt", "held/v.txt", "held/w.txt", "t.md"})
    write(name, std::string(name, 1) == "h" ? std::string(name + 5, 1) : std::string(name, 1));
  CorpusConfig corpus = config();
  corpus.validation_fraction = corpus.test_fraction = {};
  corpus.validation_path = folder_ + "/text/held";
  EXPECT_EQ(corpus.validation().share(), 0);
  corpus.test_path = folder_ + "/text/*.md";
  EXPECT_EQ(text_of(corpus, Split::validation), "v|w|");
  EXPECT_EQ(text_of(corpus, Split::test), "t|");
  EXPECT_EQ(text_of(corpus), "a|b|c|") << "what is held out is not trained on, though paths has it too";
  const auto files = find_files(corpus);
  EXPECT_EQ(count_files(files, corpus, Split::train), 3);
  EXPECT_EQ(count_files(files, corpus, Split::validation), 2);
  EXPECT_EQ(count_files(files, corpus, Split::test), 1);
  // One part with a path, the other a share: of the files of paths alone, which are enough for two parts.
  corpus.test_path = "";
  corpus.test_fraction = 0.3;
  EXPECT_EQ(text_of(corpus).size() + text_of(corpus, Split::test).size(), 6u);
  EXPECT_EQ(text_of(corpus, Split::test).size(), 2u);
  EXPECT_EQ(text_of(corpus, Split::validation), "v|w|");
  write("held/x.txt", "x");
  EXPECT_EQ(text_of(corpus, Split::validation), "v|w|x|") << "a cache of other files is made anew";
  for (const Split split : {Split::train, Split::validation, Split::test}) EXPECT_TRUE(corpus.has(split));
  corpus.test_fraction = 0;
  EXPECT_FALSE(corpus.has(Split::test));
  corpus.paths = {folder_ + "/text/held"};
  expect_all(message([&] { find_files(corpus); }), {"every file of data.corpus.paths", "validation_path"});
  corpus.validation_path = folder_ + "/none";
  expect_all(message([&] { find_files(corpus); }), {"/none", "data.corpus.validation_path"});
  corpus.validation_path = folder_ + "/**/v.txt";
  expect_all(corpus.problem(), {"validation_path", "name the folder itself"});
  for (const char* part : {"validation", "test"}) {
    CorpusConfig both = config();
    both.validation_fraction = both.test_fraction = {};
    (std::string(part) == "test" ? both.test_path : both.validation_path) = folder_ + "/text/held";
    EXPECT_EQ(both.problem(), "");
    (std::string(part) == "test" ? both.test_fraction : both.validation_fraction) = 0.05;
    expect_all(both.problem(), {part, "_fraction", "_path", "leave one of the two out"});
  }
}

TEST_F(CorpusTest, FilesLeftOutByTheirSuffixAreCounted) {
  for (const char* name : {"a.txt", "b.md", "c.md", "d.py", "Makefile", ".hidden.md", "skip/e.md", "f.rst"})
    write(name, "x");
  CorpusConfig corpus = config();
  corpus.exclude = {"skip"};
  const auto left_out = [&] {
    LeftOutFiles files;
    find_files(corpus, &files);
    return files;
  };
  EXPECT_EQ(left_out().suffixes, (std::map<std::string, int64_t>{{".md", 2}, {".py", 1}, {"", 1}, {".rst", 1}}));
  EXPECT_EQ(left_out().by_suffix(), 5);
  EXPECT_EQ(left_out().told(), "2 .md, 1 without a suffix, 1 .py, 1 .rst");
  corpus.paths = {folder_ + "/text", folder_ + "/text/*.md", folder_ + "/text"};
  EXPECT_EQ(left_out().told(), "1 without a suffix, 1 .py, 1 .rst") << "each once, and none that is named elsewhere";
  corpus.suffixes = {};
  EXPECT_EQ(left_out().told(), "");
  for (char c = 'a'; c < 'h'; ++c) write(std::string("x.") + c, "x");
  corpus.suffixes = {".txt"};
  EXPECT_EQ(left_out().told(), "1 without a suffix, 1 .a, 1 .b, 1 .c, 1 .d, 5 of other suffixes");
  corpus.paths = {folder_ + "/text"};
  corpus.suffixes = {".tex"};
  expect_all(message([&] { find_files(corpus); }),
             {"ends in one of .tex", "(there are 2 .md,", "data.corpus.suffixes"});
}

TEST_F(CorpusTest, AShardOfAnotherVocabularyIsTold) {
  write("a.txt", "abc");
  text_of(config());
  const std::string shard = shards().at(0);
  {
    TokenShardWriter writer(shard, *TokenShard::fingerprint_of(shard), 0);
    writer.write(std::vector<int64_t>{1, 300, 2});
    writer.commit();
  }
  expect_all(message([&] { text_of(config()); }), {shard.c_str(), "token 1 is 300", "has 258", "delete the file"});
}

TEST_F(CorpusTest, AFullDiskIsAnError) {
  write("a.txt", std::string(100'000, 'x'));
  const pid_t child = ::fork();
  if (child == 0) {
    const struct rlimit limit { 50'000, 50'000 };
    ::signal(SIGXFSZ, SIG_IGN);  // so that write() fails with EFBIG
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string told = message<std::runtime_error>([&] { open_corpus(config(), bytes_, Split::train); });
    const bool named = told.find("train.tokens.tmp: cannot be written") != std::string::npos &&
                       told.find("200002 bytes needed") != std::string::npos &&
                       told.find("data.corpus.cache") != std::string::npos;
    ::_exit(named ? 0 : 1);
  }
  int status = 1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(shards().empty());
  EXPECT_EQ(text_of(config()).size(), 100'001u);
}

TEST_F(CorpusTest, AShardSaysWhatIsWrongWithIt) {
  const std::string file = folder_ + "/x.tokens";
  const auto wrong = [&] { return message<std::runtime_error>([&] { TokenShard shard(file); }); };
  expect_all(wrong(), {"x.tokens", "No such file"});
  {
    TokenShardWriter writer(file, 7, 0);
    writer.write(std::vector<int64_t>{1, 65535});
    EXPECT_THROW(writer.write(std::vector<int64_t>{65536}), std::invalid_argument);
    writer.commit();
  }
  EXPECT_EQ(TokenShard(file).tokens()[1], 65535);
  {
    const std::string wide = file + ".wide";
    TokenShardWriter writer(wide, 7, 0, 65537);
    writer.write(std::vector<int64_t>{65536, 1, 65535});
    EXPECT_THROW(writer.write(std::vector<int64_t>{int64_t{1} << 32}), std::invalid_argument);
    writer.commit();
    EXPECT_EQ(TokenShard(wide).tokens()[0], 65536);
    EXPECT_EQ(TokenShard(wide).tokens()[2], 65535);
    EXPECT_EQ(fs::file_size(wide), 40u + 12u);
  }
  EXPECT_EQ(TokenShard::fingerprint_of(file), 7u);
  EXPECT_EQ(fs::file_size(file), 44u);
  const auto flip = [&](const std::string& path, int64_t place) {
    std::fstream bytes(path, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(place);
    const char byte = static_cast<char>(bytes.get() ^ 1);
    bytes.seekp(place);
    bytes.put(byte);
  };
  for (const int64_t place : {40, 32}) {  // a token; the digest in the header
    flip(file, place);
    expect_all(wrong(), {"x.tokens", "damaged"});
    flip(file, place);
  }
  EXPECT_NO_THROW(TokenShard{file});
  fs::resize_file(file, 43);
  expect_all(wrong(), {"truncated", "1 tokens", "counts 2"});
  std::ofstream(file) << "ISENTOK\n" << std::string("\2\0\0\0\2\0\0\0", 8) << std::string(24, '\0');
  expect_all(wrong(), {"version 2", "version 1"});
  std::ofstream(file) << "short";
  expect_all(wrong(), {"not a token shard"});
  EXPECT_EQ(TokenShard::fingerprint_of(file), std::nullopt);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::data
