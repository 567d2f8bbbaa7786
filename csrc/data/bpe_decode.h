// The decoder of tokenizer.json: from tokens to text. Pure C++.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

namespace isentrope::data {

// Decoders: ByteLevel, Metaspace, Replace of a text, ByteFallback, Fuse, Strip of spaces and a Sequence of them. What a token
// stands for then depends on nothing but the token and whether it is the first of its text. Bytes are given as they are, where
// the package tokenizers puts U+FFFD for those that are not UTF-8.
class TokenText {
 public:
  // Throws std::runtime_error that names what is not supported.
  explicit TokenText(const nlohmann::json& json);
  std::string of(const std::string& token, bool first) const;

 private:
  void read(const nlohmann::json& json);

  bool byte_level_ = false, byte_fallback_ = false, fused_ = false;
  std::string space_;                                             // of Metaspace
  bool drops_first_space_ = false;                                // of Metaspace
  std::vector<std::pair<std::string, std::string>> replace_;      // in their order
  size_t strip_each_ = 0, strip_start_ = 0, strip_each_end_ = 0;  // spaces of each token, and of the text
};

}  // namespace isentrope::data
