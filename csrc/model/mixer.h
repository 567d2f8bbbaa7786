// What stands between the norm and the residual sum of a block: softmax attention, or a recurrence. A kind is one file pair of
// csrc/model/mixers/, one line of mixer_kind() and one of make_mixer(); nothing outside that folder asks which kind a layer has.
//
// N tokens, C width, H query heads, G key/value heads, D head size.
#pragma once
#include <torch/nn/module.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "csrc/model/attention_record.h"
#include "csrc/model/decoder_config.h"
#include "csrc/model/linear.h"
#include "csrc/model/mixer_shape.h"
#include "csrc/model/origin.h"
#include "csrc/model/packing.h"
#include "csrc/model/places.h"

namespace isentrope::model {

class AtenMixerSession;
template <class Storage>
class PackedMixer;
template <class Storage>
class Packer;

// What a mixer is made with. The weights drawn are those of the next streams.
struct MixerBuilder {
  const DecoderConfig& config;
  int64_t layer;
  torch::nn::Module& block;
  std::function<torch::Tensor(at::IntArrayRef sizes, double std)> normal;
  std::function<torch::Tensor(at::IntArrayRef sizes, double low, double high)> uniform;
  std::function<Projection(const std::string& name, torch::Tensor weight, bool bias, const std::vector<SigmaPart>&)>
      projection;
};

// What every layer of a forward pass is given.
struct MixerPass {
  const torch::Tensor &cosine, &sine;  // [T, D/2], or [B · T, D/2] of packed rows
  const Packing* packing;              // null: rows of T tokens, a sequence each
  const torch::Tensor& prefix;         // [N] bool: csrc/model/places.h; undefined: no sequence has one
  AttentionRecord* record;             // null: nothing is told
  bool keeps_inputs;                   // products keep their inputs in the place of their origins
  const torch::Tensor& lengths;  // [B] int64, of encoders: tokens behind them are padding; undefined: there is none
};

// A weight beside the two projections: its place, and its name under model.layers.N.
struct MixerWeight {
  std::string name;  // "self_attn.q_norm.weight"
  torch::Tensor* tensor;
  bool wide = false;  // stays float where decoding has the others in bfloat16
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // x [N, C], the block's normed input, and what it was made of → [N, C]. Causal, unless model.causal is false, and no sequence sees
  // another.
  virtual torch::Tensor forward(const torch::Tensor& x, const Origin& origin, const MixerPass& pass) const = 0;

  // A mixer with the same weights, whose projections are its own to change.
  virtual std::shared_ptr<Mixer> clone() const = 0;
  // Registers what stands behind the weights of the MLP in the order of parameters.
  virtual void register_rest(const MixerBuilder&) {}
  // Weights beside the projections, those that are undefined too.
  virtual std::vector<MixerWeight> others() { return {}; }

  // What the passes with gradients of an update have summed up, for centres that no gradient reaches or to be told, to be added over
  // ranks and taken over behind the update; undefined where the kind has none.
  virtual torch::Tensor seen() const { return {}; }
  virtual void take(const torch::Tensor&) {}
  // [H]: of the tokens of the last update that was taken, all ranks', the share that is seen by softmax attention; undefined where the
  // kind has no such choice, and before.
  virtual torch::Tensor softmax_share() const { return {}; }

  // [H, 2] likewise: the divergence of an estimate from the attention that it was compared with, nats, and the share of that attention at
  // the tokens that the estimate has chosen; undefined where the kind has none, before, and where nothing was compared.
  virtual torch::Tensor estimate() const { return {}; }

  // Decoding (csrc/model/mixer_decode.h): the weights in ATen, which are this mixer's, and a session's memory; or packed for the CPU.
  virtual std::unique_ptr<AtenMixerSession> session(int64_t pages, int64_t history) const = 0;
  virtual std::unique_ptr<PackedMixer<float>> packed(const Packer<float>& packer) const = 0;
  virtual std::unique_ptr<PackedMixer<uint16_t>> packed(const Packer<uint16_t>& packer) const = 0;

  // QK-clip of the layer for max_logit [H]: Decoder::qk_clip. Returns the number of heads that were above.
  virtual int64_t qk_clip(const std::vector<double>&) { return 0; }

  // weight_of each part of the two projections, under the names of transformers' modules: [("self_attn.q_proj.weight", …), …].
  std::vector<std::pair<std::string, torch::Tensor>> matrices(torch::Tensor weight_of(const Projection&)) const;
  std::vector<std::pair<std::string, torch::Tensor>> biases() const;

  Projection qkv;  // of the block's input, joined: [shape.rows(), C]
  Projection o;    // [C, shape.output]
  MixerShape shape;

 protected:
  explicit Mixer(const MixerBuilder& builder, bool bias, bool output_bias);
  const DecoderConfig config_;
  const int64_t layer_;
};

std::shared_ptr<Mixer> make_mixer(const MixerBuilder& builder);

}  // namespace isentrope::model
