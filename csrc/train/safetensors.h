// The safetensors format (https://huggingface.co/docs/safetensors): 8 bytes of header length, a JSON header
// that gives each tensor's dtype, shape and place, then the bytes of the tensors without gaps.
#pragma once
#include <torch/types.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace isentrope::train {

using NamedTensors = std::vector<std::pair<std::string, torch::Tensor>>;

// Tensors of any shape, stride and device; float64, float32, bfloat16, float16, int64, int32, uint8, bool.
// Two tensors of one name or another dtype throw std::invalid_argument; for failures of writing see
// durable_file.h.
void write_safetensors(const std::string& file, const NamedTensors& tensors);

// "[2, 3]", as errors tell shapes.
std::string text_of(at::IntArrayRef sizes);

struct TensorEntry {
  torch::ScalarType type;
  std::vector<int64_t> shape;
};
// What the header says of every tensor; throws as read_safetensors does.
std::map<std::string, TensorEntry> read_safetensors_header(const std::string& file);

// All tensors, on the CPU. std::runtime_error names the file and what is wrong with it: truncated (bytes
// expected and found), not a safetensors file, a dtype unknown, a tensor whose bytes do not fit its shape, tensors that
// overlap or leave a gap, a name that stands twice. What it takes the safetensors library takes too.
std::map<std::string, torch::Tensor> read_safetensors(const std::string& file);

// The same without a copy: tensors over the file's pages, which writing to would not change the file. Those whose place is no multiple of the size
// of their elements are copied.
std::map<std::string, torch::Tensor> map_safetensors(const std::string& file);

}  // namespace isentrope::train
