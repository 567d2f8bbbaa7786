#include "csrc/model/mixer.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

using torch::Tensor;

namespace {

const MixerKind* const kKinds[]{&kSoftmax, &kLinear, &kNormalized, &kGatedDelta, &kSsd};

// The names of isentrope.nn's modules, which for q, k and v are those of transformers.
std::string module_of(const std::string& part) { return part == "decay" ? "decay.proj" : part + "_proj"; }

std::vector<int64_t> heights(const MixerShape& shape) {
  std::vector<int64_t> rows;
  for (const auto& part : shape.parts) rows.push_back(part.second);
  return rows;
}

}  // namespace

bool is_mixer_kind(const std::string& name) {
  return std::any_of(std::begin(kKinds), std::end(kKinds), [&](const MixerKind* kind) { return name == kind->name; });
}

const MixerKind& mixer_kind(const std::string& name) {
  std::string known;
  for (const MixerKind* kind : kKinds) {
    if (name == kind->name) return *kind;
    known += (known.empty() ? "" : ", ") + std::string(kind->name);
  }
  throw std::invalid_argument("model.mixers: there is no '" + name + "'; wanted one of " + known);
}

MixerShape mixer_shape(const DecoderConfig& config, int64_t layer) {
  return mixer_kind(config.mixer_of(layer)).shape(config);
}

int64_t attending_layers(const DecoderConfig& config) {
  int64_t count = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) count += mixer_shape(config, layer).attends;
  return count;
}

int64_t MixerShape::rows() const {
  int64_t sum = 0;
  for (const auto& part : parts) sum += part.second;
  return sum;
}

Mixer::Mixer(const MixerBuilder& builder, bool bias, bool output_bias)
    : shape(mixer_shape(builder.config, builder.layer)), config_(builder.config), layer_(builder.layer) {
  const int64_t C = config_.hidden_size;
  std::vector<SigmaPart> runs;  // of q, k and v; what else is projected has neither a learned norm nor an adapter
  int64_t first = 0;
  for (size_t i = 0; i < 3; first += shape.parts[i++].second)
    runs.push_back({shape.parts[i].first, first, shape.parts[i].second});
  if (config_.sigma_reparam.any() && config_.sigma_reparam.fused_qkv == "one") runs = {{"qkv", 0, first}};
  qkv = builder.projection("qkv", builder.normal({shape.rows(), C}, 1 / std::sqrt(static_cast<double>(C))), bias, runs);
  o = builder.projection("o", builder.normal({C, shape.output}, 0.5 / std::sqrt(static_cast<double>(shape.output))),
                         output_bias, {{"o", 0, C}});
}

std::vector<std::pair<std::string, Tensor>> Mixer::matrices(Tensor weight_of(const Projection&)) const {
  std::vector<std::pair<std::string, Tensor>> weights;
  const auto parts = weight_of(qkv).split_with_sizes(heights(shape), 0);
  for (size_t i = 0; i < parts.size(); ++i)
    weights.emplace_back("self_attn." + module_of(shape.parts[i].first) + ".weight", parts[i]);
  weights.emplace_back("self_attn.o_proj.weight", weight_of(o));
  return weights;
}

std::vector<std::pair<std::string, Tensor>> Mixer::biases() const {
  std::vector<std::pair<std::string, Tensor>> found;
  if (qkv.bias.defined()) {
    const auto parts = qkv.bias.split_with_sizes(heights(shape), 0);
    for (size_t i = 0; i < parts.size(); ++i)
      found.emplace_back("self_attn." + module_of(shape.parts[i].first) + ".bias", parts[i]);
  }
  if (o.bias.defined()) found.emplace_back("self_attn.o_proj.bias", o.bias);
  return found;
}

}  // namespace isentrope::model
