// Reading, overriding, checking and printing configurations.
#include "csrc/train/config.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "csrc/message.h"
#include "csrc/train/config_fields.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;

class ConfigTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = fs::temp_directory_path() / ("isentrope_config_" + std::to_string(::getpid()) + "_" + info->name());
    fs::create_directories(dir_);
    file_ = dir_ / "run.yaml";
  }
  void TearDown() override { fs::remove_all(dir_); }

  void write(const std::string& text) { std::ofstream(file_) << text; }
  TrainConfig read(const std::string& text, const std::vector<std::string>& overrides = {}) {
    write(text);
    return read_config(file_, overrides);
  }
  // The message of the error, with the folder of the file left out.
  std::string error(const std::string& text, const std::vector<std::string>& overrides = {}) {
    try {
      read(text, overrides);
    } catch (const ConfigError& error) {
      std::string message = error.what();
      if (const size_t at = message.find(dir_.string() + "/"); at != std::string::npos)
        message.erase(at, dir_.string().size() + 1);
      return message;
    }
    return "no error";
  }

  fs::path dir_;
  std::string file_;
};

const char* const kGood = R"(run: {dir: runs/x, seed: 1e3}
model:
  hidden_size: 64
  num_attention_heads: 4
phases:
  - name: sft
    data: {tint: {task: signed_sum, terms: [3, 4, 5]}}
    optimizer: {lr: 4.0e-3, betas: [0.9, 0.98]}
    steps: 2600
    evaluation: {every: 50}
    stop: {sampled: 0.28}
  - name: grpo
    objective: {kind: grpo, loss: kl_cov}
    data: {tint: {task: signed_sum, terms: [5]}}
    rollout: {prompts: 32, num_generations: 8, max_new_tokens: 34, mini_batches: 4}
    reward: [{kind: answer, weight: 1.5}]
)";

// kGood with one piece of text in the place of another.
std::string with(const std::string& old_text, const std::string& new_text) {
  std::string text = kGood;
  const size_t at = text.find(old_text);
  if (at == std::string::npos) throw std::logic_error("not in kGood: " + old_text);
  return text.replace(at, old_text.size(), new_text);
}

TEST_F(ConfigTest, OneNameIsAListOfIt) {
  const TrainConfig config = read(
      with("  num_attention_heads: 4\n", "  num_attention_heads: 4\n  sigma_reparam: {layers: mlp, fused_qkv: one}\n"));
  EXPECT_EQ(config.model.sigma_reparam.layers, std::vector<std::string>{"mlp"});
  EXPECT_EQ(read(kGood, {"model.sigma_reparam.layers=[q, head]"}).model.sigma_reparam.layers,
            (std::vector<std::string>{"q", "head"}));
  EXPECT_EQ(read(kGood).model.sigma_reparam.layers, std::vector<std::string>{"none"});
  EXPECT_TRUE(error(with("  num_attention_heads: 4\n", "  num_attention_heads: 4\n  sigma_reparam: {layers: qkv}\n"))
                  .starts_with("run.yaml:5: model.sigma_reparam.layers: 'qkv' is not one of none, all, attention"));
  EXPECT_TRUE(error(with("  num_attention_heads: 4\n", "  num_attention_heads: 4\n  sigma_reparam: {layers: {q: 1}}\n"))
                  .starts_with("run.yaml:5: model.sigma_reparam.layers: wanted a list of texts"));
}

TEST_F(ConfigTest, SpectralNormsThatCannotBe) {
  const auto said = [&](const std::string& override, const std::string& other = "run.seed=1") {
    return error(kGood, {override, other});
  };
  EXPECT_EQ(said("model.sigma_reparam={layers: [q, k], fused_qkv: one}"),
            "command line: model.sigma_reparam: layers: fused_qkv is one, and q, k, v are not all named; name all "
            "three or write "
            "fused_qkv: separate");
  EXPECT_EQ(said("model.sigma_reparam.layers=[none, q]"),
            "command line: model.sigma_reparam: layers: none stands beside other names; write one or the other");
  EXPECT_EQ(
      said("model.sigma_reparam.layers=[q, head]", "model.tie_word_embeddings=true"),
      "command line: model: sigma_reparam.layers: the head is the embedding (tie_word_embeddings), which is no linear "
      "layer; leave head "
      "out");
  EXPECT_NE(said("model.sigma_reparam.layers=attention", "model.attention.qk_clip=50").find("use one of the two there"),
            std::string::npos);
}

TEST_F(ConfigTest, ALimitThatLeavesNoTime) {
  EXPECT_EQ(error(kGood, {"run.time_limit_s=60"}),
            "run.yaml:1: run: save_before_s: 60 s before the end of 60 s (time_limit_s) leave no time to train; give "
            "it less");
  EXPECT_EQ(read(kGood, {"run.time_limit_s=61"}).run.save_before_s, 60);
  EXPECT_EQ(read(kGood, {"run.time_limit_s=1", "run.save_before_s=0"}).run.time_limit_s, 1);
}

TEST_F(ConfigTest, AresThatCannotBe) {
  const auto with = [](const std::string& keys) {
    return "phases.grpo.reward=[{kind: answer}, {kind: ares" + keys + "}]";
  };
  EXPECT_EQ(read(kGood, {with(", triggers: [\":\", a]")}).phases[1].reward[1].get<methods::AresConfig>()->triggers,
            (std::vector<std::string>{":", "a"}));
  EXPECT_EQ(error(kGood, {with(", triggers: [\":\", so]")}),
            "command line: phases.grpo.reward.1.triggers: \"so\" is no token of this tokenizer, and would never be "
            "found; take it out of the list");
  EXPECT_EQ(
      error(kGood, {with(", easy: 0.3")}),
      "command line: phases.grpo.reward.1: medium: 0.333333 is above easy (0.300000); easy groups have more right "
      "completions than medium ones");
  EXPECT_NE(error(kGood, {with(", form: strict, alpha: 1")}).find("alpha: 1.000000 takes all"), std::string::npos);
  EXPECT_NE(error(kGood, {with(", window: 0")}).find("phases.grpo.reward.1.window: 0 is out of range"),
            std::string::npos);
  EXPECT_EQ(error(kGood, {with(", kl: {}")}),
            "command line: phases.grpo: reward: ares.kl steers the weight of the divergence from the reference, and "
            "objective.ref_kl_coef is 0; give it a value above 0 (published: 1e-2)");
  EXPECT_EQ(error(kGood, {with(", kl: {}"), "phases.grpo.objective.ref_kl_coef=0.01"}), "no error");
}

TEST_F(ConfigTest, ReadsValuesAndLeavesDefaults) {
  const TrainConfig config = read(kGood);
  EXPECT_EQ(config.run.dir, "runs/x");
  EXPECT_EQ(config.run.seed, 1000);
  EXPECT_EQ(config.run.keep, RunConfig{}.keep);
  ASSERT_EQ(config.phases.size(), 2u);
  EXPECT_EQ(config.phases[0].optimizer.lr, 4.0e-3);
  EXPECT_EQ(config.phases[0].optimizer.betas, (std::vector<double>{0.9, 0.98}));
  EXPECT_EQ(config.phases[0].data.tint->terms, (std::vector<int64_t>{3, 4, 5}));
  EXPECT_EQ(config.phases[0].stop->sampled, 0.28);
  EXPECT_FALSE(config.phases[0].stop->greedy.has_value());
  EXPECT_FALSE(config.phases[0].rollout.has_value());
  EXPECT_EQ(config.phases[1].rollout->sampling.max_new_tokens, 34);
  EXPECT_EQ(config.phases[1].scores().at(0).weight, 1.5);
}

TEST_F(ConfigTest, PrintedConfigReadsBackToTheSameValues) {
  TrainConfig config =
      read(kGood, {"run.dir=\"a \\\"b\\\": #c\\\\\\n\"", "run.start=\"true\"", "model.rms_norm_eps=1e-6",
                   "phases.grpo.objective.clip_high=0.1", "metrics.tensorboard=true", "test.show=0",
                   "phases.grpo.rollout.stop=[\"1 \", \":\", \"0\"]", "phases.grpo.rollout.bad_words=\"1+\"",
                   "tokenizer.characters=\"0 1'+:\\u00e9.\"", "phases.1.optimizer.eps=3.0000000000000004e-9"});
  const std::string printed = print_config(config);
  write(printed);
  const TrainConfig again = read_config(file_);
  EXPECT_EQ(print_config(again), printed);
  EXPECT_EQ(again.run.dir, "a \"b\": #c\\\n");
  EXPECT_EQ(again.run.start, "true");
  EXPECT_EQ(again.tokenizer.characters, "0 1'+:é.");
  EXPECT_EQ(again.phases[1].optimizer.eps, 3.0000000000000004e-9);
  EXPECT_EQ(again.phases[1].objective.clip_high, 0.1);
  EXPECT_EQ(again.phases[0].objective.clip_high, std::nullopt);
  EXPECT_TRUE(again.metrics.tensorboard);
  EXPECT_EQ(again.test.show, 0);
  EXPECT_EQ(again.phases[1].rollout->sampling.stop, (std::vector<std::string>{"1 ", ":", "0"}));
  EXPECT_EQ(again.phases[1].rollout->sampling.bad_words, (std::vector<std::string>{"1+"}));
}

TEST_F(ConfigTest, OriginsNameFileLineCommandLineAndDefault) {
  write(kGood);
  const std::string text = print_config_with_origins(file_, {"phases.sft.steps=7", "run.keep=3"});
  auto origin = [&](const std::string& key) {
    const size_t at = text.find(key), hash = text.find("# ", at);
    std::string found = text.substr(hash + 2, text.find('\n', hash) - hash - 2);
    return found.substr(found.rfind('/') + 1);
  };
  EXPECT_EQ(origin("  dir: runs/x"), "run.yaml:1");
  EXPECT_EQ(origin("  keep: 3"), "command line");
  EXPECT_EQ(origin("  threads: 0"), "default");
  EXPECT_EQ(origin("    steps: 7"), "command line");
  EXPECT_EQ(origin("      loss: kl_cov"), "run.yaml:13");
  EXPECT_EQ(origin("        weight: 1.5"), "run.yaml:16");
  const std::string printed = print_config(read_config(file_, {"phases.sft.steps=7", "run.keep=3"}));
  write(text);  // origins are comments
  EXPECT_EQ(print_config(read_config(file_)), printed);
}

TEST_F(ConfigTest, OverridesReachListElementsByIndexAndName) {
  const TrainConfig config =
      read(kGood,
           {"phases.0.steps=10", "phases.grpo.steps=20", "phases.sft.data.tint.terms=[2,2]",
            "phases.grpo.schedule={kind: linear, warmup_steps: 3}", "run.dir=a=b", "phases.grpo.reward.0.kind=exact"});
  EXPECT_EQ(config.phases[0].steps, 10);
  EXPECT_EQ(config.phases[1].steps, 20);
  EXPECT_EQ(config.phases[0].data.tint->terms, (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(config.phases[1].schedule.kind, "linear");
  EXPECT_EQ(config.phases[1].schedule.warmup_steps, 3);
  EXPECT_EQ(config.phases[1].reward[0].kind(), "exact");
  EXPECT_EQ(config.run.dir, "a=b");
}

TEST_F(ConfigTest, OverrideOfAnAnchorLeavesItsOtherUses) {
  std::string text = with("optimizer: {lr: 4.0e-3, betas: [0.9, 0.98]}", "optimizer: &o {lr: 4.0e-3}");
  text.insert(text.find("    rollout:"), "    optimizer: *o\n");
  const TrainConfig config = read(text, {"phases.grpo.optimizer.lr=1e-4"});
  EXPECT_EQ(config.phases[0].optimizer.lr, 4.0e-3);
  EXPECT_EQ(config.phases[1].optimizer.lr, 1e-4);
}

TEST_F(ConfigTest, OverrideErrors) {
  EXPECT_EQ(error(kGood, {"steps"}), "command line: 'steps': wanted key.path=value, such as run.seed=2");
  EXPECT_EQ(error(kGood, {"phases.rl.steps=1"}),
            "command line: 'phases.rl.steps=1': phases has no element 'rl'; it has 2, named sft, grpo");
  EXPECT_EQ(error(kGood, {"phases.2.steps=1"}),
            "command line: 'phases.2.steps=1': phases has no element '2'; it has 2, named sft, grpo");
  EXPECT_EQ(error(kGood, {"run.dir.x=1"}), "command line: 'run.dir.x=1': run.dir is a value and has no keys");
  EXPECT_EQ(error(kGood, {"run..x=1"}), "command line: 'run..x=1': an empty name between dots");
  EXPECT_EQ(error(kGood, {"phases.sft.steps=many"}), "command line: phases.sft.steps: wanted an integer, got 'many'");
  EXPECT_EQ(error(kGood, {"run.sed=1"}), "command line: run.sed: unknown key; did you mean 'seed'?");
  EXPECT_TRUE(error(kGood, {"run.seed=[1"}).starts_with("command line: 'run.seed=[1': not valid YAML"));
}

TEST_F(ConfigTest, UnknownKeyNamesPlaceAndNearestName) {
  EXPECT_EQ(error(with("loss: kl_cov", "los: kl_cov")),
            "run.yaml:13: phases.grpo.objective.los: unknown key; did you mean 'loss'?");
  EXPECT_EQ(error(with("model:", "modle:")), "run.yaml:2: modle: unknown key; did you mean 'model'?");
  EXPECT_TRUE(
      error(with("  hidden_size: 64", "  zzzzzzzz: 64"))
          .starts_with(
              "run.yaml:3: model.zzzzzzzz: unknown key; the keys here are pretrained, family, num_hidden_layers"));
}

TEST_F(ConfigTest, WrongTypes) {
  EXPECT_EQ(error(with("steps: 2600", "steps: 2.5")), "run.yaml:9: phases.sft.steps: wanted an integer, got '2.5'");
  EXPECT_EQ(error(with("steps: 2600", "steps: \"2600\"")),
            "run.yaml:9: phases.sft.steps: wanted an integer, got the quoted text '2600'");
  EXPECT_EQ(error(with("steps: 2600", "steps:")), "run.yaml:9: phases.sft.steps: wanted an integer, got nothing");
  EXPECT_EQ(error(with("steps: 2600", "steps: [1]")), "run.yaml:9: phases.sft.steps: wanted an integer, got a list");
  EXPECT_EQ(error(with("steps: 2600", "steps: 1e30")), "run.yaml:9: phases.sft.steps: wanted an integer, got '1e30'");
  EXPECT_EQ(error(with("lr: 4.0e-3", "lr: fast")), "run.yaml:8: phases.sft.optimizer.lr: wanted a number, got 'fast'");
  EXPECT_EQ(error(with("lr: 4.0e-3", "lr: .nan")), "run.yaml:8: phases.sft.optimizer.lr: wanted a number, got '.nan'");
  EXPECT_EQ(error(with("[0.9, 0.98]", "0.9")),
            "run.yaml:8: phases.sft.optimizer.betas: wanted a list of numbers, got '0.9'");
  EXPECT_EQ(error(with("[0.9, 0.98]", "[0.9, x]")),
            "run.yaml:8: phases.sft.optimizer.betas.1: wanted a number, got 'x'");
  EXPECT_EQ(error(with("stop: {sampled: 0.28}", "stop: 3")),
            "run.yaml:11: phases.sft.stop: wanted a section of keys, got '3'");
  EXPECT_EQ(error(with("task: signed_sum", "cot: yes")),
            "run.yaml:7: phases.sft.data.tint.cot: wanted true or false, got 'yes'");
  EXPECT_EQ(error("- a\n- b\n"), "run.yaml: wanted a section of keys, got a list");
}

TEST_F(ConfigTest, ValuesOutOfRange) {
  EXPECT_EQ(error(with("steps: 2600", "steps: 0")),
            "run.yaml:9: phases.sft.steps: 0 is out of range; wanted at least 1");
  EXPECT_EQ(error(with("lr: 4.0e-3", "lr: 0")),
            "run.yaml:8: phases.sft.optimizer.lr: 0 is out of range; wanted above 0");
  EXPECT_EQ(error(with("sampled: 0.28", "sampled: 28")),
            "run.yaml:11: phases.sft.stop.sampled: 28 is out of range; wanted 0 to 1");
  EXPECT_EQ(error(with("kind: grpo", "kind: gpro")),
            "run.yaml:13: phases.grpo.objective.kind: 'gpro' is not one of pretrain, sft, dpo, grpo, distill, mlm, "
            "tag, contrastive");
}

TEST_F(ConfigTest, BrokenFiles) {
  EXPECT_EQ(error(with("steps: 2600", "steps: 2600\n    steps: 1")),
            "run.yaml:10: phases.sft.steps: written twice, first at " + file_ + ":9");
  EXPECT_TRUE(error("run: {dir: a,\nmodel: [").starts_with("run.yaml:2: not valid YAML"))
      << error("run: {dir: a,\nmodel: [");
  EXPECT_TRUE(error("run: {dir: a\nmodel: [").starts_with("run.yaml:1: the text that begins here goes on"));
  EXPECT_EQ(error(""), "run.yaml: phases: there is none; a run needs at least one");
  EXPECT_THROW(
      {
        try {
          read_config((dir_ / "absent.yaml").string());
        } catch (const ConfigError& error) {
          EXPECT_TRUE(std::string(error.what()).ends_with("absent.yaml: cannot be read: No such file or directory"));
          throw;
        }
      },
      ConfigError);
  EXPECT_THROW(read_config(dir_.string()), ConfigError);
}

TEST_F(ConfigTest, KeysThatDoNotGoTogether) {
  EXPECT_EQ(error(with("name: grpo", "name: sft")),
            "run.yaml:12: phases.1.name: 'sft' is the name of phases.0 too; checkpoints and metrics need one "
            "name a phase");
  EXPECT_EQ(error(with("    reward: [{kind: answer, weight: 1.5}]\n", "")),
            "run.yaml:12: phases.grpo: a grpo phase needs a reward, such as reward: [{kind: answer}]");
  EXPECT_EQ(error(with("    rollout: {prompts: 32, num_generations: 8, max_new_tokens: 34, mini_batches: 4}\n", "")),
            "run.yaml:12: phases.grpo: a grpo phase needs a rollout section (rollout: {} takes the defaults)");
  EXPECT_EQ(error(with("steps: 2600", "steps: 2600\n    rollout: {}")),
            "run.yaml:6: phases.sft: rollout belongs to grpo phases, and objective.kind is sft");
  EXPECT_TRUE(error(with("mini_batches: 4", "mini_batches: 5"))
                  .starts_with("run.yaml:15: phases.grpo.rollout: mini_batches: "));
  EXPECT_TRUE(error(with("    evaluation: {every: 50}\n", "")).starts_with("run.yaml:10: phases.sft: stop: "));
  EXPECT_TRUE(error(with("max_new_tokens: 34", "max_new_tokens: 64"))
                  .starts_with("run.yaml:15: phases.grpo.rollout.max_new_tokens: 64 "));
  EXPECT_TRUE(error(with("betas: [0.9, 0.98]", "betas: [0.9]"))
                  .starts_with("run.yaml:8: phases.sft.optimizer: betas: 1 values"));
  EXPECT_TRUE(error(with("name: sft", "name: a/b")).starts_with("run.yaml:6: phases.a/b: name: 'a/b' names folders"));
  EXPECT_TRUE(error(with("num_attention_heads: 4", "num_attention_heads: 5")).find("model: ") != std::string::npos);
}

TEST_F(ConfigTest, CorporaBelongToPretrainPhases) {
  const std::string corpus = "corpus: {python_sources: [stdlib]}", tint = "tint: {task: signed_sum, terms: [3, 4, 5]}";
  EXPECT_EQ(
      error(with(tint, corpus)),
      "run.yaml:7: phases.sft: data: corpus belongs to pretrain, distill and mlm phases, and objective.kind is sft");
  EXPECT_EQ(
      error(kGood, {"phases.sft.objective.kind=pretrain"}),
      "run.yaml:7: phases.sft: data: a phase of kind pretrain learns text; write data: {corpus: {paths: [...]}}, or "
      "hmm: {}");
  EXPECT_EQ(error(with(tint, "corpus: {}"), {"phases.sft.objective.kind=pretrain"}),
            "run.yaml:7: phases.sft.data.corpus: paths is empty; name files or folders, or write "
            "python_sources: [stdlib]");
  EXPECT_TRUE(error(with(tint, corpus), {"phases.sft.objective.kind=pretrain"})
                  .starts_with("run.yaml:11: phases.sft: stop: a pretrain phase stops at bits_per_byte"));
  EXPECT_EQ(error(with(tint, corpus), {"phases.sft.objective.kind=pretrain", "phases.sft.stop={bits_per_byte: 2}"}),
            "no error");
  EXPECT_TRUE(error(kGood, {"phases.sft.stop={bits_per_byte: 2}"}).starts_with("command line: phases.sft: stop: "));
}

TEST(Stop, WantsAllThatAreGiven) {
  const Evaluation answers{{"eval/sampled", 0.5}, {"eval/greedy", 0.8}}, text{{"eval/bits_per_byte", 2.0}};
  EXPECT_TRUE((StopConfig{.sampled = 0.5, .greedy = 0.8}).reached(answers));
  EXPECT_FALSE((StopConfig{.sampled = 0.5, .greedy = 0.81}).reached(answers));
  EXPECT_FALSE((StopConfig{.sampled = 0.51}).reached(answers));
  EXPECT_TRUE((StopConfig{.bits_per_byte = 2.0}).reached(text));
  EXPECT_FALSE((StopConfig{.bits_per_byte = 1.9}).reached(text));
}

TEST_F(ConfigTest, PolicyPhaseFirstWantsAStart) {
  std::string text = kGood;
  const size_t sft = text.find("  - name: sft");
  text.erase(sft, text.find("  - name: grpo") - sft);
  EXPECT_TRUE(error(text).starts_with("run.yaml:6: phases.grpo: a grpo phase improves")) << error(text);
  EXPECT_EQ(error(text, {"run.start=runs/y"}), "no error");
}

TEST_F(ConfigTest, DefaultsLieInTheirRanges) {
  TrainConfig config = read(kGood);
  config.phases[0].data.jsonl.reset();
  write(print_config(config));  // every default is written out and so is checked on reading
  EXPECT_NO_THROW(read_config(file_));
}

// No text of a library, and nothing that fills the screen.
void expect_readable(const std::string& message) {
  for (const char* raw : {"std::", "bad_alloc", "map::at", "vector::", "basic_string", "c10", "Exception raised from",
                          "filesystem error", "yaml-cpp", "json.exception"})
    EXPECT_EQ(message.find(raw), std::string::npos) << message.substr(0, 2000);
  EXPECT_LT(message.size(), 2000u) << message.substr(0, 300);
  EXPECT_EQ(utf8_end(message), message.size()) << message;
}

TEST_F(ConfigTest, YamlThatNobodyMeans) {
  std::string laughs = "a0: &a0 [1, 1]\n", keys, deep = "x: ";
  for (int i = 1; i < 30; ++i) {
    const std::string now = std::to_string(i), before = std::to_string(i - 1);
    laughs += "a" + now + ": &a" + now + " [*a" + before + ", *a" + before + "]\n";
  }
  for (int i = 0; i < 100000; ++i) keys += "k" + std::to_string(i) + ":\n";
  for (int i = 0; i < 1000; ++i) deep += "[";
  const std::string megabyte(1000000, 'x');
  struct Case {
    std::string text;
    const char* said;
  };
  for (const Case& wrong : std::vector<Case>{
           {"run: &s {seed: 1, x: *s}\n", "run.yaml:1: the alias stands within"},
           {"x: &x [*x]\n", "run.yaml:1: the alias stands within"},
           {laughs, "run.yaml:13: more than 20000 keys and values"},
           {keys, "run.yaml:10001: more than 20000 keys and values"},
           {deep, "run.yaml:1: nested in more than 32 levels"},
           {"run:\n  dir: 'runs/a\n  keep: 3\n",
            "run.yaml:2: the quote that begins here is not closed: \"runs/a keep: 3"},
           {"run:\n  dir: \"runs/a\n  start: b\"\n",
            "run.yaml:2: the quote that begins here is closed in a later line"},
           {"run:\n  dir: !t &a 'it''s\n\n  start: b'\n",
            "run.yaml:2: the quote that begins here is closed in a later line"},
           {"run: {keep: &n , dir: *n, seed: *n}\n", "run.yaml:1: run.dir: wanted a text, got nothing"},
           {"run:\n  dir: runs/a\n    b\n", "run.yaml:2: the text that begins here goes on over several lines"},
           {"run: {}\n---\nmodel: {}\n", "a second document begins here"},
           {"run:\n  dir: \xff\n", "run.yaml:2: not UTF-8 (\"\\xFF\\n\")"},
           {"run:\n  dir: a\x01\n", "run.yaml:2: a control character (\\x01)"},
           {"run:\n  dir: \"a\\0b\"\n", "run.yaml:2: run.dir: 'a\\x00b' holds U+0000"},
           {"run: {? [a] : 1}\n", "run.yaml:1: run: a key that is not a plain name"},
           {"run:\n  keep: " + megabyte + "\n", "run.yaml:2: run.keep: wanted an integer, got 'xxx"},
           {"run:\n  " + std::string(1000, 'k') + ": 1\n", "run.yaml:2: run.kkk"},
           {megabyte + megabyte, "run.yaml:1: 2000000 bytes"},
       }) {
    const std::string said = error(wrong.text);
    EXPECT_NE(said.find(wrong.said), std::string::npos) << said.substr(0, 500);
    expect_readable(said);
  }
  for (const std::string& override : {"run.dir='runs/a", "run.dir=&x [*x]", "run.keep=\xff", "run.keep=\x01", "\xff=1",
                                      "phases.\xff.steps=1", "run.\x01=1"})
    expect_readable(error(kGood, {override}));
  // What looks like it and is meant.
  EXPECT_EQ(read(with("dir: runs/x", "dir: 'it''s: \"a\"'")).run.dir, "it's: \"a\"");
  EXPECT_EQ(read(with("run: {dir: runs/x, seed: 1e3}", "run:\n  dir: |\n    a\n    b\n")).run.dir, "a\nb\n");
  EXPECT_EQ(read(std::string("\xEF\xBB\xBF") + kGood).run.dir, "runs/x");
}

// One controller, or a list of them: either is printed as it was written.
TEST_F(ConfigTest, AnEntryMayStandForItsList) {
  write(kGood);
  const auto read_with = [&](const std::string& entropy) {
    return read_config(file_, {"phases.grpo.objective.entropy=" + entropy});
  };
  const auto kinds = [](const TrainConfig& config) {
    std::string all;
    for (const auto& one : config.phases.back().objective.entropy) all += one.kind() + " ";
    return all;
  };
  EXPECT_EQ(kinds(read_with("{kind: constant, coef: 0.2}")), "constant ");
  EXPECT_EQ(kinds(read_with("[{kind: constant}, {kind: entropic}]")), "constant entropic ");
  EXPECT_EQ(kinds(read_with("[]")) + kinds(read_with("null")), "");
  const auto printed = [&](const std::string& entropy) { return print_config(read_with(entropy)); };
  EXPECT_NE(printed("{kind: constant, coef: 0.2}").find("entropy:\n        kind: constant\n        coef: 0.2\n"),
            std::string::npos);
  for (const std::string entropy :
       {"{kind: constant}", "[{kind: constant}]", "[{kind: constant}, {kind: entropic}]", "null"}) {
    const std::string first = printed(entropy);
    write(first);
    EXPECT_EQ(print_config(read_config(file_)), first) << entropy;
    write(kGood);
  }
  EXPECT_EQ(kinds(read_config(file_, {"phases.grpo.objective.entropy=[{kind: constant}, {kind: entropic}]",
                                      "phases.grpo.objective.entropy.1={kind: band}"})),
            "constant band ");
}

TEST_F(ConfigTest, NonsenseByMeaningIsRefused) {
  const std::string rollout = "phases.grpo.rollout.", objective = "phases.grpo.objective.";
  struct Case {
    std::string override;
    const char* said;
  };
  for (const Case& wrong : std::vector<Case>{
           {"model.num_attention_heads=2305843009213693952",
            "model.num_attention_heads: 2305843009213693952 is out of range; wanted 1 to 16384"},
           {"model.intermediate_size=4611686018427387904", "model.intermediate_size: "},
           {"model.max_position_embeddings=4611686018427387904", "model.max_position_embeddings: "},
           {"model.num_hidden_layers=1000000000", "model.num_hidden_layers: "},
           {"model.rms_norm_eps=.inf", "model.rms_norm_eps: wanted a finite number, got '.inf'"},
           {"model.rms_norm_eps=1e300", "model.rms_norm_eps: "},
           {"model.rope_theta=.inf", "model.rope_theta: "},
           {"model.initializer_range=1e-300", "model.initializer_range: "},
           {"model.attention.softcap=.inf", "model.attention.softcap: "},
           {"model.sigma_reparam={layers: all, steps_max: 1000000000, tolerance: 0}",
            "steps_max: 1000000000 is out of range"},
           {"run.threads=1000000", "run.threads: 1000000 is out of range; wanted 0 to 1024"},
           {"run.threads=4294967297", "run.threads: "},
           {"phases.sft.batch.sequences=4611686018427387904", "phases.sft.batch.sequences: "},
           {"phases.sft.steps=1000000000000",
            "phases.sft.steps: 1000000000000 is out of range; wanted 1 to 2147483647"},
           {"phases.sft.schedule.warmup_steps=4611686018427387904", "phases.sft.schedule.warmup_steps: "},
           {"phases.sft.optimizer.lr=.inf", "phases.sft.optimizer.lr: wanted a finite number"},
           {"phases.sft.optimizer.eps=.inf", "phases.sft.optimizer.eps: wanted a finite number"},
           {objective + "clip_low=5", "clip_low: 5 is out of range; wanted 0 to 1"},
           {objective + "dual_clip=3",
            "dual_clip: the losses clip, clip_higher and ce_gppo have it, and loss is kl_cov"},
           {"phases.grpo.objective={kind: grpo, loss: sapo, delta: 4}",
            "delta: it bounds the ratio of clip, clip_higher, gspo, luspo and"},
           {"phases.grpo.objective={kind: grpo, loss: clip, delta: 1.1}",
            "delta: 1.1; wanted above 1 + clip_high, which is 1.2: "},
           {"phases.grpo.objective={kind: grpo, loss: clip, delta: 4, dual_clip: 3}", "delta: dual_clip is given too"},
           {"phases.grpo.objective={kind: grpo, loss: reinforce, delta: 0}", "delta: 0 leaves no weight"},
           {"phases.grpo.objective={kind: grpo, loss: reinforce, delta: 1}", "no error"},
           {"phases.grpo.objective={kind: grpo, loss: luspo}", "aggregate: under token-mean the loss luspo is gspo"},
           {"phases.grpo.objective={kind: grpo, loss: luspo, aggregate: seq-mean-token-sum}", "no error"},
           {"phases.grpo.objective={kind: grpo, loss: dro, dro_beta: 0}", "dro_beta: 0 makes the loss dro gpg"},
           {"phases.grpo.objective={kind: grpo, loss: clip, tau_pos: 2}",
            "tau_pos: the loss sapo has it, and loss is clip; leave it out"},
           {"phases.grpo.objective={kind: grpo, loss: sapo, tau_neg: 0}", "tau_neg: 0 makes the gate flat"},
           {"phases.grpo.objective={kind: grpo, loss: ce_gppo, gppo_beta1: 0, gppo_beta2: 0}",
            "gppo_beta1: with gppo_beta2 0 too"},
           {"phases.grpo.objective={kind: grpo, loss: clip, aggregate: token-sum, norm_length: 5}",
            "norm_length: token-sum divides"},
           {objective + "sapo_temperature_pos=1", "unknown key; did you mean 'tau_pos'?"},
           {objective + "kl_cov_coef=.inf", "kl_cov_coef: wanted a finite number"},
           {objective + "ref_kl_coef=.inf", "ref_kl_coef: wanted a finite number"},
           {objective + "entropy={kind: constant, coef: .inf}", "entropy.coef: wanted a finite number"},
           {objective + "entropy={coef: 1}", "entropy: no kind is written; wanted one of constant"},
           {objective + "entropy={kind: konstant}", "entropy.kind: 'konstant' is not one of"},
           {objective + "entropy=[{kind: constant}, {kind: adaptive, least: 2}]", "entropy.1: least: is above most"},
           {objective + "entropy=[{kind: constant}, {kind: constant, coef: 1}]",
            "objective.entropy: constant stands there twice"},
           {objective + "entropy=constant", "entropy: wanted a section of keys or a list of them, got 'constant'"},
           {objective + "entropy_coef=0.1",
            "entropy_coef: is objective.entropy now; write entropy: {kind: constant, coef: 0.1}"},
           {"phases.grpo.objective={kind: grpo, loss: random, random_like: kl_cov}",
            "loss: is an entry of the list phases.1.weight now; write loss: kl_cov and weight: [{kind: random}]"},
           {"phases.grpo.objective={kind: grpo, loss: random}", "write loss: clip_cov and weight: [{kind: random}]"},
           {"phases.grpo.objective={kind: grpo, random_like: clip_cov}",
            "random_like: is the loss of which random, an entry of the list phases.1.weight, is the control; leave it"},
           {"phases.grpo.weight=[{kind: random}]", "no error"},  // of the quickstart's loss, kl_cov
           {"phases.grpo.reward=[{kind: answer}, {kind: overlong}]", "reward: overlong.len is 4096 tokens"},
           {rollout + "temperature=.inf", "temperature: wanted a finite number"},
           {rollout + "temperature=1e-9", "temperature: at less than 0.001"},
           {rollout + "temperature=1e-320", "temperature: at less than 0.001"},
           {rollout + "top_k=1", "top_k: 1 takes the likeliest token"},
           {rollout + "top_p=0", "top_p: 0 takes the likeliest token"},
           {rollout + "top_p=0.04", "top_p: the likeliest of 25 tokens always has so much"},
           {rollout + "min_p=1", "min_p: 1 takes the likeliest token"},
           {rollout + "min_p=1.5", "min_p: 1.5 is out of range; wanted 0 to 1"},
           {rollout + "repetition_penalty=0", "repetition_penalty: 0 is out of range; wanted above 0 to 100"},
           {rollout + "stop=[a, \"\"]", "phases.grpo.rollout.stop.1: the text is empty"},
           {rollout + "stop=[\"a\\n\"]", "phases.grpo.rollout.stop.0: no tokens of the tokenizer can write \"a\\n\""},
           {rollout + "bad_words=xyz", "phases.grpo.rollout.bad_words.0: tokenizer: character 'x'"},
           {rollout + "bad_words=[.]", "phases.grpo.rollout.bad_words.0: \".\" ends a sequence"},
           {"phases.sft.evaluation={every: 50, stop: [\"\"]}", "phases.sft.evaluation.stop.0: the text is empty"},
           {"test.bad_words=Z", "test.bad_words.0: tokenizer: character 'Z'"},
           {rollout + "cache_tokens=1", "cache_tokens: 1 cannot hold one sequence of 35 tokens; wanted at least 80"},
           {rollout + "cache_tokens=1000000000000", "cache_tokens: 1000000000000 is out of range"},
           {rollout + "max_new_tokens=0", "no error"},
           {"phases.grpo.rollout={min_new_tokens: 64}", "min_new_tokens: 64 leaves no room for a prompt"},
           {"phases.grpo.reward=[{kind: answer, weight: 0}]", "reward: every weight is 0"},
           {"phases.grpo.reward=[{kind: answer, weight: 1e300}]", "weight: 1e300 is out of range"},
           {"phases.sft.evaluation={every: 50, temperature: 1e-320}", "evaluation.temperature: "},
           {"phases.sft.evaluation={every: 50, skip: true}", "stop: it is looked at after evaluations"},
           {"phases.sft.data={jsonl: {path: a, validation_fraction: 0}}", "evaluation.every: 50 asks for validation"},
           {"phases.sft.name=" + std::string(300, 'n'), "names folders; use at most 100 letters"},
           {"test.max_new_tokens=64", "test.max_new_tokens: 64 leaves no room"},
           {"phases.sft.learning_rate=1", "phases.sft.learning_rate: unknown key; the keys here are"},
           {"phases.sft.optimizer.learning_rate=1",
            "phases.sft.optimizer.learning_rate: unknown key; did you mean 'lr'?"},
           {"model.width=64", "model.width: unknown key; it is called 'hidden_size' now"},
           {"model.heads=4", "model.heads: unknown key; it is called 'num_attention_heads' now"},
           {"model.tied_head=true", "model.tied_head: unknown key; it is called 'tie_word_embeddings' now"},
           {"model.head_dim=12", "model: head_dim: 12 is not a multiple of 8; take 16"},
           {"model.n_layer=2", "model.n_layer: unknown key; did you mean 'num_hidden_layers'?"},
           {"phases.sft.schedule.floor=0", "unknown key; it is called 'min_lr_ratio' now"},
           {"phases.grpo.rollout.overlong_buffer={len: 3}",
            "is an entry of the list phases.1.reward now; write reward: [..., {kind: overlong, len: 3}]"},
           {"phases.grpo.rollout.ares={kl: {every: 2}}", "write reward: [..., {kind: ares, kl: {every: 2}}]"},
           {"phases.grpo.rollout.ares={}", "write reward: [..., {kind: ares}]"},
           {"phases.grpo.rollout.filter_groups=true", "write reward: [..., {kind: filter_groups}]"},
           {"phases.grpo.rollout.filter_groups=false",
            "filter_groups: is off where reward has no such entry; leave it out"},
           {"phases.grpo.rollout.max_draws=5", "write reward: [..., {kind: filter_groups, max_draws: 5}]"},
           {"phases.grpo.rollout.advantage={kind: rloo}", "write advantage: [{kind: rloo}]"},
           {"phases.grpo.advantage=[{kind: rloo}, {kind: grpo}]",
            "grpo makes advantages of rewards and stands behind rloo"},
           {"phases.grpo.advantage=[{kind: pass_at_k, k: 8}]",
            "advantage: pass_at_k chooses k = 8 completions of a group"},
           {"phases.grpo.advantage=[{kind: grpo}, {kind: op}]", "op: no operator is named"},
           {"phases.grpo.advantage=[{kind: none}]", "advantage.0.kind: 'none' is not one of grpo"},
           {"phases.grpo.weight=[{kind: top_entropy, fraction: 0}]", "weight.0.fraction: 0 is out of range"},
           {"phases.grpo.weight=[{}]", "weight.0: no kind is written; wanted one of top_entropy"},
           {"phases.sft.weight=[{kind: steer}]",
            "weight: steer looks at advantages or at the policy that drew, and an sft phase has neither; wanted "
            "top_entropy or surprisal_band or entropy_sft"},
           {"phases.grpo.data.overlong=drop", "unknown key; it is called 'truncation' now"},
           {"phases.grpo.reward=[{kind: answer}, {kind: overlong, buffer: 4}]", "unknown key; it is called 'len' now"},
           {"test.samples=3", "test.samples: unknown key; it is called 'num_generations' now"},
       }) {
    const std::string said = error(kGood, {wrong.override});
    EXPECT_NE(said.find(wrong.said), std::string::npos) << wrong.override << "\n" << said;
    expect_readable(said);
  }
  EXPECT_NE(error(kGood, {objective + "loss=clip", "phases.grpo.weight=[{kind: random}]"})
                .find("weight: random takes the place of the tokens that the losses clip_cov and kl_cov select"),
            std::string::npos);
}

TEST_F(ConfigTest, AFilterNeedsGroups) {
  const std::string said = error(
      kGood, {"phases.grpo.rollout.num_generations=1", "phases.grpo.reward=[{kind: answer}, {kind: filter_groups}]"});
  EXPECT_NE(said.find("reward: filter_groups: a group of one"), std::string::npos) << said;
}

TEST_F(ConfigTest, MethodsThatDoNotGoTogether) {
  const std::string inner = "phases.grpo.objective.inner_policy={layer: 0, steps: 2}";
  struct Case {
    std::vector<std::string> overrides;
    const char* said;
  };
  const auto advantage = [](const std::string& list) { return "phases.grpo.advantage=[{kind: grpo}, " + list + "]"; };
  const auto weight = [](const std::string& list) { return "phases.grpo.weight=[" + list + "]"; };
  for (const Case& wrong : std::vector<Case>{
           {{advantage("{kind: repo}, {kind: repo, beta: 1}")}, "advantage: repo stands there twice; once does it"},
           {{weight("{kind: top_entropy}, {kind: steer}, {kind: top_entropy, fraction: 0.1}")},
            "weight: top_entropy stands there twice"},
           {{weight("{kind: correction}, {kind: correction, mode: mask, level: sequence}")},
            "weight: correction stands there twice; once does it, or one of mode reject beside one that weighs"},
           {{advantage("{kind: position}, {kind: entropy_advantage}")},
            "advantage: entropy_advantage stands behind position, and "},
           {{advantage("{kind: perplexity}, {kind: empg}")},
            "write them in the order empg, entropy_advantage or ceeh, perplexity, position, hicra"},
           {{weight("{kind: top_entropy}, {kind: clip_b}")}, "weight: clip_b stands behind top_entropy, and "},
           {{"phases.grpo.advantage=[{kind: gdpo}]"}, "advantage: gdpo normalises each reward by itself"},
           {{weight("{kind: attention_entropy}"), inner},
            "weight: attention_entropy together with objective.inner_policy: "},
           {{weight("{kind: correction}"), inner}, "weight: correction together with objective.inner_policy: "}}) {
    const std::string said = error(kGood, wrong.overrides);
    EXPECT_NE(said.find(wrong.said), std::string::npos) << wrong.overrides[0] << "\n" << said;
    expect_readable(said);
  }
  for (const std::vector<std::string>& right : std::vector<std::vector<std::string>>{
           {advantage("{kind: repo}, {kind: empg, marker: \"=\"}, {kind: entropy_advantage}, {kind: perplexity}, "
                      "{kind: position}, "
                      "{kind: gepo}")},
           {weight("{kind: clip_v}, {kind: clip_b}, {kind: steer}, {kind: top_entropy}")},
           {weight("{kind: correction}, {kind: correction, mode: reject, level: sequence}")},
           {"phases.grpo.advantage=[{kind: gdpo}]", "phases.grpo.reward=[{kind: answer}, {kind: exact}]"},
           {weight("{kind: steer}"), inner}})
    EXPECT_EQ(error(kGood, right), "no error") << right[0];
}

TEST_F(ConfigTest, WhatIsAllowedAndNotMeantIsWarnedOf) {
  const auto said = [&](const std::string& override) {
    std::string all;
    for (const std::string& warning : warnings(read(kGood, {override}), {"mine"})) all += warning + "\n";
    return all;
  };
  EXPECT_EQ(said("run.seed=1"), "");
  EXPECT_EQ(said("phases.grpo.reward=[{kind: mine}]"), "");
  for (const auto& [override, key] : std::vector<std::pair<std::string, std::string>>{
           {"phases.sft.optimizer.lr=2", "phases.sft.optimizer.lr: above 1"},
           {"phases.sft.optimizer.lr=1e-308", "phases.sft.optimizer.lr: below 1e-9"},
           {"phases.sft.optimizer={lr: 0.1, weight_decay: 15}", "phases.sft.optimizer.weight_decay: "},
           {"phases.sft.schedule.warmup_steps=2601", "phases.sft.schedule.warmup_steps: "},
           {"phases.sft.schedule.min_lr_ratio=0.1", "phases.sft.schedule.min_lr_ratio: "},
           {"phases.sft.evaluation.every=2601",
            "phases.sft.evaluation.every: the first evaluation would be at step 2601"},
           {"phases.sft.evaluation={every: 50, from: 2601}",
            "phases.sft.evaluation.from: the first evaluation would be at step 2650"},
           {"phases.sft.objective.entropy={kind: constant}", "phases.sft.objective.entropy: "},
           {"phases.grpo.objective={kind: grpo, loss: clip_higher, clip_high: 0.1}",
            "phases.grpo.objective.clip_high: "},
           {"phases.grpo.objective.clip_low=1", "phases.grpo.objective.clip_low: "},
           {"phases.grpo.rollout.top_k=5", "phases.grpo.rollout.top_k: with it completions are not drawn from"},
           {"phases.grpo.rollout.top_p=0.9", "phases.grpo.rollout.top_p: with it completions"},
           {"phases.grpo.rollout.repetition_penalty=1.1",
            "phases.grpo.rollout.repetition_penalty: with it completions"},
           {"phases.grpo.rollout={min_p: 0.1, bad_words: a}",
            "phases.grpo.rollout.min_p: with it, bad_words completions"},
           {"phases.grpo.objective.ref_kl=k1", "phases.grpo.objective.ref_kl: "},
           {"phases.grpo.objective={kind: grpo, loss: clip_cov, entropy: {kind: entropic}}",
            "phases.grpo.objective.entropy: entropic together with objective.loss clip_cov: "},
           {"phases.grpo.weight=[{kind: steer}, {kind: top_entropy, scope: micro}]",
            "phases.grpo.weight.1.scope: micro is of each micro-batch, and batch.micro_tokens is 0"},
           {"phases.grpo.objective={kind: grpo, loss: kl_cov, scope: micro}",
            "phases.grpo.objective.scope: micro is of each micro-batch"},
           {"phases.grpo.rollout.num_generations=1", "phases.grpo.rollout.num_generations: "},
           {"phases.grpo.reward=[{kind: answer}, {kind: exact, weight: 0}]", "phases.grpo.reward.1.weight: 0"},
           {"phases.grpo.reward=[{kind: answer, weight: -1}]", "phases.grpo.reward.0.weight: below 0"},
           {"phases.grpo.reward=[{kind: other}]", "phases.grpo.reward.0.kind: \"other\" is none of"},
           {"model.attention.window=64", "model.attention.window: 64 is not below"},
           {"model.sigma_reparam={layers: all, steps_max: 1000, tolerance: 0}", "model.sigma_reparam.steps_max: "}}) {
    EXPECT_NE(said(override).find(key), std::string::npos) << override << "\n" << said(override);
    expect_readable(said(override));
  }
}

TEST(Explain, EveryKeyWithTypeDefaultRangeAndMeaning) {
  const std::string text = explain_config();
  for (const char* part :
       {"run: The run itself.", "phases[].rollout: ", "phases[].reward[]: ", "phases[].data.tint.digits: ",
        "an integer, default 200, at least 0", "a list of numbers, default [0.9, 0.999], 0 to 1",
        "a number, default none, 0 to 1", "one of constant, linear, cosine", "(Absent unless written.)"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
}

TEST(ConfigText, ScalarsReadBack) {
  EXPECT_EQ(to_text(1.0), "1.0");
  EXPECT_EQ(to_text(1e-6), "1.0e-06");
  EXPECT_EQ(to_text(1.5e-7), "1.5e-07");
  EXPECT_EQ(to_text(HUGE_VAL), ".inf");
  EXPECT_EQ(to_text(std::string("runs/quick-start_1.b")), "runs/quick-start_1.b");
  EXPECT_EQ(to_text(std::string("Yes")), "\"Yes\"");
  EXPECT_EQ(to_text(std::string("1a")), "\"1a\"");
  EXPECT_EQ(to_text(std::string()), "\"\"");
  EXPECT_EQ(range(between(0, 1)), "0 to 1");
  EXPECT_EQ(range(above(0)), "above 0");
  EXPECT_EQ(range({}), "");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
