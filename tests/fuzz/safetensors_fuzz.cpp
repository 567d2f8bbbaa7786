// read_safetensors: the input as a file, and once more with the length in its first 8 bytes made that of the JSON behind them, which
// mutations seldom hit.
#include <cstring>

#include "csrc/train/safetensors.h"
#include "tests/fuzz/fuzzing.h"

namespace isentrope {
namespace {

void read(const std::string& file, size_t size) {
  fuzz::reads([&] {
    const auto header = train::read_safetensors_header(file);
    const auto tensors = train::read_safetensors(file);
    fuzz::expect(header.size() == tensors.size(), "the header has as many tensors as are read");
    size_t bytes = 0;
    for (const auto& [name, tensor] : tensors) {
      const auto& entry = header.at(name);
      fuzz::expect(tensor.sizes() == entry.shape && tensor.scalar_type() == entry.type,
                   "a tensor is as its header says");
      bytes += tensor.nbytes();
    }
    fuzz::expect(bytes < size, "the tensors are no larger than the file");
  });
}

}  // namespace
}  // namespace isentrope

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const isentrope::fuzz::Folder folder;
  std::string text(reinterpret_cast<const char*>(data), size);
  isentrope::read(folder.write("model.safetensors", text), size);
  uint64_t length = text.rfind('}') + 1;  // 0 where there is none
  if (length < 8) return 0;
  length -= 8;
  std::memcpy(text.data(), &length, sizeof length);
  isentrope::read(folder.write("model.safetensors", text), size);
  return 0;
}
