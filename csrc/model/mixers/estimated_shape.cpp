#include <algorithm>

#include "csrc/model/mixers/kinds.h"

namespace isentrope::model {

namespace {

std::string estimated_problem(const DecoderConfig& c, int64_t layer) {
  const AttentionConfig& a = c.attention;
  const std::string of =
      ": layers of kind estimated have none, and layer " + std::to_string(layer) + " is one; leave it ";
  if (a.bias != "none") return "attention.bias" + of + "at none";
  if (a.qk_norm) return "attention.qk_norm" + of + "at false";
  if (a.temperature != "none") return "attention.temperature" + of + "at none";
  if (a.softcap > 0) return "attention.softcap" + of + "at 0";
  if (a.qk_clip > 0) return "attention.qk_clip" + of + "at 0";
  return "";
}

MixerShape estimated_shape(const DecoderConfig& c) {
  const int64_t D = c.head_size(), H = c.num_attention_heads, G = c.num_key_value_heads, M = c.estimated.columns;
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  MixerShape shape;
  shape.parts = {{"q", H * D}, {"k", G * D}, {"v", G * D}, {"estimate_q", H * D}, {"estimate_k", G * D}};
  shape.output = H * D;
  shape.others = 2 * D * 4 * D + 2 * D + M * 2 * D + M + 3 * H * H + 2 * 2 * D + 2 + D;
  shape.attends = true;
  shape.estimates = c.estimated.self_weight > 0;
  shape.sight = c.max_position_embeddings;
  // Of a head what the network reads, makes and gives, and keys and values of the tokens that are kept, which are gathered.
  const double kept = number(std::min(2 * c.estimated.keep, c.max_position_embeddings));
  shape.kept = number(shape.rows() + H * (4 * D + 3 * 2 * D + 4 * M + 6 * D)) + 2 * kept * number(H * D);
  shape.flops_of_token = number(H) * 2 * number(2 * D * 4 * D + M * 2 * D + 3 * M * H) +
                         4 * number(H * D * (2 * D + 1)) + 4 * kept * number(H * D);
  shape.cached = 2 * G * D;
  shape.state = G * D * (2 * D + 1) + G * D;
  return shape;
}

}  // namespace

const MixerKind kEstimated{"estimated", estimated_problem, estimated_shape};

}  // namespace isentrope::model
