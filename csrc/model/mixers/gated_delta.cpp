#include "csrc/model/mixers/gated_delta.h"

#include <cmath>

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

RecurrenceOptions gated_delta_options(const DecoderConfig& c) {
  const int64_t D = c.head_size();
  RecurrenceOptions r{.queries = c.num_key_value_heads,
                      .keys = c.num_key_value_heads,
                      .values = c.num_attention_heads,
                      .D = D,
                      .E = D * c.gated_delta.expand_v};
  r.conv_size = c.gated_delta.conv_size;
  r.unit = true;
  r.scale = 1 / std::sqrt(static_cast<double>(D));
  r.beta = c.gated_delta.allow_negative ? 2 : 1;
  r.decay = "token";
  r.norm = true;
  r.gate = true;
  return r;
}

namespace {

std::string gated_delta_problem(const DecoderConfig& config, int64_t) {
  return recurrence_problem(config, "gated_delta");
}

MixerShape gated_delta_shape(const DecoderConfig& config) { return recurrence_shape(gated_delta_options(config)); }

std::shared_ptr<Mixer> make_gated_delta(const MixerBuilder& builder) {
  return std::make_shared<RecurrenceMixer>(builder, gated_delta_options(builder.config));
}

}  // namespace

const MixerKind kGatedDelta{"gated_delta", gated_delta_problem, gated_delta_shape, make_gated_delta};

}  // namespace isentrope::model
