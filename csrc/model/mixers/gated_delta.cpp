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

constinit const MixerKind kGatedDelta = recurrence_kind<gated_delta_options>("gated_delta");

}  // namespace isentrope::model
