#include "csrc/data/expression.h"

#include <limits>
#include <numeric>

namespace isentrope::data {
namespace {

constexpr int kDeepest = 64;

struct Fraction {
  int64_t over = 0, under = 1;
};

// Everything but multiplication and addition of 64-bit integers, which say whether they fit.
std::optional<Fraction> reduced(int64_t over, int64_t under) {
  constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();  // has no opposite
  if (under == 0 || over == kLeast || under == kLeast) return std::nullopt;
  const int64_t common = std::gcd(over, under) * (under < 0 ? -1 : 1);
  return Fraction{over / common, under / common};
}

std::optional<Fraction> joined(char operation, const Fraction& a, Fraction b) {
  int64_t left = 0, right = 0, over = 0, under = 0;
  if (operation == '/') std::swap(b.over, b.under);
  if (operation == '-') b.over = -b.over;
  if (__builtin_mul_overflow(a.under, b.under, &under)) return std::nullopt;
  if (operation == '*' || operation == '/')
    return __builtin_mul_overflow(a.over, b.over, &over) ? std::nullopt : reduced(over, under);
  if (__builtin_mul_overflow(a.over, b.under, &left) || __builtin_mul_overflow(b.over, a.under, &right) ||
      __builtin_add_overflow(left, right, &over))
    return std::nullopt;
  return reduced(over, under);
}

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::optional<Fraction> sum() {
    return chain("+-", [this] { return product(); });
  }
  bool at_end() const { return at_ == text_.size(); }
  std::vector<int64_t> numbers = {};

 private:
  bool next_is_of(std::string_view some) const {
    return at_ < text_.size() && some.find(text_[at_]) != std::string_view::npos;
  }
  template <class Part>
  std::optional<Fraction> chain(std::string_view operations, Part part) {
    std::optional<Fraction> value = part();
    while (value && next_is_of(operations)) {
      const char operation = text_[at_++];
      const std::optional<Fraction> more = part();
      value = more ? joined(operation, *value, *more) : std::nullopt;
    }
    return value;
  }
  std::optional<Fraction> product() {
    return chain("*/", [this] { return factor(); });
  }
  std::optional<Fraction> factor() {
    if (next_is_of("(")) {
      if (++deep_ > kDeepest) return std::nullopt;
      ++at_;
      const std::optional<Fraction> value = sum();
      if (!value || !next_is_of(")")) return std::nullopt;
      --deep_, ++at_;
      return value;
    }
    if (!next_is_of("0123456789")) return std::nullopt;
    int64_t number = 0;
    for (; next_is_of("0123456789"); ++at_)
      if (__builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, text_[at_] - '0', &number))
        return std::nullopt;
    numbers.push_back(number);
    return Fraction{number, 1};
  }

  std::string_view text_;
  size_t at_ = 0;
  int deep_ = 0;
};

}  // namespace

std::optional<Expression> Expression::read(std::string_view text) {
  Reader reader(text);
  const std::optional<Fraction> value = reader.sum();
  if (!value || !reader.at_end()) return std::nullopt;
  return Expression{value->over, value->under, reader.numbers};
}

}  // namespace isentrope::data
