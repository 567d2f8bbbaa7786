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

namespace {

std::string ssd_problem(const DecoderConfig& config, int64_t) { return recurrence_problem(config, "ssd"); }

MixerShape ssd_shape(const DecoderConfig& config) { return recurrence_shape(ssd_options(config)); }

std::shared_ptr<Mixer> make_ssd(const MixerBuilder& builder) {
  return std::make_shared<RecurrenceMixer>(builder, ssd_options(builder.config));
}

}  // namespace

const MixerKind kSsd{"ssd", ssd_problem, ssd_shape, make_ssd};

}  // namespace isentrope::model
