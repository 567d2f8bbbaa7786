#include "csrc/model/mixers/prefix_linear.h"

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

RecurrenceOptions prefix_linear_options(const DecoderConfig& c) {
  const int64_t D = c.head_size();
  RecurrenceOptions r{
      .queries = c.num_attention_heads, .keys = c.num_key_value_heads, .values = c.num_key_value_heads, .D = D, .E = D};
  r.feature_map = c.prefix_linear.feature_map;
  r.conv_size = c.prefix_linear.conv_size;
  r.normalizer = true;
  r.prefix = true;
  return r;
}

constinit const MixerKind kPrefixLinear = recurrence_kind<prefix_linear_options>("prefix_linear");

}  // namespace isentrope::model
