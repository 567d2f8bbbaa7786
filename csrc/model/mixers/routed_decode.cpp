// One-token steps of routed attention by argmax, over pages of keys, values, and the cluster of each routed head.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "csrc/model/mixers/routed.h"
#include "csrc/model/mixers/session_memory.h"

namespace isentrope::model {
namespace {

class AtenRouted : public AtenMixerSession {
 public:
  AtenRouted(const RoutedMixer& mixer, int64_t pages) : m_(mixer) {
    const DecoderConfig& c = m_.config();
    keys_ = at::zeros({pages * kPagePositions, c.num_attention_heads, c.head_size()}, m_.qkv.weight.options());
    values_ = at::zeros_like(keys_);
    clusters_ = at::zeros({pages * kPagePositions, m_.routed_heads()}, keys_.options().dtype(at::kLong));
  }

  Tensor step(const Tensor& x, const AtenRows& rows) override {
    const DecoderConfig& c = m_.config();
    const int64_t n = x.size(0), H = c.num_attention_heads, D = c.head_size(), near = m_.local_heads();
    const auto parts = plain_product(x, m_.qkv).view({n, 3, H, D}).unbind(1);
    const auto turn = [&](const Tensor& heads) {  // [n, H, D]; routed heads have no positions
      const auto half = heads.slice(1, 0, near).chunk(2, -1);
      return at::cat(
          {at::cat({half[0] * rows.cosine - half[1] * rows.sine, half[1] * rows.cosine + half[0] * rows.sine}, -1),
           heads.slice(1, near)},
          1);
    };
    const Tensor routed = parts[0].slice(1, near).transpose(0, 1).to(m_.centroids.scalar_type());
    const Tensor cluster = at::matmul(routed, m_.centroids.transpose(1, 2)).argmax(-1).t();  // [n, routed heads]
    keys_.index_put_({rows.own}, turn(parts[1]));
    values_.index_put_({rows.own}, parts[2]);
    clusters_.index_put_({rows.own}, cluster);

    const Tensor place = at::arange(rows.places.size(1), rows.position.options());
    const Tensor back = rows.position.unsqueeze(1) - place, there = back.ge(0);  // [n, S]
    const Tensor alike = clusters_.index({rows.places}).eq(cluster.unsqueeze(1)).logical_and(there.unsqueeze(2));
    const Tensor later = alike.flip(1).cumsum(1).flip(1);  // of the same cluster from here on
    const Tensor local = there.logical_and(back.lt(c.routed.local_window)).unsqueeze(2).expand({n, -1, near});
    const Tensor sight = at::cat({local, alike.logical_and(later.le(c.routed.window))}, 2);  // [n, S, H]
    const Tensor q = turn(parts[0]).unsqueeze(1);
    Tensor logits = (q * keys_.index({rows.places})).sum(-1) / std::sqrt(static_cast<double>(D));
    if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
    const Tensor weights = logits.masked_fill(sight.logical_not(), -std::numeric_limits<double>::infinity()).softmax(1);
    const Tensor out = (weights.unsqueeze(3) * values_.index({rows.places})).sum(1);
    return plain_product(out.reshape({n, H * D}).to(x.scalar_type()), m_.o);
  }

  void copy_page(int32_t from, int32_t to) override {
    copy_unit({keys_, values_, clusters_}, from, to, kPagePositions);
  }

 private:
  const RoutedMixer& m_;
  Tensor keys_, values_;  // [pages · kPagePositions, H, D]
  Tensor clusters_;       // [pages · kPagePositions, routed heads]
};

template <class Storage>
struct PackedRouted : PackedMixer<Storage> {
  PackedRouted(const RoutedMixer& mixer, const Packer<Storage>& packer)
      : config(mixer.config()),
        near(mixer.local_heads()),
        qkv(packer.weight(mixer.qkv)),
        o(packer.weight(mixer.o)),
        centroids(packer.copy(mixer.centroids)) {}
  std::unique_ptr<PackedMixerSession<Storage>> session(int64_t pages, int64_t history) const override;

  DecoderConfig config;
  int64_t near;  // heads that are not routed
  PackedWeight qkv, o;
  Tensor centroids;
};

float wide_number(float x) { return x; }
float wide_number(uint16_t x) { return c10::BFloat16(x, c10::BFloat16::from_bits()); }

template <class Storage>
class PackedRoutedSession : public PackedMixerSession<Storage> {
 public:
  PackedRoutedSession(const PackedRouted<Storage>& mixer, int64_t pages)
      : m_(mixer),
        width_(m_.config.num_attention_heads * m_.config.head_size()),
        routed_(m_.config.num_attention_heads - m_.near),
        memory_(pages * kPagePositions * 2 * width_),
        clusters_(pages * kPagePositions * routed_) {}

  void step(std::span<const DecodeRow> rows, const PageTable& pages, const float* x, float* stream,
            DecodeScratch<Storage>& scratch) override {
    const int64_t n = std::ssize(rows), D = m_.config.head_size(), H = m_.config.num_attention_heads;
    auto* projected = scratch.projected.template data_ptr<float>();
    auto* mixed = scratch.mixed.template data_ptr<float>();
    scratch.multiply(n, x, m_.qkv, projected, false);
    for (int64_t i = 0; i < n; ++i) {
      const auto [token, position, sequence, slot] = rows[i];
      const auto table = pages.pages(sequence);
      const auto place = [&](int64_t s) { return table[s / kPagePositions] * kPagePositions + s % kPagePositions; };
      float* q = projected + i * 3 * width_;
      const float *cosine = scratch.cosine.template data_ptr<float>() + position * (D / 2),
                  *sine = scratch.sine.template data_ptr<float>() + position * (D / 2);
      for (float* heads : {q, q + width_}) scratch.kernels.rotate(m_.near, D, heads, D, heads, D, cosine, sine, 1);
      Storage* own = memory_.data() + place(position) * 2 * width_;
      narrow(2 * width_, q + width_, own);
      for (int64_t r = 0; r < routed_; ++r)
        clusters_[place(position) * routed_ + r] = nearest(r, q + (m_.near + r) * D);
      for (int64_t h = 0; h < H; ++h) {
        seen_.clear();
        if (h < m_.near) {
          for (int64_t s = position; s >= 0 && s > position - m_.config.routed.local_window; --s)
            seen_.push_back(place(s));
        } else {
          const int64_t r = h - m_.near;
          const int32_t cluster = clusters_[place(position) * routed_ + r];
          for (int64_t s = position; s >= 0 && std::ssize(seen_) < m_.config.routed.window; --s)
            if (clusters_[place(s) * routed_ + r] == cluster) seen_.push_back(place(s));
        }
        attend(h, q + h * D, mixed + i * width_ + h * D);
      }
    }
    scratch.multiply(n, mixed, m_.o, stream, true);
  }

  void copy_page(int32_t from, int32_t to) override {
    const int64_t page = kPagePositions * 2 * width_, few = kPagePositions * routed_;
    std::copy_n(memory_.data() + from * page, page, memory_.data() + to * page);
    std::copy_n(clusters_.data() + from * few, few, clusters_.data() + to * few);
  }

 private:
  int32_t nearest(int64_t head, const float* q) const {
    const int64_t C = m_.config.routed.clusters, D = m_.config.head_size();
    const auto* centre = m_.centroids.template const_data_ptr<float>() + head * C * D;
    int32_t best = 0;
    float most = -std::numeric_limits<float>::infinity();
    for (int32_t c = 0; c < C; ++c) {
      float sum = 0;
      for (int64_t d = 0; d < D; ++d) sum += centre[c * D + d] * q[d];
      if (sum > most) most = sum, best = c;
    }
    return best;
  }

  // The softmax attention of one head over the places of seen_; q, out [D].
  void attend(int64_t head, const float* q, float* out) {
    const int64_t D = m_.config.head_size();
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
    scores_.resize(seen_.size());
    float most = -std::numeric_limits<float>::infinity(), total = 0;
    for (size_t j = 0; j < seen_.size(); ++j) {
      const Storage* key = memory_.data() + seen_[j] * 2 * width_ + head * D;
      float sum = 0;
      for (int64_t d = 0; d < D; ++d) sum += q[d] * wide_number(key[d]);
      scores_[j] = sum * scale;
      most = std::max(most, scores_[j]);
    }
    std::fill_n(out, D, 0.0f);
    for (size_t j = 0; j < seen_.size(); ++j) {
      const Storage* value = memory_.data() + seen_[j] * 2 * width_ + width_ + head * D;
      const float weight = std::exp(scores_[j] - most);
      total += weight;
      for (int64_t d = 0; d < D; ++d) out[d] += weight * wide_number(value[d]);
    }
    for (int64_t d = 0; d < D; ++d) out[d] /= total;
  }

  const PackedRouted<Storage>& m_;
  int64_t width_, routed_;         // H · D, routed heads
  std::vector<Storage> memory_;    // [pages · kPagePositions, keys | values, H, D]
  std::vector<int32_t> clusters_;  // [pages · kPagePositions, routed heads]
  std::vector<int64_t> seen_;      // places of the keys of a row, the latest first
  std::vector<float> scores_;
};

template <class Storage>
std::unique_ptr<PackedMixerSession<Storage>> PackedRouted<Storage>::session(int64_t pages, int64_t) const {
  return std::make_unique<PackedRoutedSession<Storage>>(*this, pages);
}

void check_decodes(const RoutedMixer& mixer) {
  if (!mixer.shape.decodes)
    throw std::invalid_argument(
        "decoder: routed.assign is balanced, where the tokens that a cluster takes depend on later ones, so that none "
        "can be "
        "drawn before them; take argmax");
}

}  // namespace

std::unique_ptr<AtenMixerSession> RoutedMixer::session(int64_t pages, int64_t) const {
  check_decodes(*this);
  return std::make_unique<AtenRouted>(*this, pages);
}
std::unique_ptr<PackedMixer<float>> RoutedMixer::packed(const Packer<float>& packer) const {
  check_decodes(*this);
  return std::make_unique<PackedRouted<float>>(*this, packer);
}
std::unique_ptr<PackedMixer<uint16_t>> RoutedMixer::packed(const Packer<uint16_t>& packer) const {
  check_decodes(*this);
  return std::make_unique<PackedRouted<uint16_t>>(*this, packer);
}

}  // namespace isentrope::model
