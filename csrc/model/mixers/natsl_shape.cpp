#include <cmath>

#include "csrc/model/mixers/kinds.h"
#include "csrc/model/mixers/natsl_options.h"

namespace isentrope::model {

RecurrenceOptions natsl_options(const DecoderConfig& c) {
  const int64_t D = c.head_size(), H = c.num_attention_heads;
  RecurrenceOptions r{.queries = H, .keys = H, .values = H, .D = D, .E = D};
  r.conv_size = c.natsl.conv_size;
  r.unit = true;
  r.scale = 1 / std::sqrt(static_cast<double>(D));
  r.beta = c.natsl.allow_negative ? 2 : 1;
  r.decay = "token";
  r.norm = true;
  r.gate = true;
  return r;
}

namespace {

std::string natsl_problem(const DecoderConfig& c, int64_t layer) {
  const AttentionConfig& a = c.attention;
  const std::string of = ": layers of kind natsl have none, and layer " + std::to_string(layer) + " is one; leave it ";
  if (a.bias != "none") return "attention.bias" + of + "at none";
  if (a.temperature != "none") return "attention.temperature" + of + "at none";
  if (a.softcap > 0) return "attention.softcap" + of + "at 0";
  if (a.qk_clip > 0) return "attention.qk_clip" + of + "at 0";
  if (a.qk_norm)
    return "attention.qk_norm: layers of kind natsl have norms of queries and keys of their own, and layer " +
           std::to_string(layer) + " is one; leave it at false";
  if (c.num_key_value_heads != c.num_attention_heads)
    return "num_key_value_heads: " + std::to_string(c.num_key_value_heads) +
           "; heads of kind natsl have keys and values of their own: write num_attention_heads (" +
           std::to_string(c.num_attention_heads) + ")";
  const std::string chunk = "natsl.chunk: " + std::to_string(c.natsl.chunk);
  if (c.natsl.chunk % 16 != 0) return chunk + " is no multiple of 16; wanted 16, 32, 48 … 256";
  if (c.compute == "bfloat16" && c.natsl.chunk % 64 != 0)
    return chunk + ", and with model.compute bfloat16 blocks of keys are of 64; wanted a multiple of 64";
  return "";
}

MixerShape natsl_shape(const DecoderConfig& c) {
  const int64_t D = c.head_size(), H = c.num_attention_heads, HD = H * D;
  const auto number = [](int64_t x) { return static_cast<double>(x); };
  MixerShape shape = recurrence_shape(natsl_options(c));
  shape.parts.emplace_back("route", 2 * H);
  shape.others += 2 * H + 4 * D + 2 * D;
  shape.kept += number(8 * HD + 3 * H);  // both results and their norms, queries and keys behind theirs
  shape.flops_of_pair = 4 * number(HD);  // as if every chunk were softmax attention's
  shape.cached = 2 * HD;
  shape.state += HD * D + 2 * H;  // what the state was before the chunk, and the router's sums
  shape.attends = true;
  shape.sight = c.max_position_embeddings;
  return shape;
}

}  // namespace

const MixerKind kNatsl{"natsl", natsl_problem, natsl_shape};

}  // namespace isentrope::model
