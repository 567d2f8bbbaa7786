#include "csrc/train/safetensors.h"

#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <stdexcept>

#include "csrc/data/json_object.h"
#include "csrc/durable_file.h"
#include "csrc/message.h"

namespace isentrope::train {
namespace {

using nlohmann::json;
using torch::Tensor;

struct Dtype {
  const char* name;
  torch::ScalarType type;
};
constexpr std::array<Dtype, 8> kDtypes{{{"F64", torch::kFloat64},
                                        {"F32", torch::kFloat32},
                                        {"BF16", torch::kBFloat16},
                                        {"F16", torch::kFloat16},
                                        {"I64", torch::kInt64},
                                        {"I32", torch::kInt32},
                                        {"U8", torch::kUInt8},
                                        {"BOOL", torch::kBool}}};

constexpr const char* kRead = "F64, F32, BF16, F16, I64, I32, U8 and BOOL";
constexpr const char* kPointer = "version https://git-lfs";  // how such a file begins

// The format's own limit: a longer header is taken for a file of another kind.
constexpr uint64_t kLargestHeader = 100'000'000;

const char* dtype_name(const std::string& name, torch::ScalarType type) {
  for (const Dtype& dtype : kDtypes)
    if (dtype.type == type) return dtype.name;
  throw std::invalid_argument("tensor '" + name + "' has dtype " + torch::toString(type) +
                              "; safetensors files here hold " + kRead);
}

[[noreturn]] void broken(const std::string& file, const std::string& why) {
  throw std::runtime_error(file + ": " + why);
}

[[noreturn]] void damaged(const std::string& file, const std::string& why) {
  broken(file, why + "; copy or download the file again");
}

// What the header says of one tensor, checked against the bytes there are.
struct Entry {
  torch::ScalarType type;
  std::vector<int64_t> shape;
  uint64_t begin, end;
};

Entry read_entry(const std::string& file, const std::string& name, const json& value) {
  Entry entry;
  const std::string shown = excerpt(name, 300);
  const auto list = [&](const char* key, const char* wanted) {
    const auto found = value.is_object() ? value.find(key) : value.end();
    const bool whole = value.is_object() && found != value.end() && found->is_array() &&
                       std::all_of(found->begin(), found->end(), [](const json& x) { return x.is_number_integer(); });
    if (!whole) damaged(file, "header of tensor '" + shown + "': " + key + " is not " + wanted);
    return *found;
  };
  const auto dtype_of = value.is_object() ? value.find("dtype") : value.end();
  if (!value.is_object() || dtype_of == value.end() || !dtype_of->is_string())
    damaged(file, "header of tensor '" + shown + "': dtype is not a name");
  const std::string dtype = dtype_of->get<std::string>();
  entry.shape = list("shape", "a list of sizes").get<std::vector<int64_t>>();
  const json offsets = list("data_offsets", "a list of two offsets");
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < 0)
    damaged(file, "header of tensor '" + shown + "': data_offsets is not a list of two offsets");
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  const auto known = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const Dtype& d) { return dtype == d.name; });
  if (known == kDtypes.end())
    broken(file,
           "tensor '" + shown + "' has dtype " + excerpt(dtype) + ", and " + kRead +
               " are read; open the model in transformers as float32 or bfloat16 and save it with save_pretrained");
  entry.type = known->type;

  // Strides are products of sizes, so that those beside a size of 0 count too.
  uint64_t bytes = torch::elementSize(entry.type);
  bool none = false;
  for (int64_t size : entry.shape) {
    if (size < 0 || (size > 0 && bytes > std::numeric_limits<int64_t>::max() / static_cast<uint64_t>(size)))
      damaged(file, "tensor '" + shown + "' has an impossible shape");
    none = none || size == 0;
    bytes *= static_cast<uint64_t>(std::max<int64_t>(size, 1));
  }
  if (none) bytes = 0;
  if (entry.end < entry.begin || entry.end - entry.begin != bytes)
    damaged(file, "tensor '" + shown + "' has " + std::to_string(static_cast<int64_t>(entry.end - entry.begin)) +
                      " bytes, and its shape wants " + std::to_string(bytes));
  return entry;
}

// The header; a key that stands twice is refused, since the parser would take the last in silence.
json read_header(const std::string& file, const std::string& text) {
  std::vector<std::set<std::string>> open;  // the keys met in each object around the place
  std::string twice;
  const json header = json::parse(
      text,
      [&](int depth, json::parse_event_t event, json& parsed) {
        if (depth > data::kDeepestJson)
          damaged(file, "its header holds lists or objects more than " + std::to_string(data::kDeepestJson) +
                            " within one another");
        if (event == json::parse_event_t::object_start) open.emplace_back();
        if (event == json::parse_event_t::object_end) open.pop_back();
        if (event == json::parse_event_t::key)
          if (const auto name = parsed.get<std::string>(); !open.back().insert(name).second) twice = name;
        return true;
      },
      /*allow_exceptions=*/false);
  if (!header.is_object() || text[0] != '{') damaged(file, "not a safetensors file (its header is not a JSON object)");
  if (!twice.empty()) damaged(file, "its header holds '" + excerpt(twice, 300) + "' twice");
  return header;
}

// A file that is open, and what its header says, checked against the bytes there are.
struct Reading {
  explicit Reading(const std::string& file);
  std::ifstream in;
  uint64_t data = 0;  // where the bytes of the tensors begin
  std::map<std::string, Entry> entries;
};

Reading::Reading(const std::string& file) : in(file, std::ios::binary) {
  if (!in) broken(file, std::string("cannot be read: ") + std::strerror(errno));
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(file, error);
  if (error) broken(file, "cannot be read: " + error.message());

  uint64_t length = 0;
  auto truncated = [&](uint64_t expected) {
    damaged(file, "truncated: expected " + std::to_string(expected) + " bytes, found " + std::to_string(size));
  };
  if (size < sizeof(length)) truncated(sizeof(length));
  in.read(reinterpret_cast<char*>(&length), sizeof(length));
  if (std::memcmp(&length, kPointer, sizeof(length)) == 0)
    broken(file, "holds a pointer of Git LFS in place of the weights; `git lfs pull` brings them");
  if (length > kLargestHeader) damaged(file, "not a safetensors file (header length " + std::to_string(length) + ")");
  data = sizeof(length) + length;
  if (size < data) truncated(data);
  std::string text(length, ' ');
  in.read(text.data(), static_cast<std::streamsize>(length));
  const json header = read_header(file, text);

  std::vector<std::pair<std::pair<uint64_t, uint64_t>, std::string>> places;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") continue;
    const Entry& entry = entries.emplace(name, read_entry(file, name, value)).first->second;
    places.push_back({{entry.begin, entry.end}, name});
  }
  std::sort(places.begin(), places.end());
  uint64_t end = 0;
  for (const auto& [place, name] : places) {
    if (place.first != end)
      damaged(file, "tensor '" + excerpt(name, 300) + "' begins at byte " + std::to_string(place.first) +
                        " of the data, and what stands before it ends at " + std::to_string(end) + ": tensors " +
                        (place.first < end ? "overlap" : "leave a gap"));
    end = place.second;
  }
  if (size < data + end) truncated(data + end);
  if (size > data + end)
    damaged(file, "expected " + std::to_string(data + end) + " bytes, found " + std::to_string(size));
}

}  // namespace

std::string text_of(at::IntArrayRef sizes) {
  std::ostringstream out;
  out << sizes;
  return out.str();
}

void write_safetensors(const std::string& file, const NamedTensors& tensors) {
  // Wider elements first, so that every tensor is aligned to its elements without gaps; then by name.
  NamedTensors sorted = tensors;
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    const auto width_a = a.second.element_size(), width_b = b.second.element_size();
    return width_a != width_b ? width_a > width_b : a.first < b.first;
  });

  json header = {{"__metadata__", {{"format", "pt"}}}};  // `transformers` asks for this entry
  uint64_t offset = 0;
  for (const auto& [name, tensor] : sorted) {
    if (header.contains(name)) throw std::invalid_argument("two tensors are named '" + name + "'");
    const uint64_t end = offset + tensor.nbytes();
    header[name] = {{"dtype", dtype_name(name, tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so that the data begins at a multiple of 8

  const uint64_t length = text.size();  // little endian, as every platform of torch
  DurableFile out(file, static_cast<int64_t>(sizeof(length) + length + offset));
  out.write(&length, sizeof(length));
  out.write(text.data(), static_cast<int64_t>(length));
  for (const auto& [name, tensor] : sorted) {
    const Tensor bytes = tensor.detach().to(torch::kCPU).contiguous();
    out.write(bytes.data_ptr(), static_cast<int64_t>(bytes.nbytes()));
  }
  out.commit();
}

std::map<std::string, TensorEntry> read_safetensors_header(const std::string& file) {
  std::map<std::string, TensorEntry> found;
  for (auto& [name, entry] : Reading(file).entries) found[name] = {entry.type, std::move(entry.shape)};
  return found;
}

std::map<std::string, Tensor> map_safetensors(const std::string& file) {
  Reading reading(file);
  uint64_t end = reading.data;
  for (const auto& [name, entry] : reading.entries) end = std::max(end, reading.data + entry.end);
  const Tensor bytes = at::from_file(file, /*shared=*/false, static_cast<int64_t>(end), torch::kUInt8);
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, entry] : reading.entries) {
    const auto first = static_cast<int64_t>(reading.data + entry.begin),
               last = static_cast<int64_t>(reading.data + entry.end);
    Tensor own = bytes.slice(0, first, last);
    if (first % static_cast<int64_t>(torch::elementSize(entry.type)) != 0) own = own.clone();
    tensors.emplace(name, own.view(entry.type).view(entry.shape));
  }
  return tensors;
}

std::map<std::string, Tensor> read_safetensors(const std::string& file) {
  Reading reading(file);
  std::map<std::string, Tensor> tensors;
  for (const auto& [name, entry] : reading.entries) {
    Tensor tensor = torch::empty(entry.shape, torch::TensorOptions().dtype(entry.type));
    reading.in.seekg(static_cast<std::streamoff>(reading.data + entry.begin));
    reading.in.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
    if (!reading.in) broken(file, "tensor '" + name + "' cannot be read: " + std::strerror(errno));
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}

}  // namespace isentrope::train
