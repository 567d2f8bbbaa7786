#include "csrc/train/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <utility>

#include "csrc/durable_file.h"
#include "csrc/message.h"
#include "csrc/train/config_fields.h"

namespace isentrope::train {
namespace {

// ---- the file and the overrides -----------------------------------------------------------------------------------

class Document {
 public:
  Document(const std::string& file, const std::vector<std::string>& overrides) : file_(file) {
    std::string text;
    try {
      text = read_whole(file);
    } catch (const std::runtime_error& error) {
      throw ConfigError(error.what());
    }
    try {
      root_ = YAML::Load(text);
    } catch (const YAML::ParserException& error) {
      throw ConfigError(file + ":" + std::to_string(error.mark.line + 1) + ": not valid YAML: " + error.msg);
    }
    if (root_.IsNull()) root_ = YAML::Node(YAML::NodeType::Map);
    record(root_, "", "");
    for (const std::string& text : overrides) apply(text);
  }

  const YAML::Node& root() const { return root_; }

  // Where the value at path, or the nearest section around it, was written.
  std::string place(std::string path) const {
    for (;;) {
      if (const auto found = places_.find(path); found != places_.end()) return found->second;
      const size_t dot = path.rfind('.');
      if (dot == std::string::npos) return file_;
      path.resize(dot);
    }
  }
  std::string origin(const std::string& path) const {
    const auto found = places_.find(path);
    return found == places_.end() ? "default" : found->second;
  }
  [[noreturn]] void fail(const std::string& path, const std::string& message) const {
    throw ConfigError(place(path) + ": " + (path.empty() ? "" : path + ": ") + message);
  }
  // A problem() of the section at path. Where it begins with a key and a colon, the place is that key's.
  [[noreturn]] void fail_section(const std::string& path, const std::string& problem) const {
    throw ConfigError(place(child_path(path, problem.substr(0, problem.find(':')))) + ": " +
                      (path.empty() ? "" : path + ": ") + problem);
  }

 private:
  // Notes where every key and list element under node stands: at `everywhere`, or at its line of the file.
  void record(const YAML::Node& node, const std::string& path, const std::string& everywhere) {
    auto note = [&](const YAML::Node& at, const std::string& child) {
      return places_.emplace(child, everywhere.empty() ? file_ + ":" + std::to_string(at.Mark().line + 1) : everywhere)
          .second;
    };
    if (node.IsSequence())
      for (size_t i = 0; i < node.size(); ++i) {
        const std::string child = child_path(path, std::to_string(i));
        note(node[i], child);
        record(node[i], child, everywhere);
      }
    if (node.IsMap())
      for (const auto& entry : node) {
        if (!entry.first.IsScalar()) fail(path, "a key that is not a plain name");
        const std::string child = child_path(path, entry.first.Scalar());
        if (!note(entry.first, child))
          throw ConfigError(
              (everywhere.empty() ? file_ + ":" + std::to_string(entry.first.Mark().line + 1) : everywhere) + ": " +
              child + ": written twice, first at " + place(child));
        record(entry.second, child, everywhere);
      }
  }

  void apply(const std::string& text) {
    const std::string from = "command line";
    const size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0)
      throw ConfigError(from + ": '" + text + "': wanted key.path=value, such as run.seed=2");
    YAML::Node value;
    try {
      value = equals + 1 == text.size() ? YAML::Node("") : YAML::Load(text.substr(equals + 1));
    } catch (const YAML::ParserException& error) {
      throw ConfigError(from + ": '" + text + "': the value is not valid YAML: " + error.msg);
    }

    std::string path;
    YAML::Node node = root_;
    for (size_t begin = 0; begin <= equals;) {
      const size_t end = std::min(text.find('.', begin), equals);
      const std::string part = text.substr(begin, end - begin);
      if (part.empty()) throw ConfigError(from + ": '" + text + "': an empty name between dots");
      begin = end + 1;
      YAML::Node child;
      if (node.IsSequence()) {
        const size_t index = element(node, part, path, text);
        path = child_path(path, std::to_string(index));
        child.reset(node[index]);
      } else if (node.IsMap() || node.IsNull() || !node.IsDefined()) {
        path = child_path(path, part);
        child.reset(node[part]);
      } else {
        throw ConfigError(from + ": '" + text + "': " + path + " is a value and has no keys");
      }
      if (end == equals)
        child = value;
      else if (child.IsDefined())
        child = YAML::Clone(child);  // an anchor's other uses keep their value
      node.reset(child);
    }
    const auto below = [&](const auto& entry) { return entry.first == path || entry.first.starts_with(path + "."); };
    std::erase_if(places_, below);
    places_[path] = from;
    record(value, path, from);
  }

  // The list element that `part` means: its index, or the value of its key `name`.
  size_t element(const YAML::Node& list, const std::string& part, const std::string& path,
                 const std::string& text) const {
    size_t index = 0;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    if (error == std::errc() && end == part.data() + part.size() && index < list.size()) return index;
    std::vector<std::string> names;
    for (size_t i = 0; i < list.size(); ++i) {
      const YAML::Node item = list[i];
      if (!item.IsMap() || !static_cast<const YAML::Node&>(item)["name"].IsDefined()) continue;
      if (item["name"].Scalar() == part) return i;
      names.push_back(item["name"].Scalar());
    }
    throw ConfigError("command line: '" + text + "': " + path + " has no element '" + part + "'; it has " +
                      std::to_string(list.size()) + (names.empty() ? "" : ", named " + join(names)));
  }

  std::string file_;
  YAML::Node root_;
  std::map<std::string, std::string> places_;  // path → "file:line" or "command line"
};

// ---- parse --------------------------------------------------------------------------------------------------------

std::string describe(const YAML::Node& node) {
  if (node.IsNull()) return "nothing";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a section of keys";
  return (node.Tag() == "!" ? "the quoted text '" : "'") + node.Scalar() + "'";
}

bool from_text(const std::string& text, bool& value) {
  if (text == "true" || text == "True" || text == "TRUE") return value = true, true;
  if (text == "false" || text == "False" || text == "FALSE") return value = false, true;
  return false;
}

bool from_text(const std::string& text, double& value) {
  if (text == ".inf" || text == "+.inf" || text == "-.inf") {
    value = text[0] == '-' ? -HUGE_VAL : HUGE_VAL;
    return true;
  }
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
}

// 1e3 is an integer, 1.5 and 1e30 are none.
bool from_text(const std::string& text, int64_t& value) {
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return true;
  double real = 0;
  constexpr double kExact = 9007199254740992.0;  // 2^53: every integer below is a double
  if (!from_text(text, real) || real != std::floor(real) || std::abs(real) > kExact) return false;
  value = static_cast<int64_t>(real);
  return true;
}

class Reader {
 public:
  Reader(const Document& document, const YAML::Node& node, const std::string& path)
      : document_(document), node_(node), path_(path) {}

  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& allowed = {}) {
    const YAML::Node child = node_[name];
    if (child.IsDefined()) read(document_, child, child_path(path_, name), member, allowed);
  }

  template <class T>
  static void read(const Document& document, const YAML::Node& node, const std::string& path, T& value,
                   const Allowed& allowed = {}) {
    auto wrong_type = [&] { document.fail(path, "wanted " + type_name<T>() + ", got " + describe(node)); };
    if constexpr (is_optional<T>) {
      value.reset();
      if (!node.IsNull()) read(document, node, path, value.emplace(), allowed);
    } else if constexpr (Section<T>) {
      if (node.IsNull()) return;  // a section whose keys are all left out
      if (!node.IsMap()) wrong_type();
      Keys keys;
      value.visit(keys);
      for (const auto& entry : node) {
        const std::string& name = entry.first.Scalar();
        if (std::find(keys.names.begin(), keys.names.end(), name) == keys.names.end())
          document.fail(child_path(path, name), "unknown key" + suggestion(name, keys.names, "the keys here"));
      }
      Reader reader(document, node, path);
      value.visit(reader);
    } else if constexpr (is_list<T>) {
      if (node.IsScalar() && !allowed.names.empty()) {  // one name: a list of it
        value.clear();
        return read(document, node, path, value.emplace_back(), allowed);
      }
      if (!node.IsSequence()) wrong_type();
      value.clear();
      for (size_t i = 0; i < node.size(); ++i)
        read(document, node[i], child_path(path, std::to_string(i)), value.emplace_back(), allowed);
    } else if constexpr (std::is_same_v<T, std::string>) {
      if (!node.IsScalar()) wrong_type();
      value = node.Scalar();
      if (!allowed.names.empty() && std::find(allowed.names.begin(), allowed.names.end(), value) == allowed.names.end())
        document.fail(path, "'" + value + "' is not " + range(allowed));
    } else {
      if (!node.IsScalar() || node.Tag() == "!" || !from_text(node.Scalar(), value)) wrong_type();
      const double number = static_cast<double>(value);
      if (number < allowed.min || number > allowed.max || (allowed.above && number == allowed.min))
        document.fail(path, node.Scalar() + " is out of range; wanted " + range(allowed));
    }
  }

 private:
  const Document& document_;
  const YAML::Node node_;  // const: looking a key up does not make it
  std::string path_;
};

// ---- validate: what each struct says of its keys together, innermost first ----------------------------------------

class Validator {
 public:
  Validator(const Document& document, const std::string& path) : document_(document), path_(path) {}

  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& = {}) {
    check(document_, child_path(path_, name), member);
  }

  template <class T>
  static void check(const Document& document, const std::string& path, T& value) {
    if constexpr (is_optional<T>) {
      if (value) check(document, path, *value);
    } else if constexpr (is_list<T>) {
      for (size_t i = 0; i < value.size(); ++i) check(document, child_path(path, std::to_string(i)), value[i]);
    } else if constexpr (Section<T>) {
      Validator inner(document, path);
      value.visit(inner);
      if constexpr (Checked<T>)
        if (const std::string problem = value.problem(); !problem.empty()) document.fail_section(path, problem);
    }
  }

 private:
  const Document& document_;
  std::string path_;
};

TrainConfig read_document(const Document& document) {
  TrainConfig config;
  Reader::read(document, document.root(), "", config);
  Validator::check(document, "", config);
  return config;
}

}  // namespace

TrainConfig read_config(const std::string& file, const std::vector<std::string>& overrides) {
  return read_document(Document(file, overrides));
}

std::string print_config_with_origins(const std::string& file, const std::vector<std::string>& overrides) {
  const Document document(file, overrides);
  return print_lines(read_document(document), [&](const std::string& path) { return document.origin(path); });
}

}  // namespace isentrope::train
