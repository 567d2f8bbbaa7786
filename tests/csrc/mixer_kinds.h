// Small decoders of every kind of mixer, with the options that change what is computed.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "csrc/model/decoder.h"

namespace isentrope::model {

inline DecoderConfig small_mixers(std::vector<std::string> mixers) {
  DecoderConfig c;
  c.num_hidden_layers = 2;
  c.hidden_size = 32;
  c.num_attention_heads = 4;
  c.num_key_value_heads = 2;
  c.intermediate_size = 48;
  c.max_position_embeddings = 96;
  c.vocabulary = 29;
  c.mixers = std::move(mixers);
  return c;
}

inline std::vector<std::pair<std::string, DecoderConfig>> mixer_cases() {
  std::vector<std::pair<std::string, DecoderConfig>> cases{{"softmax", small_mixers({"softmax"})}};
  const auto rows = [&](const std::string& name, SoftmaxRnnMixerConfig options, auto change) {
    cases.emplace_back("softmax_rnn " + name, small_mixers({"softmax_rnn"}));
    cases.back().second.softmax_rnn = options;
    change(cases.back().second);
  };
  const auto nothing = [](DecoderConfig&) {};
  rows("rms", {}, nothing);
  rows("layer, gates", {.norm = "layer", .value_gate = true, .output_gate = true},
       [](DecoderConfig& c) { c.attention.bias = "all"; });
  rows("l2, value gate", {.norm = "l2", .value_gate = true}, [](DecoderConfig& c) { c.attention.qk_norm = true; });
  rows("max_one", {.denominator = "max_one", .norm = "none"}, nothing);
  rows("detached, output gate", {.denominator = "detached", .norm = "none", .output_gate = true}, nothing);
  rows("count, gates", {.denominator = "count", .norm = "none", .value_gate = true, .output_gate = true},
       [](DecoderConfig& c) { c.attention.window = 9; });
  rows("none", {.denominator = "none", .norm = "none", .clamp = 2},
       [](DecoderConfig& c) { c.attention.temperature = "head"; });
  for (const char* map : {"elu_plus_one", "relu", "exp_normalized", "taylor2"}) {
    cases.emplace_back(std::string("linear ") + map, small_mixers({"linear"}));
    cases.back().second.linear.feature_map = map;
  }
  for (const char* decay : {"head", "token"}) {
    cases.emplace_back(std::string("linear decay ") + decay, small_mixers({"linear"}));
    cases.back().second.linear.decay = decay;
    cases.back().second.linear.conv_size = 3;
  }
  cases.emplace_back("linear without normalizer", small_mixers({"linear"}));
  cases.back().second.linear.normalizer = false;
  cases.emplace_back("prefix_linear", small_mixers({"prefix_linear"}));
  cases.emplace_back("prefix_linear convolved", small_mixers({"prefix_linear"}));
  cases.back().second.prefix_linear = {.feature_map = "elu_plus_one", .conv_size = 3};
  cases.emplace_back("prefix_linear behind softmax", small_mixers({"softmax", "prefix_linear"}));
  cases.emplace_back("routed", small_mixers({"routed"}));
  cases.back().second.num_key_value_heads = 4;
  cases.back().second.routed = {.clusters = 3, .window = 7, .local_window = 5};
  for (const char* denominator : {"exp", "softplus", "sigmoid", "rms"}) {
    cases.emplace_back(std::string("normalized ") + denominator, small_mixers({"normalized"}));
    cases.back().second.normalized.denominator = denominator;
  }
  cases.emplace_back("gated_delta", small_mixers({"gated_delta"}));
  cases.emplace_back("gated_delta plain", small_mixers({"gated_delta"}));
  cases.back().second.gated_delta = {.expand_v = 1, .conv_size = 1, .allow_negative = true};
  cases.emplace_back("ssd", small_mixers({"ssd"}));
  const auto routed_chunks = [&](const std::string& name, std::vector<std::string> mixers, NatslMixerConfig options) {
    cases.emplace_back(name, small_mixers(std::move(mixers)));
    cases.back().second.num_key_value_heads = 4;
    cases.back().second.natsl = options;
  };
  routed_chunks("natsl", {"natsl"}, {.chunk = 16});
  routed_chunks("natsl plain", {"natsl"}, {.chunk = 16, .conv_size = 1, .allow_negative = true});
  routed_chunks("natsl of longer chunks", {"natsl", "gated_delta"}, {.chunk = 32, .conv_size = 2});
  cases.emplace_back("estimated", small_mixers({"estimated"}));
  cases.back().second.estimated = {.columns = 8, .keep = 3};
  cases.emplace_back("estimated of many cells", small_mixers({"estimated", "linear"}));
  cases.back().second.estimated = {.columns = 40, .keep = 5, .feature_map = "exp_normalized"};
  cases.emplace_back("hybrid", small_mixers({"gated_delta", "softmax"}));
  cases.emplace_back("hybrid of softmax", small_mixers({"softmax", "softmax_rnn"}));
  cases.emplace_back("hybrid of two recurrences", small_mixers({"linear", "ssd"}));
  cases.emplace_back("softmax alone", small_mixers({"softmax"}));
  cases.back().second.norm = cases.back().second.activation = "none";
  cases.back().second.attention.temperature = "row";
  cases.emplace_back("merged MLP between norms", small_mixers({"softmax_rnn", "gated_delta"}));
  cases.back().second.activation = "none";
  return cases;
}

// Weights larger than at the start: distributions far from uniform.
inline Decoder made(const DecoderConfig& config, uint64_t seed = 5) {
  Decoder decoder(config, seed);
  const torch::NoGradGuard no_grad;
  for (const auto& [name, weight] : decoder->named_weights()) {
    // Without norms the stream is as small as the embedding.
    const bool small = name == "lm_head.weight" || (config.norm == "none" && name == "model.embed_tokens.weight");
    if (weight.dim() == 2) weight.mul_(small ? 20 : 1.5);
    if (name.ends_with("mlp.alpha")) weight.mul_(1.7);
    if (name.ends_with("mlp.beta")) weight.mul_(0.8);
  }
  return decoder;
}

}  // namespace isentrope::model
