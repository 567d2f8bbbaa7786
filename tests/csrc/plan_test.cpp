// What a run takes: the parts, what changes them, what is proposed where it does not fit, and what the machine has.
#include "csrc/train/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "csrc/train/machine_memory.h"
#include "csrc/train/weight_list.h"
#include "tests/csrc/message.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;

TrainConfig some_config(const std::string& optimizer = "adamw") {
  TrainConfig config;
  config.tokenizer.kind = "bytes";
  config.model = {.num_hidden_layers = 8, .hidden_size = 64, .max_position_embeddings = 128};
  PhaseConfig phase;
  phase.name = "sft";
  phase.optimizer.kind = optimizer;
  phase.batch.sequences = 64;
  config.phases = {phase};
  return config;
}

std::vector<PhaseData> lengths(double longest) {
  return {{.phase = "sft", .splits = {}, .lengths = {.longest = longest, .mean = longest / 2, .prompt = 1}}};
}

TEST(Plan, CountsMomentsAndCopies) {
  const MemoryPlan adamw = memory_plan(some_config(), lengths(100)),
                   sgd = memory_plan(some_config("sgd"), lengths(100)),
                   muon = memory_plan(some_config("muon"), lengths(100));
  EXPECT_EQ(adamw.optimizer, 2 * adamw.weights);
  EXPECT_EQ(sgd.optimizer, sgd.weights);
  EXPECT_LT(muon.optimizer, adamw.optimizer);
  EXPECT_GT(muon.optimizer, sgd.optimizer);
  EXPECT_EQ(adamw.snapshot, 0) << "of one update";
  EXPECT_EQ(muon.snapshot, muon.weights + muon.optimizer);
  TrainConfig several = some_config();
  several.phases[0].rollout.emplace();
  EXPECT_EQ(memory_plan(several, lengths(100)).snapshot, 0);
  several.phases[0].rollout->mini_batches = 2;
  EXPECT_EQ(memory_plan(several, lengths(100)).snapshot, adamw.weights + adamw.optimizer);
  several = some_config();
  several.model.attention.qk_clip = 100;
  EXPECT_EQ(memory_plan(several, lengths(100)).snapshot, adamw.weights + adamw.optimizer);
  EXPECT_EQ(adamw.activations, sgd.activations);
  TrainConfig referred = some_config();
  referred.phases[0].objective.ref_kl_coef = 0.1;
  EXPECT_EQ(memory_plan(referred, lengths(100)).weights, 2 * adamw.weights);
}

// Sizes are those that a model itself has under these names; whoever trains less has moments, gradients and copies of that alone.
TEST(Plan, CountsWhatIsTrainedAlone) {
  TrainConfig config = some_config("adamw");
  const int64_t V = data::Tokenizer(config.tokenizer).size();
  config.model.vocabulary = V;
  for (const bool biases : {false, true}) {
    config.model.attention.qk_norm = biases;
    config.model.attention.bias = biases ? "all" : "none";
    config.model.mlp_bias = biases;
    config.model.tie_word_embeddings = biases;
    std::map<std::string, int64_t> listed, there;
    for (const WeightSize& one : weight_list(config.model, V)) listed[one.name] = one.numbers();
    const model::Decoder model(config.model, std::nullopt);
    for (const auto& [name, weight] : model->named_weights()) there[name] = weight.numel();
    EXPECT_EQ(listed, there);
  }
  config.model = some_config().model;
  const MemoryPlan all = memory_plan(config, lengths(100));
  const auto planned = [&](const model::TrainOnlyConfig& only, const std::vector<std::string>& freeze = {}) {
    TrainConfig changed = config;
    changed.model.train_only = only;
    changed.model.freeze = freeze;
    return memory_plan(changed, lengths(100));
  };
  const int64_t C = 64, M = 192, kFloat = 4, layers = 8;
  const MemoryPlan mlp = planned({.names = {"*.mlp.*"}});
  EXPECT_EQ(mlp.optimizer, 2 * kFloat * 3 * C * M * layers);
  EXPECT_EQ(mlp.gradients, kFloat * 3 * C * M * layers);
  EXPECT_EQ(mlp.weights, all.weights);
  EXPECT_EQ(mlp.activations, all.activations);
  EXPECT_EQ(mlp.checkpoint, all.weights + mlp.optimizer) << "a checkpoint has all weights";
  // The gradient of gate and up is one, and stays whole.
  const MemoryPlan gate = planned({.names = {"*.gate_proj.*"}, .blocks = {1, 2}});
  EXPECT_EQ(gate.optimizer, 2 * kFloat * C * M * 2);
  EXPECT_EQ(gate.gradients, kFloat * 2 * C * M * 2);
  const MemoryPlan best = planned({.condition_number = 2});  // no more than the two largest: embedding and head
  EXPECT_EQ(best.optimizer, 2 * kFloat * 2 * V * C);
  TrainConfig frozen = config;
  frozen.model.freeze = {"qk"};
  EXPECT_EQ(memory_plan(frozen, lengths(100)).optimizer,
            2 * kFloat * (2 * V * C + layers * (2 * C * C + 3 * C * M + 2 * C) + C));
  EXPECT_LT(memory_plan(frozen, lengths(100)).total(), all.total());
  // Adapters of the chosen weights.
  TrainConfig lora = config;
  lora.model.lora.emplace();
  lora.model.train_only = {.names = {"*.q_proj.*"}};
  EXPECT_EQ(memory_plan(lora, lengths(100)).optimizer, 2 * kFloat * 2 * C * lora.model.lora->rank * layers);
  // A coefficient a tensor and vector; the gradient of one parameter at a time.
  TrainConfig composed = config;
  composed.model.compose = {.vectors = {"a", "b"}};
  const MemoryPlan sum = memory_plan(composed, lengths(100));
  EXPECT_EQ(sum.optimizer, 2 * kFloat * 2 * static_cast<double>(weight_list(config.model, V).size()));
  EXPECT_EQ(sum.gradients, kFloat * std::max(2 * C * M, V * C));
}

TEST(Plan, ActivationsFollowWhatIsComputedTogether) {
  const double whole = memory_plan(some_config(), lengths(100)).activations;
  EXPECT_NEAR(memory_plan(some_config(), lengths(50)).activations, whole / 2, 0.01 * whole);
  TrainConfig changed = some_config();
  changed.phases[0].batch.micro_tokens = 800;
  EXPECT_NEAR(memory_plan(changed, lengths(100)).activations, whole / 8, 0.01 * whole);  // one after another
  changed = some_config();
  changed.phases[0].data.packing = true;  // half of the rows was padding
  EXPECT_NEAR(memory_plan(changed, lengths(100)).activations, whole / 2, 0.01 * whole);
  changed = some_config();
  changed.model.recompute = "blocks";
  EXPECT_LT(memory_plan(changed, lengths(100)).activations, 0.6 * whole);
}

TEST(Plan, WhatDoesNotFitIsToldWithWhatWould) {
  const TrainConfig config = some_config();
  const double needs = memory_plan(config, lengths(100)).total(), baseline = 1e6;
  EXPECT_EQ(message([&] { check_memory(config, lengths(100), needs + baseline, baseline); }), "no error");
  const std::string said = message([&] { check_memory(config, lengths(100), 0.6 * needs + baseline, baseline); });
  expect_all(said,
             {"does not fit", "phase sft needs about", "activations", "It fits with phases.sft.batch.micro_tokens=3200",
              "or model.recompute=blocks", "or phases.sft.batch.sequences=32"});
  TrainConfig changed = config;
  changed.phases[0].batch.micro_tokens = 3200;
  EXPECT_LE(memory_plan(changed, lengths(100)).total(), 0.6 * needs);
  changed.phases[0].batch.micro_tokens = 6400;
  EXPECT_GT(memory_plan(changed, lengths(100)).total(), 0.6 * needs) << "the largest that fits is named";
  expect_all(message([&] { check_memory(config, lengths(100), 1e5, 0); }), {"None of these alone suffices"});
}

TEST(Plan, ACheckpointsCopyIsToldAndMayNotFit) {
  TrainConfig config = some_config();
  const MemoryPlan plan = memory_plan(config, lengths(100));
  EXPECT_EQ(plan.checkpoint, plan.weights + plan.optimizer);
  const double needs = plan.total(), baseline = 1e6;
  EXPECT_TRUE(checkpoint_copy_fits(config, lengths(100), needs + plan.checkpoint + baseline, baseline));
  EXPECT_FALSE(checkpoint_copy_fits(config, lengths(100), needs + plan.checkpoint + baseline - 1, baseline));
  EXPECT_TRUE(checkpoint_copy_fits(config, lengths(100), plan.checkpoint + baseline, baseline, /*on_device=*/true));
  EXPECT_NO_THROW(check_memory(config, lengths(100), needs + baseline, baseline)) << "that alone refuses no run";
  expect_all(to_text(plan), {"; and ", " while a checkpoint is written"});
  config.run.checkpoint_every = 0;
  EXPECT_EQ(memory_plan(config, lengths(100)).checkpoint, 0);
}

TEST(Plan, OfSeveralRanksEachHasItsShareAndTheMachineHasAll) {
  TrainConfig config = some_config();
  const MemoryPlan one = memory_plan(config, lengths(100)), two = memory_plan(config, lengths(100), 2);
  EXPECT_EQ(two.weights, one.weights);
  EXPECT_EQ(two.optimizer, one.optimizer / 2);
  EXPECT_EQ(two.snapshot, one.weights + two.optimizer);
  EXPECT_EQ(two.gradients, 3 * one.gradients) << "where they are made, in buckets on their way, and from the others";
  EXPECT_NEAR(two.activations, one.activations / 2, 0.01 * one.activations);
  EXPECT_EQ(two.checkpoint, one.checkpoint);
  const double baseline = 1e6, needs = two.total() + baseline;
  EXPECT_EQ(message([&] { check_memory(config, lengths(100), 2 * needs, baseline, {2, 2}); }), "no error");
  EXPECT_EQ(message([&] { check_memory(config, lengths(100), needs, baseline, {2, 1}); }), "no error");
  expect_all(message([&] {
               check_memory(config, lengths(100), 1.9 * needs, baseline, {2, 2});
             }),
             {"does not fit", " for 2 ranks, each of which takes that"});
  const double all = 2 * needs + two.checkpoint + two.optimizer;
  EXPECT_TRUE(checkpoint_copy_fits(config, lengths(100), all + 1, baseline, false, {2, 2}));
  EXPECT_FALSE(checkpoint_copy_fits(config, lengths(100), all - 1, baseline, false, {2, 2}));
}

TEST(Plan, TheCacheOfRolloutsCounts) {
  TrainConfig config = some_config();
  config.phases[0].batch.micro_tokens = 128;
  config.phases[0].rollout.emplace();
  config.phases[0].rollout->cache.cache_tokens = 1000000;
  const MemoryPlan plan = memory_plan(config, lengths(100));
  EXPECT_TRUE(plan.of_rollouts);
  EXPECT_GT(plan.activations, 1e6 * 2 * 8 * 64 * 4);
  expect_all(message([&] { check_memory(config, lengths(100), plan.total() / 3, 0); }),
             {"It fits with phases.sft.rollout.cache_tokens=250000"});
  EXPECT_GT(least_seconds(config, config.phases[0], lengths(100)[0].lengths, 1e9), 0);
}

TEST(MachineMemory, IsTheLeastLimitOfTheControlGroups) {
  const std::string root = ::testing::TempDir() + "isentrope_machine";
  fs::remove_all(root);
  const auto write = [&](const std::string& file, const std::string& text) {
    fs::create_directories(fs::path(root + file).parent_path());
    std::ofstream(root + file) << text;
  };
  const double all = machine_memory(root);
  EXPECT_GT(all, 1e6) << "no control groups at all";
  write("/proc/self/cgroup", "0::/a/b\n");
  write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(machine_memory(root), all);
  write("/sys/fs/cgroup/a/memory.max", "5000000\n");
  write("/sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(machine_memory(root), 5e6) << "of a group around it";
  write("/sys/fs/cgroup/a/b/memory.max", "4000000\n");
  EXPECT_EQ(machine_memory(root), 4e6);
  write("/proc/self/cgroup", "0::/host/path/that/is/not/here\n");
  write("/sys/fs/cgroup/memory.max", "3000000\n");
  EXPECT_EQ(machine_memory(root), 3e6) << "within a container";
  write("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:hugetlb,memory:/x\n");
  write("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2000000\n");
  EXPECT_EQ(machine_memory(root), 2e6) << "version 1";
  write("/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_EQ(machine_memory(root), all) << "no limit";
  fs::remove_all(root);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
