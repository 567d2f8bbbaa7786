#include "csrc/model/mixer_shape.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

namespace {

const MixerKind* const kKinds[]{&kSoftmax,    &kSoftmaxRnn, &kRouted, &kLinear,    &kPrefixLinear, &kNormalized,
                                &kGatedDelta, &kSsd,        &kNatsl,  &kEstimated, &kHierarchical};

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

bool any_mixer(const DecoderConfig& config, bool MixerShape::*what) {
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    if (mixer_shape(config, layer).*what) return true;
  return false;
}

int64_t undecodable_layer(const DecoderConfig& config) {
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer)
    if (!mixer_shape(config, layer).decodes) return layer;
  return -1;
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

}  // namespace isentrope::model
