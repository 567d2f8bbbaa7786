#include "csrc/model/mixers/ssd.h"

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

RecurrenceOptions ssd_options(const DecoderConfig& c) {
  const int64_t D = c.head_size();
  RecurrenceOptions r{.queries = c.num_key_value_heads,
                      .keys = c.num_key_value_heads,
                      .values = c.num_attention_heads,
                      .D = D,
                      .E = D * c.ssd.expand_v};
  r.conv_size = c.ssd.conv_size;
  r.decay = "token";
  r.steps = true;
  r.norm = true;
  r.gate = true;
  return r;
}

constinit const MixerKind kSsd = recurrence_kind<ssd_options>("ssd");

}  // namespace isentrope::model
