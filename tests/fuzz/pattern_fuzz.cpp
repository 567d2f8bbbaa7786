// SplitPattern: an expression and a text, which is made UTF-8, as it is for its callers.
#include "csrc/data/split_pattern.h"
#include "tests/fuzz/fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isentrope;
  const std::vector<std::string> parts = fuzz::parts_of(data, size, 2);
  const std::string text = valid_utf8(parts[1]);
  fuzz::reads([&] {
    const data::SplitPattern pattern(parts[0]);
    data::SplitPattern::Room room;
    size_t from = 0, begin = 0, end = 0;
    while (from <= text.size() && pattern.find(text, from, room, begin, end)) {
      fuzz::expect(from <= begin && begin <= end && end <= text.size(), "a match lies in the text from there on");
      for (const size_t at : {begin, end})
        fuzz::expect(at == text.size() || (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80,
                     "a match is of whole characters");
      from = begin == end ? end + std::max<size_t>(utf8_size(text, end == text.size() ? 0 : end), 1) : end;
    }
  });
  return 0;
}
