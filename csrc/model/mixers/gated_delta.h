// Gated delta networks (Yang et al., arXiv 2412.06464): the layer of isentrope.nn.GatedDeltaNet. num_key_value_heads query and key heads
// are each shared by as many of the num_attention_heads value heads, as in Qwen3-Next.
#pragma once
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

RecurrenceOptions gated_delta_options(const DecoderConfig& config);

}  // namespace isentrope::model
