// The keys of each kind of mixer but softmax, whose keys are those of model.attention.
#pragma once
#include <cstdint>
#include <string>

#include "csrc/field.h"

namespace isentrope::model {

struct SoftmaxRnnMixerConfig {
  std::string denominator = "none";
  std::string norm = "rms";
  bool value_gate = false;
  bool output_gate = false;
  double clamp = 5.0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("denominator", denominator,
      "What Σ e^s v is divided by: Z = Σ e^s (sum), max(1, Z) (max_one), Z without its gradient (detached), the number "
      "of keys in sight (count), or nothing (none).",
      one_of({"sum", "max_one", "detached", "count", "none"}));
    v("norm", norm,
      "Norm of each head's result in the place of a denominator: RMSNorm, LayerNorm without a bias, length 1 (l2), or "
      "none. It has no scale, so that the denominator is sum or none with it, which are one.",
      one_of({"none", "rms", "layer", "l2"}));
    v("value_gate", value_gate, "Values times the sigmoid of a projection of their token, one a key head.");
    v("output_gate", output_gate,
      "Results, behind the norm, times the sigmoid of a projection of the token, one a head.");
    v("clamp", clamp,
      "Without a norm, and with max_one, count or none: logits s become clamp · tanh(s / clamp), so that e^s has a "
      "bound. The paper's code takes min(s, 5).",
      above_to(0, 40));
  }
};

struct LinearMixerConfig {
  std::string feature_map = "elu_plus_one";
  bool normalizer = true;
  std::string decay = "none";
  int64_t conv_size = 1;

  template <class Visitor>
  void visit(Visitor& v) {
    v("feature_map", feature_map,
      "What queries and keys go through before their product: elu_plus_one (arXiv 2006.16236), relu, exp_normalized, "
      "the softmax over a head's elements (arXiv 2402.04347), or taylor2, whose product is 1 + s + s²/2 with s = q·k / "
      "√D (arXiv 2402.18668) and whose state is (D + 1)(D + 2) / 2 high.",
      one_of({"elu_plus_one", "relu", "exp_normalized", "taylor2"}));
    v("normalizer", normalizer, "Divide a row by the sum of its weights.");
    v("decay", decay,
      "What the state keeps from a token to the next: all of it (none), a learned share a head, or one a head and "
      "token, which the token sets.",
      one_of({"none", "head", "token"}));
    v("conv_size", conv_size,
      "Tokens that a causal convolution of each channel of q, k and v sees, with a SiLU behind it; 1: neither.",
      between(1, 64));
  }
};

struct PrefixLinearMixerConfig {
  std::string feature_map = "taylor2";
  int64_t conv_size = 1;
  double prefix = 0.5;
  double mask_weight = 0.25;
  double mask_share = 0.15;

  template <class Visitor>
  void visit(Visitor& v) {
    v("feature_map", feature_map, "As linear.feature_map; the paper has taylor2, of small heads.",
      one_of({"elu_plus_one", "relu", "exp_normalized", "taylor2"}));
    v("conv_size", conv_size,
      "Tokens that a causal convolution of each channel of q, of both k and of both v sees, with a SiLU behind it; 1: "
      "neither.",
      between(1, 64));
    v("prefix", prefix,
      "Text (pretrain): tokens at the start of a sequence that are its prefix, or below 1 their share of it. Elsewhere "
      "the prompt is the prefix.",
      above_to(0, 1 << 24));
    v("mask_weight", mask_weight,
      "Phases pretrain and sft: weight of the mean cross-entropy of prefix tokens that are hidden from the model, "
      "beside that of the next tokens behind the prefix; 0: none is hidden (the authors: 0.25).",
      at_least(0));
    v("mask_share", mask_share, "Share of the tokens of a prefix that are hidden, drawn anew in every update.",
      between(0, 1));
  }
};

struct RoutedMixerConfig {
  std::string assign = "argmax";
  int64_t clusters = 8;
  int64_t window = 32;
  int64_t local_window = 32;
  double decay = 0.999;

  template <class Visitor>
  void visit(Visitor& v) {
    v("assign", assign,
      "argmax: a token belongs to the cluster whose centre is nearest to its query, and sees the last tokens of it. "
      "balanced, as published: each cluster takes the tokens nearest to its centre, as many for all; which these are "
      "depends on later tokens, so that a model can be trained on text (pretrain) and cannot decode.",
      one_of({"argmax", "balanced"}));
    v("clusters", clusters,
      "Clusters of a routed head, best about the square root of the length; half of the heads are routed.",
      between(1, 1 << 16));
    v("window", window, "Tokens of a cluster: the last that a token sees (argmax), or those it takes (balanced).",
      between(1, 1 << 20));
    v("local_window", local_window, "Tokens that a head that is not routed sees, itself and those just before it.",
      between(1, 1 << 20));
    v("decay", decay, "Of the moving mean of unit queries, over updates, that a centre is.", between(0, 1));
  }
};

struct NormalizedMixerConfig {
  std::string denominator = "exp";
  int64_t conv_size = 1;

  template <class Visitor>
  void visit(Visitor& v) {
    v("denominator", denominator,
      "What stands in place of the sum of the weights, which may be negative: exp, softplus or sigmoid of a learned "
      "projection of the token, one a head, or rms, an RMSNorm over the head's output.",
      one_of({"exp", "softplus", "sigmoid", "rms"}));
    v("conv_size", conv_size,
      "Tokens that a causal convolution of each channel of q, k and v sees, with a SiLU behind it; 1: neither.",
      between(1, 64));
  }
};

struct GatedDeltaMixerConfig {
  int64_t expand_v = 2;
  int64_t conv_size = 4;
  bool allow_negative = false;

  template <class Visitor>
  void visit(Visitor& v) {
    v("expand_v", expand_v, "A value has expand_v times as many elements as a key.", between(1, 16));
    v("conv_size", conv_size,
      "Tokens that the causal convolution of each channel of q, k and v sees, with a SiLU behind it; 1: neither.",
      between(1, 64));
    v("allow_negative", allow_negative,
      "Write strengths up to 2 in place of 1, so that a step may turn what the state says of its key.");
  }
};

struct SsdMixerConfig {
  int64_t expand_v = 2;
  int64_t conv_size = 4;

  template <class Visitor>
  void visit(Visitor& v) {
    v("expand_v", expand_v, "A head's input has expand_v times as many elements as head_dim, the state's height.",
      between(1, 16));
    v("conv_size", conv_size,
      "Tokens that the causal convolution of each channel of x, B and C sees, with a SiLU behind it; 1: neither.",
      between(1, 64));
  }
};

struct NatslMixerConfig {
  int64_t chunk = 64;
  int64_t conv_size = 4;
  bool allow_negative = false;

  template <class Visitor>
  void visit(Visitor& v) {
    v("chunk", chunk,
      "Tokens that are routed together, a multiple of 16: tokens behind a chunk see it by softmax attention or in the "
      "state of the gated delta rule, its own tokens by both.",
      between(16, 256));
    v("conv_size", conv_size,
      "Tokens that the causal convolution of each channel of q, k and v sees, with a SiLU behind it; 1: neither.",
      between(1, 64));
    v("allow_negative", allow_negative, "As gated_delta.allow_negative.");
  }
};

struct EstimatedMixerConfig {
  int64_t columns = 64;
  int64_t keep = 16;
  std::string feature_map = "elu_plus_one";
  double self_weight = 0.1;

  template <class Visitor>
  void visit(Visitor& v) {
    v("columns", columns,
      "Columns of the estimated attention matrix: a row with n tokens in sight has them in so many cells of n / "
      "columns "
      "tokens (the authors: 128 or 256).",
      between(2, 4096));
    v("keep", keep,
      "Tokens that a row keeps of a head's, mean over its heads: the cells of the largest estimates of all of them. "
      "Itself is always among them (the authors: 7 to 64).",
      between(1, 1 << 16));
    v("feature_map", feature_map, "Of the linear attention that the estimate is made of, as linear.feature_map.",
      one_of({"elu_plus_one", "exp_normalized"}));
    v("self_weight", self_weight,
      "Weight of the divergence of the estimate from the layer's own attention over all tokens, from which it learns "
      "where no teacher is (objective distill); 0: from nothing.",
      at_least(0));
  }
};

struct HierarchicalMixerConfig {
  int64_t branching = 8;

  template <class Visitor>
  void visit(Visitor& v) {
    v("branching", branching,
      "Tokens of a family, and families of the next: a token weighs each token of its own family, and of the others' "
      "means.",
      between(2, 4096));
  }
};

}  // namespace isentrope::model
