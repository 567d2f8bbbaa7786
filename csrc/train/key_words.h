// Sections of keys in one word of the command line, as --prune and --policy have them: KEY=VALUE,KEY=VALUE,…
#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/field.h"
#include "csrc/message.h"

namespace isentrope::train {

// The shortest text that reads back to the same number.
inline std::string shortest_text(double x) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), x).ptr};
}

// Sets the key of that name, as the visitor of a configuration has it.
struct KeySetter {
  const std::string &section, &key, &value;
  std::vector<std::string> names = {};
  bool found = false;

  std::string path() const { return section + "." + key; }
  double number() const {
    double x = 0;
    const auto [end, problem] = std::from_chars(value.data(), value.data() + value.size(), x);
    if (problem != std::errc() || end != value.data() + value.size() || !std::isfinite(x))
      throw std::invalid_argument(path() + " is " + isentrope::quoted(value) + ", wanted a number");
    return x;
  }
  void allow(double x, const Allowed& allowed) const {
    if (x > allowed.max || (allowed.above ? x <= allowed.min : x < allowed.min))
      throw std::invalid_argument(
          path() + " is " + value + ", wanted " +
          (std::isinf(allowed.max) ? "at least " + shortest_text(allowed.min)
           : allowed.above         ? "above " + shortest_text(allowed.min) + ", at most " + shortest_text(allowed.max)
                                   : shortest_text(allowed.min) + " to " + shortest_text(allowed.max)));
  }
  int64_t integer(const Allowed& allowed) const {
    const double x = number();
    if (x != std::floor(x)) throw std::invalid_argument(path() + " is " + value + ", wanted an integer");
    allow(x, allowed);
    return static_cast<int64_t>(x);
  }
  bool mine(const char* name) {
    names.emplace_back(name);
    return key == name && (found = true);
  }
  void one_of_names(const std::vector<std::string>& allowed) const {
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
      throw std::invalid_argument(path() + " is " + isentrope::quoted(value) +
                                  suggestion(value, allowed, "the values"));
  }
  void operator()(const char* name, std::optional<int64_t>& member, const char*, const Allowed& allowed) {
    if (mine(name) && value != "auto") member = integer(allowed);
  }
  void operator()(const char* name, int64_t& member, const char*, const Allowed& allowed) {
    if (mine(name)) member = integer(allowed);
  }
  void operator()(const char* name, double& member, const char*, const Allowed& allowed) {
    if (!mine(name)) return;
    member = number();
    allow(member, allowed);
  }
  void operator()(const char* name, bool& member, const char*) {
    if (!mine(name)) return;
    one_of_names({"true", "false"});
    member = value == "true";
  }
  void operator()(const char* name, std::string& member, const char*, const Allowed& allowed) {
    if (!mine(name)) return;
    one_of_names(allowed.names);
    member = value;
  }
};

// Each key left out or once. section: what errors call it; example: of what is wanted. Throws std::invalid_argument that begins with the
// section and key, and says what is wrong.
template <class Config>
Config parse_keys(const std::string& section, const std::string& text, const std::string& example) {
  Config config;
  std::map<std::string, bool> given;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string word = text.substr(at, end - at), key = word.substr(0, word.find('='));
    at = end + 1;
    if (word.find('=') == std::string::npos)
      throw std::invalid_argument(section + ": " + isentrope::quoted(word) + " is no KEY=VALUE; wanted as " + example);
    if (given[key]) throw std::invalid_argument(section + "." + key + " is given twice; wanted once");
    given[key] = true;
    const std::string value = word.substr(key.size() + 1);
    KeySetter setter{section, key, value};
    config.visit(setter);
    if (!setter.found)
      throw std::invalid_argument(section + " has no key " + isentrope::quoted(key) +
                                  suggestion(key, setter.names, "the keys"));
  }
  return config;
}

}  // namespace isentrope::train
