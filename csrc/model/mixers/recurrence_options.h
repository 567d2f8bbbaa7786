// What a recurrence (recurrence.h) is by the configuration, its shape, and the kinds that are one by their options.
#pragma once
#include <algorithm>
#include <string>

#include "csrc/model/mixer_shape.h"

namespace isentrope::model {

struct RecurrenceOptions {
  int64_t queries, keys,
      values;    // heads of q, k and v; the state has as many as the values, or as the keys where those are more
  int64_t D, E;  // elements of a query or key, and of a value
  std::string feature_map = "none";  // or one of LinearMixerConfig
  int64_t conv_size = 1;
  bool unit = false;                 // queries and keys of length 1
  double scale = 1;                  // of queries
  bool normalizer = false;           // out is divided by the row's weight
  double beta = 0;                   // most of the delta rule's strength; 0: no delta rule
  std::string decay = "none";        // head, token
  bool steps = false;                // values are written times the token's step Δ, and added to the result times D
  std::string denominator = "none";  // exp, softplus, sigmoid
  bool norm = false;                 // RMSNorm over a head's result
  bool prefix = false;               // a second key and value, of a prefix that the state begins with
  bool gate = false;                 // times silu(g); before the norm with steps, behind it without

  // Whether a row's weights φ(q)·φ(k) are never below 0, and what writes them takes nothing away.
  bool weighs() const { return feature_map != "none" && beta == 0; }
  int64_t states() const { return std::max(keys, values); }
  int64_t heads() const { return std::max(queries, states()); }  // of the result
  int64_t features() const;                                      // height of the state
  int64_t width() const { return E + (normalizer ? 1 : 0); }     // of the state
  int64_t written() const { return keys * D + values * E; }      // keys and values of a token
  int64_t channels() const { return queries * D + (prefix ? 2 : 1) * written(); }
};

MixerShape recurrence_shape(const RecurrenceOptions& options);
// What speaks against these options of the configuration in a layer without softmax; "" if nothing does.
std::string recurrence_problem(const DecoderConfig& config, int64_t layer);

// The kind whose options are these of the configuration.
template <RecurrenceOptions (*options)(const DecoderConfig&)>
constexpr MixerKind recurrence_kind(const char* name) {
  return {name, recurrence_problem, [](const DecoderConfig& config) { return recurrence_shape(options(config)); }};
}

}  // namespace isentrope::model
