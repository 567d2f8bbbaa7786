// What the program says: exceptions of every origin, text for terminals, words for shells.
#include "csrc/message.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <system_error>

#include "csrc/durable_file.h"
#include "tests/csrc/message.h"

namespace isentrope {
namespace ISENTROPE_UNIT {

std::string told(const std::function<void()>& action) {
  try {
    action();
  } catch (...) {
    return message_of();
  }
  return "no error";
}

TEST(Message, OwnErrorsStayAsTheyAre) {
  EXPECT_EQ(told([] { throw std::runtime_error("a.yaml:3: steps: 0 is out of range"); }),
            "a.yaml:3: steps: 0 is out of range");
  EXPECT_EQ(told([] { throw std::invalid_argument("größer"); }), "größer");
  EXPECT_EQ(told([] { TORCH_CHECK_VALUE(false, "isentrope::token_entropy: target has dtype Float; wanted Long"); }),
            "isentrope::token_entropy: target has dtype Float; wanted Long");
}

TEST(Message, TorchIsOneSentenceWithAdvice) {
  const std::string internal = told([] { TORCH_CHECK_INDEX(false, "index out of range in self\nsecond line"); });
  EXPECT_EQ(internal.substr(0, internal.find(';')), "PyTorch refuses: index out of range in self");
  for (const std::string& text :
       {internal, told([] { TORCH_CHECK(false, "Storage size calculation overflowed with sizes=[8, 9]"); }),
        told([] { TORCH_CHECK(false, "Found no NVIDIA driver on your system"); })}) {
    EXPECT_EQ(text.find("frame #"), std::string::npos) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_NE(text.find("; "), std::string::npos) << text;
  }
  expect_all(told([] { TORCH_CHECK(false, "Found no NVIDIA driver on your system"); }), {"run.device=cpu"});
  expect_all(told([] {
               TORCH_CHECK(
                   false,
                   "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to "
                   "allocate 4096 bytes. Error code 12 (Cannot allocate memory)");
             }),
             {"not enough memory (4096 bytes at once); make", "smaller"});
}

TEST(Message, TheStandardLibraryIsToldInOurWords) {
  const std::map<std::string, std::function<void()>> raw{
      {"bad_alloc", [] { throw std::bad_alloc(); }},
      {"vector::reserve", [] { std::vector<int>().reserve(~size_t{0}); }},
      {"filesystem error", [] { std::filesystem::directory_iterator("/nowhere/at/all"); }},
      {"json.exception", [] { nlohmann::json::parse("{").clear(); }},
      {"no error", [] { throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again)); }},
      {"std::exception", [] { throw 7; }}};
  for (const auto& [text, action] : raw) EXPECT_EQ(told(action).find(text), std::string::npos) << told(action);
  expect_all(told(raw.at("bad_alloc")), {"not enough memory", "smaller"});
  expect_all(told(raw.at("filesystem error")), {"/nowhere/at/all: No such file or directory; "});
  expect_all(told(raw.at("no error")), {"the system refuses", "run.threads"});
  for (const auto& action : std::initializer_list<std::function<void()>>{
           [] { (void)std::map<int, int>().at(1); }, [] { (void)std::optional<int>().value(); },
           [] { std::function<void()>()(); }, [] { throw std::runtime_error(""); }})
    expect_all(told(action), {"the program itself", "report it"});
}

TEST(Message, IsNoLongerThanAScreenAndKeepsBothEnds) {
  std::string what = "a.jsonl:1: ";
  for (int i = 0; i < 100000; ++i) what += i % 50 ? "é" : "\n";
  const std::string text = told([&] { throw std::runtime_error(what + "; shorten it"); });
  EXPECT_LE(text.size(), kLongestMessage);
  EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 20);
  EXPECT_EQ(valid_utf8(text), text);
  EXPECT_TRUE(text.starts_with("a.jsonl:1: ") && text.ends_with("; shorten it")) << text;
  expect_all(text, {" bytes left out) "});
}

TEST(Message, WhatATerminalCannotShowIsEscaped) {
  EXPECT_EQ(printable(std::string_view("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\x1b[31m\r\x7f"), "\\x1B[31m\\x0D\\x7F");
  EXPECT_EQ(printable("line\n\ttab × 日本"), "line\n\ttab × 日本");
  EXPECT_EQ(printable("\u0085 \u2028 \u202e \u2066"), "\\u0085 \\u2028 \\u202E \\u2066");
  EXPECT_EQ(printable("\xff\xc3(\xe2\x82"), "\\xFF\\xC3(\\xE2\\x82");
}

TEST(Message, BytesThatAreNotUtf8AreReplacedAsPythonDoes) {
  // bytes.decode(errors="replace"): one U+FFFD for each sequence that breaks off.
  EXPECT_EQ(valid_utf8("a\xff b"), "a\uFFFD b");
  EXPECT_EQ(valid_utf8("\xe2\x82"), "\uFFFD");
  EXPECT_EQ(valid_utf8("\xe2\x82z\xf0\x9f\x98"), "\uFFFDz\uFFFD");
  EXPECT_EQ(valid_utf8("\xc0\xaf"), "\uFFFD\uFFFD");                      // overlong
  EXPECT_EQ(valid_utf8("\xed\xa0\x80"), "\uFFFD\uFFFD\uFFFD");            // a surrogate
  EXPECT_EQ(valid_utf8("\xf4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");  // beyond U+10FFFF
  EXPECT_EQ(valid_utf8("é😀"), "é😀");
}

TEST(Message, AShellReadsAQuotedWordBack) {
  EXPECT_EQ(shell_quoted("runs/a-1,b=c"), "runs/a-1,b=c");
  EXPECT_EQ(shell_quoted(""), "''");
  for (const std::string word :
       {"run.dir=with space", "it's", "[{kind: exact}]", "a\nb", "$HOME `id` \\ \" *", "~", "#", "é", "", "'", "!!"}) {
    const std::string command = "printf %s " + shell_quoted(word);
    std::FILE* shell = ::popen(command.c_str(), "r");
    std::string back(100, '\0');
    back.resize(std::fread(back.data(), 1, back.size(), shell));
    EXPECT_EQ(::pclose(shell), 0);
    EXPECT_EQ(back, word) << command;
  }
}

TEST(Message, ANearNameIsSuggested) {
  EXPECT_EQ(suggestion("trian", {"train", "config"}, "the commands"), "; did you mean 'train'?");
  EXPECT_EQ(suggestion("xyz", {"train", "config"}, "the commands"), "; the commands are train, config");
  EXPECT_EQ(suggestion("ab", {}, "they"), "; they are ");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope
