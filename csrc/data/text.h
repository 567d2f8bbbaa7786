// Text that was not made here, as what prints and decodes it wants it. Pure C++.
#pragma once
#include <string>
#include <string_view>

namespace isentrope::data {

// The text with U+FFFD in the place of each piece that is no UTF-8, cut as Python's errors="replace" cuts it.
std::string valid_utf8(std::string_view text);

// For messages: in quotes, line feeds and other control characters written out, valid UTF-8, and of long text the first
// characters and how many bytes it has.
std::string quoted(std::string_view text);

}  // namespace isentrope::data
