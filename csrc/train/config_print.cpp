#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>
#include <utility>

#include "csrc/train/config_fields.h"

namespace isentrope::train {

std::string to_text(bool value) { return value ? "true" : "false"; }
std::string to_text(int64_t value) { return std::to_string(value); }

// Always with a point, which other YAML readers want of a number.
std::string to_text(double value) {
  if (std::isinf(value)) return value > 0 ? ".inf" : "-.inf";
  char buffer[32];
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof(buffer), value).ptr);
  if (text.find('.') == std::string::npos) text.insert(std::min(text.find('e'), text.size()), ".0");
  return text;
}

std::string to_text(const std::string& value) {
  auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  auto plain = [&](char c) { return letter(c) || (c >= '0' && c <= '9') || std::strchr("./-", c); };
  static const std::set<std::string> kWords{"true", "false", "null", "yes", "no", "on", "off", "y", "n"};
  std::string lower = value;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (!value.empty() && letter(value[0]) && std::all_of(value.begin(), value.end(), plain) && !kWords.count(lower))
    return value;
  std::string text = "\"";
  for (const char c : value) {
    char escape[8];
    if (c == '"' || c == '\\')
      text += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      text += (std::snprintf(escape, sizeof(escape), "\\x%02x", static_cast<unsigned char>(c)), escape);
    else
      text += c;
  }
  return text + "\"";
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// "one of a, b", "1 to 15", "above 0", "at least 1"; "" where everything is allowed.
std::string range(const Allowed& allowed) {
  auto bound = [](double value) {
    return to_text(value).ends_with(".0") ? to_text(static_cast<int64_t>(std::llround(value))) : to_text(value);
  };
  if (!allowed.names.empty()) return "one of " + join(allowed.names);
  const bool low = std::isfinite(allowed.min), high = std::isfinite(allowed.max);
  if (low && high) return (allowed.above ? "above " : "") + bound(allowed.min) + " to " + bound(allowed.max);
  if (low) return (allowed.above ? "above " : "at least ") + bound(allowed.min);
  return high ? "at most " + bound(allowed.max) : "";
}

namespace {

template <class T>
inline constexpr bool is_list_of_sections = false;
template <class T>
inline constexpr bool is_list_of_sections<std::vector<T>> = Section<T>;
template <class T>
inline constexpr bool is_optional_section = false;
template <class T>
inline constexpr bool is_optional_section<std::optional<T>> = Section<T>;

// ---- print --------------------------------------------------------------------------------------------------------

class Printer {
 public:
  struct Line {
    std::string text, path;  // path: of the value that the line holds; empty for the head of a section
  };

  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& = {}) {
    const std::string path = child_path(path_, name), head = std::string(indent_, ' ') + name + ":";
    if constexpr (std::is_same_v<T, data::Settings>) {
      for (const auto& [key, value] : member)
        lines_.push_back({std::string(indent_, ' ') + to_text(key) + ": " + value, child_path(path_, key)});
    } else if constexpr (Section<T>) {
      section(head, path, member);
    } else if constexpr (is_optional_section<T>) {
      if (member)
        section(head, path, *member);
      else
        lines_.push_back({head + " null", path});
    } else if constexpr (is_optional<T>) {
      lines_.push_back({head + " " + (member ? to_text(*member) : "null"), path});
    } else if constexpr (is_one_or_more<T>) {
      if (member.size() == 1 && !member.listed)
        section(head, path, member.front());
      else
        list(head, path, member, "null");
    } else if constexpr (is_list_of_sections<T>) {
      list(head, path, member, "[]");
    } else {
      lines_.push_back({head + " " + to_text(member), path});
    }
  }

  const std::vector<Line>& lines() const { return lines_; }

 private:
  template <class T>
  void section(const std::string& head, const std::string& path, T& value) {
    lines_.push_back({head, ""});
    nested(path, indent_ + 2, value);
  }
  template <class T>
  void list(const std::string& head, const std::string& path, T& entries, const std::string& none) {
    lines_.push_back({head + (entries.empty() ? " " + none : ""), entries.empty() ? path : ""});
    for (size_t i = 0; i < entries.size(); ++i) {
      const size_t first = lines_.size();
      nested(child_path(path, std::to_string(i)), indent_ + 4, entries[i]);
      lines_[first].text[indent_ + 2] = '-';
    }
  }
  template <class T>
  void nested(const std::string& path, size_t indent, T& value) {
    const std::string outer_path = std::exchange(path_, path);
    const size_t outer_indent = std::exchange(indent_, indent);
    value.visit(*this);
    path_ = outer_path;
    indent_ = outer_indent;
  }

  std::vector<Line> lines_;
  std::string path_;
  size_t indent_ = 0;
};

// ---- explain: a struct's own keys first, then a block for each section in it --------------------------------------

struct Block {
  std::string title;
  struct Key {
    std::string name, facts, help;
  };
  std::vector<Key> keys;
};

class Explainer {
 public:
  template <class T>
  void operator()(const char* name, T& member, const char* help, const Allowed& allowed = {}) {
    const std::string path = child_path(path_, name);
    if constexpr (std::is_same_v<T, data::Settings>) {
      blocks_[block_].keys.push_back({name, "any value", help});
    } else if constexpr (Section<T>) {
      section(path, help, member);
    } else if constexpr (is_optional_section<T> || is_one_or_more<T>) {
      each_kind<typename T::value_type>(path, std::string(help) + " (Absent unless written.)");
    } else if constexpr (is_list_of_sections<T>) {
      each_kind<typename T::value_type>(path + "[]", help);
    } else {
      std::string facts = type_name<T>() + ", default ";
      if constexpr (is_optional<T>)
        facts += member ? to_text(*member) : "none";
      else
        facts += to_text(member);
      if (const std::string wanted = range(allowed); !wanted.empty()) facts += ", " + wanted;
      blocks_[block_].keys.push_back({name, facts, help});
    }
  }

  template <class T>
  void section(const std::string& path, const std::string& help, T& value) {
    const std::string outer_path = std::exchange(path_, path);
    const size_t outer_block = std::exchange(block_, blocks_.size());
    blocks_.push_back({path + (path.empty() ? "" : ": ") + help, {}});
    value.visit(*this);
    path_ = outer_path;
    block_ = outer_block;
  }

  // A section; of a OneOf a block for each kind, under a head of their own.
  template <class T>
  void each_kind(const std::string& path, const std::string& help) {
    if constexpr (Chosen<T>) {
      blocks_.push_back({path + ": " + help, {}});
      T::each([&]<class One>(One value) {
        if constexpr (Named<One>)
          section(path + " {kind: " + One::kKind + "}", help_of<One>(), value);
        else
          section(path, "Those that score completions.", value);
      });
    } else {
      T value;
      section(path, help, value);
    }
  }

  // With the scope that it declares (csrc/methods/method.h).
  template <class One>
  static std::string help_of() {
    std::string help = One::kHelp;
    if constexpr (requires { One::kScope; }) help += std::string(" (scope: ") + One::kScope + ")";
    return help;
  }

  const std::vector<Block>& blocks() const { return blocks_; }

 private:
  std::vector<Block> blocks_;
  std::string path_;
  size_t block_ = 0;
};

// text in lines of at most `width` bytes, each begun by `margin` spaces.
std::string wrapped(const std::string& text, size_t margin, size_t width) {
  std::string out, line;
  auto flush = [&] { out += std::string(margin, ' ') + std::exchange(line, "") + "\n"; };
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (!line.empty() && margin + line.size() + 1 + word.size() > width) flush();
    line += (line.empty() ? "" : " ") + word;
    begin = end + 1;
  }
  flush();
  return out;
}

}  // namespace

std::string print_lines(const TrainConfig& config, const std::function<std::string(const std::string& path)>& origin) {
  TrainConfig copy = config;  // visit() is one function for readers and writers, and so not const
  Printer printer;
  copy.visit(printer);
  // Comments stand in one column, as far as the lines are not longer than most are.
  constexpr size_t kColumn = 48;
  std::string out;
  for (const auto& [text, path] : printer.lines()) {
    out += text;
    if (origin && !path.empty())
      out += std::string(text.size() < kColumn ? kColumn - text.size() : 2, ' ') + "# " + origin(path);
    out += "\n";
  }
  return out;
}

std::string print_config(const TrainConfig& config) { return print_lines(config, nullptr); }

std::string explain_config() {
  TrainConfig defaults;
  Explainer explainer;
  explainer.section("", "", defaults);
  std::string out;
  for (const Block& block : explainer.blocks()) {
    if (block.keys.empty() && block.title.empty()) continue;  // the root holds sections alone
    size_t column = 0;
    for (const auto& key : block.keys) column = std::max(column, key.name.size());
    column += 4;  // two before the name, two after it
    out += (out.empty() ? "" : "\n") + block.title + "\n";
    for (const auto& key : block.keys) {
      out += "  " + key.name + std::string(column - 2 - key.name.size(), ' ') + key.facts + "\n";
      out += wrapped(key.help, column, 110);
    }
  }
  return out;
}

}  // namespace isentrope::train
