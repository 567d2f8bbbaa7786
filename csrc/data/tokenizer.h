// A tokenizer with one token for each character of a given alphabet.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "csrc/field.h"

namespace isentrope::data {

struct TokenizerConfig {
  std::string characters = "0123456789abcdefgh+-=:A.";
  std::string eos = "";

  template <class Visitor>
  void visit(Visitor& v) {
    v("characters", characters,
      "The alphabet: the character at place i (from 1) has id i, each stands once; id 0 is padding.");
    v("eos", eos, "The character that ends a sequence; empty for the last one of the alphabet.");
  }
  std::string problem() const;
};

class Tokenizer {
 public:
  // Throws std::invalid_argument for a config with a problem().
  explicit Tokenizer(const TokenizerConfig& config);

  // Throws std::invalid_argument that names the first character outside the alphabet and its place.
  std::vector<int64_t> encode(std::string_view text) const;
  // Padding is left out, the end of sequence is not. Throws std::invalid_argument for an id outside 0 …
  // size() − 1.
  std::string decode(const std::vector<int64_t>& ids) const;

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }  // V, padding included
  int64_t pad_id() const { return 0; }
  int64_t eos_id() const { return eos_id_; }
  const std::string& eos() const { return tokens_[static_cast<size_t>(eos_id_)]; }
  const std::string& characters() const { return characters_; }

  // Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json into a folder that exists;
  // transformers.AutoTokenizer opens it, encodes and decodes as this class does.
  // Throws std::runtime_error with the file where one cannot be written.
  void save(const std::string& folder) const;
  // The tokenizer that save() wrote. Throws std::runtime_error with the file and what is wrong with it.
  static Tokenizer load(const std::string& folder);

 private:
  std::string characters_;
  std::vector<std::string> tokens_;               // [V]; UTF-8
  std::unordered_map<std::string, int64_t> ids_;  // character → id
  int64_t eos_id_ = 0;
};

// The code points of UTF-8 text, each as UTF-8. Throws std::invalid_argument with the byte where it is none.
std::vector<std::string> code_points(std::string_view text);

}  // namespace isentrope::data
