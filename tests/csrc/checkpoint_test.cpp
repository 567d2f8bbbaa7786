// Safetensors files and checkpoint folders: round trips, and every way in which one can be broken.
#include "csrc/train/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "csrc/durable_file.h"
#include "csrc/train/checkpoint_writer.h"
#include "csrc/train/run_checkpoints.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

namespace fs = std::filesystem;
using nlohmann::json;
using torch::Tensor;

class Files : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    dir_ = (fs::temp_directory_path() / ("isentrope_checkpoint_" + std::to_string(::getpid()) + "_" + info->name()))
               .string();
    fs::create_directories(dir_);
  }
  void TearDown() override { fs::remove_all(dir_); }

  // The message with which f fails, the test's folder left out.
  template <class F>
  std::string error(F f) {
    try {
      f();
    } catch (const std::exception& error) {
      std::string message = error.what();
      for (size_t at; (at = message.find(dir_ + "/")) != std::string::npos;) message.erase(at, dir_.size() + 1);
      return message;
    }
    return "no error";
  }
  std::string dir_;
};
using SafetensorsTest = Files;
using CheckpointTest = Files;

// Runs f in a child process that may write files of at most `bytes`, as on a disk that fills up; returns what
// it threw.
template <class F>
std::string with_file_limit(rlim_t bytes, F f) {
  int channel[2];
  if (::pipe(channel) != 0) return "no pipe";
  const pid_t child = ::fork();
  if (child == 0) {
    const struct rlimit limit { bytes, bytes };
    ::signal(SIGXFSZ, SIG_IGN);  // so that write() fails with EFBIG
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::string message = "no error";
    try {
      f();
    } catch (const std::exception& error) {
      message = error.what();
    }
    (void)!::write(channel[1], message.data(), message.size());
    ::_exit(0);
  }
  ::close(channel[1]);
  std::string message(4096, '\0');
  message.resize(static_cast<size_t>(std::max<ssize_t>(::read(channel[0], message.data(), message.size()), 0)));
  ::close(channel[0]);
  ::waitpid(child, nullptr, 0);
  return message;
}

std::vector<std::string> names_in(const std::string& dir) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST_F(SafetensorsTest, EveryDtypeAndShapeReadsBack) {
  NamedTensors tensors{{"f32", torch::randn({31, 33})},
                       {"transposed", torch::randn({3, 97}).t()},
                       {"bf16", torch::randn({7}).to(torch::kBFloat16)},
                       {"f16", torch::randn({1, 1, 1}).to(torch::kHalf)},
                       {"f64", torch::randn({2, 3}, torch::kFloat64)},
                       {"i64", torch::arange(5)},
                       {"i32", torch::arange(5, torch::kInt32)},
                       {"u8", torch::arange(3, torch::kUInt8)},
                       {"bool", torch::tensor({true, false, true})},
                       {"scalar \"é\"", torch::tensor(2.5)},
                       {"empty", torch::empty({0, 4})}};
  write_safetensors(dir_ + "/x", tensors);
  const auto read = read_safetensors(dir_ + "/x");
  ASSERT_EQ(read.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    EXPECT_EQ(read.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(read.at(name), tensor)) << name;
  }
  EXPECT_EQ(names_in(dir_), std::vector<std::string>{"x"});
}

TEST_F(SafetensorsTest, HeaderIsSortedAlignedAndWithoutGaps) {
  write_safetensors(dir_ + "/x", {{"b", torch::zeros({3}, torch::kUInt8)}, {"a", torch::zeros({3}, torch::kInt64)}});
  const std::string bytes = read_whole(dir_ + "/x");
  uint64_t length;
  std::memcpy(&length, bytes.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(bytes.size(), 8 + length + 27);
  const auto header = nlohmann::ordered_json::parse(bytes.substr(8, length));
  EXPECT_EQ(header.begin().key(), "__metadata__");
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  EXPECT_EQ(header["a"]["data_offsets"].dump(), "[0,24]");
  EXPECT_EQ(header["b"]["data_offsets"].dump(), "[24,27]");
  EXPECT_EQ(std::next(header.begin()).key(), "a");
}

TEST_F(SafetensorsTest, RefusesWhatItCannotWrite) {
  EXPECT_TRUE(error([&] {
                write_safetensors(dir_ + "/x", {{"c", torch::zeros({2}, torch::kComplexFloat)}});
              }).starts_with("tensor 'c' has dtype ComplexFloat"));
  EXPECT_EQ(error([&] {
              write_safetensors(dir_ + "/x", {{"a", torch::zeros({2})}, {"a", torch::zeros({2})}});
            }),
            "two tensors are named 'a'");
  EXPECT_EQ(error([&] { write_safetensors(dir_ + "/absent/x", {}); }),
            "absent/x.tmp: cannot be opened for writing: No such file or directory");
  EXPECT_TRUE(names_in(dir_).empty());
}

constexpr const char* kAgain = "; copy or download the file again";

TEST_F(SafetensorsTest, TruncatedFilesSayHowMuchIsMissing) {
  const std::string file = dir_ + "/x";
  write_safetensors(file, {{"a", torch::zeros({10})}});
  const auto size = fs::file_size(file);
  for (const uintmax_t left : {size - 1, size - 40}) {
    fs::resize_file(file, left);
    EXPECT_EQ(error([&] { read_safetensors(file); }),
              "x: truncated: expected " + std::to_string(size) + " bytes, found " + std::to_string(left) + kAgain);
  }
  fs::resize_file(file, size - 41);
  EXPECT_EQ(error([&] { read_safetensors(file); }), "x: truncated: expected " + std::to_string(size - 40) +
                                                        " bytes, found " + std::to_string(size - 41) + kAgain);
  fs::resize_file(file, 3);
  EXPECT_EQ(error([&] { read_safetensors(file); }), std::string("x: truncated: expected 8 bytes, found 3") + kAgain);
  fs::resize_file(file, 0);
  EXPECT_EQ(error([&] { read_safetensors(file); }), std::string("x: truncated: expected 8 bytes, found 0") + kAgain);
  EXPECT_EQ(error([&] { read_safetensors(dir_ + "/absent"); }), "absent: cannot be read: No such file or directory");
}

TEST_F(SafetensorsTest, BrokenHeaders) {
  auto message = [&](std::string header, size_t data_bytes) {
    const uint64_t length = header.size();
    std::ofstream out(dir_ + "/x", std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), 8);
    out << header << std::string(data_bytes, '\0');
    out.close();
    return error([&] { read_safetensors(dir_ + "/x"); });
  };
  EXPECT_EQ(message("[1]", 0), std::string("x: not a safetensors file (its header is not a JSON object)") + kAgain);
  EXPECT_EQ(message("{", 0), std::string("x: not a safetensors file (its header is not a JSON object)") + kAgain);
  EXPECT_EQ(message(R"({"a":{"dtype":"F32"}})", 0),
            std::string("x: header of tensor 'a': shape is not a list of sizes") + kAgain);
  EXPECT_EQ(message(R"({"a":7})", 0), std::string("x: header of tensor 'a': dtype is not a name") + kAgain);
  for (const char* offsets : {"[0]", "[0,4,8]", "[-4,0]", "[0,4.0]", "7", "null"})
    EXPECT_EQ(message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)" + std::string(offsets) + "}}", 4),
              std::string("x: header of tensor 'a': data_offsets is not a list of two offsets") + kAgain)
        << offsets;
  EXPECT_EQ(message(R"({"a":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}})", 1),
            "x: tensor 'a' has dtype F8, and F64, F32, BF16, F16, I64, I32, U8 and BOOL are read; open the model in "
            "transformers as float32 or bfloat16 and save it with save_pretrained");
  EXPECT_EQ(message(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
            std::string("x: tensor 'a' has 4 bytes, and its shape wants 8") + kAgain);
  EXPECT_EQ(message(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4),
            std::string("x: tensor 'a' has an impossible shape") + kAgain);
  EXPECT_EQ(message(R"({"a":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,4]}})", 4),
            std::string("x: tensor 'a' has an impossible shape") + kAgain);
  for (const char* sizes :
       {"0,4611686018427387904,8", "4611686018427387904,8,0"})  // no bytes, and strides that overflow
    EXPECT_EQ(message(R"({"a":{"dtype":"F32","shape":[)" + std::string(sizes) + R"(],"data_offsets":[0,0]}})", 0),
              std::string("x: tensor 'a' has an impossible shape") + kAgain);
  EXPECT_TRUE(message(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5).starts_with("x: expected "));
  const std::string a = R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  EXPECT_EQ(
      message("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4),
      std::string("x: tensor 'b' begins at byte 0 of the data, and what stands before it ends at 4: tensors overlap") +
          kAgain);
  EXPECT_EQ(
      message("{" + a + R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})", 12),
      std::string(
          "x: tensor 'b' begins at byte 8 of the data, and what stands before it ends at 4: tensors leave a gap") +
          kAgain);
  EXPECT_EQ(
      message(R"({"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8),
      std::string(
          "x: tensor 'b' begins at byte 4 of the data, and what stands before it ends at 0: tensors leave a gap") +
          kAgain);
  EXPECT_EQ(message("{" + a + "," + a + "}", 4), std::string("x: its header holds 'a' twice") + kAgain);
  EXPECT_EQ(message(" {" + a + "}", 4),
            std::string("x: not a safetensors file (its header is not a JSON object)") + kAgain);
  std::ofstream(dir_ + "/x") << "this is no such file at all";
  EXPECT_TRUE(error([&] { read_safetensors(dir_ + "/x"); }).starts_with("x: not a safetensors file (header length "));
}

TEST_F(SafetensorsTest, AFullDiskLeavesTheOldFileAndNoOther) {
  const std::string file = dir_ + "/x";
  write_safetensors(file, {{"a", torch::ones({4})}});
  const Tensor large = torch::zeros({100'000});
  const std::string message = with_file_limit(50'000, [&] { write_safetensors(file, {{"a", large}}); });
  EXPECT_NE(message.find("x.tmp: cannot be written: File too large (400"), std::string::npos) << message;
  EXPECT_NE(message.find(" bytes needed, "), std::string::npos) << message;
  EXPECT_NE(message.find(" free"), std::string::npos) << message;
  EXPECT_EQ(names_in(dir_), std::vector<std::string>{"x"});
  EXPECT_TRUE(torch::equal(read_safetensors(file).at("a"), torch::ones({4})));
}

// ---- checkpoints --------------------------------------------------------------------------------------------------

struct Model {
  TrainConfig config;
  data::Tokenizer tokenizer{config.tokenizer};
  model::Decoder decoder{nullptr};

  explicit Model(uint64_t seed = 1, bool tied = false, int64_t layers = 2) {
    config.model.hidden_size = 24;
    config.model.num_attention_heads = 3;
    config.model.num_key_value_heads = 1;
    config.model.intermediate_size = 33;
    config.model.max_position_embeddings = 31;
    config.model.num_hidden_layers = layers;
    config.model.tie_word_embeddings = tied;
    config.model.rope_theta = 5000;
    config.model.vocabulary = tokenizer.size();
    PhaseConfig phase;
    phase.name = "sft";
    phase.data.tint.emplace();
    config.phases = {phase};
    decoder = model::Decoder(config.model, seed);
  }
  void save(const std::string& dir, const CheckpointState& state) const {
    save_checkpoint(dir, parts_of(state, decoder), tokenizer, config);
  }
};

CheckpointState state_at(int64_t of_run, const std::string& name, int64_t step, bool finished = false) {
  CheckpointState state;
  state.steps_of_run = of_run;
  state.phase_name = name;
  state.phase_finished = finished;
  state.step = step;
  state.seed = std::numeric_limits<uint64_t>::max();
  return state;
}

bool same_weights(const model::Decoder& a, const model::Decoder& b) {
  const auto wa = a->named_weights(), wb = b->named_weights();
  if (wa.size() != wb.size()) return false;
  for (size_t i = 0; i < wa.size(); ++i)
    if (wa[i].first != wb[i].first || !torch::equal(wa[i].second, wb[i].second)) return false;
  return true;
}

TEST_F(CheckpointTest, SavedAndLoaded) {
  for (const bool tied : {false, true}) {
    const Model run(1, tied);
    CheckpointState state = state_at(260, "grpo", 200);
    state.ended = {"sft"};
    state.numbers = {{"sft", 0}, {"grpo", 1}};
    state.optimizer = {{"first.model.norm.weight", torch::randn({24})}};
    state.source = {{"taken", torch::tensor(int64_t{77})}};
    state.extra = {{"reference/a", torch::randn({2, 2})}};
    const std::string dir = checkpoint_dir(dir_, "grpo", 200);
    EXPECT_EQ(dir, dir_ + "/checkpoints/grpo-000200");
    run.save(dir, state);

    const CheckpointState read = load_checkpoint_state(dir);
    EXPECT_EQ(read.steps_of_run, 260);
    EXPECT_EQ(read.ended, state.ended);
    EXPECT_EQ(read.numbers, state.numbers);
    EXPECT_EQ(read.config.at("phases.sft.data.tint.task"), "signed_sum");
    EXPECT_EQ(read.config.at("model.rope_theta"), "5000.0");
    EXPECT_TRUE(read.evaluated);
    EXPECT_EQ(read.phase_name, "grpo");
    EXPECT_FALSE(read.phase_finished);
    EXPECT_EQ(read.step, 200);
    EXPECT_EQ(read.seed, state.seed);
    EXPECT_TRUE(torch::equal(read.optimizer.at("first.model.norm.weight"), state.optimizer.begin()->second));
    EXPECT_EQ(read.source.at("taken").item<int64_t>(), 77);
    EXPECT_TRUE(torch::equal(read.extra.at("reference/a"), state.extra.begin()->second));

    const model::DecoderConfig config = read_model_config(dir);
    EXPECT_EQ(config.num_key_value_heads, 1);
    EXPECT_EQ(config.rope_theta, 5000);
    EXPECT_EQ(config.tie_word_embeddings, tied);
    EXPECT_EQ(config.vocabulary, run.tokenizer.size());
    model::Decoder decoder(config, 2);
    EXPECT_FALSE(same_weights(decoder, run.decoder));
    load_weights(dir, decoder);
    EXPECT_TRUE(same_weights(decoder, run.decoder));
    const Tensor tokens = torch::arange(20).reshape({2, 10}) % run.tokenizer.size();
    EXPECT_TRUE(torch::equal(decoder->forward(tokens), model::Decoder(run.decoder)->forward(tokens)));
    EXPECT_EQ(print_config(read_config(dir + "/config.yaml")), print_config(run.config));
    fs::remove_all(dir_ + "/checkpoints");
  }
}

TEST_F(CheckpointTest, LearnedSpectralNormsAreFoldedAndTheirStateKept) {
  Model run;
  run.config.model.sigma_reparam.layers = {"all"};
  run.decoder = model::Decoder(run.config.model, 1);
  torch::NoGradGuard no_grad;
  for (const model::SigmaLayer& layer : run.decoder->sigma_layers()) layer.gamma.mul_(1.75);
  CheckpointState state = state_at(0, "sft", 3);
  state.extra = run.decoder->sigma_state();
  const std::string dir = dir_ + "/c";
  run.save(dir, state);

  // Plain weights, as another program reads them.
  const model::DecoderConfig plain_config = read_model_config(dir);
  EXPECT_FALSE(plain_config.sigma_reparam.any());
  EXPECT_EQ(json::parse(read_whole(dir + "/config.json")).at("model_type"), "llama");
  model::Decoder plain(plain_config, 2);
  load_weights(dir, plain);
  const Tensor tokens = torch::arange(20).reshape({2, 10}) % run.tokenizer.size();
  const Tensor logits = run.decoder->forward(tokens);
  EXPECT_TRUE(torch::equal(plain->forward(tokens), logits));

  // With the state: every bit of what is trained.
  model::Decoder resumed(run.config.model, 2);
  load_weights(dir, resumed);
  ASSERT_TRUE(resumed->restore_sigma(load_checkpoint_state(dir).extra));
  const auto trained = run.decoder->named_parameters();
  for (const auto& p : resumed->named_parameters()) EXPECT_TRUE(torch::equal(p.value(), trained[p.key()])) << p.key();
  const auto followed = run.decoder->named_buffers();
  for (const auto& b : resumed->named_buffers()) EXPECT_TRUE(torch::equal(b.value(), followed[b.key()])) << b.key();

  // Without it: from the folded weights, with γ = σ.
  model::Decoder started(run.config.model, 2);
  load_weights(dir, started);
  EXPECT_FALSE(started->restore_sigma({}));
  started->start_sigma(true);
  EXPECT_TRUE(torch::equal(started->forward(tokens), logits));
  EXPECT_FALSE(torch::equal(started->head().weight, run.decoder->head().weight));
}

TEST_F(CheckpointTest, NormsElsewhereHaveAModelTypeOfTheirOwn) {
  for (const char* norm : {"post", "none"}) {
    Model run;
    run.config.model.norm = norm;
    run.decoder = model::Decoder(run.config.model, 1);
    const std::string dir = dir_ + "/" + norm;
    run.save(dir, state_at(0, "sft", 3));
    EXPECT_EQ(json::parse(read_whole(dir + "/config.json")).at("model_type"), "isentrope");
    model::Decoder read(read_model_config(dir), 2);
    load_weights(dir, read);
    const Tensor tokens = torch::arange(20).reshape({2, 10}) % run.tokenizer.size();
    EXPECT_TRUE(torch::equal(read->forward(tokens), run.decoder->forward(tokens))) << norm;
  }
}

TEST_F(CheckpointTest, AnotherModelIsNamedByWhatDiffers) {
  const Model run;
  run.save(dir_ + "/c", state_at(0, "sft", 1));
  Model deeper(1, false, 3), shallower(1, false, 1);
  EXPECT_TRUE(error([&] {
                load_weights(dir_ + "/c", deeper.decoder);
              }).starts_with("c/model.safetensors: weights of another model: missing: model.layers.2."));
  EXPECT_TRUE(
      error([&] {
        load_weights(dir_ + "/c", shallower.decoder);
      }).starts_with("c/model.safetensors: weights of another model: without a place in this model: model.layers.1."));
  Model wider;
  wider.config.model.intermediate_size = 34;
  wider.decoder = model::Decoder(wider.config.model, 3);
  const std::string message = error([&] { load_weights(dir_ + "/c", wider.decoder); });
  EXPECT_NE(message.find("mlp.gate_proj.weight is [33, 24], wanted [34, 24]"), std::string::npos) << message;
  EXPECT_NE(message.find(" and 1 more; config.json and the weights"), std::string::npos) << message;
}

TEST_F(CheckpointTest, OnlyCompleteFoldersAreUsed) {
  const Model run;
  const std::string dir = dir_ + "/checkpoints/sft-000001";
  EXPECT_EQ(find_latest(dir_), std::nullopt);
  run.save(dir, state_at(0, "sft", 1));
  EXPECT_EQ(find_latest(dir_), dir);
  fs::copy(dir, dir_ + "/checkpoints/sft-000002.tmp");  // a trainer that was killed before the rename
  fs::copy(dir, dir_ + "/checkpoints/sft-000003");
  fs::remove(dir_ + "/checkpoints/sft-000003/DONE");
  fs::create_directories(dir_ + "/checkpoints/sft-000004");
  EXPECT_EQ(find_latest(dir_), dir);
  EXPECT_EQ(error([&] { load_checkpoint_state(dir_ + "/checkpoints/sft-000003"); }),
            "checkpoints/sft-000003: not a complete checkpoint (it has no file DONE); take another one");
  EXPECT_EQ(error([&] { load_checkpoint_state(dir_ + "/none"); }), "none: there is no such checkpoint folder");
}

TEST_F(CheckpointTest, LatestIsByTheStepsOfTheRunNotByTimeOrName) {
  const Model run;
  run.save(checkpoint_dir(dir_, "b", 5), state_at(905, "b", 5));
  run.save(checkpoint_dir(dir_, "z", 900), state_at(900, "z", 900, true));
  run.save(checkpoint_dir(dir_, "b", 10), state_at(910, "b", 10));
  run.save(checkpoint_dir(dir_, "b", 9), state_at(909, "b", 9));
  EXPECT_EQ(find_latest(dir_), checkpoint_dir(dir_, "b", 10));
  // Copies under another name are not the run's, whatever they hold.
  fs::copy(checkpoint_dir(dir_, "b", 10), dir_ + "/checkpoints/best");
  fs::copy(checkpoint_dir(dir_, "b", 10), dir_ + "/checkpoints/b-000011");
  fs::copy(checkpoint_dir(dir_, "b", 10), dir_ + "/checkpoints/a-000010");
  EXPECT_EQ(find_latest(dir_), checkpoint_dir(dir_, "b", 10));
}

TEST_F(CheckpointTest, PruneKeepsTheNewestAndTheEndsOfPhases) {
  const Model run;
  for (int64_t step : {1, 2, 3}) run.save(checkpoint_dir(dir_, "a", step), state_at(step, "a", step, step == 1));
  for (int64_t step : {1, 2, 3, 4}) run.save(checkpoint_dir(dir_, "b", step), state_at(3 + step, "b", step));
  prune_checkpoints(dir_, 2, {"a", "b"});
  EXPECT_EQ(names_in(dir_ + "/checkpoints"),
            (std::vector<std::string>{"a-000001", "a-000002", "a-000003", "b-000003", "b-000004"}));
  prune_checkpoints(dir_ + "/no run", 2, {"a"});
}

TEST_F(CheckpointTest, PruneTouchesOnlyWhatTheRunMade) {
  const Model run;
  const std::string root = dir_ + "/checkpoints";
  for (int64_t step : {1, 2, 3}) run.save(checkpoint_dir(dir_, "a", step), state_at(step, "a", step));
  fs::create_directories(root + "/a-000004.tmp");  // a trainer that was killed: its own
  for (const char* name : {"mine", "onnx-export.tmp", "other-000001.tmp", "a-000009", "a-1.tmp"})
    fs::create_directories(root + "/" + name);          // notes, another program's, no checkpoint
  fs::copy(root + "/a-000001", root + "/best");         // a copy
  fs::rename(root + "/a-000002", dir_ + "/elsewhere");  // on another disk
  fs::create_symlink(dir_ + "/elsewhere", root + "/a-000002");
  fs::create_symlink(dir_ + "/elsewhere", root + "/a-000005.tmp");
  fs::copy(root + "/a-000001", root + "/a-000000");
  fs::remove(root + "/a-000000/trainer.json");  // stripped to save space
  prune_checkpoints(dir_, 1, {"a"});
  EXPECT_EQ(names_in(root),
            (std::vector<std::string>{"a-000000", "a-000002", "a-000003", "a-000005.tmp", "a-000009", "a-1.tmp", "best",
                                      "mine", "onnx-export.tmp", "other-000001.tmp"}));
  EXPECT_TRUE(fs::exists(dir_ + "/elsewhere/DONE"));
  EXPECT_EQ(find_latest(dir_), root + "/a-000003");
}

TEST_F(CheckpointTest, EveryFileIsComparedWithItsDigest) {
  const Model run;
  const std::string dir = checkpoint_dir(dir_, "a", 2);
  run.save(dir, state_at(2, "a", 2));
  const std::vector<std::string> names = names_in(dir);
  EXPECT_EQ(names.size(), 10u);
  for (const std::string& name : names) {
    if (name == "DONE") continue;
    const std::string file = dir + "/" + name, whole = read_whole(file);
    std::string flipped = whole;
    flipped[whole.size() / 2] ^= 1;
    std::ofstream(file, std::ios::binary) << flipped;
    EXPECT_TRUE(error([&] { verify_checkpoint(dir); }).starts_with("checkpoints/a-000002/" + name + ": damaged"));
    fs::remove(file);
    EXPECT_TRUE(error([&] { resolve_checkpoint(dir); }).starts_with("checkpoints/a-000002/" + name + ": is missing"));
    std::ofstream(file, std::ios::binary) << whole;
  }
  EXPECT_NO_THROW(verify_checkpoint(dir));
  std::ofstream(dir + "/DONE") << "";
  EXPECT_TRUE(error([&] { load_checkpoint_state(dir); }).starts_with("checkpoints/a-000002/DONE: lists no files"));
}

TEST_F(CheckpointTest, AFlippedBitOfTheListIsSeen) {
  const Model run;
  const std::string dir = checkpoint_dir(dir_, "a", 2);
  run.save(dir, state_at(2, "a", 2));
  const std::string file = dir + "/DONE", whole = read_whole(file);
  const auto refused = [&](size_t byte, int bit) {
    std::string flipped = whole;
    flipped[byte] = static_cast<char>(flipped[byte] ^ (1 << bit));
    std::ofstream(file, std::ios::binary) << flipped;
    const std::string said = error([&] {
      verify_checkpoint(dir);
      if (const std::string foreign = foreign_file(dir); !foreign.empty())
        throw std::runtime_error(dir + "/" + foreign);
    });
    EXPECT_TRUE(said.starts_with("checkpoints/a-000002")) << "bit " << bit << " of byte " << byte << ": " << said;
  };
  // Every bit of the first line and of the last, which has none behind it; of those between the digests and ends of lines, and one
  // bit a byte of the names.
  for (size_t byte = 0; byte < whole.size(); ++byte) {
    const bool all = byte < whole.find('\n') || byte > whole.rfind('\n', whole.size() - 2);
    for (int bit = 0; bit < 8; bit += all ? 1 : 3) refused(byte, bit);
  }
}

TEST_F(CheckpointTest, AForeignFileIsNamed) {
  const Model run;
  const std::string dir = checkpoint_dir(dir_, "a", 2);
  run.save(dir, state_at(2, "a", 2));
  EXPECT_EQ(foreign_file(dir), "");
  fs::create_directories(dir + "/.cache/huggingface");  // what downloads and desktops leave, and nobody reads
  std::ofstream(dir + "/.cache/huggingface/x") << "x";
  std::ofstream(dir + "/.DS_Store") << "x";
  fs::create_directories(dir + "/empty");
  EXPECT_EQ(foreign_file(dir), "");
  std::ofstream(dir + "/notes.txt") << "x";
  fs::create_directories(dir + "/gguf");
  std::ofstream(dir + "/gguf/model.gguf") << "x";
  EXPECT_EQ(foreign_file(dir), "gguf/model.gguf");
  fs::remove_all(dir + "/gguf");
  EXPECT_EQ(foreign_file(dir), "notes.txt");
  EXPECT_NO_THROW(verify_checkpoint(dir));  // what is listed is whole
  EXPECT_EQ(resolve_checkpoint(dir_), dir) << "a model is read from it, and that file is not";
  // What would be read in place of what is listed is refused for every use.
  fs::remove(dir + "/notes.txt");
  std::ofstream(dir + "/adapter_config.json") << "{}";
  EXPECT_EQ(error([&] { load_model(dir); }),
            "checkpoints/a-000002/DONE: does not list adapter_config.json; one of the two is damaged");
}

TEST_F(CheckpointTest, ACopyIsOfNoMemoryOfTheModel) {
  Model run;
  CheckpointState state = state_at(1, "sft", 1);
  const Tensor moment = torch::ones({3});
  float lent[2] = {1, 2};
  state.optimizer = {{"m", moment}};
  state.source = {{"alone", torch::ones({3})}, {"lent", torch::from_blob(lent, {2})}};
  const void* alone = state.source.at("alone").data_ptr();
  const CheckpointParts copy = copy_of(parts_of(std::move(state), run.decoder));
  EXPECT_EQ(copy.state.source.at("alone").data_ptr(), alone) << "what nothing else holds needs no copy";
  for (const auto& [name, weight] : copy.weights) {
    EXPECT_FALSE(weight.requires_grad()) << name;
    for (const auto& [other, live] : run.decoder->named_weights())
      EXPECT_FALSE(weight.storage().is_alias_of(live.storage())) << name << " is " << other;
  }
  const Model same;
  {
    const torch::NoGradGuard no_grad;
    for (const auto& [name, weight] : run.decoder->named_weights()) weight.zero_();
  }
  moment.zero_();
  lent[0] = 7;
  save_checkpoint(dir_ + "/c", copy, run.tokenizer, run.config);
  model::Decoder decoder(read_model_config(dir_ + "/c"), 3);
  load_weights(dir_ + "/c", decoder);
  EXPECT_TRUE(same_weights(decoder, same.decoder));
  const CheckpointState read = load_checkpoint_state(dir_ + "/c");
  EXPECT_TRUE(torch::equal(read.optimizer.at("m"), torch::ones({3})));
  EXPECT_EQ(read.source.at("lent")[0].item<float>(), 1);
}

TEST(CheckpointWriter, OneAtATimeAndEachIsToldOnce) {
  CheckpointWriter writer;
  EXPECT_FALSE(writer.ended());
  EXPECT_FALSE(writer.wait());
  std::promise<void> disk;
  auto held = std::make_shared<int>(0);
  writer.begin("a", [held, ready = disk.get_future().share()] { ready.wait(); });
  EXPECT_FALSE(writer.ended()) << "it waits for the disk, and nobody for it";
  EXPECT_THROW(writer.begin("b", [] {}), std::logic_error);
  disk.set_value();
  const auto written = writer.wait();
  ASSERT_TRUE(written);
  EXPECT_EQ(written->dir, "a");
  EXPECT_EQ(written->error, "");
  EXPECT_EQ(held.use_count(), 1) << "what was written from is there no more";
  EXPECT_FALSE(writer.wait());
  for (const bool beside : {true, false}) {
    writer.begin(
        "c", [] { throw std::runtime_error("c/x: cannot be written"); }, beside);
    EXPECT_EQ(writer.wait()->error, "c/x: cannot be written");
  }
  int niceness = 0;
  writer.begin("e", [&] { niceness = ::getpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid))); });
  EXPECT_EQ(writer.wait()->error, "");
  EXPECT_EQ(niceness, std::min(19, ::getpriority(PRIO_PROCESS, 0) + 10));
  bool done = false;
  {
    CheckpointWriter goes;
    goes.begin("d", [&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      done = true;
    });
  }
  EXPECT_TRUE(done) << "the destructor waits";
}

TEST_F(CheckpointTest, ADamagedNewestOneNamesTheOneBefore) {
  const Model run;
  for (int64_t step : {1, 2, 3}) run.save(checkpoint_dir(dir_, "a", step), state_at(step, "a", step));
  const auto flip = [&](int64_t step, const char* name) {
    const std::string file = checkpoint_dir(dir_, "a", step) + "/" + name;
    std::string text = read_whole(file);
    text[text.size() / 2] ^= 4;
    std::ofstream(file, std::ios::binary) << text;
  };
  flip(1, "trainer.json");  // an old one that nobody wants
  EXPECT_EQ(find_latest(dir_), checkpoint_dir(dir_, "a", 3));
  flip(3, "trainer.safetensors");
  EXPECT_EQ(error([&] { find_latest(dir_); }),
            "checkpoints/a-000003/trainer.safetensors: damaged: it is not what was written, by its digest in DONE. "
            "checkpoints/a-000003 is the newest checkpoint. The one before it, checkpoints/a-000002, is whole: to take "
            "it, move the damaged folder out of checkpoints");
  flip(3, "trainer.json");  // its place is known by its name alone
  EXPECT_NE(error([&] { find_latest(dir_); }).find("The one before it, checkpoints/a-000002, is whole"),
            std::string::npos);
  flip(2, "model.safetensors");
  EXPECT_NE(error([&] { find_latest(dir_); }).find("There is no whole one before it"), std::string::npos);
  fs::rename(checkpoint_dir(dir_, "a", 3), dir_ + "/away");
  flip(2, "model.safetensors");
  EXPECT_EQ(find_latest(dir_), checkpoint_dir(dir_, "a", 2));
}

TEST_F(CheckpointTest, WeightsThatAreNotFiniteAreNotSaved) {
  Model run;
  run.save(dir_ + "/c", state_at(1, "sft", 1));
  torch::NoGradGuard no_grad;
  run.decoder->embedding()[0][0] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(error([&] { run.save(dir_ + "/d", state_at(2, "sft", 2)); }),
            "d: not written: the weight model.embed_tokens.weight is not finite");
  EXPECT_EQ(names_in(dir_), std::vector<std::string>{"c"});
}

TEST_F(CheckpointTest, WhatMayNotBeReadIsNotTakenForAbsent) {
  Model run;
  for (const int64_t step : {1, 2}) run.save(checkpoint_dir(dir_, "sft", step), state_at(0, "sft", step));
  const uid_t me = ::geteuid(), nobody = 65534;  // root may read everything
  for (const std::string& folder : {checkpoint_dir(dir_, "sft", 2), dir_ + "/checkpoints"}) {
    fs::permissions(folder, fs::perms::none);
    if (me == 0) {
      ASSERT_EQ(::seteuid(nobody), 0);
    }
    const std::string latest = error([&] { find_latest(dir_); }), resolved = error([&] { resolve_checkpoint(dir_); });
    ASSERT_EQ(::seteuid(me), 0);
    fs::permissions(folder, fs::perms::owner_all);
    for (const std::string& said : {latest, resolved})
      EXPECT_NE(said.find(": cannot be read: Permission denied"), std::string::npos) << said;
  }
}

TEST_F(CheckpointTest, AFolderThatTransformersSavedGivesWeights) {
  Model run;
  run.save(dir_ + "/c", state_at(1, "sft", 1));
  fs::create_directories(dir_ + "/t");
  for (const char* name : {"model.safetensors", "tokenizer.json", "tokenizer_config.json"})
    fs::copy(dir_ + "/c/" + name, dir_ + "/t/" + std::string(name));
  json config = json::parse(read_whole(dir_ + "/c/config.json"));
  config.erase("rope_theta");  // as transformers 5 writes it
  config["transformers_version"] = "5.24.0";
  const auto write = [&] { std::ofstream(dir_ + "/t/config.json") << config; };
  write();
  EXPECT_EQ(resolve_checkpoint(dir_ + "/t"), dir_ + "/t");
  EXPECT_EQ(read_model_config(dir_ + "/t").rope_theta, 5000);
  EXPECT_EQ(load_tokenizer(dir_ + "/t").size(), run.tokenizer.size());
  model::Decoder decoder(read_model_config(dir_ + "/t"), 3);
  load_weights(dir_ + "/t", decoder);
  EXPECT_TRUE(same_weights(decoder, run.decoder));
  EXPECT_NE(error([&] { load_checkpoint_state(dir_ + "/t"); }).find("a model's folder and no checkpoint of a run"),
            std::string::npos);

  config["rope_theta"] = 7.0;  // rope_parameters come first, as in transformers
  write();
  EXPECT_EQ(read_model_config(dir_ + "/t").rope_theta, 5000);
  config["rope_parameters"]["rope_type"] = "yarn";
  write();
  EXPECT_EQ(error([&] { read_model_config(dir_ + "/t"); }), "t/config.json: rope_parameters.'factor' is missing");
  config["rope_parameters"]["rope_type"] = "default";
  for (const char* damaged : {"[]", "{\"model_type\": \"llama\"", "{\"hidden_size\": 1e999}"}) {
    std::ofstream(dir_ + "/t/config.json") << damaged;
    EXPECT_EQ(error([&] { resolve_checkpoint(dir_ + "/t"); }), "t/config.json: not a JSON object; the file is damaged");
  }
  config.erase("transformers_version");
  write();
  load_weights(dir_ + "/t", decoder);               // as isentrope export leaves it
  std::ofstream(dir_ + "/t/trainer.json") << "{}";  // a checkpoint of a trainer without DONE is none
  EXPECT_NE(error([&] { load_weights(dir_ + "/t", decoder); }).find("no file DONE"), std::string::npos);
}

TEST_F(CheckpointTest, AWindowIsMistralsWithoutLayerTypes) {
  Model run;
  run.config.model.attention.window = 6;
  run.decoder = model::Decoder(run.config.model, 1);
  run.save(dir_ + "/c", state_at(1, "sft", 1));
  const json config = json::parse(read_whole(dir_ + "/c/config.json"));
  EXPECT_EQ(config.at("model_type"), "mistral");
  EXPECT_FALSE(config.contains("layer_types"));  // transformers would take it for Ministral
  EXPECT_EQ(read_model_config(dir_ + "/c").attention.window, 6);
}

TEST_F(CheckpointTest, OverwritesACheckpointOfTheSameStep) {
  const Model first(1), second(2);
  const std::string dir = checkpoint_dir(dir_, "sft", 7);
  first.save(dir, state_at(0, "sft", 7));
  second.save(dir, state_at(0, "sft", 7, true));
  EXPECT_TRUE(load_checkpoint_state(dir).phase_finished);
  model::Decoder decoder(read_model_config(dir), 3);
  load_weights(dir, decoder);
  EXPECT_TRUE(same_weights(decoder, second.decoder));
  EXPECT_EQ(names_in(dir_ + "/checkpoints"), std::vector<std::string>{"sft-000007"});
}

TEST_F(CheckpointTest, AFullDiskLeavesTheLastOne) {
  const Model run;
  const std::string dir = checkpoint_dir(dir_, "sft", 7);
  run.save(dir, state_at(0, "sft", 7));
  CheckpointState next = state_at(0, "sft", 8);
  next.optimizer["first"] = torch::zeros({100'000});  // more than the weights, so that the failure comes late
  const std::string message = with_file_limit(100'000, [&] { run.save(checkpoint_dir(dir_, "sft", 8), next); });
  EXPECT_NE(message.find("trainer.safetensors.tmp: cannot be written"), std::string::npos) << message;
  EXPECT_EQ(names_in(dir_ + "/checkpoints"), std::vector<std::string>{"sft-000007"});
  EXPECT_EQ(find_latest(dir_), dir);
}

// Writes DONE anew, as if the files had been written as they are.
void seal(const std::string& dir) {
  std::ofstream done(dir + "/DONE");
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().filename() == "DONE") continue;
    uint64_t hash = 0xCBF29CE484222325ull;  // FNV-1a, by its definition
    for (const char c : read_whole(entry.path())) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
    done << text << "  " << entry.path().filename().string() << "\n";
  }
}

TEST_F(CheckpointTest, DamagedFilesAreNamed) {
  const Model run;
  const std::string dir = dir_ + "/c";
  run.save(dir, state_at(0, "sft", 1));
  model::Decoder decoder(run.config.model, 2);
  seal(dir);
  EXPECT_NO_THROW(verify_checkpoint(dir));
  fs::resize_file(dir + "/model.safetensors", fs::file_size(dir + "/model.safetensors") - 1);
  EXPECT_TRUE(error([&] { load_weights(dir, decoder); }).starts_with("c/model.safetensors: damaged"));
  seal(dir);
  EXPECT_TRUE(error([&] { load_weights(dir, decoder); }).starts_with("c/model.safetensors: truncated: expected "));
  json trainer = json::parse(read_whole(dir + "/trainer.json"));
  const auto told = [&](const std::string& file, const std::string& text) {
    std::ofstream(dir + "/" + file) << text;
    seal(dir);
    return error([&] { file == "config.json" ? (void)read_model_config(dir) : (void)load_checkpoint_state(dir); });
  };
  trainer["format"] = 1;
  EXPECT_EQ(told("trainer.json", trainer.dump()), "c/trainer.json: format 1, and this version reads format 3");
  EXPECT_EQ(told("trainer.json", "{\"format\": 3}"), "c/trainer.json: 'phase_name' is missing or of another type");
  EXPECT_EQ(told("trainer.json", "{"), "c/trainer.json: not a JSON object; the file is damaged");
  EXPECT_EQ(
      told("config.json", "{\"model_type\": \"gpt2\"}"),
      "c/config.json: model_type is 'gpt2'; wanted one of llama, qwen2, qwen3, mistral, the families that are read "
      "(docs/models.md)");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
