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

constinit const MixerKind kNormalized = recurrence_kind<normalized_options>("normalized");

}  // namespace isentrope::model
