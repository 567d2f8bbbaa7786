#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

int64_t RecurrenceOptions::features() const { return feature_map == "taylor2" ? (D + 1) * (D + 2) / 2 : D; }

MixerShape recurrence_shape(const RecurrenceOptions& r) {
  MixerShape shape;
  shape.parts = {{"q", r.queries * r.D}, {"k", r.keys * r.D}, {"v", r.values * r.E}};
  if (r.prefix) {
    shape.parts.emplace_back("prefix_k", r.keys * r.D);
    shape.parts.emplace_back("prefix_v", r.values * r.E);
    shape.reads_prefix = true;
  }
  if (r.gate) shape.parts.emplace_back("g", r.heads() * r.E);
  if (r.beta > 0) shape.parts.emplace_back("b", r.states());
  if (r.decay == "token") shape.parts.emplace_back("decay", r.states());
  if (r.denominator != "none") shape.parts.emplace_back("n", r.heads());
  shape.output = r.heads() * r.E;
  const bool conv = r.conv_size > 1;
  shape.others = (conv ? r.channels() * r.conv_size : 0) + (r.decay == "token" ? 2 * r.states() : 0) +
                 (r.decay == "head" ? r.states() : 0) + (r.steps ? r.states() : 0) + (r.norm ? r.E : 0);
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  const double matrix = number(r.states() * r.features() * r.width());
  shape.kept =
      number(shape.rows() + (conv ? 2 * r.channels() : 0) + (r.queries + (r.prefix ? 2 : 1) * r.keys) * r.features() +
             (r.norm || r.gate ? 3 : 1) * shape.output);
  // A write and a read of the state, with the delta rule a read more, and with a prefix a write.
  shape.flops_of_token = (r.beta > 0 || r.prefix ? 6 : 4) * matrix;
  shape.state = r.states() * r.features() * r.width() + (conv ? (r.conv_size - 1) * r.channels() : 0);
  return shape;
}

std::string recurrence_problem(const DecoderConfig& config, int64_t layer) {
  const AttentionConfig& a = config.attention;
  if (a.bias != "none")
    return "attention.bias: layers of kind " + config.mixer_of(layer) +
           " have no biases, and model.mixers names such; leave it at none";
  return "";
}

}  // namespace isentrope::model
