// Expressions that a model writes: whole numbers, + - * / and parentheses, read without trust and computed exactly.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace isentrope::data {

// The value is numerator / denominator in lowest terms, denominator > 0; numbers are those written, from left to right.
struct Expression {
  int64_t numerator = 0, denominator = 1;
  std::vector<int64_t> numbers;

  // sum := product {(+|-) product}, product := factor {(*|/) factor}, factor := digits | "(" sum ")". No blanks, no signs. Nothing
  // for any other text, a division by 0, what does not fit into 64 bits, and more than 64 parentheses within one another.
  static std::optional<Expression> read(std::string_view text);
};

}  // namespace isentrope::data
