#include "csrc/data/bpe_decode.h"

#include <nlohmann/json.hpp>
#include <stdexcept>

#include "csrc/data/bpe_words.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

std::string text_at(const Json& json, const char* name) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_string())
    throw std::runtime_error("decoder " + excerpt(json.dump()) + ": " + name + " is not a text");
  return found->get<std::string>();
}

size_t count(const Json& json, const char* name) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_number_unsigned())
    throw std::runtime_error("decoder " + excerpt(json.dump()) + ": " + name + " is not a number from 0 on");
  return found->get<size_t>();
}

// A step that gives back its own input twice doubles with each that follows. Those of models make no text longer.
void replace(std::string& text, const std::string& what, const std::string& by, size_t most) {
  std::string out;
  for (size_t at = 0;;) {
    const size_t found = text.find(what, at);
    out.append(text, at, found - at);
    if (found == std::string::npos) break;
    out += by;
    at = found + what.size();
    if (out.size() > most)
      throw std::runtime_error("the decoder makes a token longer than " + std::to_string(most) +
                               " bytes, 64 times its name");
  }
  text.swap(out);
}

// The byte of "<0x0A>"; −1 where the token is no such name.
int fallback_byte(const std::string& token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  for (const char c : {token[3], token[4]}) {
    const size_t digit = std::string_view("0123456789ABCDEFabcdef").find(c);
    if (digit == std::string_view::npos) return -1;
    byte = 16 * byte + static_cast<int>(digit < 16 ? digit : digit - 6);
  }
  return byte;
}

}  // namespace

TokenText::TokenText(const Json& json) {
  if (json.is_null())
    throw std::runtime_error(
        "decoder is null, and what tokens stand for is not known; there are ByteLevel, Metaspace, Replace, "
        "ByteFallback, Fuse, Strip and Sequence");
  read(json);
}

void TokenText::read(const Json& json) {
  const std::string type = json.is_object() ? json.value("type", "") : "";
  const bool begun = byte_level_ || byte_fallback_ || fused_ || !space_.empty();
  if (type == "Sequence" && json.contains("decoders") && json["decoders"].is_array()) {
    for (const Json& one : json["decoders"]) read(one);
  } else if (type == "ByteLevel" && !begun) {
    byte_level_ = true;
  } else if (type == "Metaspace" && !begun) {
    space_ = text_at(json, "replacement");
    drops_first_space_ =
        json.value("prepend_scheme", std::string("always")) != "never" && json.value("add_prefix_space", true);
  } else if (type == "Replace" && !begun && json.contains("pattern") && json["pattern"].contains("String")) {
    const std::string what = text_at(json["pattern"], "String");
    if (!what.empty()) replace_.emplace_back(what, text_at(json, "content"));
  } else if (type == "ByteFallback" && !byte_level_ && !fused_) {
    byte_fallback_ = true;
  } else if (type == "Fuse") {
    fused_ = true;
  } else if (type == "Strip" && text_at(json, "content") == " " &&
             (!fused_ || (count(json, "stop") == 0 && count(json, "start") <= 1))) {
    (fused_ ? strip_start_ : strip_each_) = count(json, "start");
    if (!fused_) strip_each_end_ = count(json, "stop");
  } else {
    throw std::runtime_error("decoder " + excerpt(json.dump()) +
                             " is not supported here; there are ByteLevel, Metaspace, Replace of a text, ByteFallback, "
                             "Fuse, Strip of spaces and Sequence, in this order");
  }
}

std::string TokenText::of(const std::string& token, bool first) const {
  std::string out = byte_level_ ? bytes_of_name(token) : token;
  const size_t most = 64 * token.size() + 256;
  if (!space_.empty()) {
    replace(out, space_, first && drops_first_space_ ? "" : " ", most);
  }
  for (const auto& [what, by] : replace_) replace(out, what, by, most);
  if (byte_fallback_)
    if (const int byte = fallback_byte(out); byte >= 0) out.assign(1, static_cast<char>(byte));
  for (size_t i = 0; i < strip_each_ + (first ? strip_start_ : 0) && out.starts_with(' '); ++i) out.erase(0, 1);
  for (size_t i = 0; i < strip_each_end_ && out.ends_with(' '); ++i) out.pop_back();
  return out;
}

}  // namespace isentrope::data
