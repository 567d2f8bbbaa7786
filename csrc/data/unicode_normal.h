// Unicode's normal form C: letters and their marks as one character where there is one. Pure C++.
#pragma once
#include <string>
#include <string_view>

namespace isentrope::data {

// text, UTF-8, in normal form C into out; false, with out left alone, where it is in that form already.
bool compose(std::string_view text, std::string& out);

}  // namespace isentrope::data
