// Bpe: a tokenizer.json, and a text that it encodes.
#include "csrc/data/bpe.h"
#include "tests/fuzz/fuzzing.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isentrope;
  const std::vector<std::string> parts = fuzz::parts_of(data, size, 2);
  fuzz::reads([&] {
    const data::Bpe bpe(parts[0]);
    for (const auto* added : {&bpe.before(), &bpe.behind()})
      for (const int64_t id : *added) fuzz::expect(id >= 0 && id < bpe.size(), "ids of the post-processor are tokens");
    const std::vector<int64_t> ids = bpe.encode(parts[1]);
    std::string text;
    for (const int64_t id : ids) {
      fuzz::expect(id >= 0 && id < bpe.size(), "ids are tokens");
      text += bpe.piece(id) + bpe.first_piece(id);
    }
    fuzz::expect(bpe.encode(parts[1]) == ids, "a text has the same tokens when its words are known");
  });
  return 0;
}
