#include "csrc/train/checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <stdexcept>

#include "csrc/data/token_shard.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"
#include "csrc/train/adapter.h"
#include "csrc/train/config_values.h"
#include "csrc/train/finite.h"
#include "csrc/train/json_file.h"
#include "csrc/train/model_code.h"
#include "csrc/train/model_config.h"
#include "csrc/train/weights.h"

namespace isentrope::train {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using torch::Tensor;

constexpr int kFormat = 3;  // of trainer.json and trainer.safetensors
constexpr const char* kDone = "DONE";

// Lowercase hexadecimal, 16 digits.
std::string digest_of(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  data::Hash hash;
  std::vector<char> part(1 << 20);
  while (in) {
    in.read(part.data(), static_cast<std::streamsize>(part.size()));
    for (std::streamsize i = 0; i < in.gcount(); ++i)
      hash.add(static_cast<unsigned char>(part[static_cast<size_t>(i)]));
  }
  if (!in.eof()) throw std::runtime_error(file + ": cannot be read: " + std::strerror(errno));
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash.value));
  return text;
}

// A model's folder that no trainer here wrote, or that save_model() did. The config.json of a checkpoint names the trainer; where
// transformers opened one and saved it again, it keeps that key and adds its own.
bool of_elsewhere(const std::string& dir) {
  if (exists(dir + "/" + kDone)) return false;
  if (!is_adapter(dir) && !exists(dir + "/config.json")) return false;
  if (!exists(dir + "/trainer.json")) return true;
  if (is_adapter(dir)) return false;
  const json config = read_json(dir + "/config.json");
  return config.contains("transformers_version") || !config.contains("isentrope_version");
}

// file → digest, as DONE lists them.
std::map<std::string, std::string> digests(const std::string& dir) {
  std::error_code error;
  if (!fs::is_directory(dir, error)) throw std::runtime_error(dir + ": there is no such checkpoint folder");
  if (!exists(dir + "/" + kDone))
    throw std::runtime_error(dir + ": not a complete checkpoint (it has no file DONE); take another one");
  std::map<std::string, std::string> found;
  std::istringstream lines(read_whole(dir + "/" + kDone));
  for (std::string line; std::getline(lines, line);) {
    if (line.size() < 19 || line.compare(16, 2, "  ") != 0)
      throw std::runtime_error(dir + "/DONE: damaged: '" + excerpt(line) + "' is no digest with the name of a file");
    found[line.substr(18)] = line.substr(0, 16);
  }
  if (found.empty())
    throw std::runtime_error(dir + "/DONE: lists no files; it is damaged, or of a version before format " +
                             std::to_string(kFormat) + ", which can go on with it");
  return found;
}

// Compares files with their digests before they are read.
void check_files(const std::string& dir, const std::vector<std::string>& files) {
  const auto wanted = digests(dir);
  for (const std::string& name : files) {
    const std::string file = dir + "/" + name;
    const auto found = wanted.find(name);
    if (found == wanted.end())
      throw std::runtime_error(dir + "/DONE: does not list " + name + "; one of the two is damaged");
    std::error_code error;
    if (!fs::is_regular_file(file, error)) throw std::runtime_error(file + ": is missing, and DONE lists it");
    if (digest_of(file) != found->second)
      throw std::runtime_error(file + ": damaged: it is not what was written, by its digest in DONE");
  }
}

void sync_file(const std::string& file) {
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  const bool failed = fd < 0 || ::fsync(fd) != 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (failed) throw std::runtime_error(file + ": cannot be brought to disk: " + std::strerror(error));
}

// Puts the folder `temporary` in the place of dir, in one step where something stands there.
void move_into_place(const std::string& temporary, const std::string& dir) {
  if (!fs::exists(dir)) {
    fs::rename(temporary, dir);
    return;
  }
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, dir.c_str(), RENAME_EXCHANGE) != 0) {
    // A file system without the exchange.
    fs::remove_all(dir);
    fs::rename(temporary, dir);
    return;
  }
  fs::remove_all(temporary);
}

void write_model(const std::string& dir, const NamedTensors& weights, const model::DecoderConfig& model,
                 const data::Tokenizer& tokenizer) {
  write_safetensors(dir + "/model.safetensors", weights);
  write_durably(dir + "/config.json", model_config_json(model, tokenizer));
  if (!opens_in_transformers(model))
    for (const auto& [file, text] : kModelCode) write_durably(dir + "/" + file, text);
  // As `isentrope sample` draws: from all tokens, where transformers takes the 50 likeliest unless told otherwise.
  const ordered_json generation{{"bos_token_id", nullptr},
                                {"eos_token_id", ids_of(tokenizer.end_ids())},
                                {"pad_token_id", tokenizer.pad_id()},
                                {"do_sample", true},
                                {"top_k", 0}};
  write_durably(dir + "/generation_config.json", generation.dump(2) + "\n");
}

void write_folder(const std::string& dir, const CheckpointParts& parts, const data::Tokenizer& tokenizer,
                  const TrainConfig& config) {
  const CheckpointState& state = parts.state;
  parts.model.lora ? write_adapter(dir, parts.weights, *parts.model.lora, state.base)
                   : write_model(dir, parts.weights, parts.model, tokenizer);
  tokenizer.save(dir);
  for (const auto& entry : fs::recursive_directory_iterator(dir)) sync_file(entry.path());

  NamedTensors tensors;
  for (const auto& [name, tensor] : state.optimizer) tensors.emplace_back("optimizer/" + name, tensor);
  for (const auto& [name, tensor] : state.source) tensors.emplace_back("source/" + name, tensor);
  for (const auto& [name, tensor] : state.extra) tensors.emplace_back("extra/" + name, tensor);
  write_safetensors(dir + "/trainer.safetensors", tensors);
  const auto number = state.numbers.find(state.phase_name);
  const ordered_json trainer{{"format", kFormat},
                             {"isentrope", ISENTROPE_VERSION},
                             {"phase", number == state.numbers.end() ? 0 : number->second},
                             {"phase_name", state.phase_name},
                             {"phase_finished", state.phase_finished},
                             {"evaluated", state.evaluated},
                             {"step", state.step},
                             {"steps_of_run", state.steps_of_run},
                             {"seed", state.seed},
                             {"ended", state.ended},
                             {"numbers", state.numbers},
                             {"config", values_of(config)}};
  write_durably(dir + "/trainer.json",
                trainer.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");  // a path may be no UTF-8
  write_durably(dir + "/config.yaml", print_config(config));
  sync_folder(dir);
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(dir))
    if (entry.is_regular_file()) found[entry.path().lexically_relative(dir)] = digest_of(entry.path());
  std::string done;
  for (const auto& [name, digest] : found) done += digest + "  " + name + "\n";
  write_durably(dir + "/" + kDone, done);
  sync_folder(dir);
}

}  // namespace

std::string checkpoint_dir(const std::string& run_dir, const std::string& phase, int64_t step) {
  char number[24];
  std::snprintf(number, sizeof(number), "%06lld", static_cast<long long>(step));
  return run_dir + "/checkpoints/" + phase + "-" + number;
}

namespace {

// In the calling thread alone where they are as copy_of() leaves them: torch would give the writer's thread a team of as many threads
// as training has, and the two would wait for each other's.
std::string first_non_finite(const NamedTensors& weights) {
  for (const auto& [name, weight] : weights) {
    bool finite = true;
    if (weight.is_cpu() && weight.is_contiguous() && weight.scalar_type() == torch::kFloat32) {
      finite = all_finite(weight.const_data_ptr<float>(), weight.numel());
    } else {
      finite = torch::isfinite(weight).all().item<bool>();
    }
    if (!finite) return name;
  }
  return "";
}

// In memory of its own on the CPU.
void own(Tensor& tensor) {
  const bool alone = tensor.is_cpu() && tensor.use_count() == 1 && tensor.storage().use_count() == 1 &&
                     tensor.storage().resizable();  // it is not where memory of another was lent to torch
  if (!alone) tensor = tensor.is_cpu() ? tensor.detach().clone() : tensor.detach().to(torch::kCPU);
}

}  // namespace

std::string first_non_finite_weight(const model::Decoder& decoder) {
  for (const auto& [name, weight] : decoder->config().lora ? decoder->adapter() : decoder->named_weights())
    if (!all_finite(weight)) return name;
  return "";
}

CheckpointParts parts_of(CheckpointState state, const model::Decoder& decoder) {
  return {.state = std::move(state),
          .model = decoder->config(),
          .weights = decoder->config().lora ? decoder->adapter() : decoder->folded_weights()};
}

CheckpointParts copy_of(CheckpointParts parts) {
  const torch::NoGradGuard no_grad;
  for (auto& [name, weight] : parts.weights) own(weight);
  for (auto* tensors : {&parts.state.optimizer, &parts.state.source, &parts.state.extra})
    for (auto& [name, tensor] : *tensors) own(tensor);
  return parts;
}

namespace {

// The folder dir with what write(folder) puts there, or nothing new; temporary is a new folder beside it.
template <class Write>
void put_folder(const std::string& dir, const std::string& temporary, const char* what, const Write& write) {
  try {
    fs::create_directory(temporary);
    write(temporary);
    move_into_place(temporary, dir);
    sync_folder(fs::absolute(dir).parent_path().string());
  } catch (const fs::filesystem_error& error) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw std::runtime_error(error.path1().string() + ": " + what + " cannot be written: " + error.code().message());
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
}

}  // namespace

void save_checkpoint(const std::string& dir, const CheckpointParts& parts, const data::Tokenizer& tokenizer,
                     const TrainConfig& config) {
  if (const std::string bad = first_non_finite(parts.weights); !bad.empty())
    throw std::runtime_error(dir + ": not written: the weight " + bad + " is not finite");
  std::error_code error;
  fs::create_directory(fs::path(dir).parent_path(), error);  // where it fails the next one does
  const std::string temporary = dir + ".tmp";
  fs::remove_all(temporary, error);  // of a write that was killed
  if (error) throw std::runtime_error(temporary + ": cannot be removed: " + error.message());
  put_folder(dir, temporary, "the checkpoint",
             [&](const std::string& folder) { write_folder(folder, parts, tokenizer, config); });
}

void save_model(const std::string& folder, const model::Decoder& decoder, const data::Tokenizer& tokenizer) {
  std::error_code error;
  fs::path path = folder;
  if (!path.has_filename() && path.has_relative_path()) path = path.parent_path();  // models/mine/
  const std::string dir = path.string();
  if (fs::exists(fs::symlink_status(dir, error)))
    throw std::runtime_error(dir + ": is there already; name a folder that is not");
  fs::create_directories(fs::absolute(dir).parent_path(), error);  // where it fails the next one does
  std::string temporary = dir + ".tmp";
  for (int i = 1; fs::exists(fs::symlink_status(temporary, error)); ++i)  // somebody else's
    temporary = dir + "." + std::to_string(i) + ".tmp";
  put_folder(dir, temporary, "the model", [&](const std::string& place) {
    write_model(place, decoder->folded_weights(), decoder->config(), tokenizer);
    tokenizer.save(place);
    for (const auto& entry : fs::directory_iterator(place)) sync_file(entry.path());
    sync_folder(place);
  });
}

void verify_checkpoint(const std::string& dir) {
  std::vector<std::string> files;
  for (const auto& [name, digest] : digests(dir)) files.push_back(name);
  check_files(dir, files);
}

std::string foreign_file(const std::string& dir) {
  const auto listed = digests(dir);
  std::set<std::string> foreign;  // the first by name, whatever the order of the folder
  std::error_code error;
  for (fs::recursive_directory_iterator at(dir, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().lexically_relative(dir).string();
    if (at->path().filename().string().starts_with(".")) {
      at.disable_recursion_pending();
    } else if (!at->is_directory(error) && name != kDone && !listed.contains(name)) {
      foreign.insert(name);
    }
  }
  if (error) throw std::runtime_error(dir + ": cannot be read: " + error.message());
  return foreign.empty() ? "" : *foreign.begin();
}

CheckpointState read_position(const std::string& dir) {
  if (of_elsewhere(dir))
    throw std::runtime_error(
        dir +
        ": a model's folder and no checkpoint of a run: it keeps the weights alone; a run can start "
        "from it (model.pretrained, run.start), not go on from it");
  const std::string file = dir + "/trainer.json";
  check_files(dir, {"trainer.json"});
  const json object = read_json(file);
  const int format = json_field<int>(file, object, "format");
  if (format != kFormat)
    throw std::runtime_error(file + ": format " + std::to_string(format) + ", and this version reads format " +
                             std::to_string(kFormat));
  CheckpointState state;
  state.phase_name = json_field<std::string>(file, object, "phase_name");
  state.phase_finished = json_field<bool>(file, object, "phase_finished");
  state.evaluated = json_field<bool>(file, object, "evaluated");
  state.step = json_field<int64_t>(file, object, "step");
  state.steps_of_run = json_field<int64_t>(file, object, "steps_of_run");
  state.seed = json_field<uint64_t>(file, object, "seed");
  state.ended = json_field<std::vector<std::string>>(file, object, "ended");
  state.numbers = json_field<std::map<std::string, int64_t>>(file, object, "numbers");
  state.config = json_field<std::map<std::string, std::string>>(file, object, "config");
  state.version = json_field<std::string>(file, object, "isentrope");
  return state;
}

CheckpointState load_checkpoint_state(const std::string& dir) {
  CheckpointState state = read_position(dir);
  check_files(dir, {"trainer.safetensors"});
  const std::string file = dir + "/trainer.safetensors";
  for (auto& [name, tensor] : read_safetensors(file)) {
    const size_t slash = name.find('/');
    const std::string part = name.substr(0, slash);
    auto* map = part == "optimizer" ? &state.optimizer
                : part == "source"  ? &state.source
                : part == "extra"   ? &state.extra
                                    : nullptr;
    if (!map || slash == std::string::npos)
      throw std::runtime_error(file + ": '" + name + "' belongs to no part of the trainer's state");
    map->emplace(name.substr(slash + 1), tensor);
  }
  return state;
}

model::DecoderConfig read_model_config(const std::string& dir) {
  if (is_adapter(dir)) {
    if (!of_elsewhere(dir)) check_files(dir, {"adapter_config.json"});
    return read_model_config(base_of_adapter(dir));
  }
  if (!of_elsewhere(dir)) check_files(dir, {"config.json"});
  return parse_model_config(dir + "/config.json");
}

data::Tokenizer load_tokenizer(const std::string& dir) {
  if (is_adapter(dir) && !exists(dir + "/tokenizer.json") && of_elsewhere(dir))
    return load_tokenizer(base_of_adapter(dir));
  if (!of_elsewhere(dir)) check_files(dir, {"tokenizer.json", "tokenizer_config.json"});
  return data::Tokenizer::load(dir);
}

model::Decoder load_model(const std::string& dir, int64_t tokens) {
  model::DecoderConfig config = read_model_config(dir);
  if (tokens > config.vocabulary)
    throw std::runtime_error(dir + ": its embedding has " + std::to_string(config.vocabulary) +
                             " rows, and the tokenizer " + std::to_string(tokens) +
                             " tokens; take the tokenizer of the model");
  config.tokens = tokens;
  if (is_adapter(dir)) {
    config.lora = read_adapter_config(dir);
    model::Decoder decoder(config, std::nullopt);
    load_weights(base_of_adapter(dir), decoder);
    load_adapter(dir, decoder);
    return decoder;
  }
  model::Decoder decoder(config, std::nullopt);
  load_weights(dir, decoder);
  return decoder;
}

void load_adapter(const std::string& dir, model::Decoder& decoder) {
  if (!of_elsewhere(dir)) check_files(dir, {"adapter_config.json", "adapter_model.safetensors"});
  read_adapter(dir, decoder);
}

void load_weights(const std::string& dir, model::Decoder& decoder) {
  if (is_adapter(dir)) {
    const torch::NoGradGuard no_grad;
    const auto weights = load_model(dir)->folded_weights(), places = decoder->named_weights();
    for (size_t i = 0; i < weights.size(); ++i) places[i].second.copy_(weights[i].second);
    return;
  }
  if (!of_elsewhere(dir)) check_files(dir, {"model.safetensors"});
  read_weights(dir, decoder);
}

}  // namespace isentrope::train
