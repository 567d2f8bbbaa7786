#include "csrc/model/decode.h"

#include <algorithm>
#include <vector>

#include "csrc/model/bfloat16_linear.h"
#include "csrc/model/cpu_kernels.h"
#include "csrc/model/layers.h"
#include "csrc/model/mixer_decode.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

template <class Storage>
struct PackedLayer {
  Tensor input_norm;  // norms [C] or undefined
  std::unique_ptr<PackedMixer<Storage>> mixer;
  MixerShape shape;
  Tensor post_norm;
  PackedWeight gate_up, down;
  float alpha = 1, beta = 1;  // with model.activation none
  Tensor epsilon = {};        // [1], with model.activation crrelu
};

// Storage: float, or uint16_t for matrices and cache in bfloat16.
template <class Storage>
class PackedModel : public DecodeModel {
 public:
  explicit PackedModel(const Decoder& decoder)
      : config(decoder->config()),
        embedding(packer.stored(decoder->embedding().detach())),
        final_norm(packer.copy(decoder->final_norm())),
        head(packer.weight(folded(decoder->head()).slice(0, 0, config.token_count()))),
        cosine(decoder->cosine().to(torch::kFloat32)),
        sine(decoder->sine().to(torch::kFloat32)) {
    for (const LayerWeights& layer : decoder->layers()) {
      layers.push_back(
          {packer.copy(layer.input_norm), layer.mixer->packed(packer), layer.mixer->shape, packer.copy(layer.post_norm),
           config.merged_mlp() ? PackedWeight() : packer.weight(layer.gate_up), packer.weight(layer.down)});
      if (layer.epsilon.defined()) layers.back().epsilon = layer.epsilon.detach();
      if (!config.merged_mlp()) continue;
      layers.back().alpha = layer.alpha.item<float>();
      layers.back().beta = layer.beta.item<float>();
    }
  }

  std::unique_ptr<DecodeSession> session(int64_t pages, int64_t rows, int64_t history, const Pruning* pruning,
                                         int64_t later_pages) const override;
  // The processor's products of bfloat16 are worth as many rows as a panel of weight serves from the cache.
  int64_t preferred_rows() const override { return packer.pairs ? 64 : 24; }
  bool parallel() const override { return true; }
  bool reads_prefix() const override { return any_mixer(config, &MixerShape::reads_prefix); }

  static const Storage* data(const Tensor& x) { return static_cast<const Storage*>(x.const_data_ptr()); }
  // The widest projections of a layer's input and of what it mixes.
  int64_t widest(int64_t (*width)(const MixerShape&)) const {
    int64_t most = 0;
    for (const PackedLayer<Storage>& layer : layers) most = std::max(most, width(layer.shape));
    return most;
  }

  const Packer<Storage> packer;
  DecoderConfig config;
  Tensor embedding, final_norm;
  PackedWeight head;
  Tensor cosine, sine;
  std::vector<PackedLayer<Storage>> layers;
};

template <class Storage>
class PackedSession : public DecodeSession {
 public:
  PackedSession(const PackedModel<Storage>& model, int64_t pages, int64_t rows, int64_t history, const Pruning* pruning,
                int64_t later_pages)
      : DecodeSession(model.config.num_hidden_layers, rows, pruning),
        model_(model),
        pages_(
            pages,
            [this](int32_t from, int32_t to) {
              for (int64_t l = 0; l < cut_; ++l) layers_[l]->copy_page(from, to);
            },
            [this](int64_t from, int64_t to) {
              for (const auto& layer : layers_) layer->copy_state(from, to);
            }),
        later_(later_pages,
               [this](int32_t from, int32_t to) {
                 for (int64_t l = cut_; l < std::ssize(layers_); ++l) layers_[l]->copy_page(from, to);
               }),
        scratch_(rows, model.widest([](const MixerShape& s) { return s.rows(); }),
                 model.widest([](const MixerShape& s) { return s.output; }),
                 model.config.num_attention_heads * pages_of(model.config.max_position_embeddings) * kPagePositions,
                 model.cosine, model.sine),
        x_(buffer(rows, model.config.hidden_size)),
        normed_(buffer(rows, model.config.hidden_size)),
        gate_up_(buffer(rows, model.config.mlp_rows())),
        inner_(buffer(rows, model.config.merged_mlp() ? model.config.hidden_size : model.config.intermediate_size)),
        logits_(buffer(rows, model.config.token_count())) {
    for (int64_t l = 0; l < model.config.num_hidden_layers; ++l)
      layers_.push_back(model.layers[l].mixer->session(l < cut_ ? pages : later_pages, history));
    if (pruning) pages_.lead(later_);
  }

  Logits step(std::span<const DecodeRow> rows, int64_t logits_from, bool prefix) override {
    scratch_.prefix = prefix;
    const int64_t n = rows.size();
    for (int64_t i = 0; i < n; ++i) embed(rows[i].token, row(x_, i));
    run(rows, 0, cut_);
    if (cut_ < layer_count_) {
      behind_.assign(rows.begin(), rows.end());
      for (DecodeRow& one : behind_) one.slot = one.position - pages_.shorter(one.sequence);
      run(behind_, cut_, layer_count_);
    }
    return logits(logits_from, n);
  }

  PageTable& pages() override { return pages_; }

 protected:
  void blocks(std::span<const DecodeRow> rows, int64_t first, int64_t last, Tensor& x) override {
    scratch_.prefix = false;
    x_.slice(0, 0, x.size(0)).copy_(x);
    run(rows, first, last);
    x.copy_(x_.slice(0, 0, x.size(0)));
  }
  Tensor embedded(std::span<const int64_t> tokens) const override {
    Tensor x = torch::zeros({std::ssize(tokens), model_.config.hidden_size}, torch::kFloat32);
    for (int64_t i = 0; i < std::ssize(tokens); ++i)
      if (tokens[i] != kHidden) embed(tokens[i], row(x, i));
    return x;
  }
  Logits head(const Tensor& x) override {
    x_.slice(0, 0, x.size(0)).copy_(x);
    return logits(0, x.size(0));
  }

 private:
  static Tensor buffer(int64_t rows, int64_t width) { return torch::empty({rows, width}, torch::kFloat32); }
  static float* row(const Tensor& x, int64_t i) { return x.data_ptr<float>() + i * x.size(1); }

  void embed(int64_t token, float* x) const {
    const int64_t C = model_.config.hidden_size;
    const Storage* from = model_.data(model_.embedding) + token * C;
    if constexpr (std::is_same_v<Storage, float>)
      std::copy_n(from, C, x);
    else
      for (int64_t k = 0; k < C; ++k) x[k] = c10::BFloat16(from[k], c10::BFloat16::from_bits());
  }

  // Blocks first … last − 1 of the stream x_.
  void run(std::span<const DecodeRow> rows, int64_t first, int64_t last) {
    const DecoderConfig& c = model_.config;
    const int64_t n = rows.size(), C = c.hidden_size, M = c.intermediate_size;
    for (int64_t l = first; l < last; ++l) {
      const PackedLayer<Storage>& layer = model_.layers[l];
      layers_[l]->step(rows, l < cut_ ? pages_ : later_, row(normed(n, x_, layer.input_norm), 0), row(x_, 0), scratch_);
      const Tensor branch = normed(n, x_, layer.post_norm);
      if (c.merged_mlp()) {
        multiply(n, branch, layer.down, inner_, false);
        float *stream = row(x_, 0), *merged = row(inner_, 0);
        for (int64_t k = 0; k < n * C; ++k) stream[k] = stream[k] * layer.beta + merged[k] / layer.alpha;
        continue;
      }
      multiply(n, branch, layer.gate_up, gate_up_, false);
      if (c.swiglu())
        model_.packer.kernels.swiglu(n, M, row(gate_up_, 0), row(inner_, 0));
      else
        inner_.slice(0, 0, n).copy_(activated(c.activation, gate_up_.slice(0, 0, n), layer.epsilon));
      multiply(n, inner_, layer.down, x_, true);
    }
  }

  // Of rows from … n − 1 of the stream x_.
  Logits logits(int64_t from, int64_t n) {
    const Tensor last = normed(n - from, x_.slice(0, from), model_.final_norm);
    multiply(n - from, last, model_.head, logits_, false);
    if (model_.packer.pairs) end_bfloat16_step();
    return {row(logits_, 0), logits_.size(1)};
  }

  // What the next branch reads of the first n rows of the stream x: x itself where no norm stands here, its norm, or that in
  // the place of x.
  Tensor normed(int64_t n, const Tensor& x, const Tensor& weight) const {
    if (!weight.defined()) return x;
    const Tensor& y = model_.config.norm == "post" ? x : normed_;
    model_.packer.kernels.rms_norm(n, model_.config.hidden_size, model_.config.rms_norm_eps, x.data_ptr<float>(),
                                   nullptr, weight.data_ptr<float>(), nullptr, y.data_ptr<float>(), nullptr);
    return y;
  }
  void multiply(int64_t n, const Tensor& x, const PackedWeight& weight, const Tensor& y, bool add) {
    scratch_.multiply(n, x.data_ptr<float>(), weight, y.data_ptr<float>(), add);
  }

  const PackedModel<Storage>& model_;
  std::vector<std::unique_ptr<PackedMixerSession<Storage>>> layers_;
  PageTable pages_, later_;  // of blocks before cut_, and from there on
  std::vector<DecodeRow> behind_;
  DecodeScratch<Storage> scratch_;
  Tensor x_, normed_, gate_up_, inner_, logits_;
};

template <class Storage>
std::unique_ptr<DecodeSession> PackedModel<Storage>::session(int64_t pages, int64_t rows, int64_t history,
                                                             const Pruning* pruning, int64_t later_pages) const {
  return std::make_unique<PackedSession<Storage>>(*this, pages, rows, history, pruning, later_pages);
}

}  // namespace

std::unique_ptr<DecodeModel> make_decode_model(const Decoder& decoder, bool bfloat16) {
  require_causal(decoder->config());
  const Tensor& weight = decoder->embedding();
  if (!weight.is_cpu() || weight.scalar_type() != torch::kFloat32) return make_aten_decode_model(decoder, bfloat16);
  if (bfloat16) return std::make_unique<PackedModel<uint16_t>>(decoder);
  return std::make_unique<PackedModel<float>>(decoder);
}

}  // namespace isentrope::model
