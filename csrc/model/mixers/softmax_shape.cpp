#include "csrc/model/mixers/kinds.h"
#include "csrc/model/mixers/softmax_options.h"

namespace isentrope::model {

namespace {

// The values of these have no bound but that of the logits.
bool clamped(const std::string& denominator) {
  return denominator == "max_one" || denominator == "count" || denominator == "none";
}

std::string softmax_problem(const DecoderConfig&, int64_t) { return ""; }

std::string softmax_rnn_problem(const DecoderConfig& c, int64_t) {
  const auto& [denominator, norm, value_gate, output_gate, clamp] = c.softmax_rnn;
  if (norm != "none" && denominator != "sum" && denominator != "none")
    return "softmax_rnn.denominator: " + denominator + " only scales a row, and softmax_rnn.norm (" + norm +
           ") takes the scale of a row away; leave it at none, or write norm: none";
  if (norm == "none" && clamped(denominator) && c.attention.softcap > 0)
    return "attention.softcap: layers of kind softmax_rnn whose denominator is " + denominator +
           " have softmax_rnn.clamp in its place; leave it at 0";
  return "";
}

MixerShape shape_of(const DecoderConfig& c, const SoftmaxOptions& r) {
  const int64_t D = c.head_size(), HD = c.num_attention_heads * D, GD = c.num_key_value_heads * D;
  MixerShape shape;
  shape.parts = {{"q", HD}, {"k", GD}, {"v", GD}};
  if (r.value_gate) shape.parts.emplace_back("value_gate", c.num_key_value_heads);
  if (r.output_gate) shape.parts.emplace_back("output_gate", c.num_attention_heads);
  shape.output = HD;
  shape.others = r.weighed_norm() ? D : 0;
  const auto heads = static_cast<double>(HD + GD);  // before their norms
  shape.kept = static_cast<double>(2 * HD + 2 * GD) + 3 * static_cast<double>(c.num_attention_heads) +
               (c.attention.qk_norm ? 2 * heads : 0) + (r.value_gate ? static_cast<double>(GD) : 0) +
               ((r.scaled() ? 1 : 0) + (r.norm != "none" ? 1 : 0) + (r.output_gate ? 1 : 0)) * static_cast<double>(HD);
  shape.flops_of_pair = (c.causal ? 4 : 8) * static_cast<double>(HD);  // pairs are counted as if causal
  shape.cached = 2 * GD;
  shape.attends = true;
  return shape;
}

MixerShape softmax_shape(const DecoderConfig& c) { return shape_of(c, softmax_options(c)); }
MixerShape softmax_rnn_shape(const DecoderConfig& c) { return shape_of(c, softmax_rnn_options(c)); }

}  // namespace

SoftmaxOptions softmax_options(const DecoderConfig& c) { return {.softcap = c.attention.softcap}; }

SoftmaxOptions softmax_rnn_options(const DecoderConfig& c) {
  const SoftmaxRnnMixerConfig& o = c.softmax_rnn;
  SoftmaxOptions r{
      .softcap = c.attention.softcap, .norm = o.norm, .value_gate = o.value_gate, .output_gate = o.output_gate};
  if (o.norm != "none") return r;  // it is scale-free: of the softmax's rows as of those without a denominator
  r.denominator = o.denominator;
  if (clamped(o.denominator)) r.softcap = o.clamp;
  return r;
}

const MixerKind kSoftmax{"softmax", softmax_problem, softmax_shape};
const MixerKind kSoftmaxRnn{"softmax_rnn", softmax_rnn_problem, softmax_rnn_shape};

}  // namespace isentrope::model
