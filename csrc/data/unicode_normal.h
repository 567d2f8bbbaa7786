// Unicode's normal forms, lower case and marks, as the normalisers of the package tokenizers have them. Pure C++.
#pragma once
#include <string>
#include <string_view>

namespace isentrope::data {

// C: letters and their marks as one character where there is one; D: apart, marks in their order; KC and KD: the same once what is written
// otherwise for the same (a ligature, a wide letter) is taken apart too.
enum class NormalForm { kC, kD, kKC, kKD };

// Each of UTF-8 text, into out.

// false, with out left alone, where the text is seen to be in that form already.
bool normalize(std::string_view text, NormalForm form, std::string& out);
// Character by character: a final sigma is none.
void lower(std::string_view text, std::string& out);
// Without its combining marks; what is one character with its mark stays.
void strip_marks(std::string_view text, std::string& out);

}  // namespace isentrope::data
