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

constinit const MixerKind kLinear = recurrence_kind<linear_options>("linear");

}  // namespace isentrope::model
