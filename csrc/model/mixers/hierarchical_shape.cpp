#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

namespace {

std::string hierarchical_problem(const DecoderConfig& c, int64_t) {
  if (c.causal)
    return "mixers: a layer of kind hierarchical pools tokens that stand behind, and causal is true; write causal: "
           "false for an encoder, or take another kind";
  if (c.attention.softcap > 0)
    return "attention.softcap: the logits of layers of kind hierarchical are products of means; leave it at 0";
  if (c.attention.temperature != "none")
    return "attention.temperature: layers of kind hierarchical have none; leave it at none";
  if (c.attention.qk_clip > 0)
    return "attention.qk_clip: of the logits of layers of kind hierarchical most are means, none of which says how "
           "large "
           "one is; leave it at 0";
  return "";
}

MixerShape hierarchical_shape(const DecoderConfig& c) {
  MixerShape shape = mixer_kind("softmax").shape(c);
  const double b = static_cast<double>(c.hierarchical.branching), more = b / (b - 1),  // nodes of all levels, a token
      HD = static_cast<double>(c.num_attention_heads * c.head_size()), H = static_cast<double>(c.num_attention_heads);
  shape.flops_of_pair = 0;
  shape.flops_of_token = 4 * HD * b * more;
  shape.kept += more * (4 * H * b + 4 * HD);  // logits, shares and their masks, means and sums of each level
  shape.cached = 0;
  return shape;
}

}  // namespace

const MixerKind kHierarchical{"hierarchical", hierarchical_problem, hierarchical_shape};

}  // namespace isentrope::model
