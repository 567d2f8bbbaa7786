// Jsonl and read_prompts: the input as a file, plain and as compressed data.
#include "csrc/data/jsonl.h"
#include "tests/fuzz/fuzzing.h"

namespace isentrope {
namespace {

// The input's size chooses the use: all of them on each would be a sixth of the inputs.
void read(const std::string& file, size_t size) {
  static const data::Tokenizer tokenizer({.kind = "bytes"});
  constexpr const char* kTruncations[] = {"error", "drop", "truncate"};
  const bool learnt = size % 2 == 0;
  const data::Use use{.tokenizer = &tokenizer,
                      .context = 32,
                      .learnt = learnt,
                      .truncation = kTruncations[size / 2 % 3],
                      .columns = learnt};
  data::JsonlConfig config{.path = {file}};
  config.validation_fraction = config.test_fraction = 0.0;
  const bool strict = fuzz::reads([&] { data::Jsonl(config, 1, data::Split::train, &use); });
  const bool skipping = fuzz::reads([&] {
    const data::Jsonl source(config, 1, data::Split::train, &use, /*skip=*/true);
    fuzz::expect(source.size() > 0 && std::ssize(source.take(0, 2)) == 2, "a source that is read has examples");
    for (const std::string& note : source.notes()) fuzz::expect(!note.empty(), "a note says something");
  });
  fuzz::expect(!strict || skipping, "a file that is right is right where broken lines are skipped");
}

}  // namespace
}  // namespace isentrope

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace isentrope;
  static const fuzz::Folder folder;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const std::string plain = folder.write("data.jsonl", text);
  read(plain, size);
  fuzz::reads([&] { data::read_prompts(plain); });
  read(folder.write("data.jsonl.gz", text), size);
  return 0;
}
