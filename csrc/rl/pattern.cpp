#include "csrc/rl/pattern.h"

#include <cstdint>
#include <new>
#include <stdexcept>

#include "csrc/data/pcre2_held.h"
#include "csrc/message.h"

namespace isentrope::rl {
namespace {

// Compiled code has 64 KB by PCRE2's offsets of two bytes; an expression that long is an accident.
constexpr size_t kLongest = 10000;

// Of one text. A step is an item of the expression that is tried, or so many characters that are passed between two of them as
// take as long (some 10 ns): a quarter of a second in all. An expression without nested repetition takes a few steps for each
// character; one that looks at the rest of the text from every character (`[^=]*=([0-9]+)` where nothing follows a "=") comes to
// 25,000 characters.
constexpr uint64_t kMostSteps = 20'000'000;
constexpr uint64_t kPassedInAStep = 32;
// A repeated group remembers some 130 bytes for each time it matched, to take it back: for a text of a million characters.
constexpr uint32_t kMostDepth = 2'000'000, kMostKiB = 256 * 1024;

using data::Held;
using data::pcre2_text;

// PCRE2 counts anew at every place where a match may begin; this counts on over the whole text. Called before each item.
struct Steps {
  uint64_t taken = 0;
  PCRE2_SIZE at = 0;

  static int count(pcre2_callout_block* block, void* data) {
    auto& steps = *static_cast<Steps*>(data);
    const PCRE2_SIZE now = block->current_position;
    steps.taken += 1 + (now > steps.at ? now - steps.at : steps.at - now) / kPassedInAStep;
    steps.at = now;
    return steps.taken > kMostSteps ? PCRE2_ERROR_MATCHLIMIT : 0;
  }
};

std::string limit_passed(int error) {
  if (error == PCRE2_ERROR_MATCHLIMIT) return std::to_string(kMostSteps) + " steps";
  if (error == PCRE2_ERROR_DEPTHLIMIT) return "a depth of " + std::to_string(kMostDepth);
  if (error == PCRE2_ERROR_HEAPLIMIT) return std::to_string(kMostKiB / 1024) + " MiB";
  return "PCRE2's own limits (" + pcre2_text(error) + ")";
}

}  // namespace

struct Pattern::Code {
  Held<pcre2_code, pcre2_code_free> code;
};

namespace {

// The matching of one text.
class Match {
 public:
  Match(const pcre2_code* code, const std::string& expression, const std::string& text)
      : expression_(expression),
        text_(valid_utf8(text)),
        code_(code),
        limits_(pcre2_match_context_create(nullptr)),
        found_(pcre2_match_data_create_from_pattern(code, nullptr)) {
    if (!limits_ || !found_) throw std::bad_alloc();
    pcre2_set_match_limit(limits_.get(), kMostSteps);
    pcre2_set_depth_limit(limits_.get(), kMostDepth);
    pcre2_set_heap_limit(limits_.get(), kMostKiB);
    pcre2_set_callout(limits_.get(), Steps::count, &steps_);
  }

  bool find(PCRE2_SIZE from, uint32_t options) {
    const int result = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from,
                                   options | PCRE2_NO_UTF_CHECK, found_.get(), limits_.get());
    if (result >= 0) return true;
    if (result == PCRE2_ERROR_NOMATCH) return false;
    throw std::runtime_error("pattern " + quoted(expression_) + " passes " + limit_passed(result) +
                             " on the completion " + quoted(text_) +
                             "; write it without repetitions of what is itself repeated, or bound them as in {0,20}");
  }
  PCRE2_SIZE end() const { return pcre2_get_ovector_pointer(found_.get())[1]; }
  bool empty() const { return pcre2_get_ovector_pointer(found_.get())[0] == end(); }
  std::string group(uint32_t number) const {
    const PCRE2_SIZE* at = pcre2_get_ovector_pointer(found_.get()) + 2 * number;
    return at[0] == PCRE2_UNSET ? "" : text_.substr(at[0], at[1] - at[0]);
  }

 private:
  const std::string& expression_;
  std::string text_;
  const pcre2_code* code_;
  Steps steps_;
  Held<pcre2_match_context, pcre2_match_context_free> limits_;
  Held<pcre2_match_data, pcre2_match_data_free> found_;
};

}  // namespace

Pattern::Pattern(const std::string& expression) : expression_(expression) {
  const std::string name = "pattern " + quoted(expression);
  if (expression.size() > kLongest)
    throw std::invalid_argument(name + " is longer than " + std::to_string(kLongest) + " bytes");
  const Held<pcre2_compile_context, pcre2_compile_context_free> context(pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // else as this machine's PCRE2 was built
  int error;
  PCRE2_SIZE place;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                                   PCRE2_UTF | PCRE2_AUTO_CALLOUT | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C,
                                   &error, &place, context.get());
  if (!code)
    throw std::invalid_argument(name + " is not a regular expression: " + pcre2_text(error) + ", at byte " +
                                std::to_string(place));
  code_ = std::make_shared<const Code>(Code{Held<pcre2_code, pcre2_code_free>(code)});
}

int Pattern::groups() const {
  uint32_t count = 0;
  pcre2_pattern_info(code_->code.get(), PCRE2_INFO_CAPTURECOUNT, &count);
  return static_cast<int>(count);
}

bool Pattern::matches_whole(const std::string& text) const {
  return Match(code_->code.get(), expression_, text).find(0, PCRE2_ANCHORED | PCRE2_ENDANCHORED);
}

std::optional<std::string> Pattern::last_group(const std::string& text) const {
  Match match(code_->code.get(), expression_, text);
  std::optional<std::string> last;
  uint32_t options = 0;
  for (PCRE2_SIZE from = 0; match.find(from, options); from = match.end()) {
    last = match.group(1);
    options = match.empty() ? PCRE2_NOTEMPTY_ATSTART : 0;  // else it would be found again
  }
  return last;
}

}  // namespace isentrope::rl
