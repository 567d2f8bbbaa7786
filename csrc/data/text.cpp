#include "csrc/data/text.h"

#include <algorithm>

namespace isentrope::data {
namespace {

constexpr size_t kShown = 100;  // characters of a message: with the rest of the sentence, two lines of a terminal

struct Piece {
  size_t size;  // bytes, at least 1
  bool good;  // one character; else the longest beginning of one (Unicode 15, 3.9, "maximal subpart"), or a single byte
};

Piece piece_at(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char lead = byte(i);
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const size_t wanted = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte tells overlong forms, surrogates and what is beyond U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  size_t size = 1;
  while (size < wanted && i + size < text.size() && byte(i + size) >= (size == 1 ? low : 0x80) &&
         byte(i + size) <= (size == 1 ? high : 0xBF))
    ++size;
  return {size, size == wanted};
}

}  // namespace

std::string valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Piece piece = piece_at(text, i);
    valid += piece.good ? text.substr(i, piece.size) : "\uFFFD";
    i += piece.size;
  }
  return valid;
}

std::string quoted(std::string_view text) {
  std::string shown;
  size_t i = 0;
  for (size_t count = 0; i < text.size() && count < kShown; ++count) {
    const Piece piece = piece_at(text, i);
    const auto c = static_cast<unsigned char>(text[i]);
    const char* hex = "0123456789abcdef";
    if (c == '\n')
      shown += "\\n";
    else if (c == '\t')
      shown += "\\t";
    else if (c < 0x20 || c == 0x7F)
      shown += {'\\', 'x', hex[c >> 4], hex[c & 15]};
    else
      shown += piece.good ? text.substr(i, piece.size) : "\uFFFD";
    i += piece.size;
  }
  const bool whole = i == text.size();
  return "\"" + shown + (whole ? "\"" : "…\" (" + std::to_string(text.size()) + " bytes)");
}

}  // namespace isentrope::data
