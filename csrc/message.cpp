#include "csrc/message.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <future>
#include <new>
#include <optional>
#include <regex>
#include <stdexcept>
#include <system_error>
#include <typeinfo>
#include <utility>
#include <variant>

namespace isentrope {
namespace {

struct Sequence {
  size_t bytes;  // of the sequence; of its part before the byte that breaks it where it is not valid
  bool valid;
  uint32_t code;
};

// The sequence of UTF-8 that begins at text[at]: none is overlong, a surrogate or beyond U+10FFFF.
Sequence sequence_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(at);
  if (lead < 0x80) return {1, true, lead};
  const size_t bytes = lead >= 0xC2 && lead < 0xE0   ? 2
                       : lead >= 0xE0 && lead < 0xF0 ? 3
                       : lead >= 0xF0 && lead < 0xF5 ? 4
                                                     : 0;
  if (bytes == 0) return {1, false, 0};
  const unsigned least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;  // of the second byte
  const unsigned most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  uint32_t code = lead & (0xFFu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) {
    if (at + i >= text.size() || byte(at + i) < (i == 1 ? least : 0x80) || byte(at + i) > (i == 1 ? most : 0xBF))
      return {i, false, 0};
    code = code << 6 | (byte(at + i) & 0x3F);
  }
  return {bytes, true, code};
}

std::string escaped(const char* format, unsigned value) {
  char text[16];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

// The largest place up to `at` where a character begins.
size_t boundary(std::string_view text, size_t at) {
  while (at > 0 && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string first_line(std::string_view text) { return std::string(text.substr(0, text.find('\n'))); }

std::string too_large(const std::string& what) {
  return what + "; make what the configuration asks for smaller: the sizes of model, batch, rollout and evaluation";
}

std::string no_memory(std::string_view torch) {
  const size_t begin = std::min(torch.find("tried to allocate"), torch.find("Tried to allocate"));
  std::string size;  // " (64.00 GiB at once)"
  if (begin != std::string_view::npos) {
    constexpr std::string_view kPhrase = "tried to allocate ";
    std::string_view rest = torch.substr(std::min(begin + kPhrase.size(), torch.size()));
    const size_t end = std::min(rest.find(". "), rest.find('\n'));
    size = " (" + std::string(rest.substr(0, end)) + " at once)";
  }
  return too_large("there is not enough memory" + size);
}

std::string of_torch(const c10::Error& error) {
  const std::string_view text = error.what_without_backtrace();
  if (text.starts_with("isentrope::")) return std::string(text);  // our own checks of the ops
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) || contains(text, "t allocate memory") ||
      contains(text, "out of memory"))
    return no_memory(text);
  for (const char* overflow : {"overflow", "cannot be represented as a SymInt", "exceeds the maximum"})
    if (contains(text, overflow)) return too_large("a tensor would be too large: " + first_line(text));
  for (const char* device : {"CUDA", "NVIDIA", "cuDNN", "cuBLAS", "NCCL"})
    if (contains(text, device))
      return "the GPU cannot be used: " + first_line(text) + "; run.device=cpu trains without it";
  return "PyTorch refuses: " + first_line(text) +
         "; where the configuration does not explain it, report it with what `isentrope version` prints";
}

std::string of_files(const std::filesystem::filesystem_error& error) {
  const std::string to = error.path2().empty() ? "" : " → " + error.path2().string();
  return error.path1().string() + to + ": " + error.code().message() + "; see that the path is right and may be used";
}

std::string own_mistake(const std::exception& error) {
  return std::string("an assumption of the program itself does not hold (") + error.what() +
         "); report it with the command, the configuration and what `isentrope version` prints";
}

// What the standard library throws of itself; the program's own errors are runtime_error, invalid_argument and what it derives.
bool is_own_mistake(const std::exception& error) {
  const auto is = [&]<class... Kinds>() { return ((typeid(error) == typeid(Kinds)) || ...); };
  return is.operator()<std::out_of_range, std::logic_error, std::domain_error, std::range_error, std::overflow_error,
                       std::underflow_error, std::bad_cast, std::bad_typeid, std::bad_function_call, std::future_error,
                       std::bad_optional_access, std::bad_variant_access, std::bad_exception, std::exception>();
}

std::string words_of(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const c10::Error& error) {
    return of_torch(error);
  } catch (const std::filesystem::filesystem_error& error) {
    return of_files(error);
  } catch (const std::system_error& error) {
    return "the system refuses: " + error.code().message() +
           (error.code() == std::errc::resource_unavailable_try_again ? "; fewer threads may do: run.threads" : "");
  } catch (const std::regex_error& error) {
    return std::string("a regular expression cannot be read: ") + error.what();
  } catch (const std::bad_alloc&) {
    return no_memory("");
  } catch (const std::length_error&) {
    return too_large("a list would be too long");
  } catch (const std::exception& error) {
    const std::string text = error.what();
    if (is_own_mistake(error)) return own_mistake(error);
    // nlohmann-json: "[json.exception.parse_error.101] parse error at line 1, …"
    if (text.starts_with("[json.exception."))
      return "a file of JSON is damaged: " + text.substr(std::min(text.size(), text.find("] ") + 2));
    return text.empty() ? own_mistake(error) : text;
  } catch (...) {
    return "an error of an unknown kind; report it with the command and what `isentrope version` prints";
  }
}

// The text's first `most` bytes or a few more, printable and in one line, and "… (n bytes)" where it has more.
std::pair<std::string, std::string> shortened(std::string_view text, size_t most) {
  size_t end = 0;
  while (end < text.size() && end < most) end += sequence_at(text, end).bytes;
  std::string shown = printable(text.substr(0, end));
  for (const auto& [control, name] : {std::pair{'\n', "\\n"}, {'\t', "\\t"}})
    for (size_t at = 0; (at = shown.find(control, at)) != std::string::npos; at += 2) shown.replace(at, 1, name);
  return {shown, end == text.size() ? "" : "… (" + std::to_string(text.size()) + " bytes)"};
}

}  // namespace

std::string message_of(const std::exception_ptr& error) { return on_a_screen(words_of(error)); }

std::string on_a_screen(std::string_view raw) {
  std::string text = printable(raw);
  constexpr size_t kLines = 20;  // of 24, as kLongestMessage is of the bytes
  size_t lines = static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  for (size_t at = text.size();
       lines > kLines && at-- > 0;)  // the last lines are as likely to matter as any: join them
    if (text[at] == '\n') text[at] = ' ', --lines;
  if (text.size() <= kLongestMessage) return text;
  constexpr size_t kNote = 40, kHead = (kLongestMessage - kNote) * 2 / 3, kTail = (kLongestMessage - kNote) / 3;
  const size_t head = boundary(text, kHead), tail = boundary(text, text.size() - kTail);
  return text.substr(0, head) + " … (" + std::to_string(tail - head) + " bytes left out) … " + text.substr(tail);
}

std::string printable(std::string_view text) {
  std::string shown;
  shown.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Sequence next = sequence_at(text, at);
    const bool control =
        next.valid && (next.code < 0x20 || next.code == 0x7F) && next.code != '\n' && next.code != '\t';
    // The second set of control characters, ends of lines, and what reorders the text around it.
    const bool disturbs =
        next.valid && ((next.code >= 0x80 && next.code < 0xA0) || (next.code >= 0x2028 && next.code <= 0x202E) ||
                       (next.code >= 0x2066 && next.code <= 0x2069));
    if (disturbs)
      shown += escaped("\\u%04X", next.code);
    else if (next.valid && !control)
      shown += text.substr(at, next.bytes);
    else
      for (size_t i = 0; i < next.bytes; ++i) shown += escaped("\\x%02X", static_cast<unsigned char>(text[at + i]));
    at += next.bytes;
  }
  return shown;
}

std::string excerpt(std::string_view text, size_t most) {
  const auto [shown, rest] = shortened(text, most);
  return shown + rest;
}

std::string quoted(std::string_view text) {
  const auto [shown, rest] = shortened(text, kShown);
  return '"' + shown + (rest.empty() ? "\"" : "…\"" + rest.substr(std::string_view("…").size()));
}

size_t utf8_size(std::string_view text, size_t at) {
  const Sequence next = sequence_at(text, at);
  return next.valid ? next.bytes : 0;
}

size_t utf8_end(std::string_view text) {
  size_t at = 0;
  for (size_t size = 0; at < text.size() && (size = utf8_size(text, at)) > 0;) at += size;
  return at;
}

std::string valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Sequence next = sequence_at(text, at);
    valid += next.valid ? text.substr(at, next.bytes) : std::string_view("\uFFFD");
    at += next.bytes;
  }
  return valid;
}

std::string shell_quoted(std::string_view word) {
  const auto safe = [](unsigned char c) {
    return std::isalnum(c) || contains("_@%+=:,./-", std::string_view(reinterpret_cast<char*>(&c), 1));
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), safe)) return std::string(word);
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t corner = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j)
      corner = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, corner + (a[i - 1] != b[j - 1])}));
  }
  return row.back();
}

std::string suggestion(const std::string& word, const std::vector<std::string>& names, const std::string& what) {
  std::string list;
  const std::string* nearest = nullptr;
  size_t least = std::max<size_t>(2, word.size() / 3);
  for (const std::string& name : names) {
    list += (list.empty() ? "" : ", ") + name;
    if (const size_t distance = edit_distance(word, name); distance < least + (nearest == nullptr))
      nearest = &name, least = distance;
  }
  if (nearest) return "; did you mean '" + *nearest + "'?";
  return "; " + what + " are " + list;
}

}  // namespace isentrope
