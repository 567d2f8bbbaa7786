#include "csrc/model/mixers/normalized.h"

#include <cmath>

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

RecurrenceOptions normalized_options(const DecoderConfig& c) {
  const int64_t D = c.head_size();
  RecurrenceOptions r{
      .queries = c.num_attention_heads, .keys = c.num_key_value_heads, .values = c.num_key_value_heads, .D = D, .E = D};
  r.conv_size = c.normalized.conv_size;
  r.scale = 1 / std::sqrt(static_cast<double>(D));
  r.norm = c.normalized.denominator == "rms";
  if (!r.norm) r.denominator = c.normalized.denominator;
  return r;
}

namespace {

std::string normalized_problem(const DecoderConfig& config, int64_t) {
  return recurrence_problem(config, "normalized");
}

MixerShape normalized_shape(const DecoderConfig& config) { return recurrence_shape(normalized_options(config)); }

std::shared_ptr<Mixer> make_normalized(const MixerBuilder& builder) {
  return std::make_shared<RecurrenceMixer>(builder, normalized_options(builder.config));
}

}  // namespace

const MixerKind kNormalized{"normalized", normalized_problem, normalized_shape, make_normalized};

}  // namespace isentrope::model
