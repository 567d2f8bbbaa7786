// A layer's mixer (mixer.h) in numbers, and what it asks of the configuration. No tensors: plans and readers of configurations need
// no model.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "csrc/model/decoder_config.h"

namespace isentrope::model {

// What memory, arithmetic and optimisers are planned by.
struct MixerShape {
  // Rows of the joined projection of the block's input [Σ rows, C], by part; the first three are q, k and v.
  std::vector<std::pair<std::string, int64_t>> parts;
  int64_t output = 0;         // columns of the projection back, o [C, output]
  int64_t others = 0;         // numbers of all other weights
  double kept = 0;            // numbers that the backward pass keeps of a token
  double flops_of_token = 0;  // of a forward pass, beside the two projections
  double flops_of_pair = 0;   // for each query and key in sight
  int64_t cached = 0;         // numbers that decoding keeps of every position, in pages
  int64_t state = 0;          // floats that decoding keeps of a sequence, however long
  bool attends = false;       // whether its rows are a softmax, which AttentionRecord tells of
  int64_t sight = 0;          // keys that a row sees at most, where attention.window does not say; 0: it does
  bool reads_prefix = false;  // whether a prefix is read as a whole (csrc/model/places.h)
  bool estimates = false;     // whether it learns an estimate of its own attention (AttentionRecord::losses)
  bool decodes = true;        // whether a token's output depends on those before it alone

  int64_t rows() const;
};

struct MixerKind {
  const char* name;
  // What is wrong with a layer of the kind, "attention.window: …"; "" if nothing is.
  std::string (*problem)(const DecoderConfig& config, int64_t layer);
  MixerShape (*shape)(const DecoderConfig& config);
};

bool is_mixer_kind(const std::string& name);
// Throws std::invalid_argument where there is no such kind.
const MixerKind& mixer_kind(const std::string& name);
MixerShape mixer_shape(const DecoderConfig& config, int64_t layer);
// Whether some layer's shape has it.
bool any_mixer(const DecoderConfig& config, bool MixerShape::*what);
// The first layer whose mixer does not decode; -1: all do.
int64_t undecodable_layer(const DecoderConfig& config);
// Layers whose mixer attends.
int64_t attending_layers(const DecoderConfig& config);

}  // namespace isentrope::model
