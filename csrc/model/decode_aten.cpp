// The decoder's one-token step in ATen and entropy_attention, for any type and device.
#include <algorithm>
#include <tuple>
#include <vector>

#include "csrc/model/decode.h"
#include "csrc/model/layers.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

class AtenSession : public DecodeSession {
 public:
  AtenSession(const Decoder& decoder, const std::vector<LayerWeights>& layers, const Tensor& head, int64_t slots)
      : decoder_(decoder), layers_(layers), head_(head) {
    const DecoderConfig& c = decoder_->config();
    const auto options = decoder_->embedding().options().requires_grad(false);
    for (int64_t l = 0; l < c.layers; ++l) {
      keys_.push_back(torch::zeros({slots, c.context, c.kv_heads, c.head_size()}, options));
      values_.push_back(torch::zeros_like(keys_.back()));
    }
  }

  Logits step(std::span<const DecodeRow> rows, int64_t logits_from) override {
    torch::NoGradGuard no_grad;
    const DecoderConfig& c = decoder_->config();
    const auto options = decoder_->embedding().options();
    const int64_t n = rows.size(), H = c.heads, G = c.kv_heads, D = c.head_size();
    Tensor columns = torch::empty({3, n}, torch::kInt64);
    for (int64_t i = 0; i < n; ++i) {
      columns[0][i] = rows[i].token;
      columns[1][i] = rows[i].position;
      columns[2][i] = rows[i].slot;
    }
    columns = columns.to(options.device());
    const Tensor position = columns[1], slot = columns[2];
    ops::EntropyAttentionOptions attention;
    attention.query_start = position;
    attention.return_entropy = false;
    if (c.attention.window > 0) attention.window = c.attention.window;
    if (c.attention.softcap > 0) attention.softcap = c.attention.softcap;
    const Tensor cosine = decoder_->cosine().to(options).index({position}).unsqueeze(1);  // [n, 1, D/2]
    const Tensor sine = decoder_->sine().to(options).index({position}).unsqueeze(1);
    auto turn = [&](const Tensor& x) {  // [n, heads, D]
      const auto half = x.chunk(2, -1);
      return torch::cat({half[0] * cosine - half[1] * sine, half[1] * cosine + half[0] * sine}, -1);
    };
    const bool after = c.norm == "post";
    Tensor x = torch::embedding(decoder_->embedding(), columns[0]), delta, normed;
    for (int64_t l = 0; l < c.layers; ++l) {
      const LayerWeights& layer = layers_[l];
      std::tie(x, normed) = residual(x, delta, layer.input_norm, c.norm_eps, after);
      auto qkv = torch::linear(normed, layer.qkv.weight).view({n, H + 2 * G, D}).split_with_sizes({H, G, G}, 1);
      const auto normed_heads = [&](const Tensor& heads, const Tensor& weight) {
        if (!weight.defined()) return heads;
        return std::get<1>(add_rms_norm(heads.reshape({-1, D}), {}, weight, c.norm_eps)).view(heads.sizes());
      };
      qkv[0] = normed_heads(qkv[0], layer.q_norm);
      qkv[1] = normed_heads(qkv[1], layer.k_norm);
      keys_[l].index_put_({slot, position}, turn(qkv[1]));
      values_[l].index_put_({slot, position}, qkv[2]);
      if (layer.log_temperature.defined()) {  // [H] or [H · context]; one row a batch here
        const Tensor t = layer.log_temperature.view({H, -1}).exp();
        attention.temperature = t.size(1) > 1 ? t.t().index({position}).unsqueeze(2) : t.squeeze(1);
      }
      const Tensor out = ops::entropy_attention(turn(qkv[0]).unsqueeze(2), keys_[l].index({slot}).transpose(1, 2),
                                                values_[l].index({slot}).transpose(1, 2), attention)
                             .out;
      delta = torch::linear(out.reshape({n, c.width}), layer.o.weight);
      std::tie(x, normed) = residual(x, delta, layer.post_norm, c.norm_eps, after);
      delta = torch::linear(swiglu(torch::linear(normed, layer.gate_up.weight)), layer.down.weight);
    }
    normed = std::get<1>(residual(x, delta, decoder_->final_norm(), c.norm_eps, after)).slice(0, logits_from);
    logits_ = torch::linear(normed, head_).to(torch::kCPU, torch::kFloat32).contiguous();
    return {logits_.data_ptr<float>(), logits_.size(1)};
  }

  void copy(int64_t from, int64_t to, int64_t count) override {
    for (const std::vector<Tensor>* planes : {&keys_, &values_})
      for (const Tensor& plane : *planes) plane[to].slice(0, 0, count).copy_(plane[from].slice(0, 0, count));
  }

 private:
  Decoder decoder_;
  std::vector<LayerWeights> layers_;
  Tensor head_;
  std::vector<Tensor> keys_, values_;  // a layer: [slots, context, G, D]
  Tensor logits_;
};

class AtenModel : public DecodeModel {
 public:
  explicit AtenModel(const Decoder& decoder)
      : decoder_(decoder), layers_(decoder->layers()), head_(folded(decoder->head())) {
    for (LayerWeights& layer : layers_)
      for (Projection* p : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) p->weight = folded(*p);
  }
  std::unique_ptr<DecodeSession> session(int64_t slots, int64_t) const override {
    return std::make_unique<AtenSession>(decoder_, layers_, head_, slots);
  }
  // The more rows, the better a device is used; but attention gathers the whole slot of each: 2^26 elements
  // at most.
  int64_t preferred_rows() const override {
    const DecoderConfig& c = decoder_->config();
    return std::clamp<int64_t>((int64_t{1} << 26) / (c.context * c.kv_heads * c.head_size()), 8, 256);
  }
  bool parallel() const override { return false; }

 private:
  Decoder decoder_;
  std::vector<LayerWeights> layers_;  // folded, like the head: plain weights
  Tensor head_;
};

}  // namespace

std::unique_ptr<DecodeModel> make_aten_decode_model(const Decoder& decoder) {
  return std::make_unique<AtenModel>(decoder);
}

}  // namespace isentrope::model
