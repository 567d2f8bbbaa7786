#include "csrc/data/split_pattern.h"

#include <algorithm>
#include <new>
#include <stdexcept>

#include "csrc/data/pcre2_held.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

// A text of tens of millions of characters without a cut stays within these; what runs away does not. The steps, of a match from
// one place, grow with the text, so that a short one is not given up after minutes.
constexpr size_t kLeastStack = 32 * 1024, kMostStack = 64 * 1024 * 1024;
constexpr uint32_t kMostMatchSteps = 1'000'000'000, kLeastSteps = 1'000'000, kMostKiB = 1024 * 1024;
constexpr size_t kStepsAByte = 1000;
constexpr size_t kLongest = 20000;

}  // namespace

struct SplitPattern::Code {
  Held<pcre2_code, pcre2_code_free> code;
  bool compiled;  // to machine code
};

struct SplitPattern::Room::Parts {
  Held<pcre2_match_data, pcre2_match_data_free> found{pcre2_match_data_create(1, nullptr)};
  Held<pcre2_match_context, pcre2_match_context_free> limits{pcre2_match_context_create(nullptr)};
  Held<pcre2_jit_stack, pcre2_jit_stack_free> stack{pcre2_jit_stack_create(kLeastStack, kMostStack, nullptr)};
};

SplitPattern::Room::Room() : parts_(std::make_shared<Parts>()) {
  if (!parts_->found || !parts_->limits) throw std::bad_alloc();
  pcre2_set_heap_limit(parts_->limits.get(), kMostKiB);
  if (parts_->stack) pcre2_jit_stack_assign(parts_->limits.get(), nullptr, parts_->stack.get());
}

SplitPattern::SplitPattern(const std::string& expression) : expression_(expression) {
  const std::string name = "pattern " + quoted(expression);
  if (expression.size() > kLongest)
    throw std::runtime_error(name + " is longer than " + std::to_string(kLongest) + " bytes");
  if (utf8_end(expression) != expression.size()) throw std::runtime_error(name + " is not UTF-8");
  const std::string text = rewritten(expression);
  const Held<pcre2_compile_context, pcre2_compile_context_free> context(pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);  // else as this machine's PCRE2 was built
  int error;
  PCRE2_SIZE place;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &place, context.get());
  if (!code) throw std::runtime_error(name + " is not a regular expression: " + pcre2_text(error));
  Held<pcre2_code, pcre2_code_free> held(code);
  const bool compiled = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::make_shared<const Code>(Code{std::move(held), compiled});
}

bool SplitPattern::find(std::string_view text, size_t from, Room& room, size_t& begin, size_t& end) const {
  Room::Parts& parts = *room.parts_;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const size_t steps = kLeastSteps + kStepsAByte * (text.size() - std::min(from, text.size()));
  pcre2_set_match_limit(parts.limits.get(), static_cast<uint32_t>(std::min<size_t>(steps, kMostMatchSteps)));
  int result = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->compiled && parts.stack)
    result = pcre2_jit_match(code_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, parts.found.get(),
                             parts.limits.get());
  if (result == PCRE2_ERROR_JIT_STACKLIMIT)
    result = pcre2_match(code_->code.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         parts.found.get(), parts.limits.get());
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0)
    throw std::runtime_error("pattern " + quoted(expression_) + " cannot be matched on " + quoted(text) + ": " +
                             pcre2_text(result));
  const PCRE2_SIZE* place = pcre2_get_ovector_pointer(parts.found.get());
  begin = place[0], end = place[1];
  return true;
}

}  // namespace isentrope::data
