#include <algorithm>

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

namespace {

std::string routed_problem(const DecoderConfig& c, int64_t layer) {
  const AttentionConfig& a = c.attention;
  const std::string of = ": layers of kind routed have none, and layer " + std::to_string(layer) + " is one; leave it ";
  if (a.bias != "none") return "attention.bias" + of + "at none";
  if (a.qk_norm) return "attention.qk_norm" + of + "at false";
  if (a.temperature != "none") return "attention.temperature" + of + "at none";
  if (a.softcap > 0) return "attention.softcap" + of + "at 0";
  if (a.qk_clip > 0) return "attention.qk_clip" + of + "at 0";
  if (c.num_attention_heads < 2)
    return "num_attention_heads: 1; half of the heads of a layer of kind routed are routed, wanted at least 2";
  if (c.num_key_value_heads != c.num_attention_heads)
    return "num_key_value_heads: " + std::to_string(c.num_key_value_heads) +
           "; heads of kind routed have keys and values of their own: write num_attention_heads (" +
           std::to_string(c.num_attention_heads) + ")";
  return "";
}

MixerShape routed_shape(const DecoderConfig& c) {
  const RoutedMixerConfig& r = c.routed;
  const int64_t D = c.head_size(), H = c.num_attention_heads, HD = H * D, routed = H / 2;
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  MixerShape shape;
  shape.parts = {{"q", HD}, {"k", HD}, {"v", HD}};
  shape.output = HD;
  shape.attends = true;
  shape.sight = std::max(r.window, r.local_window);
  shape.decodes = r.assign == "argmax";
  // Copies of a routed token's q, k, v and result, in the order of clusters; a balanced cluster takes window of context tokens.
  const double copies = r.assign == "argmax" ? 1 : number(r.clusters * r.window) / number(c.max_position_embeddings);
  shape.kept = number(4 * HD + (H - routed) * 4 * D + 3 * H) + copies * number(routed * (8 * D + 3));
  shape.flops_of_token = 2 * number(routed * r.clusters * D);
  shape.flops_of_pair = 4 * number(HD);
  shape.cached = 2 * HD + routed;
  return shape;
}

}  // namespace

const MixerKind kRouted{"routed", routed_problem, routed_shape};

}  // namespace isentrope::model
