#include "csrc/train/prune_words.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <stdexcept>

#include "csrc/message.h"

namespace isentrope::train {
namespace {

std::string shortest(double x) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), x).ptr};
}

double number_of(const std::string& key, const std::string& value) {
  double x = 0;
  const auto [end, problem] = std::from_chars(value.data(), value.data() + value.size(), x);
  if (problem != std::errc() || end != value.data() + value.size() || !std::isfinite(x))
    throw std::invalid_argument("prune." + key + " is " + isentrope::quoted(value) + ", wanted a number");
  return x;
}

// Sets the key of that name, as the visitor of a configuration has it.
struct Setter {
  const std::string &key, &value;
  std::vector<std::string> names = {};
  bool found = false;

  void allow(double x, const Allowed& allowed) const {
    if (x > allowed.max || (allowed.above ? x <= allowed.min : x < allowed.min))
      throw std::invalid_argument("prune." + key + " is " + value + ", wanted " +
                                  (std::isinf(allowed.max) ? "at least " + shortest(allowed.min)
                                   : allowed.above
                                       ? "above " + shortest(allowed.min) + ", at most " + shortest(allowed.max)
                                       : shortest(allowed.min) + " to " + shortest(allowed.max)));
  }
  int64_t integer(const Allowed& allowed) const {
    const double x = number_of(key, value);
    if (x != std::floor(x)) throw std::invalid_argument("prune." + key + " is " + value + ", wanted an integer");
    allow(x, allowed);
    return static_cast<int64_t>(x);
  }
  bool mine(const char* name) {
    names.emplace_back(name);
    return key == name && (found = true);
  }
  void operator()(const char* name, std::optional<int64_t>& member, const char*, const Allowed& allowed) {
    if (mine(name) && value != "auto") member = integer(allowed);
  }
  void operator()(const char* name, int64_t& member, const char*, const Allowed& allowed) {
    if (mine(name)) member = integer(allowed);
  }
  void operator()(const char* name, double& member, const char*, const Allowed& allowed) {
    if (!mine(name)) return;
    member = number_of(key, value);
    allow(member, allowed);
  }
  void operator()(const char* name, std::string& member, const char*, const Allowed& allowed) {
    if (!mine(name)) return;
    if (std::find(allowed.names.begin(), allowed.names.end(), value) == allowed.names.end())
      throw std::invalid_argument("prune." + key + " is " + isentrope::quoted(value) +
                                  suggestion(value, allowed.names, "the values"));
    member = value;
  }
};

}  // namespace

model::PruneConfig parse_prune(const std::string& text) {
  model::PruneConfig config;
  std::map<std::string, bool> given;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    const std::string word = text.substr(at, end - at), key = word.substr(0, word.find('='));
    at = end + 1;
    if (word.find('=') == std::string::npos)
      throw std::invalid_argument("prune: " + isentrope::quoted(word) + " is no KEY=VALUE; wanted as layer=2,keep=0.5");
    if (given[key]) throw std::invalid_argument("prune." + key + " is given twice; wanted once");
    given[key] = true;
    Setter setter{key, word.substr(key.size() + 1)};
    config.visit(setter);
    if (!setter.found)
      throw std::invalid_argument("prune has no key " + isentrope::quoted(key) +
                                  suggestion(key, setter.names, "the keys"));
  }
  return config;
}

std::string to_yaml(const model::PruneConfig& config) {
  return "{layer: " + (config.layer ? std::to_string(*config.layer) : "null") + ", keep: " + shortest(config.keep) +
         ", matrix: " + config.matrix + ", form: " + config.form + ", first: " + std::to_string(config.first) + "}";
}

}  // namespace isentrope::train
