// Texts of any bytes through tokenizers of the two kinds that models have: GPT-2's of bytes, and Llama 2's of characters, which
// writes a space as ▁ and what it does not know as bytes. What is encoded is decoded to the same text.
#include <nlohmann/json.hpp>

#include "csrc/data/text_stream.h"
#include "csrc/data/tokenizer.h"
#include "tests/fuzz/fuzzing.h"

namespace isentrope {
namespace {

using Json = nlohmann::json;

const Json kEnd{{"id", 1000}, {"content", "<end>"}, {"special", true}};

std::string of_bytes() {
  Json vocabulary;
  uint32_t next = 0x100;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool printed = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    const uint32_t c = printed ? b : next++;
    std::string name{static_cast<char>(c)};
    if (c >= 0x80) name = {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))};
    vocabulary[name] = b;
  }
  int id = 256;
  Json merges = Json::array();
  for (const auto& [left, right] :
       {std::pair{"a", "b"}, {"ab", "a"}, {"Ġ", "a"}, {"Ġ", "Ġ"}, {"ĠĠ", "ĠĠ"}, {"Ã", "©"}, {"1", "2"}}) {
    merges.push_back(std::string(left) + " " + right);
    vocabulary[std::string(left) + right] = id++;
  }
  return Json{{"added_tokens", {kEnd}},
              {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", merges}}}}
      .dump();
}

std::string of_characters() {
  Json vocabulary{{"▁", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"▁a", 4}, {"é", 5}, {"▁▁", 6}, {"éa", 7}, {"<unk>", 8}};
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    vocabulary[name] = 9 + b;
  }
  const Json space{{"String", " "}}, low{{"String", "▁"}};
  return Json{
      {"added_tokens", {kEnd}},
      {"normalizer",
       {{"type", "Sequence"},
        {"normalizers",
         {{{"type", "Prepend"}, {"prepend", "▁"}}, {{"type", "Replace"}, {"pattern", space}, {"content", "▁"}}}}}},
      {"pre_tokenizer", nullptr},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", low}, {"content", " "}},
          {{"type", "ByteFallback"}},
          {{"type", "Fuse"}},
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model",
       {{"type", "BPE"},
        {"byte_fallback", true},
        {"fuse_unk", true},
        {"unk_token", "<unk>"},
        {"vocab", vocabulary},
        {"merges", {"a b", "▁ a", "▁ ▁", "é a"}}}}}
      .dump();
}

struct Model {
  explicit Model(const std::string& json) : tokenizer(make(json)) {}
  data::Tokenizer make(const std::string& json) {
    folder.write("tokenizer.json", json);
    folder.write("tokenizer_config.json", R"({"eos_token": "<end>"})");
    return data::Tokenizer({.pretrained = folder.path()});
  }
  fuzz::Folder folder;
  data::Tokenizer tokenizer;
};

void round_trip(const data::Tokenizer& tokenizer, const std::string& text) {
  const std::vector<int64_t> ids = tokenizer.encode(text);
  std::string streamed;
  for (const std::string& piece : data::texts_of(tokenizer, ids)) streamed += piece;
  fuzz::expect(streamed == tokenizer.decode(ids), "a stream of tokens is the text that they decode to");
  fuzz::expect(streamed == text, "what is encoded is decoded to the same text");
  fuzz::expect(tokenizer.encode(text) == ids, "a text has the same tokens when its words are known");
}

}  // namespace
}  // namespace isentrope

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isentrope;
  static const Model bytes(of_bytes()), characters(of_characters());
  const std::string text(reinterpret_cast<const char*>(data), size);
  round_trip(bytes.tokenizer, text);
  // ▁ is a space afterwards, an added token takes the ▁ of what follows, and pieces between broken bytes begin with one of their own.
  if (utf8_end(text) == size && text.find("▁") == std::string::npos && text.find("<end>") == std::string::npos)
    round_trip(characters.tokenizer, text);
  else
    characters.tokenizer.decode(characters.tokenizer.encode(text));
  return 0;
}
