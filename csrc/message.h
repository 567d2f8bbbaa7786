// What the program says to people and shells: errors in our words, text that a terminal can show, quoted words.
// It knows no room; every room that speaks includes it.
#pragma once
#include <cstddef>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace isentrope {

// Any exception in the words of this program: what the standard library or torch says is told as what it means here and how to
// mend it, a back-trace is left out; as on_a_screen(). The default is the exception of the catch block around the call.
std::string message_of(const std::exception_ptr& error = std::current_exception());

// The text as printable() has it and no longer than a screen: of a longer one the middle is left out, since what is wrong stands
// first and how to mend it last.
std::string on_a_screen(std::string_view text);

// Longest text of on_a_screen(), in bytes: what stands on a terminal of 24 lines with room for the line below it.
constexpr size_t kLongestMessage = 1600;

// UTF-8 without control characters: bytes that are not UTF-8 become \xNN, control characters but the tab and the end of a line, and
// what ends a line without being \n, become \xNN or \uNNNN.
std::string printable(std::string_view text);

// The text with U+FFFD in place of what is not UTF-8, one for each sequence that breaks off, as Python decodes with
// errors="replace".
std::string valid_utf8(std::string_view text);

// For messages that name a text: in quotes, control characters and what is not UTF-8 as printable() has them, line ends as \n, and
// of long text the first characters and how many bytes it has.
std::string quoted(std::string_view text);

// The word as a shell reads it back: itself where that is safe, else in single quotes.
std::string shell_quoted(std::string_view word);

// Insertions, deletions and replacements that make b of a (Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// "; did you mean 'loss'?" where a name is near the word, else "; <what> are loss, steps".
std::string suggestion(const std::string& word, const std::vector<std::string>& names, const std::string& what);

}  // namespace isentrope
