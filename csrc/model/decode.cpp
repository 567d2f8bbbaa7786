#include "csrc/model/decode.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/model/cpu_kernels.h"
#include "csrc/model/kv_cache.h"
#include "csrc/ops/entropy_attention_cpu.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

struct PackedLayer {
  Tensor input_norm, qkv, o, post_norm, gate_up,
      down;                     // norms [C] or undefined; projections in panels (CpuKernels::pack)
  Tensor q_norm, k_norm;        // [D], or undefined
  Tensor temperature;           // [H, 1 or context], or undefined
};

class PackedModel : public DecodeModel {
 public:
  explicit PackedModel(const Decoder& decoder)
      : config(decoder->config()),
        embedding(copy(decoder->embedding())),
        final_norm(copy(decoder->final_norm())),
        head(packed(folded(decoder->head()))),
        cosine(decoder->cosine().to(torch::kFloat32)),
        sine(decoder->sine().to(torch::kFloat32)) {
    for (const LayerWeights& layer : decoder->layers())
      layers.push_back({copy(layer.input_norm), packed(folded(layer.qkv)), packed(folded(layer.o)),
                        copy(layer.post_norm), packed(folded(layer.gate_up)), packed(folded(layer.down)),
                        copy(layer.q_norm), copy(layer.k_norm), temperature(layer.log_temperature)});
  }

  std::unique_ptr<DecodeSession> session(int64_t slots, int64_t rows) const override;
  int64_t preferred_rows() const override { return 24; }
  bool parallel() const override { return true; }

  const CpuKernels<float>& kernels = cpu_kernels<float>();
  DecoderConfig config;
  Tensor embedding, final_norm, head, cosine, sine;
  std::vector<PackedLayer> layers;

 private:
  static Tensor copy(const Tensor& weight) { return weight.defined() ? weight.detach().clone().contiguous() : Tensor(); }
  Tensor temperature(const Tensor& log) const {  // [H] or [H · context] → [H, 1 or context]
    return log.defined() ? log.detach().exp().view({config.heads, -1}) : Tensor();
  }
  Tensor packed(const Tensor& weight) const {
    const Tensor plain = weight.detach().contiguous();
    const int64_t N = plain.size(0), K = plain.size(1);
    Tensor out = torch::empty({packed_size(K, N, kernels.panel)}, plain.options());
    kernels.pack(K, N, plain.data_ptr<float>(), 1, K, nullptr, nullptr, out.data_ptr<float>());
    return out;
  }
};

class PackedSession : public DecodeSession {
 public:
  PackedSession(const PackedModel& model, int64_t slots, int64_t rows)
      : model_(model),
        cache_(slots, model.config.layers, model.config.kv_heads, model.config.head_size(),
               model.config.context),
        x_(buffer(rows, model.config.width)),
        normed_(buffer(rows, model.config.width)),
        qkv_(buffer(rows, (model.config.heads + 2 * model.config.kv_heads) * model.config.head_size())),
        attended_(buffer(rows, model.config.width)),
        gate_up_(buffer(rows, 2 * model.config.mlp)),
        inner_(buffer(rows, model.config.mlp)),
        logits_(buffer(rows, model.config.vocabulary)) {}

  Logits step(std::span<const DecodeRow> rows, int64_t logits_from) override {
    const DecoderConfig& c = model_.config;
    const int64_t n = rows.size(), C = c.width, M = c.mlp;
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(model_.embedding.data_ptr<float>() + rows[i].token * C, C, row(x_, i));
    for (int64_t l = 0; l < c.layers; ++l) {
      const PackedLayer& layer = model_.layers[l];
      multiply(n, qkv_rows(), C, normed(n, x_, layer.input_norm), layer.qkv, qkv_, false);
      attend(rows, l, layer);
      multiply(n, C, C, attended_, layer.o, x_, true);
      multiply(n, 2 * M, C, normed(n, x_, layer.post_norm), layer.gate_up, gate_up_, false);
      model_.kernels.swiglu(n, M, row(gate_up_, 0), row(inner_, 0));
      multiply(n, C, M, inner_, layer.down, x_, true);
    }
    const Tensor last = normed(n - logits_from, x_.slice(0, logits_from), model_.final_norm);
    multiply(n - logits_from, c.vocabulary, C, last, model_.head, logits_, false);
    return {row(logits_, 0), logits_.size(1)};
  }

  void copy(int64_t from, int64_t to, int64_t count) override { cache_.copy(from, to, count); }

 private:
  static Tensor buffer(int64_t rows, int64_t width) { return torch::empty({rows, width}, torch::kFloat32); }
  static float* row(const Tensor& x, int64_t i) { return x.data_ptr<float>() + i * x.size(1); }
  int64_t qkv_rows() const {
    return (model_.config.heads + 2 * model_.config.kv_heads) * model_.config.head_size();
  }

  // What the next branch reads of the first n rows of the stream x: x itself where no norm stands here, its norm, or that in
  // the place of x.
  Tensor normed(int64_t n, const Tensor& x, const Tensor& weight) const {
    if (!weight.defined()) return x;
    const Tensor& y = model_.config.norm == "post" ? x : normed_;
    model_.kernels.rms_norm(n, model_.config.width, model_.config.norm_eps, x.data_ptr<float>(), nullptr,
                            weight.data_ptr<float>(), nullptr, y.data_ptr<float>(), nullptr);
    return y;
  }
  // y [n, N] (+)= x [n, K] · weightᵀ
  void multiply(int64_t n, int64_t N, int64_t K, const Tensor& x, const Tensor& weight, const Tensor& y,
                bool add) const {
    model_.kernels.packed_product(n, N, K, x.data_ptr<float>(), K, false, weight.data_ptr<float>(),
                                  y.data_ptr<float>(), N, add);
  }

  void attend(std::span<const DecodeRow> rows, int64_t index, const PackedLayer& layer) {
    const DecoderConfig& c = model_.config;
    const int64_t H = c.heads, G = c.kv_heads, D = c.head_size();
    const auto norm_heads = [&](float* heads, int64_t count, const Tensor& weight) {
      if (weight.defined())
        model_.kernels.rms_norm(count, D, c.norm_eps, heads, nullptr, weight.data_ptr<float>(), nullptr, heads, nullptr);
    };
    kernels::EntropyAttentionForward p;  // one query
    p.shape = {.batch = 1, .heads = H, .kv_heads = G, .queries = 1, .head_size = D,
               .scale = 1 / std::sqrt(static_cast<double>(D)), .causal = true, .window = c.attention.window,
               .softcap = c.attention.softcap};
    p.q_strides = p.out_strides = {0, D, 0};
    p.k_strides = p.v_strides = {0, D, G * D};
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto [token, position, slot] = rows[i];
      float* qkv = row(qkv_, i);
      norm_heads(qkv, H, layer.q_norm);
      norm_heads(qkv + H * D, G, layer.k_norm);
      model_.kernels.rotate(H + G, D, qkv, D, qkv, D, model_.cosine.data_ptr<float>() + position * (D / 2),
                            model_.sine.data_ptr<float>() + position * (D / 2), 1);
      cache_.put(slot, index, position, qkv + H * D, qkv + (H + G) * D);
      p.shape.keys = position + 1;
      if (const Tensor& t = layer.temperature; t.defined()) {
        p.temperature = t.data_ptr<float>() + (t.size(1) > 1 ? position : 0);
        p.temperature_strides.head = t.size(1);
      }
      p.q = qkv;
      p.k = cache_.keys(slot, index);
      p.v = cache_.values(slot, index);
      p.out = row(attended_, i);
      ops::entropy_attention_forward_cpu(p);
    }
  }

  const PackedModel& model_;
  KvCache cache_;
  Tensor x_, normed_, qkv_, attended_, gate_up_, inner_, logits_;
};

std::unique_ptr<DecodeSession> PackedModel::session(int64_t slots, int64_t rows) const {
  return std::make_unique<PackedSession>(*this, slots, rows);
}

}  // namespace

std::unique_ptr<DecodeModel> make_decode_model(const Decoder& decoder) {
  const Tensor& weight = decoder->embedding();
  if (weight.is_cpu() && weight.scalar_type() == torch::kFloat32)
    return std::make_unique<PackedModel>(decoder);
  return make_aten_decode_model(decoder);
}

}  // namespace isentrope::model
