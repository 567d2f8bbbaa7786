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

// A decoder's weights as decoding reads them: plain, of one type.
struct AtenWeights {
  Decoder decoder;  // for its configuration and angles
  Tensor embedding, final_norm, head;
  std::vector<LayerWeights> layers;
};

Tensor product(const Tensor& x, const Projection& p) {
  return p.bias.defined() ? torch::linear(x, p.weight, p.bias) : torch::linear(x, p.weight);
}

class AtenSession : public DecodeSession {
 public:
  AtenSession(const AtenWeights& weights, int64_t pages)
      : w_(weights), pages_(pages, [this](int32_t from, int32_t to) { copy(from, to); }) {
    const DecoderConfig& c = w_.decoder->config();
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
      keys_.push_back(
          torch::zeros({pages * kPagePositions, c.num_key_value_heads, c.head_size()}, w_.embedding.options()));
      values_.push_back(torch::zeros_like(keys_.back()));
    }
  }

  Logits step(std::span<const DecodeRow> rows, int64_t logits_from) override {
    torch::NoGradGuard no_grad;
    const DecoderConfig& c = w_.decoder->config();
    const auto options = w_.embedding.options();
    const int64_t n = rows.size(), H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_size();
    int64_t S = 0;
    for (const DecodeRow& row : rows) S = std::max(S, row.position + 1);
    // Where in the planes the positions of each row's sequence lie; those after the row's own are masked.
    Tensor columns = torch::empty({2, n}, torch::kInt64), places = torch::zeros({n, S}, torch::kInt64);
    auto column = columns.accessor<int64_t, 2>();
    auto place = places.accessor<int64_t, 2>();
    for (int64_t i = 0; i < n; ++i) {
      column[0][i] = rows[i].token;
      column[1][i] = rows[i].position;
      const auto pages = pages_.pages(rows[i].sequence);
      for (int64_t s = 0; s <= rows[i].position; ++s)
        place[i][s] = pages[s / kPagePositions] * kPagePositions + s % kPagePositions;
    }
    columns = columns.to(options.device());
    places = places.to(options.device());
    const Tensor position = columns[1], own = places.gather(1, position.unsqueeze(1)).squeeze(1);
    ops::EntropyAttentionOptions attention;
    attention.query_start = position;
    attention.return_entropy = false;
    if (c.attention.softcap > 0) attention.softcap = c.attention.softcap;
    const Tensor cosine = w_.decoder->cosine().to(options).index({position}).unsqueeze(1);  // [n, 1, D/2]
    const Tensor sine = w_.decoder->sine().to(options).index({position}).unsqueeze(1);
    auto turn = [&](const Tensor& x) {  // [n, heads, D]
      const auto half = x.chunk(2, -1);
      return torch::cat({half[0] * cosine - half[1] * sine, half[1] * cosine + half[0] * sine}, -1);
    };
    const bool after = c.norm == "post";
    Tensor x = torch::embedding(w_.embedding, columns[0]), delta;
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
      const LayerWeights& layer = w_.layers[l];
      const int64_t window = c.attention.window_of(l);
      attention.window = window > 0 ? std::optional(window) : std::nullopt;
      const Residual in = residual(x, delta, layer.input_norm, c.rms_norm_eps, after);
      auto qkv = product(in.branch, layer.qkv).view({n, H + 2 * G, D}).split_with_sizes({H, G, G}, 1);
      const auto normed_heads = [&](const Tensor& heads, const Tensor& weight) {
        if (!weight.defined()) return heads;
        return std::get<1>(add_rms_norm(heads.reshape({-1, D}), {}, weight, c.rms_norm_eps)).view(heads.sizes());
      };
      qkv[0] = normed_heads(qkv[0], layer.q_norm);
      qkv[1] = normed_heads(qkv[1], layer.k_norm);
      keys_[l].index_put_({own}, turn(qkv[1]));
      values_[l].index_put_({own}, qkv[2]);
      if (layer.log_temperature.defined()) {  // [H] or [H · context]; one row a batch here
        const Tensor t = layer.log_temperature.view({H, -1}).exp();
        attention.temperature = t.size(1) > 1 ? t.t().index({position}).unsqueeze(2) : t.squeeze(1);
      }
      const Tensor out = ops::entropy_attention(turn(qkv[0]).unsqueeze(2), keys_[l].index({places}).transpose(1, 2),
                                                values_[l].index({places}).transpose(1, 2), attention)
                             .out;
      delta = product(out.reshape({n, H * D}), layer.o);
      const Residual inner = residual(in.x, delta, layer.post_norm, c.rms_norm_eps, after);
      x = inner.x;
      delta = product(swiglu(product(inner.branch, layer.gate_up)), layer.down);
    }
    const Tensor last = residual(x, delta, w_.final_norm, c.rms_norm_eps, after).branch.slice(0, logits_from);
    logits_ = torch::linear(last, w_.head).to(torch::kCPU, torch::kFloat32).contiguous();
    return {logits_.data_ptr<float>(), logits_.size(1)};
  }

  PageTable& pages() override { return pages_; }

 private:
  void copy(int32_t from, int32_t to) {
    for (const std::vector<Tensor>* planes : {&keys_, &values_})
      for (const Tensor& plane : *planes) {
        const Tensor pages = plane.view({-1, kPagePositions, plane.size(1), plane.size(2)});
        pages[to].copy_(pages[from]);
      }
  }

  const AtenWeights& w_;
  std::vector<Tensor> keys_, values_;  // a layer: [pages · kPagePositions, G, D]
  PageTable pages_;
  Tensor logits_;
};

class AtenModel : public DecodeModel {
 public:
  AtenModel(const Decoder& decoder, bool bfloat16) : w_{decoder, {}, {}, {}, decoder->layers()} {
    const auto plain = [&](const Tensor& x) { return !x.defined() || !bfloat16 ? x : x.detach().to(torch::kBFloat16); };
    w_.embedding = plain(decoder->embedding());
    w_.final_norm = plain(decoder->final_norm());
    w_.head = plain(folded(decoder->head())).slice(0, 0, decoder->config().token_count());
    for (LayerWeights& layer : w_.layers) {
      for (Projection* p : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
        p->weight = plain(folded(*p));
        p->bias = plain(p->bias);
      }
      for (Tensor* x : {&layer.input_norm, &layer.post_norm, &layer.q_norm, &layer.k_norm}) *x = plain(*x);
    }
  }
  std::unique_ptr<DecodeSession> session(int64_t pages, int64_t) const override {
    return std::make_unique<AtenSession>(w_, pages);
  }
  // The more rows, the better a device is used; but attention gathers the positions of each: 2^26 elements at most.
  int64_t preferred_rows() const override {
    const DecoderConfig& c = w_.decoder->config();
    return std::clamp<int64_t>((int64_t{1} << 26) / (c.max_position_embeddings * c.num_key_value_heads * c.head_size()),
                               8, 256);
  }
  bool parallel() const override { return false; }

 private:
  AtenWeights w_;
};

}  // namespace

std::unique_ptr<DecodeModel> make_aten_decode_model(const Decoder& decoder, bool bfloat16) {
  return std::make_unique<AtenModel>(decoder, bfloat16);
}

}  // namespace isentrope::model
