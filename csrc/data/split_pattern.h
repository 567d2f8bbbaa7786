// The regular expressions of tokenizer.json, which cut text into words. Pure C++.
//
// They are written for Oniguruma with Ruby's syntax, which the package tokenizers links; here PCRE2 matches them. What the two
// read otherwise is rewritten before it is compiled: {1,3}+ is a repetition of {1,3} and not possessive; \s, \d, \w and \h are
// Oniguruma's, of all Unicode; \p{Han} is the script and not its extensions; categories have the characters of Unicode 16,
// whatever this machine's PCRE2 knows. What has no such reading here (\P within a class, classes within classes, && and the
// like) is refused by name.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace isentrope::data {

class SplitPattern {
 public:
  // What a match works in; one for each thread, for any number of patterns.
  class Room {
   public:
    Room();

   private:
    friend class SplitPattern;
    struct Parts;
    std::shared_ptr<Parts> parts_;
  };

  // Throws std::runtime_error that says what is wrong with the expression and where.
  explicit SplitPattern(const std::string& expression);

  // The first match in text, which is UTF-8, that begins at byte from or later; false where there is none. Throws
  // std::runtime_error, with expression and text, where the match takes more memory or steps than PCRE2 allows.
  bool find(std::string_view text, size_t from, Room& room, size_t& begin, size_t& end) const;

  // The expression as PCRE2 is given it.
  static std::string rewritten(const std::string& expression);

 private:
  struct Code;
  std::string expression_;
  std::shared_ptr<const Code> code_;
};

}  // namespace isentrope::data
