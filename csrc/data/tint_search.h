// Whether an answer to a prompt of TInt's countdown or path is right. They have many right answers, so the prompt is read and the answer
// checked by its rules, whatever way it was found.
#pragma once
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

namespace isentrope::data {

// "3,2,5:52=": reach 25 (low digit first) with 3, 2 and 5.
struct CountdownPrompt {
  std::vector<int64_t> numbers;
  int64_t target = 0;

  static std::optional<CountdownPrompt> read(std::string_view prompt);  // nothing where it is none
  // An expression (csrc/data/expression.h) that has each of the numbers once, and exactly the target's value.
  bool solved_by(std::string_view answer) const;
};

// "ab,bd,ac:a>d=": from a to d along edges, each in its direction.
struct PathPrompt {
  std::set<std::pair<char, char>> edges;
  char start = 0, goal = 0;

  static std::optional<PathPrompt> read(std::string_view prompt);
  // The nodes of a way, "abd".
  bool solved_by(std::string_view answer) const;
};

}  // namespace isentrope::data
