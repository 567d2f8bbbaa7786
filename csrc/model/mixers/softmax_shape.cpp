#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

namespace {

std::string softmax_problem(const DecoderConfig&, int64_t) { return ""; }

MixerShape softmax_shape(const DecoderConfig& c) {
  const int64_t D = c.head_size(), HD = c.num_attention_heads * D, GD = c.num_key_value_heads * D;
  MixerShape shape;
  shape.parts = {{"q", HD}, {"k", GD}, {"v", GD}};
  shape.output = HD;
  const auto heads = static_cast<double>(HD + GD);  // before their norms
  shape.kept = static_cast<double>(2 * HD + 2 * GD) + 3 * static_cast<double>(c.num_attention_heads) +
               (c.attention.qk_norm ? 2 * heads : 0);
  shape.flops_of_pair = 4 * static_cast<double>(HD);
  shape.cached = 2 * GD;
  shape.attends = true;
  return shape;
}

}  // namespace

const MixerKind kSoftmax{"softmax", softmax_problem, softmax_shape};

}  // namespace isentrope::model
