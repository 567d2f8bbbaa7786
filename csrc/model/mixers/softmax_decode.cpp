// One-token steps of softmax attention, over pages of keys and values.
#include <cmath>
#include <numeric>
#include <string>

#include "csrc/model/layers.h"
#include "csrc/model/mixers/session_memory.h"
#include "csrc/model/mixers/softmax.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {
namespace {

class AtenSoftmax : public AtenMixerSession {
 public:
  AtenSoftmax(const SoftmaxMixer& mixer, int64_t pages) : m_(mixer) {
    const DecoderConfig& c = m_.config();
    keys_ = torch::zeros({pages * kPagePositions, c.num_key_value_heads, c.head_size()}, m_.qkv.weight.options());
    values_ = torch::zeros_like(keys_);
  }

  Tensor step(const Tensor& x, const AtenRows& rows) override {
    const DecoderConfig& c = m_.config();
    const int64_t n = x.size(0), H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_size();
    ops::EntropyAttentionOptions attention;
    attention.query_start = rows.slot;
    attention.return_entropy = false;
    if (m_.options().softcap > 0) attention.softcap = m_.options().softcap;
    if (m_.window() > 0) attention.window = m_.window();
    const auto turn = [&](const Tensor& heads) {  // [n, heads, D]
      const auto half = heads.chunk(2, -1);
      return torch::cat({half[0] * rows.cosine - half[1] * rows.sine, half[1] * rows.cosine + half[0] * rows.sine}, -1);
    };
    const SoftmaxMixer::Projected projected = m_.parts(plain_product(x, m_.qkv));
    auto qkv = projected.qkv.view({n, H + 2 * G, D}).split_with_sizes({H, G, G}, 1);
    if (projected.value_gate.defined()) qkv[2] = qkv[2] * projected.value_gate.sigmoid().unsqueeze(2);
    const auto normed_heads = [&](const Tensor& heads, const Tensor& weight) {
      if (!weight.defined()) return heads;
      return std::get<1>(add_rms_norm(heads.reshape({-1, D}), {}, weight, c.rms_norm_eps)).view(heads.sizes());
    };
    qkv[0] = normed_heads(qkv[0], m_.q_norm);
    qkv[1] = normed_heads(qkv[1], m_.k_norm);
    keys_.index_put_({rows.own}, turn(qkv[1]));
    values_.index_put_({rows.own}, qkv[2]);
    if (m_.log_temperature.defined()) {  // [H] or [H · context]; one row a batch here
      const Tensor t = m_.log_temperature.view({H, -1}).exp();
      attention.temperature = t.size(1) > 1 ? t.t().index({rows.position}).unsqueeze(2) : t.squeeze(1);
    }
    const ops::EntropyAttention found =
        ops::entropy_attention(turn(qkv[0]).unsqueeze(2), keys_.index({rows.places}).transpose(1, 2),
                               values_.index({rows.places}).transpose(1, 2), attention);
    if (m_.options().plain()) return plain_product(found.out.reshape({n, H * D}), m_.o);
    const Tensor mixed =
        m_.finished(found.out.reshape({n, H, D}), found.lse.reshape({n, H}), rows.slot, projected.output_gate);
    return plain_product(mixed.to(x.scalar_type()), m_.o);
  }

  void copy_page(int32_t from, int32_t to) override { copy_unit({keys_, values_}, from, to, kPagePositions); }

 private:
  const SoftmaxMixer& m_;
  Tensor keys_, values_;  // [pages · kPagePositions, G, D]
};

template <class Storage>
struct PackedSoftmax : PackedMixer<Storage> {
  PackedSoftmax(const SoftmaxMixer& mixer, const Packer<Storage>& packer)
      : config(mixer.config()),
        r(mixer.options()),
        window(mixer.window()),
        qkv(packer.weight(mixer.qkv)),
        o(packer.weight(mixer.o)),
        q_norm(packer.copy(mixer.q_norm)),
        k_norm(packer.copy(mixer.k_norm)),
        o_norm(packer.copy(mixer.o_norm)) {
    if (mixer.log_temperature.defined())
      temperature = mixer.log_temperature.detach().exp().view({config.num_attention_heads, -1});
  }
  std::unique_ptr<PackedMixerSession<Storage>> session(int64_t pages, int64_t history) const override;

  DecoderConfig config;
  SoftmaxOptions r;
  int64_t window;
  PackedWeight qkv, o;
  Tensor q_norm, k_norm;  // [D], or undefined
  Tensor o_norm;          // [D], or undefined
  Tensor temperature;     // [H, 1 or context], or undefined
};

template <class Storage>
class PackedSoftmaxSession : public PackedMixerSession<Storage> {
 public:
  PackedSoftmaxSession(const PackedSoftmax<Storage>& mixer, int64_t pages)
      : m_(mixer),
        plane_(m_.config.head_size() * kPagePositions),
        page_stride_(2 * m_.config.num_key_value_heads * plane_),
        memory_(pages * page_stride_),
        lse_(m_.r.scaled() ? m_.config.num_attention_heads : 0) {}

  void step(std::span<const DecodeRow> rows, const PageTable& pages, const float* x, float* stream,
            DecodeScratch<Storage>& scratch) override {
    auto* qkv = scratch.projected.template data_ptr<float>();
    auto* mixed = scratch.mixed.template data_ptr<float>();
    const auto n = static_cast<int64_t>(rows.size());
    scratch.multiply(n, x, m_.qkv, qkv, false);
    attend(rows, pages, qkv, mixed, scratch);
    scratch.multiply(n, mixed, m_.o, stream, true);
  }

  void copy_page(int32_t from, int32_t to) override { std::copy_n(page(from), page_stride_, page(to)); }

 private:
  Storage* page(int32_t i) { return memory_.data() + i * page_stride_; }

  // key, value [G, D] of one slot, in their places.
  void put(const PageTable& pages, int64_t sequence, int64_t slot, const float* key, const float* value) {
    const int64_t G = m_.config.num_key_value_heads, D = m_.config.head_size(), n = slot % kPagePositions;
    Storage* keys = page(pages.pages(sequence)[slot / kPagePositions]);
    Storage* values = keys + G * plane_;
    for (int64_t g = 0; g < G; ++g) {
      for (int64_t d = 0; d < D; ++d) narrow(1, key + g * D + d, keys + g * plane_ + d * kPagePositions + n);
      narrow(D, value + g * D, values + g * plane_ + n * D);
    }
  }

  void attend(std::span<const DecodeRow> rows, const PageTable& pages, float* projected, float* mixed,
              DecodeScratch<Storage>& scratch) {
    const DecoderConfig& c = m_.config;
    const int64_t H = c.num_attention_heads, G = c.num_key_value_heads, D = c.head_size();
    const auto norm_heads = [&](float* heads, int64_t count, const Tensor& weight) {
      if (weight.defined())
        scratch.kernels.rms_norm(count, D, c.rms_norm_eps, heads, nullptr, weight.data_ptr<float>(), nullptr, heads,
                                 nullptr);
    };
    PagedAttention<Storage> p{};
    p.heads = H;
    p.kv_heads = G;
    p.head_size = D;
    p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
    p.softcap = static_cast<float>(m_.r.softcap);
    p.lse = lse_.empty() ? nullptr : lse_.data();
    p.memory = memory_.data();
    p.page_stride = page_stride_;
    p.scores = scratch.scores.data();
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto [token, position, sequence, slot] = rows[i];
      float* qkv = projected + static_cast<int64_t>(i) * m_.qkv.rows;
      norm_heads(qkv, H, m_.q_norm);
      norm_heads(qkv + H * D, G, m_.k_norm);
      scratch.kernels.rotate(H + G, D, qkv, D, qkv, D, scratch.cosine.template data_ptr<float>() + position * (D / 2),
                             scratch.sine.template data_ptr<float>() + position * (D / 2), 1);
      float* gates = qkv + (H + 2 * G) * D;
      if (m_.r.value_gate) {
        for (int64_t g = 0; g < G; ++g) scale(D, sigmoid(gates[g]), qkv + (H + G + g) * D);
        gates += G;
      }
      put(pages, sequence, slot, qkv + H * D, qkv + (H + G) * D);
      p.count = slot + 1;
      p.first = m_.window > 0 ? std::max<int64_t>(p.count - m_.window, 0) : 0;
      if (const Tensor& t = m_.temperature; t.defined()) {
        p.temperature = t.data_ptr<float>() + (t.size(1) > 1 ? position : 0);
        p.temperature_stride = t.size(1);
      }
      p.pages = pages.pages(sequence).data();
      p.q = qkv;
      p.out = mixed + static_cast<int64_t>(i) * H * D;
      scratch.decode.attention(p);
      if (!m_.r.plain()) finish(p, gates, scratch.kernels);
    }
  }

  static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
  static void scale(int64_t n, float factor, float* x) {
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
  }

  // SoftmaxMixer::finished of one row; gates [H].
  void finish(const PagedAttention<Storage>& p, const float* gates, const CpuKernels<float>& kernels) const {
    const int64_t H = p.heads, D = p.head_size;
    const auto size = static_cast<float>(D);
    const std::string &denominator = m_.r.denominator, &norm = m_.r.norm;
    for (int64_t h = 0; h < H; ++h) {
      float* y = p.out + h * D;
      if (denominator == "max_one") scale(D, std::exp(std::min(p.lse[h], 0.0f)), y);
      if (denominator == "count") scale(D, std::exp(p.lse[h]) / static_cast<float>(p.count - p.first), y);
      if (denominator == "none") scale(D, std::exp(p.lse[h]), y);
      if (norm == "layer") {
        const float mean = std::accumulate(y, y + D, 0.0f) / size;
        for (int64_t d = 0; d < D; ++d) y[d] -= mean;
      }
      if (norm == "l2") scale(D, 1 / std::max(std::sqrt(std::inner_product(y, y + D, y, 0.0f)), 1e-12f), y);
      if (m_.r.weighed_norm())
        kernels.rms_norm(1, D, m_.config.rms_norm_eps, y, nullptr, m_.o_norm.template data_ptr<float>(), nullptr, y,
                         nullptr);
      if (m_.r.output_gate) scale(D, sigmoid(gates[h]), y);
    }
  }

  const PackedSoftmax<Storage>& m_;
  int64_t plane_, page_stride_;  // of one head's keys or values in a page, of a page
  std::vector<Storage> memory_;  // [pages, keys | values, G, …]: CpuKernels' PagedAttention
  std::vector<float> lse_;       // [H], or none
};

template <class Storage>
std::unique_ptr<PackedMixerSession<Storage>> PackedSoftmax<Storage>::session(int64_t pages, int64_t) const {
  return std::make_unique<PackedSoftmaxSession<Storage>>(*this, pages);
}

}  // namespace

std::unique_ptr<AtenMixerSession> SoftmaxMixer::session(int64_t pages, int64_t) const {
  return std::make_unique<AtenSoftmax>(*this, pages);
}
std::unique_ptr<PackedMixer<float>> SoftmaxMixer::packed(const Packer<float>& packer) const {
  return std::make_unique<PackedSoftmax<float>>(*this, packer);
}
std::unique_ptr<PackedMixer<uint16_t>> SoftmaxMixer::packed(const Packer<uint16_t>& packer) const {
  return std::make_unique<PackedSoftmax<uint16_t>>(*this, packer);
}

}  // namespace isentrope::model
