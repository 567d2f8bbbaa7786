// What methods find in texts: steps that a marker ends, tags, strategic grams.
#include "csrc/methods/token_text.h"

#include <gtest/gtest.h>

#include "csrc/methods/hicra.h"

namespace isentrope::methods {
namespace ISENTROPE_UNIT {

// Tokens 0, 1, … of these texts.
TextOf texts(const std::vector<std::string>& of) {
  const auto kept = std::make_shared<std::vector<std::string>>(of);
  return [kept](int64_t token, bool) -> const std::string& { return kept->at(token); };
}
std::vector<int64_t> numbered(size_t n) {
  std::vector<int64_t> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = static_cast<int64_t>(i);
  return all;
}
std::vector<int64_t> steps(const std::vector<std::string>& of, const std::string& marker) {
  return steps_of(numbered(of.size()), texts(of), marker);
}

TEST(TokenText, AStepEndsWithTheTokenThatEndsItsMarker) {
  EXPECT_EQ(steps({"a", "b", ";", "c", ";"}, ";"), (std::vector<int64_t>{0, 0, 0, 1, 1}));
  EXPECT_EQ(steps({"a", ";", ";", "b"}, ";"), (std::vector<int64_t>{0, 0, 1, 2}));
  EXPECT_EQ(steps({"a", ".\n", "\nb", "c", "\n\n", "d"}, "\n\n"), (std::vector<int64_t>{0, 0, 0, 1, 1, 2}));
  EXPECT_EQ(steps({"a;b;c", "d", ";", "e"}, ";"),
            (std::vector<int64_t>{0, 1, 1, 2}));  // two ends in one token end one step
  EXPECT_EQ(steps({"a", "b"}, ";"), (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(steps({"", "", ";"}, ";"), (std::vector<int64_t>{0, 0, 0}));
  EXPECT_EQ(steps({}, ";"), (std::vector<int64_t>{}));
}

TEST(TokenText, APlaceIsTheTokensThatHoldPartOfIt) {
  const std::vector<std::string> of{"x</", "thi", "nk>y", "z", "</think>"};
  const TokenizedText text(numbered(of.size()), texts(of));
  EXPECT_EQ(text.text(), "x</think>yz</think>");
  size_t behind = 0;
  EXPECT_EQ(text.find("</think>", 0, &behind), (std::pair<int64_t, int64_t>{0, 3}));
  EXPECT_EQ(behind, 9u);
  EXPECT_EQ(text.find("</think>", behind), (std::pair<int64_t, int64_t>{4, 5}));
  EXPECT_EQ(text.find("</thought>"), (std::pair<int64_t, int64_t>{-1, -1}));
  EXPECT_EQ(text.find(""), (std::pair<int64_t, int64_t>{-1, -1}));
  EXPECT_EQ(text.token_at(3), 1);
}

std::vector<std::array<int64_t, 3>> found(const std::vector<std::string>& grams, const std::string& text) {
  std::vector<Gram> list;
  for (const std::string& gram : grams) list.push_back({gram, std::ssize(list)});
  std::vector<std::array<int64_t, 3>> places;
  for (const Grams::Place& place : Grams(list).find(text))
    places.push_back({static_cast<int64_t>(place.begin), static_cast<int64_t>(place.end), place.cluster});
  return places;
}
using Places = std::vector<std::array<int64_t, 3>>;

// The same cases as tests/python/test_grams.py, whose matcher is this one in Python.
TEST(Grams, AreFoundByTheirWords) {
  EXPECT_EQ(found({"let me check"}, "So  LET me\n check, let me checks."), (Places{{4, 17, 0}}));
  EXPECT_EQ(found({"let me", "let me check", "me check"}, "let me check"), (Places{{0, 6, 0}, {0, 12, 1}, {4, 12, 2}}));
  EXPECT_EQ(found({"=3"}, "a=3, a = 3, a=30"), (Places{{1, 3, 0}, {7, 10, 0}}));
  EXPECT_EQ(found({"don't", "déjà vu"}, "Don't DéJà"), (Places{{0, 5, 0}}));
  EXPECT_EQ(found({"déjà vu"}, "un déjà vu!"), (Places{{3, 12, 0}}));
  EXPECT_EQ(found({"a b c d"}, "a b c"), (Places{}));
  EXPECT_EQ(found({"a"}, ""), (Places{}));
}

TEST(Grams, SemanticEntropyIsThatOfTheShares) {
  EXPECT_EQ(semantic_entropy({}), 0);
  EXPECT_EQ(semantic_entropy({{4, 7}}), 0);
  EXPECT_DOUBLE_EQ(semantic_entropy({{0, 2}, {1, 2}}), std::log(2.0));
  EXPECT_DOUBLE_EQ(semantic_entropy({{0, 1}, {3, 3}}), -0.25 * std::log(0.25) - 0.75 * std::log(0.75));
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::methods
