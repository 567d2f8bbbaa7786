// metrics.jsonl, the console, and the folder of a run.
#include "csrc/train/metrics.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "csrc/durable_file.h"
#include "csrc/train/console.h"
#include "csrc/train/run_folder.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ =
        (fs::temp_directory_path() / ("isentrope_metrics_" + std::to_string(::getpid()) + "_" + info->name())).string();
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }
  std::string dir_;
};
using MetricsTest = Files;
using RunFolderTest = Files;

TEST(ToJson, KeysInOrderThenOthersByName) {
  const Record record{
      "grpo", 3, {{"zeta", 1}, {"lr", 0.5}, {"alpha", 2}, {"loss", -1.5}, {"time_s", 9}, {"reward/mean", 0.25}}, ""};
  EXPECT_EQ(
      to_json(record),
      R"({"phase": "grpo", "step": 3, "loss": -1.5, "reward/mean": 0.25, "lr": 0.5, "time_s": 9, "alpha": 2, "zeta": 1})");
}

TEST(ToJson, EvaluationsNameTheirSplit) {
  const Record record{
      "a\"b",
      0,
      {{"eval/greedy", 1}, {"eval/pass@1", 0.25}, {"eval/pass@10", 1}, {"eval/pass@2", 0.5}, {"eval/entropy", 2}},
      "validation"};
  EXPECT_EQ(to_json(record),
            R"({"phase": "a\"b", "step": 0, "eval/split": "validation", "eval/greedy": 1, "eval/pass@1": 0.25, )"
            R"("eval/pass@2": 0.5, "eval/pass@10": 1, "eval/entropy": 2})");
}

TEST(ToJson, StatesAreAnObjectWhoseUndefinedLayersAreNull) {
  Record record{"sft", 20, {{"loss", 1}}};
  record.states = StateStatistics{{0, 2}, {{0.5, 1}, {}}, {{0.25, 0.5}, {}}, {{1.5, 2}, {3, 4}}};
  EXPECT_EQ(to_json(record),
            R"({"phase": "sft", "step": 20, "loss": 1, "mixer_state": {"layers": [0,2], )"
            R"("entropy": [[0.5, 1], null], "normalized": [[0.25, 0.5], null], "rank": [[1.5, 2], [3, 4]]}})");
}

TEST(ToJson, AttentionIsAnObjectOfTables) {
  Record record{"sft", 20, {{"loss", 1}}};
  record.attention =
      AttentionStatistics{{{1, 2}, {3, 4}}, {{0.5, 0.25}, {0, 1}}, {{7, 8}, {9, 10}}, 0.25, 0.5, {"layer 1: \"x\""}};
  EXPECT_EQ(
      to_json(record),
      R"({"phase": "sft", "step": 20, "loss": 1, "attention_entropy": {"entropy": [[1, 2], [3, 4]], )"
      R"("normalized": [[0.5, 0.25], [0, 1]], "max_logit": [[7, 8], [9, 10]], "collapsed": 0.25, "overloaded": 0.5, )"
      R"("alarms": ["layer 1: \"x\""]}})");
  record.attention = AttentionStatistics{.entropy = {{1}}, .normalized = {{0.5}}, .max_logit = {{7}}, .alarms = {}};
  record.attention->bound = {{0.25}};
  record.attention->certified = {{0.75}};
  EXPECT_EQ(
      to_json(record),
      R"({"phase": "sft", "step": 20, "loss": 1, "attention_entropy": {"entropy": [[1]], "normalized": [[0.5]], )"
      R"("max_logit": [[7]], "bound": [[0.25]], "certified": [[0.75]], "collapsed": 0, "overloaded": 0, "alarms": []}})");
}

TEST(ToJson, SpectralNormsAreAnObjectOfLayers) {
  Record record{"sft", 20, {{"sigma/time_share", 0.5}, {"time_s", 3}}};
  record.sigma = {{"layers.0.q", 1.5, 1}, {"head", INFINITY, 2, 3.25}};
  EXPECT_EQ(to_json(record), R"({"phase": "sft", "step": 20, "sigma/time_share": 0.5, "time_s": 3, )"
                             R"("sigma": {"layers.0.q": [1.5, 1], "head": [null, 2, 3.25]}})");
}

TEST(ToJson, NumbersReadBackExactlyAndOthersAreNull) {
  const double inf = std::numeric_limits<double>::infinity();
  for (double value : {0.1, 1.0 / 3, 1e-300, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789}) {
    const auto parsed = nlohmann::json::parse(to_json({"p", 1, {{"loss", value}}, ""}));
    EXPECT_EQ(parsed["loss"].get<double>(), value);
  }
  for (double value : {inf, -inf, std::nan("")})
    EXPECT_TRUE(nlohmann::json::parse(to_json({"p", 1, {{"loss", value}}, ""}))["loss"].is_null());
}

TEST(MetricsText, EvaluationsOfTextAreToldInOrder) {
  const Record record{"p", 4, {{"time_s", 1}, {"eval/bits_per_byte", 2.5}, {"eval/loss", 1.5}}, "test"};
  EXPECT_EQ(
      to_json(record),
      R"({"phase": "p", "step": 4, "eval/split": "test", "eval/loss": 1.5, "eval/bits_per_byte": 2.5, "time_s": 1})");
}

TEST_F(MetricsTest, AppendsWholeLines) {
  const std::string file = dir_ + "/m.jsonl";
  Metrics(file).write({"sft", 1, {{"loss", 2}}, ""});
  Metrics(file).write({"sft", 2, {{"loss", 1}}, ""});
  EXPECT_EQ(read_whole(file),
            "{\"phase\": \"sft\", \"step\": 1, \"loss\": 2}\n{\"phase\": \"sft\", \"step\": 2, \"loss\": 1}\n");
}

TEST_F(MetricsTest, AFullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  Metrics metrics("/dev/full");
  try {
    metrics.write({"sft", 1, {}, ""});
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_TRUE(std::string(error.what())
                    .starts_with("/dev/full: cannot be written: No space left on device (28 bytes needed, "))
        << error.what();
  }
}

TEST_F(MetricsTest, RoomIsAskedForAndNotSeen) {
  const std::string file = dir_ + "/m.jsonl", first = to_json({"sft", 1, {}, ""}) + "\n";
  Metrics metrics(file);
  metrics.write({"sft", 1, {}, ""});
  metrics.make_room(10000);
  EXPECT_EQ(read_whole(file), first);
  metrics.write({"sft", 2, {}, ""});
  EXPECT_EQ(read_whole(file), first + to_json({"sft", 2, {}, ""}) + "\n");

  rlimit limit{}, low{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  low = limit;
  low.rlim_cur = fs::file_size(file) + 99;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &low), 0);
  std::string said;
  metrics.make_room(98);  // and its end of line
  try {
    metrics.make_room(99);
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_TRUE(said.starts_with(file + ": cannot be written: File too large (100 bytes needed, ")) << said;
  if (fs::exists("/dev/full")) EXPECT_NO_THROW(Metrics("/dev/full").make_room(10)) << "it keeps no room";
  fs::remove(file);
  EXPECT_THROW(metrics.make_room(1), std::runtime_error);
}

TEST_F(MetricsTest, ResumeDropsWhatComesAfterAndTornLines) {
  const std::string file = dir_ + "/m.jsonl";
  std::string lines[6];
  lines[0] = to_json({"sft", 0, {{"eval/greedy", 0}}, "validation"}) + "\n";
  lines[1] = to_json({"sft", 1, {{"loss", 2}}, ""}) + "\n";
  lines[2] = to_json({"sft", 2, {{"loss", 1}}, ""}) + "\n";
  lines[3] = to_json({"grpo", 1, {{"loss", NAN}}, ""}) + "\n";
  lines[4] = to_json({"grpo", 2, {{"loss", 0}}, ""}) + "\n";
  lines[5] = "{\"phase\": \"grpo\", \"st";
  auto after = [&](int64_t phase, int64_t step, bool evaluated = true) {
    std::ofstream(file) << lines[0] << lines[1] << lines[2] << lines[3] << lines[4] << lines[5];
    if (phase == 0)
      keep_metrics_until(file, {}, "sft", step, evaluated);
    else
      keep_metrics_until(file, {"sft"}, "grpo", step, evaluated);
    return read_whole(file);
  };
  EXPECT_EQ(after(0, 0, false), "");  // the evaluation at step 0 is to be made again
  EXPECT_EQ(after(0, 1, false), lines[0] + lines[1]);
  EXPECT_EQ(after(0, 0), lines[0]);
  EXPECT_EQ(after(0, 1), lines[0] + lines[1]);
  EXPECT_EQ(after(0, 9), lines[0] + lines[1] + lines[2]);
  EXPECT_EQ(after(1, 1), lines[0] + lines[1] + lines[2] + lines[3]);
  EXPECT_EQ(after(1, 2), lines[0] + lines[1] + lines[2] + lines[3] + lines[4]);
  EXPECT_EQ(after(0, -1), "");
  EXPECT_FALSE(fs::exists(file + ".tmp"));
  keep_metrics_until(dir_ + "/absent", {}, "sft", 0);
  EXPECT_FALSE(fs::exists(dir_ + "/absent"));
}

TEST_F(MetricsTest, APhaseThatEndedKeepsItsLinesWhateverTheConfigurationHas) {
  const std::string file = dir_ + "/m.jsonl";
  const std::string old = to_json({"renamed", 7, {{"loss", 2}}, ""}) + "\n",
                    now = to_json({"b", 1, {{"loss", 2}}, ""}) + "\n";
  const std::string other = to_json({"c", 1, {{"loss", 2}}, ""}) + "\n";
  std::ofstream(file) << old << now << other;
  keep_metrics_until(file, {"renamed"}, "b", 1);
  EXPECT_EQ(read_whole(file), old + now);
}

TEST_F(MetricsTest, ChangedOrMissingLinesAreRefused) {
  const std::string file = dir_ + "/m.jsonl";
  const auto line = [](int64_t step, double loss, double time) {
    return to_json({"sft", step, {{"loss", loss}, {"time_s", time}}, ""}) + "\n";
  };
  const std::string whole = line(1, 2, 1) + line(2, 1.25, 2);
  int64_t written;
  {
    Metrics metrics(file);
    metrics.write({"sft", 1, {{"loss", 2}, {"time_s", 1}}, ""});
    metrics.write({"sft", 2, {{"loss", 1.25}, {"time_s", 2}}, ""});
    written = metrics.place().digest.value();
  }
  EXPECT_EQ(read_whole(file), whole);
  const std::string later = line(3, 1, 3);  // of steps that are made again
  for (const std::string& right : {whole, whole + later, line(1, 2, 7) + line(2, 1.25, 9)}) {
    std::ofstream(file) << right;
    EXPECT_EQ(keep_metrics_until(file, {}, "sft", 2, true, written).value(), written);
  }
  for (const std::string& wrong :
       {std::string(), line(1, 2, 1), line(2, 1.25, 2), line(1, 2, 1) + line(2, 1.26, 2), line(1, 2, 1) + whole,
        "{\"phase\": \"sft\", " + whole.substr(1), line(2, 1.25, 2) + line(1, 2, 1)}) {
    std::ofstream(file) << wrong << later;
    try {
      keep_metrics_until(file, {}, "sft", 2, true, written);
      ADD_FAILURE() << "no error for " << wrong;
    } catch (const std::runtime_error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with(file + ": its lines are not those")) << error.what();
    }
    EXPECT_EQ(read_whole(file), wrong + later);
  }
}

TEST_F(MetricsTest, WhatIsNotWholeIsTakenBack) {
  const std::string file = dir_ + "/m.jsonl";
  Metrics metrics(file);
  metrics.write({"sft", 1, {}, ""});
  const Metrics::Place one = metrics.place();
  metrics.write({"sft", 2, {}, ""});
  EXPECT_NE(metrics.place().digest.value(), one.digest.value());
  metrics.back_to(one);
  EXPECT_EQ(read_whole(file), to_json({"sft", 1, {}, ""}) + "\n");
  EXPECT_EQ(metrics.place().digest.value(), one.digest.value());
}

TEST_F(MetricsTest, AFileThatIsGoneStopsTheRun) {
  const std::string file = dir_ + "/m.jsonl";
  for (const bool renamed : {false, true}) {
    Metrics metrics(file);
    metrics.write({"sft", 1, {}, ""});
    if (renamed)
      fs::rename(file, file + ".old");
    else
      fs::remove(file);
    for (const bool made_anew : {false, true}) {
      if (made_anew) std::ofstream(file) << "";
      try {
        metrics.write({"sft", 2, {}, ""});
        ADD_FAILURE() << "no error";
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(std::string(error.what()).find(file + ": was removed or renamed"), 0u) << error.what();
      }
    }
  }
}

TEST_F(MetricsTest, ADamagedLineInTheMiddleIsNotDropped) {
  const std::string file = dir_ + "/m.jsonl";
  std::ofstream(file) << "{\"phase\": \"sft\", \"step\": 1}\nrubbish\n";
  try {
    keep_metrics_until(file, {}, "sft", 1);
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with(file + ":2: not a line of metrics")) << error.what();
  }
}

TEST_F(MetricsTest, ConsoleOfAFileHasPlainLines) {
  const std::string path = dir_ + "/out";
  std::FILE* out = std::fopen(path.c_str(), "w");
  {
    FileScreen screen(out);
    Console console(screen, false, 0.0);
    console.begin_phase("grpo", 100, 10);
    console.step(
        {"grpo", 12, {{"loss", -0.1}, {"reward/mean", 0.4125}, {"entropy/mean", 0.73}, {"tokens_per_s", 21400}}, ""});
    console.print("note");
    console.end_phase();
  }
  {
    FileScreen screen(out);
    Console quiet(screen, true, 0.0);
    quiet.begin_phase("x", 5);
    quiet.step({"x", 1, {{"loss", 1}}, ""});
    quiet.print("nothing");
    quiet.end_phase();
  }
  std::fclose(out);
  const std::string text = read_whole(path);
  EXPECT_EQ(text.find("grpo  12/100  reward 0.41"), 0u) << text;
  EXPECT_NE(text.find("  entropy 0.730  21.4k tokens/s  0s left\nnote\ngrpo  12/100  "), std::string::npos) << text;
  EXPECT_NE(text.find("  in 0s\n"), std::string::npos) << text;
  EXPECT_EQ(text.find('\r'), std::string::npos) << text;
  EXPECT_EQ(text.find("nothing"), std::string::npos);
}

TEST_F(MetricsTest, ConsoleOfATerminalRedrawsOneLine) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(master, 0);
  ASSERT_EQ(::grantpt(master), 0);
  ASSERT_EQ(::unlockpt(master), 0);
  std::FILE* out = std::fopen(::ptsname(master), "w");
  ASSERT_NE(out, nullptr);
  const char* term = std::getenv("TERM");
  const std::string old = term ? term : "";
  ::setenv("TERM", "xterm", 1);
  {
    FileScreen screen(out);
    Console console(screen);
    console.begin_phase("sft", 10);
    for (int step = 1; step <= 10; ++step) console.step({"sft", step, {{"loss", 0.5}}, ""});
    console.print("note");
    console.end_phase();
  }
  old.empty() ? ::unsetenv("TERM") : ::setenv("TERM", old.c_str(), 1);
  std::fclose(out);
  std::string text;
  char part[4096];
  for (ssize_t got; (got = ::read(master, part, sizeof(part))) > 0;)
    text.append(part, static_cast<size_t>(got));  // to its end
  ::close(master);
  EXPECT_EQ(text.find("\r\033[2Ksft  0/10 ────"), 0u) << text;
  EXPECT_NE(text.find("\r\033[2Knote\r\n"), std::string::npos) << text;
  EXPECT_NE(text.find("━━━━  loss 0.5000"), std::string::npos) << text;
  // Ten steps in no time are not drawn one by one: begun, and after the note.
  size_t bars = 0;
  for (size_t at = 0; (at = text.find("/10 ", at)) != std::string::npos; ++at) ++bars;
  EXPECT_LE(bars, 4u) << text;
}

TEST_F(RunFolderTest, RefusesWhatIsNoFileBeforeItIsRead) {
  for (const char* name : {"metrics.jsonl", "samples.jsonl", "config.yaml", "summary.json", "checkpoints"}) {
    const std::string run = dir_ + "/" + name, place = run + "/" + name;
    fs::create_directories(run);
    ASSERT_EQ(::mkfifo(place.c_str(), 0600), 0);  // reading it would wait for ever
    RunFolder folder(run, true);
    try {
      folder.begin();
      ADD_FAILURE() << "no error for " << name;
    } catch (const std::runtime_error& error) {
      EXPECT_TRUE(std::string(error.what()).starts_with(place + ": is no ")) << error.what();
    }
  }
}

TEST_F(RunFolderTest, RefusesAUsedFolderUnlessResumed) {
  const std::string run = dir_ + "/a/b";
  { RunFolder folder(run, false); }
  EXPECT_FALSE(fs::exists(dir_ + "/a"));
  fs::create_directories(run);
  std::ofstream(run + "/lock") << "";
  { RunFolder folder(run, false); }  // a lock alone is no run
  std::ofstream(run + "/metrics.jsonl") << "";
  { RunFolder folder(run, false); }  // nor is a run that ended before its first step
  std::ofstream(run + "/metrics.jsonl") << "{}\n";
  try {
    RunFolder folder(run, false);
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("--resume"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("run.dir="), std::string::npos) << error.what();
  }
  RunFolder folder(run, true);
  EXPECT_EQ(folder.metrics(), run + "/metrics.jsonl");
}

TEST_F(RunFolderTest, ASecondTrainerIsTurnedAwayAndNamesTheFirst) {
  const std::string run = dir_ + "/run";
  int ready[2], stop[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(stop), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    RunFolder folder(run, false);
    char byte = 1;
    (void)!::write(ready[1], &byte, 1);
    (void)!::read(stop[0], &byte, 1);
    ::_exit(0);
  }
  char byte;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  for (const bool resume : {false, true}) {
    try {
      RunFolder folder(run, resume);
      ADD_FAILURE() << "no error";
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("process " + std::to_string(child)), std::string::npos) << error.what();
    }
  }
  ASSERT_EQ(::kill(child, SIGKILL), 0);  // the lock dies with its process
  ::waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(RunFolder(run, true));
  for (int fd : {ready[0], ready[1], stop[0], stop[1]}) ::close(fd);
}

TEST_F(RunFolderTest, AStartThatFailsLeavesTheFolderAsItWas) {
  const std::string outer = dir_ + "/a", run = outer + "/b";
  {
    RunFolder folder(run, false);
    folder.begin();
    std::ofstream(folder.metrics()) << "";
    std::ofstream(folder.config()) << "new";
  }
  EXPECT_FALSE(fs::exists(outer));
  fs::create_directories(run);
  std::ofstream(run + "/metrics.jsonl") << "{}\n";
  std::ofstream(run + "/config.yaml") << "old";
  {
    RunFolder folder(run, true);
    folder.begin();
    fs::resize_file(folder.metrics(), 0);
    std::ofstream(folder.config()) << "new";
    std::ofstream(folder.samples()) << "";
  }
  EXPECT_EQ(read_whole(run + "/metrics.jsonl"), "{}\n");
  EXPECT_EQ(read_whole(run + "/config.yaml"), "old");
  EXPECT_FALSE(fs::exists(run + "/samples.jsonl") || fs::exists(run + "/lock"));
  {
    RunFolder folder(run, true);
    folder.begin();
    std::ofstream(folder.config()) << "new";
    folder.keep();
  }
  EXPECT_EQ(read_whole(run + "/config.yaml"), "new");
}

TEST_F(RunFolderTest, AFolderThatIsGoneIsNotMadeAnew) {
  const std::string run = dir_ + "/run";
  RunFolder folder(run, false);
  EXPECT_NO_THROW(folder.check());
  fs::rename(run, run + "-moved");
  EXPECT_THROW(folder.check(), std::runtime_error);
  fs::create_directories(run);
  EXPECT_THROW(folder.check(), std::runtime_error);
}

TEST_F(RunFolderTest, FoldersThatAreNoPlaceForARun) {
  for (const char* dir : {"/", "", "/.", "//"}) EXPECT_THROW(RunFolder(dir, true), std::runtime_error) << dir;
  fs::create_directories(dir_ + "/here");
  const fs::path before = fs::current_path();
  fs::current_path(dir_ + "/here");
  RunFolder folder("run", false);
  fs::current_path(before);
  EXPECT_EQ(folder.dir(), dir_ + "/here/run");
}

TEST_F(RunFolderTest, AFolderThatCannotBeMade) {
  std::ofstream(dir_ + "/file") << "x";
  EXPECT_THROW(RunFolder(dir_ + "/file/run", false), std::runtime_error);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
