#include "csrc/train/config_values.h"

#include "csrc/train/config_fields.h"

namespace isentrope::train {
namespace {

class Lister {
 public:
  template <class T>
  void operator()(const char* name, T& member, const char*, const Allowed& = {}) {
    if constexpr (std::is_same_v<T, data::Settings>)
      for (const auto& [key, value] : member) values[child_path(path_, key)] = value;
    else
      add(child_path(path_, name), member);
  }
  std::map<std::string, std::string> values;

 private:
  template <class T>
  void add(const std::string& path, T& member) {
    if constexpr (Section<T>) {
      const std::string outer = std::exchange(path_, path);
      member.visit(*this);
      path_ = outer;
    } else if constexpr (is_optional<T>) {
      if (member)
        add(path, *member);
      else
        values[path] = "null";
    } else if constexpr (is_one_or_more<T>) {  // however it is written
      if (member.empty()) values[path] = "null";
      for (size_t i = 0; i < member.size(); ++i)
        add(member.size() == 1 ? path : child_path(path, std::to_string(i)), member[i]);
    } else if constexpr (is_list<T>) {
      if constexpr (Section<typename T::value_type>) {
        for (size_t i = 0; i < member.size(); ++i) add(child_path(path, name_of(member[i], i)), member[i]);
      } else {
        values[path] = to_text(member);
      }
    } else {
      values[path] = to_text(member);
    }
  }
  static std::string name_of(const PhaseConfig& phase, size_t) { return phase.name; }
  template <class T>
  static std::string name_of(const T&, size_t place) {
    return std::to_string(place);
  }

  std::string path_;
};

// visit() is one function for readers and writers, and so not const: hence the copies.
template <class T>
std::map<std::string, std::string> listed(T copy) {
  Lister lister;
  copy.visit(lister);
  return lister.values;
}

}  // namespace

std::map<std::string, std::string> values_of(const TrainConfig& config) { return listed(config); }
std::map<std::string, std::string> values_of(const model::DecoderConfig& config) { return listed(config); }

// The others say how weights are trained or computed.
const std::set<std::string>& keys_of_meaning() {
  static const std::set<std::string> kKeys{"num_hidden_layers",
                                           "hidden_size",
                                           "num_attention_heads",
                                           "num_key_value_heads",
                                           "head_dim",
                                           "intermediate_size",
                                           "rope_theta",
                                           "rope_scaling.rope_type",
                                           "rope_scaling.factor",
                                           "rope_scaling.original_max_position_embeddings",
                                           "rope_scaling.attention_factor",
                                           "rope_scaling.beta_fast",
                                           "rope_scaling.beta_slow",
                                           "rope_scaling.mscale",
                                           "rope_scaling.mscale_all_dim",
                                           "rope_scaling.truncate",
                                           "rope_scaling.low_freq_factor",
                                           "rope_scaling.high_freq_factor",
                                           "rms_norm_eps",
                                           "norm",
                                           "tie_word_embeddings",
                                           "mlp_bias",
                                           "activation",
                                           "causal",
                                           "num_labels",
                                           "mixers",
                                           "softmax_rnn.denominator",
                                           "softmax_rnn.norm",
                                           "softmax_rnn.value_gate",
                                           "softmax_rnn.output_gate",
                                           "softmax_rnn.clamp",
                                           "linear.feature_map",
                                           "linear.normalizer",
                                           "linear.decay",
                                           "linear.conv_size",
                                           "prefix_linear.feature_map",
                                           "prefix_linear.conv_size",
                                           "routed.assign",
                                           "routed.clusters",
                                           "routed.window",
                                           "routed.local_window",
                                           "normalized.denominator",
                                           "normalized.conv_size",
                                           "gated_delta.expand_v",
                                           "gated_delta.conv_size",
                                           "gated_delta.allow_negative",
                                           "ssd.expand_v",
                                           "ssd.conv_size",
                                           "natsl.chunk",
                                           "natsl.conv_size",
                                           "natsl.allow_negative",
                                           "estimated.columns",
                                           "estimated.keep",
                                           "estimated.feature_map",
                                           "hierarchical.branching",
                                           "attention.window",
                                           "attention.layer_types",
                                           "attention.softcap",
                                           "attention.qk_norm",
                                           "attention.bias",
                                           "attention.temperature"};
  return kKeys;
}

}  // namespace isentrope::train
