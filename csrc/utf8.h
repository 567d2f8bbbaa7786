// Text that came from outside: whether it is UTF-8, and how a message quotes it. Standard library only.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace isentrope {

// Bytes of the UTF-8 character that begins at text[at]; 0 where none does: a stray or missing byte, a longer form than
// needed, half a surrogate pair, a code point beyond U+10FFFF.
inline size_t utf8_size(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned lead = byte(at), second = byte(at + 1);
  const size_t size = lead < 0x80                   ? 1
                      : lead >= 0xC2 && lead < 0xE0 ? 2
                      : lead >= 0xE0 && lead < 0xF0 ? 3
                      : lead >= 0xF0 && lead < 0xF5 ? 4
                                                    : 0;
  if (size == 0 || at + size > text.size()) return 0;
  for (size_t i = 1; i < size; ++i)
    if ((byte(at + i) & 0xC0) != 0x80) return 0;
  if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second >= 0xA0)) return 0;
  if ((lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second >= 0x90)) return 0;
  return size;
}

// Where text stops being UTF-8; its size where it does not.
inline size_t utf8_end(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t size = utf8_size(text, at);
    if (size == 0) break;
    at += size;
  }
  return at;
}

// What a message shows of a text: its first `most` bytes or a few more, as UTF-8 without control characters, and how long
// the whole is. A message is to be read at a glance, whatever the text, and Python takes no other.
inline std::string excerpt(std::string_view text, size_t most = 80) {
  std::string shown;
  size_t at = 0;
  while (at < text.size() && at < most) {
    const size_t size = utf8_size(text, at);
    const auto byte = static_cast<unsigned char>(text[at]);
    if (size == 0 || byte < 0x20 || byte == 0x7F) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\x%02x", byte);
      shown += byte == '\n' ? "\\n" : byte == '\t' ? "\\t" : byte == '\r' ? "\\r" : escape;
      ++at;
    } else {
      shown += text.substr(at, size);
      at += size;
    }
  }
  if (at < text.size()) shown += "… (" + std::to_string(text.size()) + " bytes)";
  return shown;
}

}  // namespace isentrope
