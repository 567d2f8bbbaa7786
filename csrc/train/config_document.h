// The file of a configuration with its overrides applied, and where each value was written.
#pragma once
#include <yaml-cpp/yaml.h>

#include <map>
#include <string>
#include <vector>

namespace isentrope::train {

class Document {
 public:
  // Throws ConfigError for what is no YAML, and for what YAML allows and no configuration means: more than kMostNodes
  // nodes once aliases are followed, an alias within its own anchor, deep nesting, bytes that are not UTF-8, control
  // characters, a text that goes on over lines, a second document, a key twice.
  Document(const std::string& file, const std::vector<std::string>& overrides);
  // The same of a text that messages call `file`.
  Document(const std::string& file, std::string text, const std::vector<std::string>& overrides);

  const YAML::Node& root() const { return root_; }

  const std::string& file() const { return file_; }
  // Whether the value at path, or the nearest section around it, was written in the file, and not on the command line.
  bool of_file(const std::string& path) const { return place(path) != "command line"; }
  // Where the value at path, or the nearest section around it, was written.
  std::string place(std::string path) const;
  // Where the value at path was written, or that it is the default.
  std::string origin(const std::string& path) const;
  [[noreturn]] void fail(const std::string& path, const std::string& message) const;
  // A problem() of the section at path. Where it begins with a key and a colon, the place is that key's.
  [[noreturn]] void fail_section(const std::string& path, const std::string& problem) const;

 private:
  void record(const YAML::Node& node, const std::string& path, const std::string& everywhere);
  void apply(const std::string& text);
  size_t element(const YAML::Node& list, const std::string& part, const std::string& path,
                 const std::string& text) const;
  // path as a message says it: elements of a list by their name, where they have one of their own.
  std::string named(const std::string& path) const;

  std::string file_;
  YAML::Node root_;
  std::map<std::string, std::string> places_;  // path → "file:line" or "command line"
};

}  // namespace isentrope::train
