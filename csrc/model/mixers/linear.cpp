#include "csrc/model/mixers/linear.h"

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

RecurrenceOptions linear_options(const DecoderConfig& c) {
  const int64_t D = c.head_size();
  RecurrenceOptions r{
      .queries = c.num_attention_heads, .keys = c.num_key_value_heads, .values = c.num_key_value_heads, .D = D, .E = D};
  r.feature_map = c.linear.feature_map;
  r.conv_size = c.linear.conv_size;
  r.normalizer = c.linear.normalizer;
  r.decay = c.linear.decay;
  return r;
}

namespace {

std::string linear_problem(const DecoderConfig& config, int64_t) { return recurrence_problem(config, "linear"); }

MixerShape linear_shape(const DecoderConfig& config) { return recurrence_shape(linear_options(config)); }

std::shared_ptr<Mixer> make_linear(const MixerBuilder& builder) {
  return std::make_shared<RecurrenceMixer>(builder, linear_options(builder.config));
}

}  // namespace

const MixerKind kLinear{"linear", linear_problem, linear_shape, make_linear};

}  // namespace isentrope::model
