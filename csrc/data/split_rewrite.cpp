// SplitPattern::rewritten: from Oniguruma's reading of an expression to PCRE2's.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "csrc/data/split_pattern.h"
#include "csrc/data/unicode_additions.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

// What Oniguruma has in its classes beside the categories: as the inside of a class.
constexpr const char* kSpace =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr const char* kWordBesideCategories =
    "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{"
    "1F189}";
// Ideographs of the script Han that Unicode 15 and 15.1 added.
constexpr const char* kNewHan = "\\x{2B739}\\x{2EBF0}-\\x{2EE5D}\\x{31350}-\\x{323AF}";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Rewriter {
 public:
  explicit Rewriter(const std::string& text) : text_(text) {}

  std::string run() {
    while (at_ < text_.size()) part();
    return out_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::runtime_error("pattern " + quoted(text_) + ": " + excerpt(what) + ", at byte " + std::to_string(at_) +
                             ", is not read here");
  }
  char next(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

  // One atom, bracket or quantifier. atom_: where in out_ the last atom begins, for a quantifier that is to be wrapped.
  void part() {
    const char c = next();
    if (c == '(') return open();
    if (c == ')') {
      out_ += c, ++at_;
      if (groups_.empty()) refuse("a ) without its (");
      atom_ = groups_.back(), groups_.pop_back();
      return;
    }
    if (c == '*' || c == '+' || c == '?') {
      out_ += c, ++at_;
      if (next() == '?' || next() == '+') out_ += next(), ++at_;
      return;
    }
    if (c == '{' && quantifier()) return;
    atom_ = out_.size();
    if (c == '[') return class_();
    if (c == '\\') return escape();
    if (c == '{' || c == '}') out_ += '\\';
    out_ += c, ++at_;
    while ((next() & 0xC0) == 0x80) out_ += next(), ++at_;  // the rest of a character
  }

  void open() {
    groups_.push_back(out_.size());
    out_ += '(', ++at_;
    if (next() != '?') return;
    const size_t from = at_++;
    if (next() == ':' || next() == '=' || next() == '!' || next() == '>') {
      ++at_;
    } else if (next() == '<' && (next(1) == '=' || next(1) == '!')) {
      at_ += 2;
    } else {
      while (next() == 'i' || next() == '-') ++at_;  // of the flags, only this one means the same in both
      if (next() != ':' && next() != ')') refuse(std::string("(?") + next());
      if (next() == ':') ++at_;
    }
    out_.append(text_, from, at_ - from);
  }

  // {n}, {n,}, {n,m} and {,m}; false where the brace is a character.
  bool quantifier() {
    size_t end = at_ + 1;
    std::string least, most;
    bool comma = false;
    for (; end < text_.size() && (is_digit(text_[end]) || text_[end] == ','); ++end) {
      if (text_[end] == ',' && comma) return false;
      if (text_[end] == ',')
        comma = true;
      else
        (comma ? most : least) += text_[end];
    }
    if (end >= text_.size() || text_[end] != '}' || (least.empty() && most.empty())) return false;
    at_ = end + 1;
    out_ += "{" + (least.empty() ? "0" : least) + (comma ? "," : "") + most + "}";
    if (next() == '+') {  // a repetition of the repetition
      out_.insert(atom_, "(?:");
      out_ += ")+", ++at_;
    } else if (next() == '?') {
      if (!comma) refuse("{n}?");
      out_ += '?', ++at_;
    }
    return true;
  }

  // [^…] as it is, but for what stands for many characters.
  void class_() {
    out_ += '[', ++at_;
    if (next() == '^') out_ += '^', ++at_;
    if (next() == ']') refuse("an empty class");
    while (next() != ']') {
      if (at_ >= text_.size()) refuse("a class without its ]");
      if (next() == '[') refuse("a class within a class");
      if (next() == '&' && next(1) == '&') refuse("&& within a class");
      if (next() == '\\') {
        const std::string inside = class_escape();
        out_ += inside;
      } else {
        out_ += next(), ++at_;
      }
    }
    out_ += ']', ++at_;
  }

  // Outside of a class: what stands for many characters becomes a class.
  void escape() {
    const char c = next(1);
    if (c == 'S' || c == 'D' || c == 'W' || c == 'H' || c == 'P' || (c == 'p' && next(2) == '{' && next(3) == '^')) {
      out_ += "[^" + many() + "]";
    } else if (c == 's' || c == 'd' || c == 'w' || c == 'h' || c == 'p') {
      out_ += "[" + many() + "]";
    } else if (c == 'b' || c == 'B' || c == 'A' || c == 'z' || c == 'Z') {
      out_ += '\\', out_ += c, at_ += 2;
    } else {
      out_ += one();
    }
  }

  std::string class_escape() {
    const char c = next(1);
    if (c == 'S' || c == 'D' || c == 'W' || c == 'H' || c == 'P' || (c == 'p' && next(2) == '{' && next(3) == '^'))
      refuse(std::string("\\") + c + " within a class");
    if (c == 's' || c == 'd' || c == 'w' || c == 'h' || c == 'p') return many();
    return one();
  }

  // The inside of a class for \s, \d, \w, \h, \p{…} or what they negate.
  std::string many() {
    const char c = next(1);
    at_ += 2;
    switch (c) {
      case 's':
      case 'S':
        return kSpace;
      case 'd':
      case 'D':
        return category("Nd");
      case 'h':
      case 'H':
        return "0-9a-fA-F";
      case 'w':
      case 'W':
        return category("L") + category("M") + category("Nd") + category("Nl") + category("Pc") + kWordBesideCategories;
      default:
        break;
    }
    if (next() != '{') refuse("\\p without {");
    const size_t end = text_.find('}', at_);
    if (end == std::string::npos) refuse("\\p{ without }");
    std::string name = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    if (name.starts_with('^')) name.erase(0, 1);
    for (const char letter : name)
      if (!is_letter(letter) && letter != '_') refuse("\\p{" + excerpt(name) + "}");
    if (name == "Han") return std::string("\\p{sc:Han}") + kNewHan;
    return name.size() <= 2 ? category(name) : "\\p{sc:" + name + "}";
  }

  static std::string category(const std::string& name) {
    std::string inside = "\\p{" + name + "}";
    for (const UnicodeAddition& one : kUnicodeAdditions) {
      if (!std::string_view(one.category).starts_with(name)) continue;
      char range[40];
      std::snprintf(range, sizeof range, one.first == one.last ? "\\x{%X}" : "\\x{%X}-\\x{%X}", one.first, one.last);
      inside += range;
    }
    return inside;
  }

  // An escape for one character.
  std::string one() {
    const char c = next(1);
    if (c == '\0') refuse("a \\ at the end");
    if (c == 'x' || c == 'u') {
      const bool braces = c == 'x' && next(2) == '{';
      const size_t from = at_ + (braces ? 3 : 2);
      size_t end = from;
      while (end < text_.size() && (braces || end < from + (c == 'x' ? 2 : 4)) &&
             std::string_view("0123456789abcdefABCDEF").find(text_[end]) != std::string_view::npos)
        ++end;
      if (end == from || (braces && (end >= text_.size() || text_[end] != '}'))) refuse(std::string("\\") + c);
      const std::string number = text_.substr(from, end - from);
      at_ = end + braces;
      return "\\x{" + number + "}";
    }
    if (c == 'v') {
      at_ += 2;
      return "\\x{B}";
    }
    const bool named = c == 'n' || c == 'r' || c == 't' || c == 'f' || c == 'a' || c == 'e';
    if ((is_letter(c) && !named) || is_digit(c)) refuse(std::string("\\") + c);
    if (static_cast<unsigned char>(c) >= 0x80) {  // the character itself
      ++at_;
      return "";
    }
    at_ += 2;
    return std::string("\\") + c;
  }

  const std::string& text_;
  std::string out_;
  size_t at_ = 0, atom_ = 0;
  std::vector<size_t> groups_;
};

}  // namespace

std::string SplitPattern::rewritten(const std::string& expression) { return Rewriter(expression).run(); }

}  // namespace isentrope::data
