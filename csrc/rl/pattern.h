// Regular expressions over model output. Pure C++.
//
// Syntax and meaning are PCRE2's (https://www.pcre.org/current/doc/html/pcre2pattern.html): `.` is any character but a line feed,
// ^ and $ are the beginning and the end of the text, \d and \w are ASCII. Flags stand in the pattern: (?s) lets `.` match line
// feeds too, (?m) lets ^ and $ match at every line, (?i) takes upper and lower case alike.
//
// What a model writes decides how long a backtracking match takes and what memory it needs. So a text may be of any bytes (a piece
// that is no UTF-8 is matched as U+FFFD, as a reward in Python sees it), and the work on one text has limits, which depend on
// pattern and text alone: a match beyond them is an error, never a crash or a step without end.
#pragma once
#include <memory>
#include <optional>
#include <string>

namespace isentrope::rl {

class Pattern {
 public:
  // Throws std::invalid_argument that says what is wrong with the expression and where, or that it is too long.
  explicit Pattern(const std::string& expression);

  int groups() const;
  // These throw std::runtime_error that names expression, limit and the text's beginning, where a limit is passed.
  bool matches_whole(const std::string& text) const;
  // Group 1 of the last match in the text, empty where it took no part in it; nothing where there is no match.
  std::optional<std::string> last_group(const std::string& text) const;

 private:
  struct Code;
  std::string expression_;
  std::shared_ptr<const Code> code_;
};

}  // namespace isentrope::rl
