// White space of Unicode in UTF-8 text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace isentrope::data {

// Bytes of the white space (the property White_Space) that begins at text[at]; 0 where none does.
inline size_t space_size(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) {
    return at + i < text.size() ? static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])) : 0u;
  };
  const uint32_t first = byte(0);
  if (first == 0x20 || (first >= 0x9 && first <= 0xD)) return 1;
  if (first == 0xC2) return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;
  const uint32_t three = first << 16 | byte(1) << 8 | byte(2);
  const bool space = three == 0xE19A80 || (three >= 0xE28080 && three <= 0xE2808A) || three == 0xE280A8 ||
                     three == 0xE280A9 || three == 0xE280AF || three == 0xE2819F || three == 0xE38080;
  return space ? 3 : 0;
}

// Bytes of white space that a text begins, or ends, with.
inline size_t space_at_start(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t size = space_size(text, at);
    if (size == 0) break;
    at += size;
  }
  return at;
}
inline size_t space_at_end(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t at = end - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    if (const size_t size = space_size(text, at); size == 0 || at + size != end) break;
    end = at;
  }
  return text.size() - end;
}

}  // namespace isentrope::data
