#include "csrc/model/mixer.h"

#include <cmath>
#include <stdexcept>

#include "csrc/model/mixers/estimated.h"
#include "csrc/model/mixers/hierarchical.h"
#include "csrc/model/mixers/kinds.h"
#include "csrc/model/mixers/natsl.h"
#include "csrc/model/mixers/recurrence.h"
#include "csrc/model/mixers/routed.h"
#include "csrc/model/mixers/softmax.h"

namespace isentrope::model {

using torch::Tensor;

namespace {

template <RecurrenceOptions (*options)(const DecoderConfig&)>
std::shared_ptr<Mixer> make_recurrence(const MixerBuilder& builder) {
  return std::make_shared<RecurrenceMixer>(builder, options(builder.config));
}

template <SoftmaxOptions (*options)(const DecoderConfig&)>
std::shared_ptr<Mixer> make_softmax(const MixerBuilder& builder) {
  return std::make_shared<SoftmaxMixer>(builder, options(builder.config));
}

std::shared_ptr<Mixer> make_routed(const MixerBuilder& builder) { return std::make_shared<RoutedMixer>(builder); }
std::shared_ptr<Mixer> make_natsl(const MixerBuilder& builder) { return std::make_shared<NatslMixer>(builder); }
std::shared_ptr<Mixer> make_estimated(const MixerBuilder& builder) { return std::make_shared<EstimatedMixer>(builder); }
std::shared_ptr<Mixer> make_hierarchical(const MixerBuilder& builder) {
  return std::make_shared<HierarchicalMixer>(builder);
}

const struct {
  const MixerKind& kind;
  std::shared_ptr<Mixer> (*make)(const MixerBuilder& builder);
} kMakers[]{{kSoftmax, make_softmax<softmax_options>},
            {kSoftmaxRnn, make_softmax<softmax_rnn_options>},
            {kRouted, make_routed},
            {kLinear, make_recurrence<linear_options>},
            {kPrefixLinear, make_recurrence<prefix_linear_options>},
            {kNormalized, make_recurrence<normalized_options>},
            {kGatedDelta, make_recurrence<gated_delta_options>},
            {kSsd, make_recurrence<ssd_options>},
            {kNatsl, make_natsl},
            {kEstimated, make_estimated},
            {kHierarchical, make_hierarchical}};

// The names of isentrope.nn's modules, which for q, k and v are those of transformers.
std::string module_of(const std::string& part) { return part == "decay" ? "decay.proj" : part + "_proj"; }

std::vector<int64_t> heights(const MixerShape& shape) {
  std::vector<int64_t> rows;
  for (const auto& part : shape.parts) rows.push_back(part.second);
  return rows;
}

}  // namespace

std::shared_ptr<Mixer> make_mixer(const MixerBuilder& builder) {
  const std::string& name = builder.config.mixer_of(builder.layer);
  for (const auto& maker : kMakers)
    if (name == maker.kind.name) return maker.make(builder);
  throw std::logic_error("make_mixer() has no line of " + name);
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
