#include "csrc/data/bpe_split.h"

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "csrc/data/unicode_normal.h"
#include "csrc/data/unicode_space.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

// GPT-2's, which ByteLevel splits by where use_regex asks for it.
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

std::string type_of(const Json& json, const char* what) {
  if (!json.is_object() || !json.contains("type") || !json["type"].is_string())
    throw std::runtime_error(std::string(what) + " " + excerpt(json.dump()) + " is not an object with a type");
  return json["type"].get<std::string>();
}

bool flag(const Json& json, const char* name, bool otherwise) {
  const auto found = json.find(name);
  if (found == json.end() || found->is_null()) return otherwise;
  if (!found->is_boolean()) throw std::runtime_error(excerpt(json.dump()) + ": " + name + " is neither true nor false");
  return found->get<bool>();
}

std::string text(const Json& json, const char* name) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_string())
    throw std::runtime_error(excerpt(json.dump()) + ": " + name + " is not a text");
  return found->get<std::string>();
}

const Json& list(const Json& json, const char* name) {
  const auto found = json.find(name);
  if (found == json.end() || !found->is_array())
    throw std::runtime_error(excerpt(json.dump()) + ": " + name + " is not a list");
  return *found;
}

// {"Regex": …} or {"String": …}, as an expression.
std::string expression_of(const Json& json) {
  const auto pattern = json.find("pattern");
  if (pattern != json.end() && pattern->is_object() && pattern->size() == 1) {
    if (pattern->contains("Regex")) return text(*pattern, "Regex");
    if (pattern->contains("String")) {
      std::string escaped;
      for (const char c : text(*pattern, "String")) {
        if (std::string_view("\\^$.|?*+()[]{}-&#").find(c) != std::string_view::npos) escaped += '\\';
        escaped += c;
      }
      return escaped;
    }
  }
  throw std::runtime_error(excerpt(json.dump()) + R"(: pattern is neither {"Regex": …} nor {"String": …})");
}

std::optional<NormalForm> form_of(const std::string& type) {
  if (type == "NFC") return NormalForm::kC;
  if (type == "NFD") return NormalForm::kD;
  if (type == "NFKC") return NormalForm::kKC;
  if (type == "NFKD") return NormalForm::kKD;
  return std::nullopt;
}

// Steps of one tokenizer: those of models are less than ten, and each calls the next.
constexpr size_t kMostSteps = 100;

// A step that gives back its own input twice doubles with each that follows. Those of models make three bytes of one.
constexpr size_t most_of(size_t bytes) { return 64 * bytes + 256; }
void check_length(size_t bytes, size_t most) {
  if (bytes > most)
    throw std::invalid_argument("tokenizer: the normalizer of tokenizer.json makes a piece of text longer than " +
                                std::to_string(most) + " bytes, 64 times what it was");
}

template <class Steps>
void check_count(const Steps& steps, const char* what) {
  if (steps.size() >= kMostSteps)
    throw std::runtime_error(std::string(what) + " has more than " + std::to_string(kMostSteps) + " steps");
}

void replace_all(std::string_view text, std::string_view what, std::string_view by, std::string& out, size_t most) {
  out.clear();
  for (size_t at = 0;;) {
    check_length(out.size(), most);
    const size_t found = text.find(what, at);
    out.append(text.substr(at, found - at));
    if (found == std::string_view::npos) return;
    out.append(by);
    at = found + what.size();
  }
}

}  // namespace

// ---- normaliser -------------------------------------------------------------------------------------------------------

Normalizer::Normalizer(const Json& json) {
  if (!json.is_null()) read(json);
}

void Normalizer::read(const Json& json) {
  const std::string type = type_of(json, "normalizer");
  check_count(steps_, "normalizer");
  if (type == "Sequence") {
    for (const Json& one : list(json, "normalizers")) read(one);
  } else if (form_of(type) || type == "Lowercase" || type == "StripAccents") {
    steps_.push_back({.kind = type, .pattern = "", .content = "", .regex = {}});
  } else if (type == "Strip") {
    steps_.push_back({.kind = type,
                      .pattern = "",
                      .content = "",
                      .regex = {},
                      .left = flag(json, "strip_left", true),
                      .right = flag(json, "strip_right", true)});
  } else if (type == "Prepend") {
    steps_.push_back({.kind = type, .pattern = "", .content = text(json, "prepend"), .regex = {}});
  } else if (type == "Replace") {
    Step step{.kind = type, .pattern = "", .content = text(json, "content"), .regex = {}};
    const std::string expression = expression_of(json);
    if (json["pattern"].contains("String"))
      step.pattern = text(json["pattern"], "String");
    else
      step.regex.emplace_back(expression);
    steps_.push_back(std::move(step));
  } else {
    throw std::runtime_error(
        "normalizer " + excerpt(type) +
        " is not supported; there are NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Replace, Prepend "
        "and Sequence");
  }
}

std::string_view Normalizer::run(std::string_view text, std::string& out, std::string& spare, SplitPattern::Room& room,
                                 bool prepend) const {
  const size_t most = most_of(text.size());
  for (const Step& step : steps_) {
    if (text.empty()) return text;
    check_length(text.size(), most);
    const std::less_equal<const char*> before;
    std::string& to = before(out.data(), text.data()) && before(text.data(), out.data() + out.size()) ? spare : out;
    if (step.kind == "Prepend") {
      if (!prepend) continue;
      to.assign(step.content).append(text);
    } else if (const auto form = form_of(step.kind)) {
      if (!normalize(text, *form, to)) continue;
    } else if (step.kind == "Lowercase") {
      lower(text, to);
    } else if (step.kind == "StripAccents") {
      strip_marks(text, to);
    } else if (step.kind == "Strip") {
      if (step.right) text.remove_suffix(space_at_end(text));
      if (step.left) text.remove_prefix(space_at_start(text));
      continue;
    } else if (step.regex.empty()) {
      if (step.pattern.empty()) continue;
      replace_all(text, step.pattern, step.content, to, most);
    } else {
      to.clear();
      size_t done = 0, begin = 0, end = 0;
      while (done < text.size() && step.regex[0].find(text, done, room, begin, end)) {
        check_length(to.size(), most);
        if (begin == end) {
          size_t next = end + 1;
          while (next < text.size() && (static_cast<unsigned char>(text[next]) & 0xC0) == 0x80) ++next;
          to.append(text.substr(done, begin - done)).append(step.content).append(text.substr(begin, next - begin));
          done = next;
          continue;
        }
        to.append(text.substr(done, begin - done)).append(step.content);
        done = end;
      }
      to.append(text.substr(std::min(done, text.size())));
    }
    text = to;
  }
  check_length(text.size(), most);
  return text;
}

// ---- pre-tokenizer ----------------------------------------------------------------------------------------------------

PreTokenizer::PreTokenizer(const Json& json) {
  if (!json.is_null()) read(json);
}

void PreTokenizer::read(const Json& json) {
  const std::string type = type_of(json, "pre_tokenizer");
  check_count(steps_, "pre_tokenizer");
  if (type == "Sequence") {
    for (const Json& one : list(json, "pretokenizers")) read(one);
    return;
  }
  if (byte_level_)
    throw std::runtime_error("pre_tokenizer " + excerpt(type) +
                             " behind ByteLevel is not supported: it would read the names of bytes");
  if (type == "Split") {
    read_split(json);
  } else if (type == "Digits") {
    Step step;
    step.pattern.emplace_back(R"(\p{N})");
    step.behavior = flag(json, "individual_digits", false) ? Behavior::isolated : Behavior::contiguous;
    steps_.push_back(std::move(step));
  } else if (type == "ByteLevel") {
    byte_level_ = true;
    Step step{
        .kind = Step::byte_level, .pattern = {}, .prefix = flag(json, "add_prefix_space", true), .replacement = ""};
    if (flag(json, "use_regex", true)) step.pattern.emplace_back(kByteLevelPattern);
    steps_.push_back(std::move(step));
  } else if (type == "Metaspace") {
    read_metaspace(json);
  } else {
    throw std::runtime_error("pre_tokenizer " + excerpt(type) +
                             " is not supported; there are ByteLevel, Split, Digits, Metaspace and Sequence");
  }
}

void PreTokenizer::read_split(const Json& json) {
  static const std::map<std::string, Behavior> behaviors{{"Removed", Behavior::removed},
                                                         {"Isolated", Behavior::isolated},
                                                         {"MergedWithPrevious", Behavior::merged_with_previous},
                                                         {"MergedWithNext", Behavior::merged_with_next},
                                                         {"Contiguous", Behavior::contiguous}};
  Step step;
  step.pattern.emplace_back(expression_of(json));
  const auto found = behaviors.find(text(json, "behavior"));
  if (found == behaviors.end())
    throw std::runtime_error("behavior of Split is \"" + excerpt(text(json, "behavior")) +
                             "\"; it can be Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
  step.behavior = found->second;
  step.invert = flag(json, "invert", false);
  steps_.push_back(std::move(step));
}

void PreTokenizer::read_metaspace(const Json& json) {
  Step step{.kind = Step::metaspace, .pattern = {}, .replacement = text(json, "replacement")};
  if (step.replacement.empty() || utf8_size(step.replacement, 0) != step.replacement.size())
    throw std::runtime_error("replacement of Metaspace is \"" + excerpt(step.replacement) + "\"; wanted one character");
  std::string scheme = json.contains("prepend_scheme") ? text(json, "prepend_scheme") : "always";
  if (!flag(json, "add_prefix_space", true)) scheme = "never";
  if (scheme != "always" && scheme != "first" && scheme != "never")
    throw std::runtime_error("prepend_scheme of Metaspace is \"" + excerpt(scheme) +
                             "\"; it can be always, first or never");
  step.prefix = scheme != "never";
  step.first_alone = scheme == "first";
  step.behavior = Behavior::merged_with_next;
  if (flag(json, "split", true))
    step.pattern.emplace_back(expression_of({{"pattern", {{"String", step.replacement}}}}));
  steps_.push_back(std::move(step));
}

std::string_view PreTokenizer::prepared(const Step& step, std::string_view text, Place place, std::string& room) {
  const bool prefix = step.prefix && place != Place::behind;
  if (step.kind == Step::byte_level && prefix && text[0] != ' ') return room.assign(" ").append(text);
  if (step.kind != Step::metaspace) return text;
  replace_all(text, " ", step.replacement, room, most_of(text.size()));
  if (prefix && (place == Place::start || !step.first_alone) && !room.starts_with(step.replacement))
    room.insert(0, step.replacement);
  return room;
}

}  // namespace isentrope::data
