#include "csrc/data/unicode_normal.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <unordered_map>
#include <vector>

#include "csrc/data/unicode_canonical.h"
#include "csrc/data/unicode_case.h"
#include "csrc/data/unicode_compatibility.h"

namespace isentrope::data {
namespace {

// Hangul: L leading consonants × V vowels × T trailing consonants, the first of which is none.
constexpr uint32_t kHangul = 0xAC00, kL = 0x1100, kV = 0x1161, kT = 0x11A7, kLs = 19, kVs = 21, kTs = 28;
constexpr uint32_t kEnd = 0x30000;  // no character beyond has a decomposition or a class

struct Tables {
  std::unordered_map<uint32_t, std::pair<uint32_t, uint32_t>> parts;
  std::unordered_map<uint64_t, uint32_t> whole;
  std::unordered_map<uint32_t, std::vector<uint32_t>> compatible;  // down to the last parts
  std::vector<uint8_t> combining = std::vector<uint8_t>(kEnd);
  std::vector<bool> stays = std::vector<bool>(kEnd, true);  // in any text of characters that stay

  Tables() {
    for (const CanonicalPair& c : kComposed) {
      parts[c.character] = {c.first, c.second};
      whole[static_cast<uint64_t>(c.first) << 32 | c.second] = c.character;
      stays[c.second] = false;
    }
    for (const CanonicalPair& c : kOnlyTakenApart) {
      parts[c.character] = {c.first, c.second};
      stays[c.character] = false;
    }
    for (const CombiningClass& range : kCombiningClasses)
      for (uint32_t c = range.first; c <= range.last; ++c) {
        combining[c] = static_cast<uint8_t>(range.value);
        stays[c] = false;
      }
    for (const CompatibleRange& range : kCompatible)
      for (uint32_t c = range.first; c <= range.last; ++c) compatible[c] = {range.becomes + (c - range.first)};
    for (const uint32_t* next = kCompatibleParts; next != std::end(kCompatibleParts); next += 2 + next[1])
      compatible[next[0]].assign(next + 2, next + 2 + next[1]);
    for (uint32_t v = 0; v < kVs; ++v) stays[kV + v] = false;
    for (uint32_t t = 1; t < kTs; ++t) stays[kT + t] = false;
  }
  uint32_t class_of(uint32_t c) const { return c < kEnd ? combining[c] : 0; }

  void take_apart(uint32_t c, std::vector<uint32_t>& out) const {
    if (c >= kHangul && c < kHangul + kLs * kVs * kTs) {
      const uint32_t i = c - kHangul;
      out.push_back(kL + i / (kVs * kTs));
      out.push_back(kV + i / kTs % kVs);
      if (i % kTs) out.push_back(kT + i % kTs);
      return;
    }
    const auto found = parts.find(c);
    if (found == parts.end()) return out.push_back(c);
    take_apart(found->second.first, out);
    if (found->second.second) take_apart(found->second.second, out);
  }

  void take_apart(uint32_t c, bool compatibly, std::vector<uint32_t>& out) const {
    const auto found = compatibly ? compatible.find(c) : compatible.end();
    if (found == compatible.end()) return take_apart(c, out);
    out.insert(out.end(), found->second.begin(), found->second.end());
  }

  // 0 where the two make none.
  uint32_t together(uint32_t a, uint32_t b) const {
    if (a >= kL && a < kL + kLs && b >= kV && b < kV + kVs) return kHangul + ((a - kL) * kVs + (b - kV)) * kTs;
    if (a >= kHangul && a < kHangul + kLs * kVs * kTs && (a - kHangul) % kTs == 0 && b > kT && b < kT + kTs)
      return a + (b - kT);
    const auto found = whole.find(static_cast<uint64_t>(a) << 32 | b);
    return found == whole.end() ? 0 : found->second;
  }
};

uint32_t next(std::string_view text, size_t& at) {
  const auto byte = [&] { return static_cast<uint32_t>(static_cast<unsigned char>(text[at++])); };
  uint32_t c = byte();
  if (c < 0x80) return c;
  int more = c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
  c &= 0x3Fu >> more;
  for (; more > 0 && at < text.size(); --more) c = c << 6 | (byte() & 0x3F);
  return c;
}

void append(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  constexpr uint32_t kLead[] = {0, 0xC0, 0xE0, 0xF0};
  out += static_cast<char>(kLead[more] | c >> (6 * more));
  for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (c >> (6 * i) & 0x3F));
}

// Marks in the order of their classes.
void order(const Tables& tables, std::vector<uint32_t>& c) {
  for (size_t i = 0; i < c.size();) {
    size_t end = i;
    while (end < c.size() && tables.class_of(c[end]) > 0) ++end;
    std::stable_sort(c.begin() + static_cast<std::ptrdiff_t>(i), c.begin() + static_cast<std::ptrdiff_t>(end),
                     [&](uint32_t a, uint32_t b) { return tables.class_of(a) < tables.class_of(b); });
    i = end + 1;
  }
}

// From left to right, marks with the last letter where they make one.
void compose(const Tables& tables, std::vector<uint32_t>& c) {
  size_t kept = 0, starter = 0;
  bool started = false;
  uint32_t last = 0;  // class of the last character that was kept behind the starter
  for (const uint32_t mark : c) {
    const uint32_t own = tables.class_of(mark);
    const bool blocked = started && kept > starter + 1 && last >= own;
    const uint32_t one = started && !blocked ? tables.together(c[starter], mark) : 0;
    if (one) {
      c[starter] = one;
      continue;
    }
    if (own == 0) starter = kept, started = true;
    last = own;
    c[kept++] = mark;
  }
  c.resize(kept);
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Whether all characters are in normal form C whatever stands beside them.
bool stays(const Tables& tables, std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (static_cast<unsigned char>(text[at]) < 0xCC) {  // below U+0300
      ++at;
      continue;
    }
    const uint32_t c = next(text, at);
    if (c < kEnd && !tables.stays[c]) return false;
  }
  return true;
}

// The range that c may be in: the last that does not begin behind it.
template <class Range, size_t n>
const Range* range_of(const Range (&ranges)[n], uint32_t c) {
  const Range* behind =
      std::upper_bound(ranges, ranges + n, c, [](uint32_t wanted, const Range& range) { return wanted < range.first; });
  return behind == ranges || c > behind[-1].last ? nullptr : behind - 1;
}

}  // namespace

bool normalize(std::string_view text, NormalForm form, std::string& out) {
  static const Tables tables;
  if (form == NormalForm::kC ? stays(tables, text) : is_ascii(text)) return false;
  const bool compatibly = form == NormalForm::kKC || form == NormalForm::kKD;
  std::vector<uint32_t> characters;
  characters.reserve(text.size());
  for (size_t at = 0; at < text.size();) tables.take_apart(next(text, at), compatibly, characters);
  order(tables, characters);
  if (form == NormalForm::kC || form == NormalForm::kKC) compose(tables, characters);
  out.clear();
  for (const uint32_t c : characters) append(out, c);
  return true;
}

void lower(std::string_view text, std::string& out) {
  constexpr uint32_t kDottedI = 0x130, kDotAbove = 0x307;
  out.clear();
  for (size_t at = 0; at < text.size();) {
    const uint32_t c = next(text, at);
    const CaseRange* range = range_of(kLowerCase, c);
    const bool changes = range && (c - range->first) % range->step == 0;
    append(out, c == kDottedI ? 'i' : changes ? range->becomes + (c - range->first) : c);
    if (c == kDottedI) append(out, kDotAbove);
  }
}

void strip_marks(std::string_view text, std::string& out) {
  out.clear();
  for (size_t at = 0; at < text.size();)
    if (const uint32_t c = next(text, at); !range_of(kMarks, c)) append(out, c);
}

}  // namespace isentrope::data
