// The state space of Mamba-2 (Dao and Gu, arXiv 2405.21060): x is v, B is k and C is q, of num_key_value_heads groups, each shared by as
// many of the num_attention_heads heads. The norm behind the gate is of each head, as with groups of a head there.
#pragma once
#include "csrc/model/mixers/recurrence_options.h"

namespace isentrope::model {

RecurrenceOptions ssd_options(const DecoderConfig& config);

}  // namespace isentrope::model
