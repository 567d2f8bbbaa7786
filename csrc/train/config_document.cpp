#include "csrc/train/config_document.h"

#include <yaml-cpp/eventhandler.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <sstream>
#include <stdexcept>

#include "csrc/durable_file.h"
#include "csrc/message.h"
#include "csrc/train/config_fields.h"

namespace isentrope::train {
namespace {

// Ten times what a configuration with every key of ten phases has, and read within a few milliseconds.
constexpr int64_t kMostNodes = 20000;
// The deepest key, phases.N.reward.N.kl.target, has 6 levels.
constexpr int kMostLevels = 32;
constexpr size_t kMostBytes = 1 << 20;

// Names the line of a text, from 1, as errors do.
using Place = std::function<std::string(int line)>;

// Looks at a YAML text as it is parsed, before a node is made of it.
class Guard : public YAML::EventHandler {
 public:
  Guard(const std::string& text, const Place& place) : text_(text), place_(place), begins_{0} {
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 1)) begins_.push_back(at + 1);
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++documents_ > 1)
      fail(mark, "a second document begins here (---), and a configuration is one; take it out of the file");
  }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    count(mark, 1);
    if (anchor) sizes_[anchor] = 1;
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const auto size = sizes_.find(anchor);
    if (size == sizes_.end()) fail(mark, "the alias stands within what it stands for, which would have no end");
    count(mark, size->second);
  }
  void OnScalar(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor, const std::string& value) override {
    count(mark, 1);
    if (anchor) sizes_[anchor] = 1;
    one_line(mark, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YAML::anchor_t anchor;
    int64_t before;  // nodes
  };

  [[noreturn]] void fail(const YAML::Mark& mark, const std::string& message) const {
    throw ConfigError(place_(mark.line + 1) + ": " + message);
  }
  void count(const YAML::Mark& mark, int64_t nodes) {
    nodes_ += nodes;
    if (nodes_ > kMostNodes)
      fail(mark, "more than " + std::to_string(kMostNodes) +
                     " keys and values up to here, aliases followed; no configuration has a tenth of them");
  }
  void open(const YAML::Mark& mark, YAML::anchor_t anchor) {
    open_.push_back({anchor, nodes_});
    if (open_.size() > kMostLevels)
      fail(mark, "nested in more than " + std::to_string(kMostLevels) + " levels; a configuration has 7");
    count(mark, 1);
  }
  void close() {
    if (open_.back().anchor) sizes_[open_.back().anchor] = nodes_ - open_.back().before;
    open_.pop_back();
  }

  // A text that goes on over lines is a quote that was not closed, or a line that was indented by mistake: YAML makes one
  // value of it and of the keys that it swallows.
  void one_line(const YAML::Mark& mark, const std::string& value) const {
    const auto line = static_cast<size_t>(mark.line);
    if (line >= begins_.size()) return;
    size_t at = begins_[line] + static_cast<size_t>(mark.column);
    while (at < text_.size() && (text_[at] == '&' || text_[at] == '!')) {  // an anchor, a tag
      at = std::min(text_.find_first_of(" \t\r\n", at), text_.size());
      at = std::min(text_.find_first_not_of(" \t\r\n", at), text_.size());
    }
    if (at >= text_.size() || text_[at] == '|' || text_[at] == '>') return;
    const char quote = text_[at];
    if (quote != '\'' && quote != '"') {
      if (text_.compare(at, value.size(), value) != 0)
        fail(mark, "the text that begins here goes on over several lines (\"" + excerpt(value) +
                       "\"); write it on one line, or in quotes with \\n");
      return;
    }
    size_t end = at + 1;
    const auto doubled = [&] { return quote == '\'' && text_.compare(end, 2, "''") == 0; };  // one quote of the text
    while (end < text_.size() && (text_[end] != quote || doubled()))
      end += doubled() || (quote == '"' && text_[end] == '\\') ? 2 : 1;
    const size_t newline = text_.find('\n', at);
    if (end >= text_.size()) fail(mark, "the quote that begins here is not closed: \"" + excerpt(value) + "\"");
    if (newline < end)
      fail(mark,
           "the quote that begins here is closed in a later line, and what stands between is part of the text (\"" +
               excerpt(value) + "\"); close it in its line, and write line ends as \\n in double quotes");
  }

  const std::string& text_;
  const Place& place_;
  std::vector<size_t> begins_;  // of lines
  std::vector<Open> open_;
  std::map<YAML::anchor_t, int64_t> sizes_;  // nodes of what an anchor names, once it is closed
  int64_t nodes_ = 0;
  int documents_ = 0;
};

YAML::Node load(const std::string& text, const Place& place) {
  const auto line_of = [&](size_t at) {
    return place(1 + static_cast<int>(std::count(text.begin(), text.begin() + static_cast<int64_t>(at), '\n')));
  };
  if (text.size() > kMostBytes)
    throw ConfigError(place(1) + ": " + std::to_string(text.size()) +
                      " bytes; a configuration has a few thousand, and at most 1 MiB is read");
  if (const size_t end = utf8_end(text); end < text.size())
    throw ConfigError(line_of(end) + ": not UTF-8 (\"" + excerpt(text.substr(end), 8) +
                      "\"); write it in the encoding UTF-8");
  const auto control = std::find_if(text.begin(), text.end(), [](unsigned char c) {
    return (c < 0x20 && c != '\t' && c != '\n' && c != '\r') || c == 0x7F;
  });
  if (control != text.end())
    throw ConfigError(line_of(static_cast<size_t>(control - text.begin())) + ": a control character (" +
                      excerpt(std::string(1, *control)) + "); take it out, or write it so in double quotes");
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    Guard guard(text, place);
    while (parser.HandleNextDocument(guard)) {
    }
    return YAML::Load(text);
  } catch (const YAML::Exception& error) {
    throw ConfigError(place(error.mark.is_null() ? 1 : error.mark.line + 1) +
                      ": not valid YAML: " + excerpt(error.msg, 200));
  }
}

std::string text_of(const std::string& file) {
  try {
    return read_whole(file);
  } catch (const std::runtime_error& error) {
    throw ConfigError(error.what());
  }
}

}  // namespace

Document::Document(const std::string& file, const std::vector<std::string>& overrides)
    : Document(file, text_of(file), overrides) {}

Document::Document(const std::string& file, std::string text, const std::vector<std::string>& overrides) : file_(file) {
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);  // a byte order mark
  root_ = load(text, [&](int line) { return file + ":" + std::to_string(line); });
  if (root_.IsNull()) root_ = YAML::Node(YAML::NodeType::Map);
  record(root_, "", "");
  for (const std::string& override : overrides) apply(override);
}

std::string Document::place(std::string path) const {
  for (;;) {
    if (const auto found = places_.find(path); found != places_.end()) return found->second;
    const size_t dot = path.rfind('.');
    if (dot == std::string::npos) return file_;
    path.resize(dot);
  }
}

std::string Document::origin(const std::string& path) const {
  const auto found = places_.find(path);
  return found == places_.end() ? "default" : found->second;
}

std::string Document::named(const std::string& path) const {
  std::string shown;
  YAML::Node node = root_;
  for (size_t begin = 0; begin <= path.size() && !path.empty();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    std::string part = path.substr(begin, end - begin);
    begin = end + 1;
    const auto name_of = [](const YAML::Node& item) {
      const YAML::Node name = item.IsMap() ? item["name"] : YAML::Node();
      return name.IsDefined() && name.IsScalar() ? name.Scalar() : "";
    };
    size_t index = 0;
    const auto [last, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool element = error == std::errc() && last == part.data() + part.size();
    if (node.IsDefined() && node.IsSequence() && element && index < node.size()) {
      const YAML::Node item = node[index];
      const std::string name = name_of(item);
      const auto called = [&](const YAML::Node& other) { return name_of(other) == name; };
      if (!name.empty() && std::count_if(node.begin(), node.end(), called) == 1) part = name;
      node.reset(item);
    } else if (node.IsDefined() && node.IsMap()) {
      const YAML::Node& map = node;
      const YAML::Node child = map[part];
      node.reset(child.IsDefined() ? child : YAML::Node());
    }
    shown = child_path(shown, part);
  }
  return excerpt(shown, 160);
}

void Document::fail(const std::string& path, const std::string& message) const {
  throw ConfigError(place(path) + ": " + (path.empty() ? "" : named(path) + ": ") + message);
}

void Document::fail_section(const std::string& path, const std::string& problem) const {
  const size_t colon = problem.find(':');
  const std::string key = problem.substr(0, colon), full = child_path(path, key);
  std::string text = problem;
  if (path.empty() && colon != std::string::npos && key.find(' ') == std::string::npos)
    text.replace(0, colon, named(key));
  throw ConfigError(place(full) + ": " + (path.empty() ? "" : named(path) + ": ") + text);
}

// Notes where every key and list element under node stands: at `everywhere`, or at its line of the file.
void Document::record(const YAML::Node& node, const std::string& path, const std::string& everywhere) {
  const auto place_of = [&](const YAML::Node& at) {
    return everywhere.empty() ? file_ + ":" + std::to_string(at.Mark().line + 1) : everywhere;
  };
  if (node.IsSequence())
    for (size_t i = 0; i < node.size(); ++i) {
      const std::string child = child_path(path, std::to_string(i));
      places_.emplace(child, place_of(node[i]));
      record(node[i], child, everywhere);
    }
  if (node.IsMap())
    for (const auto& entry : node) {
      if (!entry.first.IsScalar())
        throw ConfigError(place_of(entry.first) + ": " + (path.empty() ? "" : named(path) + ": ") +
                          "a key that is not a plain name");
      const std::string child = child_path(path, entry.first.Scalar());
      if (!places_.emplace(child, place_of(entry.first)).second)
        throw ConfigError(place_of(entry.first) + ": " + named(child) + ": written twice, first at " + place(child));
      record(entry.second, child, everywhere);
    }
}

void Document::apply(const std::string& text) {
  const std::string from = "command line", shown = from + ": '" + excerpt(text) + "': ";
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0)
    throw ConfigError(shown + "wanted key.path=value, such as run.seed=2");
  const YAML::Node value = equals + 1 == text.size()
                               ? YAML::Node("")
                               : load(text.substr(equals + 1), [&](int) { return from + ": '" + excerpt(text) + "'"; });

  std::string path;
  YAML::Node node = root_;
  for (size_t begin = 0; begin <= equals;) {
    const size_t end = std::min(text.find('.', begin), equals);
    const std::string part = text.substr(begin, end - begin);
    if (part.empty()) throw ConfigError(shown + "an empty name between dots");
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
      throw ConfigError(shown + named(path) + " is a value and has no keys");
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
size_t Document::element(const YAML::Node& list, const std::string& part, const std::string& path,
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
  throw ConfigError("command line: '" + excerpt(text) + "': " + named(path) + " has no element '" + excerpt(part) +
                    "'; it has " + std::to_string(list.size()) +
                    (names.empty() ? "" : ", named " + excerpt(join(names), 200)));
}

}  // namespace isentrope::train
