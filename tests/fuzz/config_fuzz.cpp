// parse_model_config: the input as a config.json, and with the keys that every one has where it lacks them.
#include <nlohmann/json.hpp>

#include "csrc/train/json_file.h"
#include "csrc/train/model_config.h"
#include "tests/fuzz/fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isentrope;
  static const fuzz::Folder folder;
  const std::string file = folder.write("config.json", {reinterpret_cast<const char*>(data), size});
  nlohmann::json json;
  if (!fuzz::reads([&] { json = train::read_json(file); })) return 0;
  fuzz::reads([&] { train::parse_model_config(file); });
  static const nlohmann::json kNeeded{{"model_type", "llama"},   {"vocab_size", 32},       {"hidden_size", 32},
                                      {"intermediate_size", 32}, {"num_hidden_layers", 2}, {"num_attention_heads", 4}};
  for (const auto& [key, value] : kNeeded.items())
    if (!json.contains(key)) json[key] = value;
  folder.write("config.json", json.dump());
  fuzz::reads([&] {
    const model::DecoderConfig config = train::parse_model_config(file);
    fuzz::expect(config.problem().empty() && config.hidden_size > 0 && config.num_hidden_layers > 0,
                 "a configuration that is read is one of a decoder");
  });
  return 0;
}
