// Text to tokens, of three kinds: one token for each character of a given alphabet, one for each byte, or those of a
// tokenizer.json that was trained before (csrc/data/bpe.h).
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/field.h"

namespace isentrope::data {

class Pretrained;

struct TokenizerConfig {
  std::optional<std::string> kind = {};
  std::string characters = "0123456789abcdefgh+-=:A.";
  std::string eos = "";
  std::string pretrained = "";

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind,
      "characters: one token for each character of an alphabet; bytes: one for each of the 256 bytes (byte b "
      "has id "
      "b + 1, id 0 is padding), and id 257, <|endoftext|>, ends a sequence; pretrained: those of a folder. Left out: "
      "pretrained where the key of that name is written, else characters.",
      one_of({"characters", "bytes", "pretrained"}));
    v("characters", characters,
      "The alphabet of kind characters: the character at place i (from 1) has id i, each stands once; id 0 "
      "is padding.");
    v("eos", eos, "The character that ends a sequence; empty for the last one of the alphabet. Kind characters alone.");
    v("pretrained", pretrained,
      "Folder with the tokenizer.json of a byte-pair tokenizer and the files that name its end of sequence and "
      "padding, "
      "as transformers saves them (docs/tokenizers.md).");
  }
  std::string kind_of() const { return kind.value_or(pretrained.empty() ? "characters" : "pretrained"); }
  std::string problem() const;
};

class Tokenizer {
 public:
  // Throws std::invalid_argument for a config with a problem(), std::runtime_error for a folder that cannot be read.
  explicit Tokenizer(const TokenizerConfig& config);

  // characters: throws std::invalid_argument that names the first character outside the alphabet and its
  // place. bytes: takes any text, UTF-8 or not, and never gives padding or the end of sequence. pretrained: names of
  // special tokens within a text become those tokens; what a post-processor adds is not there.
  std::vector<int64_t> encode(std::string_view text) const;
  // encode() behind the tokens that begin a sequence (such as <s>), where the tokenizer has such and the text does not begin
  // with them.
  std::vector<int64_t> encode_prompt(std::string_view text) const;
  // encode() of text that goes on behind the token `last`: where that is of text too, what the tokenizer puts before a text (as ▁)
  // is not there.
  std::vector<int64_t> encode_behind(int64_t last, std::string_view text) const;
  // Padding is left out, but for kind pretrained, where it may be the end of sequence, which is not. Throws
  // std::invalid_argument for an id outside 0 … size() − 1.
  std::string decode(const std::vector<int64_t>& ids) const;
  // What decode() gives for the token, where it is the first of a text or not.
  const std::string& text_of(int64_t id, bool first) const;

  int64_t size() const;  // V, padding included
  int64_t pad_id() const { return pad_id_; }
  int64_t eos_id() const { return eos_id_; }
  // The tokens that end a sequence when they are drawn: eos_id(), then what else the folder of a pretrained one names.
  const std::vector<int64_t>& end_ids() const { return end_ids_; }
  bool ends(int64_t id) const;
  const std::string& eos() const;
  std::string kind() const { return config_.kind_of(); }
  // Whether the folder of a pretrained one has a chat template.
  bool has_chat_template() const;
  // Changes with what encode() gives: of kind pretrained.
  uint64_t digest() const;
  const TokenizerConfig& config() const { return config_; }
  // Bytes of text that a token stands for; 0 for padding and special tokens.
  int64_t bytes_of(int64_t id) const;

  // Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json into a folder that exists;
  // transformers.AutoTokenizer opens it, encodes, refuses and decodes as this class does, but for two things: it takes
  // the names of special tokens within a text for those tokens, and decodes bytes that are not UTF-8 to U+FFFD.
  // Of kind pretrained these files are those that were read, byte by byte. Throws std::runtime_error with the file where one
  // cannot be written.
  void save(const std::string& folder) const;
  // The tokenizer that save() wrote, or transformers. Throws std::runtime_error with the file and what is wrong with it.
  static Tokenizer load(const std::string& folder);

 private:
  bool bytes() const { return config_.kind_of() == "bytes"; }
  std::string foreign(std::string_view text, size_t at, size_t size, int64_t place) const;
  std::string written(size_t id) const;  // the token's name in tokenizer.json

  TokenizerConfig config_;
  std::vector<std::string> tokens_;               // [V]; UTF-8, or single bytes
  std::unordered_map<std::string, int64_t> ids_;  // character → id; kind characters
  std::array<int64_t, 128> ascii_{};              // the same of single bytes; 0: not there
  int64_t eos_id_ = 0, pad_id_ = 0;
  std::vector<int64_t> end_ids_;
  std::shared_ptr<const Pretrained> pretrained_;  // of kind pretrained, whose tokens the vectors above do not hold
};

// The code points of UTF-8 text, each as UTF-8. Throws std::invalid_argument with the byte where it is none.
std::vector<std::string> code_points(std::string_view text);

}  // namespace isentrope::data
