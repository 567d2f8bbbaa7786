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

// What a message shows of a text: its first `most` bytes or a few more, printable() and in one line, and of a longer one how many
// bytes it has. A message is to be read at a glance, whatever the text.
constexpr size_t kShown = 80;  // with the rest of the sentence, two lines of a terminal
std::string excerpt(std::string_view text, size_t most = kShown);

// The same in quotes: "text", or "tex…" (3000 bytes).
std::string quoted(std::string_view text);

// Bytes of the UTF-8 character that begins at text[at]; 0 where none does: a stray or missing byte, a longer form than needed,
// half a surrogate pair, a code point beyond U+10FFFF.
size_t utf8_size(std::string_view text, size_t at);

// Where text stops being UTF-8; its size where it does not.
size_t utf8_end(std::string_view text);

// The word as a shell reads it back: itself where that is safe, else in single quotes.
std::string shell_quoted(std::string_view word);

// Insertions, deletions and replacements that make b of a (Levenshtein).
size_t edit_distance(std::string_view a, std::string_view b);

// "; did you mean 'loss'?" where a name is near the word, else "; <what> are loss, steps".
std::string suggestion(const std::string& word, const std::vector<std::string>& names, const std::string& what);

}  // namespace isentrope
