// Pretrained and Tokenizer::load: tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json beside a
// tokenizer.json that is right. An empty part is a file that is not there.
#include "csrc/data/pretrained.h"
#include "csrc/data/tokenizer.h"
#include "tests/fuzz/fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isentrope;
  static const fuzz::Folder folder;
  static const std::string tokenizer = folder.write("tokenizer.json", R"({
    "added_tokens": [{"id": 3, "content": "<e>", "special": true}, {"id": 4, "content": "<p>"}],
    "pre_tokenizer": null, "decoder": {"type": "Fuse"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
  constexpr const char* kFiles[] = {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                                    "config.json"};
  const std::vector<std::string> parts = fuzz::parts_of(data, size, std::size(kFiles));
  for (size_t i = 0; i < parts.size(); ++i) {
    folder.remove(kFiles[i]);
    if (!parts[i].empty()) folder.write(kFiles[i], parts[i]);
  }
  fuzz::reads([&] {
    const data::Pretrained pretrained(folder.path());
    for (const int64_t id : {pretrained.eos_id(), pretrained.pad_id()})
      fuzz::expect(id >= 0 && id < pretrained.bpe().size(), "what ends and pads are tokens");
  });
  return 0;
}
