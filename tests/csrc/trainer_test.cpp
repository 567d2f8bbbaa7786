// Whole runs of a tiny model in one process: steps that are broken off, resumption, and what it compares and refuses.
#include "csrc/train/trainer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "csrc/durable_file.h"
#include "csrc/train/run_checkpoints.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kModel = R"(
run: {dir: runs/x, seed: 1, threads: 1, checkpoint_every: 4, device: cpu}
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, num_key_value_heads: 1, intermediate_size: 16, max_position_embeddings: 24}
test: {prompts: 2, sampled_prompts: 2, num_generations: 1}
phases:
)";

std::string sft(const std::string& name, int64_t steps) {
  return "  - {name: " + name + ", steps: " + std::to_string(steps) +
         ", objective: {kind: sft}, data: {tint: {task: signed_sum, terms: [2]}}, batch: {sequences: 4}, optimizer: "
         "{lr: "
         "4.0e-3}, evaluation: {every: 3, prompts: 2, sampled_prompts: 2, num_generations: 1}}\n";
}

std::string grpo(const std::string& name, int64_t steps) {
  return "  - {name: " + name + ", steps: " + std::to_string(steps) +
         ", objective: {kind: grpo, loss: clip}, data: {tint: {task: signed_sum, terms: [2]}}, rollout: {prompts: 4, "
         "num_generations: 2, mini_batches: 2, max_new_tokens: 8}, reward: [{kind: mine}], optimizer: {lr: 1.0e-3}}\n";
}

// A score that is a function of the completion alone.
std::vector<double> by_letters(const std::vector<std::string>&, const std::vector<rl::Answer>& completions,
                               const std::vector<data::Example>&, double) {
  std::vector<double> scores;
  for (const rl::Answer& answer : completions) {
    double score = 0;
    for (const char c : answer.text) score += c % 3;
    scores.push_back(score);
  }
  return scores;
}

// The disk as all threads but the test's own see it: a checkpoint within a phase is written in one.
struct Disk {
  std::mutex mutex;
  std::condition_variable changed;
  bool waits = false, full = false;
  std::chrono::milliseconds takes{0};
  int64_t asked = 0;
  std::thread::id own;
} disk;

// The next write beside training gets no answer until goes_on(), or each takes so long.
struct SlowDisk {
  explicit SlowDisk(std::chrono::milliseconds takes = {}) { set(takes.count() == 0, takes); }
  ~SlowDisk() { set(false, {}); }
  void goes_on() const { set(false, {}); }
  void until_it_is_asked() const {
    std::unique_lock lock(disk.mutex);
    ASSERT_TRUE(disk.changed.wait_for(lock, std::chrono::seconds(60), [] { return disk.asked > 0; }));
  }

 private:
  static void set(bool waits, std::chrono::milliseconds takes) {
    const std::lock_guard lock(disk.mutex);
    disk.waits = waits;
    disk.takes = takes;
    disk.asked = 0;
    disk.own = std::this_thread::get_id();
    disk.changed.notify_all();
  }
};

struct FullDisk {
  FullDisk() { set(true); }
  ~FullDisk() { set(false); }

 private:
  static void set(bool full) {
    const std::lock_guard lock(disk.mutex);
    disk.full = full;
    disk.own = std::this_thread::get_id();
  }
};

// The disk of metrics.jsonl: full, which it says where room is asked for, or one that takes no line although there was room.
struct MetricsDisk {
  enum State { kWhole, kFull, kBroken };
  static inline State state = kWhole;
  explicit MetricsDisk(State given) { state = given; }
  ~MetricsDisk() { state = kWhole; }
  MetricsDisk(const MetricsDisk&) = delete;
  MetricsDisk& operator=(const MetricsDisk&) = delete;
};

class TrainerTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ =
        (fs::temp_directory_path() / ("isentrope_trainer_" + std::to_string(::getpid()) + "_" + info->name())).string();
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  std::unique_ptr<Trainer> open(const std::string& run, const std::string& phases, bool resume = false,
                                std::vector<std::string> overrides = {}, rl::RewardFunction reward = by_letters) {
    std::ofstream(dir_ + "/config.yaml") << kModel << phases;
    overrides.push_back("run.dir=" + dir_ + "/" + run);
    return std::make_unique<Trainer>(read_config(dir_ + "/config.yaml", overrides), resume,
                                     std::map<std::string, rl::RewardFunction>{{"mine", std::move(reward)}});
  }
  static void finish(Trainer& trainer) {
    while (!trainer.finished()) trainer.advance();
  }
  static void steps(Trainer& trainer, int64_t count) {
    for (int64_t i = 0; i < count; ++i) trainer.advance();
  }
  // metrics.jsonl without the times.
  std::vector<json> lines(const std::string& run) const {
    std::vector<json> found;
    std::istringstream text(read_whole(dir_ + "/" + run + "/metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      if (is_header(line)) continue;
      found.push_back(json::parse(line));
      for (const char* time : {"time_s", "tokens_per_s", "rollout_tokens_per_s", "mfu", "sigma/time_share"})
        found.back().erase(time);
    }
    return found;
  }
  std::string newest(const std::string& run) const { return *find_latest(dir_ + "/" + run); }
  // Both runs wrote the same, and their newest checkpoints hold the same state.
  void expect_same(const std::string& a, const std::string& b) const {
    EXPECT_EQ(lines(a), lines(b));
    EXPECT_EQ(read_whole(dir_ + "/" + a + "/samples.jsonl"), read_whole(dir_ + "/" + b + "/samples.jsonl"));
    EXPECT_EQ(fs::path(newest(a)).filename(), fs::path(newest(b)).filename());
    for (const char* file : {"model.safetensors", "trainer.safetensors"})
      EXPECT_TRUE(read_whole(newest(a) + "/" + file) == read_whole(newest(b) + "/" + file)) << file;
  }
  // Every file below a run, with its content.
  std::map<std::string, std::string> files(const std::string& run) const {
    std::map<std::string, std::string> found;
    for (const auto& entry : fs::recursive_directory_iterator(dir_ + "/" + run))
      if (entry.is_regular_file() && entry.path().filename() != "lock")
        found[entry.path().string()] = read_whole(entry.path().string());
    return found;
  }
  template <class F>
  static std::string error(F f) {
    try {
      f();
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  }
  template <class F>
  void expect_refused(const std::string& run, F f, const std::vector<std::string>& words) {
    const auto before = files(run);
    const std::string message = error(f);
    for (const std::string& word : words) EXPECT_NE(message.find(word), std::string::npos) << word << "\n" << message;
    EXPECT_LT(std::count(message.begin(), message.end(), '\n'), 25);
    EXPECT_TRUE(files(run) == before) << "a refused resumption changed a file";
  }
  static bool has(const std::vector<std::string>& notes, const std::string& text) {
    return std::any_of(notes.begin(), notes.end(),
                       [&](const std::string& note) { return note.find(text) != std::string::npos; });
  }
  std::string dir_;
};

// ---- steps that are broken off ------------------------------------------------------------------------------------

TEST_F(TrainerTest, ARewardThatFailsLeavesTheStepBefore) {
  const std::string phases = sft("sft", 3) + grpo("grpo", 6);
  finish(*open("whole", phases));
  int calls = 0;  // within the policy phase; evaluations ask the reward before it
  bool grpo_began = false;
  const auto fails_once = [&](const auto& p, const auto& c, const auto& e, double limit) {
    if (grpo_began && ++calls == 3) throw std::runtime_error("no answer from the judge");
    return by_letters(p, c, e, limit);
  };
  const auto until_it_fails = [&](Trainer& trainer) {
    calls = 0;
    grpo_began = false;
    return error([&] {
      while (!trainer.finished()) {
        grpo_began = trainer.phase() == 1;
        trainer.advance();
      }
    });
  };
  {
    const auto trainer = open("broken", phases, false, {}, fails_once);
    const std::string message = until_it_fails(*trainer);
    EXPECT_NE(message.find("phase grpo, step 3: "), std::string::npos) << message;
    EXPECT_NE(message.find("no answer from the judge. The last good checkpoint is " + trainer->last_checkpoint() + "."),
              std::string::npos)
        << message;
    EXPECT_EQ(trainer->save(), trainer->last_checkpoint());
    EXPECT_EQ(fs::path(newest("broken")).filename(), "grpo-000002");
  }
  finish(*open("broken", phases, true));
  expect_same("broken", "whole");
  const auto trainer = open("on", phases, false, {}, fails_once);  // the same trainer just goes on
  EXPECT_NE(until_it_fails(*trainer), "no error");
  finish(*trainer);
  expect_same("on", "whole");
}

TEST_F(TrainerTest, AnUpdateThatOverflowsIsTakenBack) {
  const std::string phases = sft("sft", 3) + grpo("grpo", 6);
  struct Case {
    const char *lr, *says;
  };
  for (const Case& c :
       {Case{"phases.grpo.optimizer.lr=1e30", "not finite"}, Case{"phases.grpo.optimizer.lr=1e200", "not finite"}}) {
    const std::string run = c.lr;
    const auto trainer = open(run, phases, false, {c.lr, "phases.grpo.optimizer.max_grad_norm=0"});
    const std::string message = error([&] { finish(*trainer); });
    EXPECT_NE(message.find(c.says), std::string::npos) << message;
    EXPECT_NE(message.find("The last good checkpoint is "), std::string::npos) << message;
    EXPECT_EQ(message.find("was changed"), message.rfind("was changed")) << message;  // said once at most
    EXPECT_EQ(first_non_finite_weight(trainer->model()), "");
    const std::string checkpoint = trainer->save();
    EXPECT_EQ(checkpoint, newest(run));
    model::Decoder saved(read_model_config(checkpoint), 0);
    load_weights(checkpoint, saved);
    const auto a = saved->named_weights(), b = trainer->model()->named_weights();
    for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(torch::equal(a[i].second, b[i].second)) << a[i].first;
  }
}

// A step of one update keeps nothing to go back to: what is behind its update is asked before.
TEST_F(TrainerTest, AnUpdateThatCouldOverflowIsNotMade) {
  for (const std::string kind : {"{lr: 1.0e200, max_grad_norm: 0}", "{kind: sgd, betas: [0.9], lr: 1.0e200}"}) {
    const auto trainer = open("run", sft("sft", 3), false, {"phases.sft.optimizer=" + kind});
    std::vector<torch::Tensor> before;
    for (const auto& p : trainer->model()->parameters()) before.push_back(p.detach().clone());
    EXPECT_NE(error([&] { trainer->advance(); }).find("could leave weights that are not finite"), std::string::npos);
    size_t i = 0;
    for (const auto& p : trainer->model()->parameters()) EXPECT_TRUE(torch::equal(p, before[i++]));
    EXPECT_EQ(trainer->steps_done(), 0);
    EXPECT_EQ(lines("run").size(), 0u);
  }
}

TEST_F(TrainerTest, ALineThatHasNoRoomIsAskedForBeforeTheUpdate) {
  const std::string phases = sft("sft", 7);
  finish(*open("whole", phases));
  const auto trainer = open("run", phases);
  steps(*trainer, 5);
  const std::vector<json> written = lines("run");
  std::vector<torch::Tensor> before;
  for (const auto& p : trainer->model()->parameters()) before.push_back(p.detach().clone());
  for (int again = 0; again < 2; ++again) {
    const MetricsDisk full(MetricsDisk::kFull);
    const std::string message = error([&] { trainer->advance(); });
    EXPECT_NE(message.find("/run/metrics.jsonl: cannot be written: No space left on device"), std::string::npos)
        << message;
    EXPECT_NE(message.find("phase sft, step 6: "), std::string::npos) << message;
    size_t i = 0;
    for (const auto& p : trainer->model()->parameters()) EXPECT_TRUE(torch::equal(p, before[i++]));
    EXPECT_EQ(trainer->steps_done(), 5);
    EXPECT_EQ(lines("run"), written);
  }
  EXPECT_EQ(fs::path(newest("run")).filename(), "sft-000005");
  finish(*trainer);
  expect_same("run", "whole");
}

TEST_F(TrainerTest, AStepWhoseLineTheDiskLosesHasBeen) {
  const std::string phases = sft("sft", 7);
  finish(*open("whole", phases));
  const auto trainer = open("run", phases);
  steps(*trainer, 4);
  {
    const MetricsDisk broken(MetricsDisk::kBroken);
    const std::string message = error([&] { trainer->advance(); });
    EXPECT_NE(message.find("step 5, which was made, and its line is lost: "), std::string::npos) << message;
    EXPECT_NE(message.find("metrics.jsonl: cannot be written: Input/output error"), std::string::npos) << message;
  }
  EXPECT_EQ(trainer->steps_done(), 5);
  EXPECT_EQ(fs::path(newest("run")).filename(), "sft-000005");
  finish(*trainer);
  for (const char* file : {"model.safetensors"})
    EXPECT_TRUE(read_whole(newest("run") + "/" + file) == read_whole(newest("whole") + "/" + file)) << file;
  std::vector<json> all = lines("whole");
  all.erase(std::find_if(all.begin(), all.end(),
                         [](const json& line) { return line["step"] == 5 && line.contains("loss"); }));
  EXPECT_EQ(lines("run"), all);
}

TEST_F(TrainerTest, APowerStepThatFailsTakesTheUpdateBack) {
  const std::string phases = sft("sft", 3);
  const auto trainer = open("run", phases, false,
                            {"model.sigma_reparam={layers: all}", "phases.sft.optimizer.lr=1e30",
                             "phases.sft.optimizer.max_grad_norm=0", "run.seed=3"});
  std::vector<torch::Tensor> before;
  for (const auto& p : trainer->model()->named_parameters()) before.push_back(p.value().detach().clone());
  for (const auto& b : trainer->model()->named_buffers()) before.push_back(b.value().clone());
  EXPECT_NE(error([&] { trainer->advance(); }).find("spectral norm"), std::string::npos);
  size_t i = 0;
  for (const auto& p : trainer->model()->named_parameters())
    EXPECT_TRUE(torch::equal(p.value(), before[i++])) << p.key();
  for (const auto& b : trainer->model()->named_buffers()) EXPECT_TRUE(torch::equal(b.value(), before[i++])) << b.key();
  EXPECT_EQ(trainer->save(), "");
  EXPECT_EQ(lines("run").size(), 0u);
}

TEST_F(TrainerTest, AnEvaluationThatFailsIsMadeAgain) {
  const std::string phases = sft("sft", 3) + grpo("grpo", 4);
  const std::vector<std::string> every{
      "phases.grpo.evaluation={every: 2, prompts: 2, sampled_prompts: 2, num_generations: 1}"};
  finish(*open("whole", phases, false, every));
  // Within evaluations the reward is asked about prompts of the held-out lists: calls 3 and 4 are those after step 2.
  for (const int fails_at : {3, 4}) {
    int calls = 0;
    bool grpo_began = false;
    const std::string run = "broken" + std::to_string(fails_at);
    const auto reward = [&](const auto& p, const auto& c, const auto& e, double limit) {
      if (grpo_began && ++calls == fails_at) throw std::runtime_error("no answer");
      return by_letters(p, c, e, limit);
    };
    {
      const auto trainer = open(run, phases, false, every, reward);
      const std::string message = error([&] {
        while (!trainer->finished()) {
          grpo_began = trainer->phase() == 1;
          trainer->advance();
        }
      });
      EXPECT_NE(message.find("no answer"), std::string::npos) << message;
    }
    finish(*open(run, phases, true, every));
    expect_same(run, "whole");
  }
}

TEST_F(TrainerTest, AStepWithinAStepIsRefused) {
  Trainer* own = nullptr;
  const auto reward = [&](const auto& p, const auto& c, const auto& e, double limit) {
    own->advance();
    return by_letters(p, c, e, limit);
  };
  const auto trainer = open("run", sft("sft", 3) + grpo("grpo", 2), false, {}, reward);
  own = trainer.get();
  EXPECT_NE(error([&] { finish(*trainer); }).find("in the middle of a step"), std::string::npos);
}

TEST_F(TrainerTest, MetricsThatVanishStopTheRun) {
  const auto trainer = open("run", sft("sft", 9));
  steps(*trainer, 2);
  fs::remove(dir_ + "/run/metrics.jsonl");
  const std::string message = error([&] { finish(*trainer); });
  EXPECT_NE(message.find("was removed or renamed"), std::string::npos) << message;
  EXPECT_EQ(trainer->steps_done(), 2);
  EXPECT_EQ(fs::path(newest("run")).filename(), "sft-000002");

  const auto moved = open("moved", sft("sft", 9));
  steps(*moved, 2);
  fs::rename(dir_ + "/moved", dir_ + "/elsewhere");
  EXPECT_NE(error([&] { moved->save(); }).find("was removed or renamed"), std::string::npos);
  EXPECT_FALSE(fs::exists(dir_ + "/moved"));
}

// ---- checkpoints beside training ----------------------------------------------------------------------------------

TEST_F(TrainerTest, StepsGoOnWhileACheckpointIsWritten) {
  const std::string phases = sft("sft", 11);
  finish(*open("whole", phases));
  {
    const auto trainer = open("run", phases);
    const SlowDisk slow;
    steps(*trainer, 4);
    slow.until_it_is_asked();
    steps(*trainer, 3);
    EXPECT_EQ(trainer->steps_done(), 7);
    EXPECT_EQ(trainer->last_checkpoint(), "");
    EXPECT_TRUE(fs::exists(dir_ + "/run/checkpoints/sft-000004.tmp"));
    EXPECT_FALSE(fs::exists(dir_ + "/run/checkpoints/sft-000004")) << "training waited for the disk";
    slow.goes_on();
    EXPECT_EQ(trainer->save(), dir_ + "/run/checkpoints/sft-000007");  // waits for both
    EXPECT_TRUE(fs::exists(dir_ + "/run/checkpoints/sft-000004/DONE"));
  }
  // It holds step 4, although three steps changed every weight while it was written.
  fs::remove_all(dir_ + "/run/checkpoints/sft-000007");
  finish(*open("run", phases, true));
  expect_same("run", "whole");
}

TEST_F(TrainerTest, ASecondCheckpointWaitsForTheFirst) {
  const auto trainer = open("run", sft("sft", 9), false, {"run.checkpoint_every=2"});
  const SlowDisk slow;
  steps(*trainer, 2);
  slow.until_it_is_asked();
  std::atomic<bool> gone_on = false;
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    gone_on = true;
    slow.goes_on();
  });
  steps(*trainer, 2);
  EXPECT_TRUE(gone_on) << "step 4 was to be saved before step 2 was";
  later.join();
  EXPECT_EQ(trainer->last_checkpoint(), dir_ + "/run/checkpoints/sft-000002");
}

TEST_F(TrainerTest, TheEndWaitsForItsCheckpoint) {
  const std::string phases = sft("sft", 6);
  {
    const auto trainer = open("run", phases);
    const SlowDisk slow(std::chrono::milliseconds(20));
    steps(*trainer, 4);
  }  // gone with the write under way
  EXPECT_EQ(fs::path(newest("run")).filename(), "sft-000004");
  const auto trainer = open("run", phases, true);
  finish(*trainer);
  EXPECT_TRUE(fs::exists(trainer->last_checkpoint() + "/DONE"));
  EXPECT_EQ(fs::path(trainer->last_checkpoint()).filename(), "sft-000006");
}

TEST_F(TrainerTest, AFullDiskBesideTrainingIsAWarning) {
  const std::string phases = sft("sft", 15);
  finish(*open("whole", phases));
  auto trainer = open("run", phases);
  steps(*trainer, 7);
  EXPECT_TRUE(trainer->wait().empty()) << "step 4 is whole";
  {
    const FullDisk full;
    steps(*trainer, 1);
    ASSERT_EQ(trainer->wait().size(), 1u);
  }
  const std::string file = dir_ + "/run/checkpoints/sft-000008", said = trainer->wait()[0];
  for (const std::string& word : {"the checkpoint " + file + " could not be written, and the run goes on: ",
                                  std::string("No space left on device ("), std::string(" bytes needed, "),
                                  dir_ + "/run/checkpoints/sft-000004 stays"})
    EXPECT_NE(said.find(word), std::string::npos) << word << "\n" << said;
  EXPECT_FALSE(fs::exists(file));
  EXPECT_FALSE(fs::exists(file + ".tmp"));
  EXPECT_EQ(newest("run"), dir_ + "/run/checkpoints/sft-000004");
  // The next step tells it, once, on the console and in its line.
  const std::vector<Record> records = trainer->advance();
  EXPECT_EQ(records[0].warnings, std::vector<std::string>{said});
  const auto written = lines("run");  // of step 9, and of the evaluation after it
  EXPECT_EQ(written.at(written.size() - 2).at("warnings"), json::array({said}));
  EXPECT_TRUE(trainer->advance()[0].warnings.empty());
  steps(*trainer, 2);
  EXPECT_EQ(trainer->wait().size(), 1u) << "step 12 could be saved: " << trainer->wait().back();
  EXPECT_EQ(newest("run"), dir_ + "/run/checkpoints/sft-000012");
  // From the one before it the run is made again as if nothing had been.
  trainer.reset();
  fs::remove_all(newest("run"));
  finish(*open("run", phases, true));
  expect_same("run", "whole");
}

TEST_F(TrainerTest, AForeignFileIsNotGoneOnFrom) {
  const std::string phases = sft("sft", 6);
  {
    const auto trainer = open("run", phases);
    steps(*trainer, 5);
  }
  const std::string foreign = newest("run") + "/optimizer.pt";
  std::ofstream(foreign) << "of another trainer";
  expect_refused("run", [&] { open("run", phases, true); }, {foreign + ": stands in the checkpoint", "Move it out"});
  EXPECT_NO_THROW(open("other", phases, false, {"run.start=" + newest("run")})) << "its weights alone are taken";
  fs::remove(foreign);
  finish(*open("run", phases, true));
}

// ---- what begins, and what is left of what cannot -----------------------------------------------------------------

TEST_F(TrainerTest, ACheckpointThatIsGoneIsNotNamed) {
  const auto trainer = open("run", sft("a", 2) + grpo("b", 4));
  steps(*trainer, 2);
  fs::remove_all(dir_ + "/run/checkpoints");
  EXPECT_NE(error([&] {
              fs::remove(dir_ + "/run/metrics.jsonl");
              trainer->advance();
            }).find("/run/checkpoints/a-000002, was removed or renamed"),
            std::string::npos);
  const auto other = open("other", sft("a", 12));
  steps(*other, 4);
  fs::remove_all(dir_ + "/other/checkpoints");
  EXPECT_TRUE(fs::exists(other->save() + "/DONE"));
}

TEST_F(TrainerTest, AStartThatFailsLeavesNothing) {
  const std::vector<std::vector<std::string>> mistakes{
      {"phases.grpo.reward=[{kind: unknown}]", "run.start=" + dir_ + "/none"},
      {"phases.sft.data={jsonl: {path: nowhere.jsonl}}"},
      {"run.start=" + dir_}};
  for (const auto& mistake : mistakes) {
    EXPECT_NE(error([&] { open("a/b", sft("sft", 3) + grpo("grpo", 2), false, mistake); }), "no error");
    EXPECT_FALSE(fs::exists(dir_ + "/a")) << mistake[0];
  }
  {
    const auto trainer = open("a/b", sft("sft", 3), false, {"phases.sft.optimizer.lr=1e200"});
    EXPECT_NE(error([&] { trainer->advance(); }), "no error");  // no step, no run
  }
  EXPECT_NO_THROW(open("a/b", sft("sft", 3)));
}

// ---- resumption ---------------------------------------------------------------------------------------------------

TEST_F(TrainerTest, MoreStepsAfterTheEndGoOn) {
  const std::string phases = sft("sft", 5) + grpo("grpo", 4);
  const std::vector<std::string> reference{"phases.grpo.objective.ref_kl_coef=0.1"};
  auto longer = reference;
  longer.push_back("phases.grpo.steps=7");
  finish(*open("whole", phases, false, longer));
  finish(*open("run", phases, false, reference));
  {
    const auto trainer = open("run", phases, true, longer);
    EXPECT_TRUE(has(trainer->notes(), "'grpo' had ended and goes on from step 4 to 7"));
    EXPECT_TRUE(has(trainer->notes(), "phases.grpo.steps: 4 → 7"));
    EXPECT_EQ(trainer->steps_done(), 4);
    finish(*trainer);
    EXPECT_EQ(trainer->results().size(), 2u);
  }
  std::vector<json> all = lines("run");
  const auto between = std::find_if(all.begin(), all.end(), [](const json& line) {
    return line["phase"] == "grpo" && line["step"] == 4 && line.contains("eval/split");
  });
  ASSERT_NE(between, all.end());
  all.erase(between);  // the test at the end that was
  EXPECT_EQ(all, lines("whole"));
  EXPECT_TRUE(read_whole(newest("run") + "/model.safetensors") == read_whole(newest("whole") + "/model.safetensors"));
}

TEST_F(TrainerTest, APhaseThatEndsWhereItStandsIsTestedOnce) {
  // Step 6 is a step of validation, 7 is none.
  for (const int64_t stop : {6, 7})
    for (const int64_t end : {6, 3}) {
      const std::string run = std::to_string(stop) + "_" + std::to_string(end);
      {
        const auto trainer = open(run, sft("a", 12));
        steps(*trainer, stop);
        trainer->save();
      }
      const auto resumed = open(run, sft("a", end), true);
      finish(*resumed);
      EXPECT_EQ(resumed->results().size(), 1u);
      int64_t tests = 0, validations = 0;
      for (const json& line : lines(run)) {
        tests += line.value("eval/split", "") == "test";
        validations += line.value("eval/split", "") == "validation";
      }
      EXPECT_EQ(tests, 1);
      EXPECT_EQ(validations, 2);
    }
}

TEST_F(TrainerTest, ChangedOrLostLinesAreNotGoneOnFrom) {
  {
    const auto trainer = open("run", sft("a", 12));
    steps(*trainer, 4);
  }
  for (const char* name : {"metrics.jsonl", "samples.jsonl"}) {
    const std::string file = dir_ + "/run/" + name, whole = read_whole(file);
    std::string changed = whole;
    const size_t first = whole.find("{\"phase\": \"a\"");  // behind the header, which a resumption may change
    changed[first + 11] = 'b';
    const std::string lost = whole.substr(0, first) + whole.substr(whole.find('\n', first) + 1);
    for (const std::string& wrong : {changed, std::string(), whole + whole, lost}) {
      std::ofstream(file) << wrong;
      const auto before = files("run");
      const std::string said = error([&] { open("run", sft("a", 12), true); });
      EXPECT_EQ(said.find(file + ": its lines are not those"), 0u) << said;
      EXPECT_EQ(files("run"), before);
    }
    std::ofstream(file) << whole;
  }
  fs::remove(dir_ + "/run/samples.jsonl");
  const auto resumed = open("run", sft("a", 12), true);
  EXPECT_EQ(resumed->notes().front(),
            dir_ + "/run/samples.jsonl is not there: what it told of the steps before is lost");
  finish(*resumed);
}

TEST_F(TrainerTest, AFinishedRunHasNothingToDoAndIsLeftAlone) {
  finish(*open("run", sft("sft", 3)));
  const auto before = files("run");
  const auto trainer = open("run", sft("sft", 3), true, {"run.keep=5"});
  EXPECT_TRUE(trainer->finished());
  EXPECT_TRUE(has(trainer->notes(), "there is nothing to do"));
  EXPECT_EQ(trainer->results().size(), 1u);
  EXPECT_TRUE(files("run") == before);
  expect_refused("run", [&] { open("run", sft("sft", 3), true, {"phases.sft.optimizer.lr=1.0"}); },
                 {"another trainer"});  // the one above holds it
}

TEST_F(TrainerTest, KeysOfAPhaseThatEndedAreRefused) {
  const std::string phases = sft("sft", 3) + grpo("grpo", 4);
  steps(*open("run", phases), 3);
  {
    const auto trainer = open("run", phases, true);
    steps(*trainer, 1);
    trainer->save();
  }
  for (const char* change : {"phases.sft.steps=9", "phases.sft.optimizer.lr=1.0", "phases.sft.batch.sequences=7"})
    expect_refused("run", [&] { open("run", phases, true, {change}); }, {"phases.sft.", "the phase has ended", " → "});
}

TEST_F(TrainerTest, WhatChangesTheMeaningOfAStateIsRefused) {
  const std::string phases = sft("sft", 8);
  {
    const auto trainer = open("run", phases);
    steps(*trainer, 2);
    trainer->save();
  }
  for (const char* change :
       {"run.seed=2", "model.rope_theta=500", "model.rms_norm_eps=1e-3", "model.attention.softcap=5",
        "model.attention.window=8", "model.num_attention_heads=1", "model.max_position_embeddings=20",
        "model.norm=post", "model.tie_word_embeddings=true", "model.attention.qk_norm=true",
        "model.sigma_reparam={layers: all}", "model.attention.temperature=head",
        "tokenizer.characters=1023456789abcdefgh+-=:A.", "tokenizer={kind: bytes}",

        "phases.sft.data.tint.terms=[3]", "phases.sft.data.tint.merge=0.5",
        "phases.sft.optimizer={kind: sgd, betas: [0.9]}", "phases.sft.objective.attention_entropy.coef=0.1"}) {
    const std::string key = std::string(change).substr(0, std::string(change).find_first_of("=."));
    expect_refused("run", [&] { open("run", phases, true, {change}); }, {key, " → "});
  }
  // What does not is told.
  const auto trainer = open("run", phases, true, {"phases.sft.optimizer.lr=2.0e-3", "run.keep=3"});
  EXPECT_TRUE(has(trainer->notes(), "phases.sft.optimizer.lr: 0.004 → 0.002"));
  EXPECT_TRUE(has(trainer->notes(), "run.keep: 2 → 3"));
  EXPECT_EQ(trainer->notes().size(), 1u);
  EXPECT_EQ(trainer->steps_done(), 2);
}

TEST_F(TrainerTest, DataThatChangedIsRefused) {
  const auto write = [&](int count) {
    std::ofstream out(dir_ + "/data.jsonl");
    for (int i = 0; i < count; ++i) out << "{\"prompt\": \"" << i << "+1=\", \"completion\": \"" << i + 1 << ".\"}\n";
  };
  write(200);
  const std::vector<std::string> jsonl{"phases.sft.data={jsonl: {path: " + dir_ + "/data.jsonl}}"};
  {
    const auto trainer = open("run", sft("sft", 8), false, jsonl);
    steps(*trainer, 2);
    trainer->save();
  }
  write(120);
  expect_refused("run", [&] { open("run", sft("sft", 8), true, jsonl); },
                 {"phases.sft.data", "not those that this run"});
  write(200);
  fs::rename(dir_ + "/data.jsonl", dir_ + "/moved.jsonl");
  EXPECT_NO_THROW(open("run", sft("sft", 8), true, {"phases.sft.data={jsonl: {path: " + dir_ + "/moved.jsonl}}"}));
}

TEST_F(TrainerTest, BatchesOfAnotherSizeGoOnInTheData) {
  // Examples 0 … 7 in two steps of 4, then the rest in ones of 2: as many as the run in steps of 2 takes.
  const auto next_loss = [&](const std::string& run, int64_t step) {
    const auto trainer =
        open(run, sft("sft", 8), true, {"phases.sft.batch.sequences=2", "phases.sft.optimizer.lr=1e-30"});
    EXPECT_EQ(trainer->steps_done(), step);
    return trainer->advance()[0].values.at("loss");
  };
  const auto part = [&](const std::string& run, const char* sequences, int64_t count) {
    const auto trainer =
        open(run, sft("sft", 8), false,
             {std::string("phases.sft.batch.sequences=") + sequences, "phases.sft.optimizer.lr=1e-30"});
    steps(*trainer, count);
    trainer->save();
  };
  part("fours", "4", 2);
  part("twos", "2", 4);
  EXPECT_EQ(next_loss("fours", 2), next_loss("twos", 4));
}

TEST_F(TrainerTest, PhasesKeepTheirDrawsWhereverTheyStand) {
  const std::string two = sft("two", 8);
  finish(*open("whole", sft("one", 3) + two));
  {
    const auto trainer = open("run", sft("one", 3) + two);
    steps(*trainer, 5);
    trainer->save();
  }
  fs::copy(dir_ + "/run", dir_ + "/front", fs::copy_options::recursive);
  {  // a phase that has ended is taken out: its lines stay
    const auto trainer = open("run", two, true);
    EXPECT_TRUE(has(trainer->notes(), "'one' has ended in this run and is no longer in the configuration"));
    steps(*trainer, 2);
    trainer->save();
    EXPECT_EQ(fs::path(newest("run")).filename(), "two-000004");
  }
  finish(*open("run", two, true));
  expect_same("run", "whole");
  {  // one is put in front
    const auto trainer = open("front", sft("zero", 3) + sft("one", 3) + two, true);
    EXPECT_TRUE(has(trainer->notes(), "'zero' stands before 'two', in which the run is, and is not trained"));
    finish(*trainer);
  }
  expect_same("front", "whole");
  // The phase that the run is in has another name, or one that ended is to come.
  {
    const auto trainer = open("cut", sft("one", 3) + two);
    steps(*trainer, 5);
    trainer->save();
  }
  expect_refused("cut", [&] { open("cut", sft("one", 3) + sft("renamed", 8), true); }, {"stands in phase 'two'"});
  expect_refused("cut", [&] { open("cut", two + sft("one", 3), true); }, {"'one' has ended in this run"});
  expect_refused("cut",
                 [&] {
                   open("cut", sft("one", 3) + two + grpo("grpo", 2), true, {"phases.two.steps=2", "run.seed=9"});
                 },
                 {"run.seed"});
}

TEST_F(TrainerTest, ADamagedNewestCheckpointIsNotPassedOver) {
  {
    const auto trainer = open("run", sft("sft", 20));
    steps(*trainer, 9);
    trainer->save();
  }
  const std::string last = newest("run");
  fs::resize_file(last + "/trainer.safetensors", fs::file_size(last + "/trainer.safetensors") - 8);
  expect_refused("run", [&] { open("run", sft("sft", 20), true); },
                 {"sft-000009/trainer.safetensors: damaged", "sft-000008, is whole: to take it, move"});
  fs::rename(last, dir_ + "/away");
  EXPECT_EQ(open("run", sft("sft", 20), true)->steps_done(), 8);
}

// ---- run.start ----------------------------------------------------------------------------------------------------

TEST_F(TrainerTest, StartTakesARunOrACheckpointAndSaysWhat) {
  const std::string phases = sft("sft", 3) + sft("more", 2);
  finish(*open("first", phases));
  const std::string end = newest("first"), middle = dir_ + "/first/checkpoints/sft-000003";
  const auto start = [&](const std::string& run, const std::string& from, const std::string& configured) {
    auto trainer = open(run, configured, false, {"run.start=" + from});
    EXPECT_EQ(trainer->notes().size(), 1u);
    return trainer;
  };
  {
    const auto trainer = start("skips", middle, phases);
    EXPECT_TRUE(has(trainer->notes(), "phases up to its own, 'sft', are skipped"));
    EXPECT_EQ(trainer->phase(), 1u);
  }
  {
    const auto trainer = start("last", dir_ + "/first", phases);  // the run: its newest
    EXPECT_TRUE(
        has(trainer->notes(),
            "more-000002: its weights alone are taken and all phases run, since its phase 'more' is the last one"));
    EXPECT_EQ(trainer->phase(), 0u);
    EXPECT_EQ(trainer->steps_done(), 0);
  }
  {
    const auto trainer = start("unknown", end, grpo("rl", 2));
    EXPECT_TRUE(has(trainer->notes(), "its phase 'more' is not in this configuration"));
    finish(*trainer);
    EXPECT_EQ(trainer->results().size(), 1u);
  }
  for (const char* change :
       {"model.rope_theta=500", "model.num_attention_heads=1", "model.attention.window=8", "model.rms_norm_eps=1e-3",
        "model.attention.softcap=5", "tokenizer.characters=1023456789abcdefgh+-=:A."}) {
    const std::string message = error([&] { open("other", phases, false, {"run.start=" + end, change}); });
    EXPECT_NE(message.find(" → "), std::string::npos) << message;
    EXPECT_NE(message.find(std::string(change).substr(0, std::string(change).find('='))), std::string::npos) << message;
    EXPECT_FALSE(fs::exists(dir_ + "/other"));
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train

// In place of the C library's.
extern "C" int fallocate(int fd, int mode, off_t offset, off_t bytes) {
  using isentrope::train::MetricsDisk;
  if (MetricsDisk::state == MetricsDisk::kFull) {
    errno = ENOSPC;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
}

extern "C" ssize_t write(int fd, const void* data, size_t bytes) {
  using isentrope::train::MetricsDisk;
  if (MetricsDisk::state == MetricsDisk::kBroken &&
      std::string_view(static_cast<const char*>(data), bytes).starts_with("{\"phase\": ")) {
    errno = EIO;
    return -1;
  }
  return ::syscall(SYS_write, fd, data, bytes);
}

extern "C" int fsync(int fd) {
  using isentrope::train::disk;
  std::unique_lock lock(disk.mutex);
  if (std::this_thread::get_id() != disk.own) {
    ++disk.asked;
    disk.changed.notify_all();
    disk.changed.wait(lock, [] { return !disk.waits; });
    const auto takes = disk.takes;
    if (disk.full) {
      errno = ENOSPC;
      return -1;
    }
    lock.unlock();
    std::this_thread::sleep_for(takes);
  }
  return static_cast<int>(::syscall(SYS_fsync, fd));
}
