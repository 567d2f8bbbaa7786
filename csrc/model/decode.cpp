#include "csrc/model/decode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "csrc/model/bfloat16_linear.h"
#include "csrc/model/cpu_kernels.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

// A projection in panels (CpuKernels::pack), or where the processor multiplies bfloat16 itself as that takes it.
struct PackedWeight {
  Tensor panels;
  std::shared_ptr<const Bfloat16Weight> pairs;
  Tensor bias = {};  // of as many numbers as it has rows, or undefined
};

struct PackedLayer {
  Tensor input_norm;  // norms [C] or undefined
  PackedWeight qkv, o;
  Tensor post_norm;
  PackedWeight gate_up, down;
  Tensor q_norm, k_norm;  // [D], or undefined
  Tensor temperature;     // [H, 1 or context], or undefined
};

inline void narrow(int64_t n, const float* from, float* to) { std::copy_n(from, n, to); }
inline void narrow(int64_t n, const float* from, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = c10::BFloat16(from[i]).x;
}

// Storage: float, or uint16_t for matrices and cache in bfloat16.
template <class Storage>
class PackedModel : public DecodeModel {
 public:
  explicit PackedModel(const Decoder& decoder)
      : config(decoder->config()),
        embedding(stored(decoder->embedding().detach())),
        final_norm(copy(decoder->final_norm())),
        head(packed(folded(decoder->head()).slice(0, 0, config.token_count()))),
        cosine(decoder->cosine().to(torch::kFloat32)),
        sine(decoder->sine().to(torch::kFloat32)) {
    for (const LayerWeights& layer : decoder->layers())
      layers.push_back({copy(layer.input_norm), packed(layer.qkv), packed(layer.o), copy(layer.post_norm),
                        packed(layer.gate_up), packed(layer.down), copy(layer.q_norm), copy(layer.k_norm),
                        temperature(layer.log_temperature)});
  }

  std::unique_ptr<DecodeSession> session(int64_t pages, int64_t rows) const override;
  // The processor's products of bfloat16 are worth as many rows as a panel of weight serves from the cache.
  int64_t preferred_rows() const override { return pairs ? 64 : 24; }
  bool parallel() const override { return true; }

  static const Storage* data(const Tensor& x) { return static_cast<const Storage*>(x.const_data_ptr()); }
  int64_t qkv_rows() const {
    return (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_size();
  }

  const CpuKernels<float>& kernels = cpu_kernels<float>();
  const DecodeKernels<Storage>& decode = decode_kernels<Storage>();
  const bool pairs = std::is_same_v<Storage, uint16_t> && takes_bfloat16_weights();
  DecoderConfig config;
  Tensor embedding, final_norm;
  PackedWeight head;
  Tensor cosine, sine;
  std::vector<PackedLayer> layers;

 private:
  static Tensor copy(const Tensor& weight) {
    return weight.defined() ? weight.detach().clone().contiguous() : Tensor();
  }
  Tensor temperature(const Tensor& log) const {  // [H] or [H · context] → [H, 1 or context]
    return log.defined() ? log.detach().exp().view({config.num_attention_heads, -1}) : Tensor();
  }
  static Tensor stored(const Tensor& x) {
    return x.to(std::is_same_v<Storage, float> ? torch::kFloat32 : torch::kBFloat16, false, /*copy=*/true).contiguous();
  }
  PackedWeight packed(const Projection& projection) const {
    PackedWeight weight = packed(folded(projection));
    weight.bias = copy(projection.bias);
    return weight;
  }
  PackedWeight packed(const Tensor& weight) const {
    const Tensor plain = weight.detach().contiguous();
    const int64_t N = plain.size(0), K = plain.size(1);
    if (pairs) {
      const Tensor narrow = plain.to(torch::kBFloat16);
      const auto* bits = static_cast<const uint16_t*>(narrow.const_data_ptr());
      return {{}, std::make_shared<const Bfloat16Weight>(N, K, bits)};
    }
    Tensor out = torch::empty({packed_size(K, N, kernels.panel)}, plain.options());
    kernels.pack(K, N, plain.data_ptr<float>(), 1, K, nullptr, nullptr, out.data_ptr<float>());
    return {std::is_same_v<Storage, float> ? out : stored(out), nullptr};
  }
};

template <class Storage>
class PackedSession : public DecodeSession {
 public:
  PackedSession(const PackedModel<Storage>& model, int64_t pages, int64_t rows)
      : model_(model),
        plane_(model.config.head_size() * kPagePositions),
        layer_stride_(2 * model.config.num_key_value_heads * plane_),
        page_stride_(model.config.num_hidden_layers * layer_stride_),
        memory_(pages * page_stride_),
        pages_(pages, [this](int32_t from, int32_t to) { std::copy_n(page(from), page_stride_, page(to)); }),
        scores_(model.config.num_attention_heads * pages_of(model.config.max_position_embeddings) * kPagePositions),
        x_(buffer(rows, model.config.hidden_size)),
        normed_(buffer(rows, model.config.hidden_size)),
        qkv_(buffer(rows, model.qkv_rows())),
        attended_(buffer(rows, model.config.num_attention_heads * model.config.head_size())),
        gate_up_(buffer(rows, 2 * model.config.intermediate_size)),
        inner_(buffer(rows, model.config.intermediate_size)),
        logits_(buffer(rows, model.config.token_count())) {}

  Logits step(std::span<const DecodeRow> rows, int64_t logits_from) override {
    const DecoderConfig& c = model_.config;
    const int64_t n = rows.size(), C = c.hidden_size, M = c.intermediate_size;
    for (int64_t i = 0; i < n; ++i) {
      const Storage* from = model_.data(model_.embedding) + rows[i].token * C;
      if constexpr (std::is_same_v<Storage, float>)
        std::copy_n(from, C, row(x_, i));
      else
        for (int64_t k = 0; k < C; ++k) row(x_, i)[k] = c10::BFloat16(from[k], c10::BFloat16::from_bits());
    }
    for (int64_t l = 0; l < c.num_hidden_layers; ++l) {
      const PackedLayer& layer = model_.layers[l];
      multiply(n, model_.qkv_rows(), C, normed(n, x_, layer.input_norm), layer.qkv, qkv_, false);
      attend(rows, l, layer);
      multiply(n, C, attended_.size(1), attended_, layer.o, x_, true);
      multiply(n, 2 * M, C, normed(n, x_, layer.post_norm), layer.gate_up, gate_up_, false);
      model_.kernels.swiglu(n, M, row(gate_up_, 0), row(inner_, 0));
      multiply(n, C, M, inner_, layer.down, x_, true);
    }
    const Tensor last = normed(n - logits_from, x_.slice(0, logits_from), model_.final_norm);
    multiply(n - logits_from, c.token_count(), C, last, model_.head, logits_, false);
    if (model_.pairs) end_bfloat16_step();
    return {row(logits_, 0), logits_.size(1)};
  }

  PageTable& pages() override { return pages_; }

 private:
  static Tensor buffer(int64_t rows, int64_t width) { return torch::empty({rows, width}, torch::kFloat32); }
  static float* row(const Tensor& x, int64_t i) { return x.data_ptr<float>() + i * x.size(1); }
  Storage* page(int32_t i) { return memory_.data() + i * page_stride_; }

  // What the next branch reads of the first n rows of the stream x: x itself where no norm stands here, its norm, or that in
  // the place of x.
  Tensor normed(int64_t n, const Tensor& x, const Tensor& weight) const {
    if (!weight.defined()) return x;
    const Tensor& y = model_.config.norm == "post" ? x : normed_;
    model_.kernels.rms_norm(n, model_.config.hidden_size, model_.config.rms_norm_eps, x.data_ptr<float>(), nullptr,
                            weight.data_ptr<float>(), nullptr, y.data_ptr<float>(), nullptr);
    return y;
  }
  // y [n, N] (+)= x [n, K] · weightᵀ + bias
  void multiply(int64_t n, int64_t N, int64_t K, const Tensor& x, const PackedWeight& weight, const Tensor& y,
                bool add) {
    float* out = y.data_ptr<float>();
    if (weight.pairs)
      weight.pairs->multiply(n, x.data_ptr<float>(), out, add, operands_, staging_);
    else
      model_.decode.packed_product(n, N, K, x.data_ptr<float>(), K, model_.data(weight.panels), out, N, add);
    if (!weight.bias.defined()) return;
    const float* bias = weight.bias.const_data_ptr<float>();
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = 0; k < N; ++k) out[i * N + k] += bias[k];
  }

  // key, value [G, D] of one position and layer, in their places.
  void put(int64_t sequence, int64_t layer, int64_t position, const float* key, const float* value) {
    const int64_t G = model_.config.num_key_value_heads, D = model_.config.head_size(), n = position % kPagePositions;
    Storage* keys = page(pages_.pages(sequence)[position / kPagePositions]) + layer * layer_stride_;
    Storage* values = keys + G * plane_;
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t d = 0; d < D; ++d) narrow(1, key + g * D + d, keys + g * plane_ + d * kPagePositions + n);
      narrow(D, value + g * D, values + g * plane_ + n * D);
    }
  }

  void attend(std::span<const DecodeRow> rows, int64_t index, const PackedLayer& layer) {
    const DecoderConfig& c = model_.config;
    const int64_t H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_size();
    const auto norm_heads = [&](float* heads, int64_t count, const Tensor& weight) {
      if (weight.defined())
        model_.kernels.rms_norm(count, D, c.rms_norm_eps, heads, nullptr, weight.data_ptr<float>(), nullptr, heads,
                                nullptr);
    };
    PagedAttention<Storage> p{};
    p.heads = H;
    p.kv_heads = G;
    p.head_size = D;
    p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
    p.softcap = static_cast<float>(c.attention.softcap);
    p.memory = memory_.data() + index * layer_stride_;
    p.page_stride = page_stride_;
    p.scores = scores_.data();
    const int64_t window = c.attention.window_of(index);
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto [token, position, sequence] = rows[i];
      float* qkv = row(qkv_, i);
      norm_heads(qkv, H, layer.q_norm);
      norm_heads(qkv + H * D, G, layer.k_norm);
      model_.kernels.rotate(H + G, D, qkv, D, qkv, D, model_.cosine.template data_ptr<float>() + position * (D / 2),
                            model_.sine.template data_ptr<float>() + position * (D / 2), 1);
      put(sequence, index, position, qkv + H * D, qkv + (H + G) * D);
      p.count = position + 1;
      p.first = window > 0 ? std::max<int64_t>(p.count - window, 0) : 0;
      if (const Tensor& t = layer.temperature; t.defined()) {
        p.temperature = t.data_ptr<float>() + (t.size(1) > 1 ? position : 0);
        p.temperature_stride = t.size(1);
      }
      p.pages = pages_.pages(sequence).data();
      p.q = qkv;
      p.out = row(attended_, i);
      model_.decode.attention(p);
    }
  }

  const PackedModel<Storage>& model_;
  int64_t plane_, layer_stride_, page_stride_;  // of one head's keys or values in a page, one layer, one page
  std::vector<Storage> memory_;                 // [pages, layers, keys | values, G, …]: CpuKernels' PagedAttention
  PageTable pages_;
  std::vector<float> scores_;
  std::vector<uint16_t> operands_;
  std::vector<float> staging_;
  Tensor x_, normed_, qkv_, attended_, gate_up_, inner_, logits_;
};

template <class Storage>
std::unique_ptr<DecodeSession> PackedModel<Storage>::session(int64_t pages, int64_t rows) const {
  return std::make_unique<PackedSession<Storage>>(*this, pages, rows);
}

}  // namespace

std::unique_ptr<DecodeModel> make_decode_model(const Decoder& decoder, bool bfloat16) {
  const Tensor& weight = decoder->embedding();
  if (!weight.is_cpu() || weight.scalar_type() != torch::kFloat32) return make_aten_decode_model(decoder, bfloat16);
  if (bfloat16) return std::make_unique<PackedModel<uint16_t>>(decoder);
  return std::make_unique<PackedModel<float>>(decoder);
}

}  // namespace isentrope::model
