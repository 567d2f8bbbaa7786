// Errors in TInt's traces: while a program runs (Faults), and afterwards (static noise).
#include <cctype>
#include <utility>

#include "csrc/data/tint_trace.h"

namespace isentrope::data {
namespace {

bool is_figure(char c) { return c >= '0' && c <= '9'; }

// A digit other than this one; all nine equally likely.
char other_digit(char digit, Stream& stream) {
  return static_cast<char>('0' + (digit - '0' + 1 + stream.below(9)) % 10);
}

// Another integer of as many digits. Its first digit is not 0 unless that of the old one was, or it is the
// only one.
std::string other_integer(const std::string& old, Stream& stream) {
  std::string fresh = old;
  do {
    for (size_t i = 0; i < old.size(); ++i) {
      const bool may_be_0 = i > 0 || old.size() == 1 || old[0] == '0';
      fresh[i] = static_cast<char>(may_be_0 ? '0' + stream.below(10) : '1' + stream.below(9));
    }
  } while (fresh == old);
  return fresh;
}

// Changes text in place; returns the number of digits or integers changed.
int64_t corrupt(const TintConfig& config, Stream& stream, std::string& text) {
  const bool whole = config.noise == "static_int";
  int64_t errors = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin + 1;
    if (!is_figure(text[begin])) {
      begin = end;
      continue;
    }
    while (whole && end < text.size() && is_figure(text[end])) ++end;
    if (stream.uniform() < config.intensity) {
      ++errors;
      const std::string old = text.substr(begin, end - begin);
      text.replace(begin, end - begin,
                   whole ? other_integer(old, stream) : std::string(1, other_digit(old[0], stream)));
    }
    begin = end;
  }
  return errors;
}

// Each line, with probability intensity, is left out, stands twice, or changes places with the next one.
void disturb_lines(double intensity, Stream& stream, Trace& trace) {
  std::vector<TraceLine> kept;
  for (size_t i = 0; i < trace.lines.size(); ++i) {
    const TraceLine line = trace.lines[i];
    if (stream.uniform() >= intensity) {
      kept.push_back(line);
      continue;
    }
    trace.count_error(static_cast<int64_t>(i) + 1);
    const bool last = i + 1 == trace.lines.size();
    switch (stream.below(last ? 2 : 3)) {
      case 0:
        break;
      case 1:
        kept.insert(kept.end(), 2, line);
        break;
      default:
        kept.push_back(trace.lines[++i]);
        kept.push_back(line);
    }
  }
  trace.lines = std::move(kept);
}

}  // namespace

int64_t Faults::result(int64_t right, int64_t limit) {
  happened_last_ = rate_ > 0 && stream_->uniform() < rate_;
  if (!happened_last_) return right;
  for (;;) {
    int64_t wrong = right;
    if (stream_->below(2) == 0) {
      std::string digits = std::to_string(right);
      char& digit = digits[stream_->below(static_cast<uint32_t>(digits.size()))];
      digit = other_digit(digit, *stream_);
      wrong = std::stoll(digits);
    } else {
      const int64_t distance = 1 + stream_->below(9);
      wrong += stream_->below(2) == 0 ? distance : -distance;
    }
    if (wrong >= 0 && wrong <= limit) return wrong;
  }
}

bool Faults::comparison(bool right) {
  happened_last_ = rate_ > 0 && stream_->uniform() < rate_;
  return right != happened_last_;
}

void add_static_noise(const TintConfig& config, Stream& stream, Trace& trace) {
  if (config.noise == "static_line") return disturb_lines(config.intensity, stream, trace);
  const auto count = [&trace](int64_t errors, size_t line) {
    for (; errors > 0; --errors) trace.count_error(static_cast<int64_t>(line) + 1);
  };
  for (size_t i = 0; i < trace.lines.size(); ++i) count(corrupt(config, stream, trace.lines[i].content), i);
  if (config.noise_answer) count(corrupt(config, stream, trace.answer), trace.lines.size());
}

}  // namespace isentrope::data
