// What the visitors of a configuration share (config.cpp reads and checks, config_print.cpp prints and
// explains).
#pragma once
#include <concepts>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "csrc/one_of.h"
#include "csrc/train/config.h"

namespace isentrope::train {

// What a member is.
template <class T>
inline constexpr bool is_list = false;
template <class T>
inline constexpr bool is_list<std::vector<T>> = true;
// Lists that may be written as their only entry.
template <class T>
inline constexpr bool is_one_or_more = false;
template <class T>
inline constexpr bool is_one_or_more<OneOrMore<T>> = true;
template <class T>
inline constexpr bool is_list<OneOrMore<T>> = true;
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

// The simplest visitor: the names of a struct's keys.
struct Keys {
  std::vector<std::string> names;
  bool open = false;  // the struct takes others too
  template <class T>
  void operator()(const char* name, T&, const char*, const Allowed& = {}) {
    if constexpr (std::is_same_v<T, data::Settings>)
      open = true;
    else
      names.emplace_back(name);
  }
};

template <class T>
concept Section = requires(T& section, Keys& keys) {
  section.visit(keys);
};
// A OneOf (csrc/one_of.h), whose key kind says which keys it has.
template <class T>
concept Chosen = Section<T> && requires(T& entry) {
  { entry.choose("") } -> std::same_as<bool>;
};
template <class T>
concept Checked = requires(const T& section) {
  { section.problem() } -> std::convertible_to<std::string>;
};

// "an integer", and in a list "integers".
template <class T>
std::string type_name(bool plural = false) {
  if constexpr (is_optional<T>)
    return type_name<typename T::value_type>(plural);
  else if constexpr (is_one_or_more<T>)
    return "a section of keys or a list of them";
  else if constexpr (is_list<T>)
    return "a list of " + type_name<typename T::value_type>(true);
  else if constexpr (Section<T>)
    return plural ? "sections of keys" : "a section of keys";
  else if constexpr (std::is_same_v<T, bool>)
    return "true or false";
  else if constexpr (std::is_same_v<T, int64_t>)
    return plural ? "integers" : "an integer";
  else if constexpr (std::is_same_v<T, double>)
    return plural ? "numbers" : "a number";
  else {
    static_assert(std::is_same_v<T, std::string>, "a configuration member of a type that csrc/field.h does not list");
    return plural ? "texts" : "a text";
  }
}

// Values as YAML: the shortest text that reads back to the same value.
std::string to_text(bool value);
std::string to_text(int64_t value);
std::string to_text(double value);
std::string to_text(const std::string& value);
template <class T>
std::string to_text(const std::vector<T>& list) {
  std::string text = "[";
  for (size_t i = 0; i < list.size(); ++i) text += (i ? ", " : "") + to_text(list[i]);
  return text + "]";
}

// "a, b"
std::string join(const std::vector<std::string>& words);
// "one of a, b", "1 to 15", "above 0", "at least 1"; "" where everything is allowed.
std::string range(const Allowed& allowed);
// The place of a key: "phases.0.steps".
inline std::string child_path(const std::string& path, const std::string& name) {
  return path.empty() ? name : path + "." + name;
}
// Of an entry of a list: that of the list where it is written as that entry.
template <class T>
std::string entry_path(const std::string& path, const T& list, size_t i) {
  if constexpr (is_one_or_more<T>)
    if (!list.listed && list.size() == 1) return path;
  return child_path(path, std::to_string(i));
}

// The configuration as YAML, every line that holds a value followed by what origin says of its path, if
// given.
std::string print_lines(const TrainConfig& config, const std::function<std::string(const std::string& path)>& origin);

}  // namespace isentrope::train
