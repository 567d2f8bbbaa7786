// One-token steps of estimated: keys and values in pages; of the linear attention, and of the sum of the values, a state a sequence, of which
// a session keeps `history` as recurrence_decode.cpp has it.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <set>

#include "csrc/model/mixers/estimated.h"
#include "csrc/model/mixers/session_memory.h"

namespace isentrope::model {
namespace {

class AtenEstimated : public AtenMixerSession {
 public:
  AtenEstimated(const EstimatedMixer& mixer, int64_t pages, int64_t history) : m_(mixer), history_(history) {
    const DecoderConfig& c = m_.config();
    keys_ = at::zeros({pages * kPagePositions, c.num_key_value_heads, c.head_size()},
                      m_.qkv.weight.options().requires_grad(false));
    values_ = at::zeros_like(keys_);
  }

  Tensor step(const Tensor& x, const AtenRows& of) override {
    const DecoderConfig& c = m_.config();
    const int64_t n = x.size(0), H = c.num_attention_heads, D = c.head_size(), M = c.estimated.columns;
    const auto parts = m_.parts(plain_product(x, m_.qkv));  // q, k, v, a, b
    std::vector<Tensor> cp(n), mean(n);
    for (size_t first = 0; first < of.rows.size();) {  // by waves, a row of each sequence at most
      std::set<int64_t> sequences;
      size_t end = first;
      while (end < of.rows.size() && sequences.insert(of.rows[end].sequence).second) ++end;
      run(parts, of, static_cast<int64_t>(first), static_cast<int64_t>(end), cp, mean);
      first = end;
    }
    const Tensor count = of.position + 1, cosine = of.cosine.squeeze(1), sine = of.sine.squeeze(1);
    const auto estimate = m_.estimated(at::stack(cp), parts[2], cosine, sine, count);
    const Tensor taken = m_.chosen(estimate.log, count);  // [n, H, M]

    const auto turned = [&](const Tensor& y) {
      const auto half = y.chunk(2, 2);
      return at::cat({half[0] * of.cosine - half[1] * of.sine, half[1] * of.cosine + half[0] * of.sine}, 2);
    };
    keys_.index_put_({of.own}, turned(parts[1]));
    values_.index_put_({of.own}, parts[2]);
    const Tensor place = at::arange(of.places.size(1), of.position.options());  // [S]
    const Tensor cell = (place * M).div(count.unsqueeze(1), "floor").clamp_max(M - 1);
    const Tensor there = place.lt(count.unsqueeze(1)), own = place.eq(of.position.unsqueeze(1));
    const Tensor sight = taken.gather(2, cell.unsqueeze(1).expand({n, H, place.size(0)}))
                             .logical_or(own.unsqueeze(1))
                             .logical_and(there.unsqueeze(1));  // [n, H, S]
    const auto by_head = [&](const Tensor& plane) {             // [n, H, S, D]
      const Tensor some = plane.index({of.places}).transpose(1, 2);
      return some.repeat_interleave(H / some.size(1), 1);
    };
    Tensor logits = (turned(parts[0]).unsqueeze(2) * by_head(keys_)).sum(-1) / std::sqrt(static_cast<double>(D));
    if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
    const Tensor weights = logits.masked_fill(sight.logical_not(), -std::numeric_limits<double>::infinity()).softmax(2);
    const Tensor y = (weights.unsqueeze(3) * by_head(values_)).sum(2);
    return plain_product(m_.joined(y, at::stack(mean), estimate.gates).to(x.scalar_type()), m_.o);
  }

  void copy_page(int32_t from, int32_t to) override { copy_unit({keys_, values_}, from, to, kPagePositions); }
  void copy_state(int64_t from, int64_t to) override {
    make_room(std::max(from, to));
    copy_unit({matrix_, sums_}, from, to, history_);
  }

 private:
  void make_room(int64_t sequence) {
    const int64_t wanted = (sequence + 1) * history_, old = matrix_.defined() ? matrix_.size(0) : 0;
    if (old >= wanted) return;
    const DecoderConfig& c = m_.config();
    const int64_t G = c.num_key_value_heads, D = c.head_size();
    const auto options = keys_.options().dtype(keys_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    const auto grow = [&](Tensor& x, at::IntArrayRef sizes) {
      const Tensor more = at::zeros(sizes, options);
      x = x.defined() ? at::cat({x, more}) : more;
    };
    grow(matrix_, {wanted - old, G, D, 2 * D + 1});
    grow(sums_, {wanted - old, G, D});
  }

  // Rows begin … end − 1, each of a sequence of its own: what the linear attention gives [H, 2D], and the mean of the values [G, D].
  void run(const std::vector<Tensor>& parts, const AtenRows& of, int64_t begin, int64_t end, std::vector<Tensor>& cp,
           std::vector<Tensor>& mean) {
    const int64_t n = end - begin, H = m_.config().num_attention_heads, G = m_.config().num_key_value_heads;
    std::vector<int64_t> from, to;
    for (int64_t i = begin; i < end; ++i) {
      const auto [token, position, sequence, slot] = of.rows[i];
      make_room(sequence);
      from.push_back(sequence * history_ + position % history_);
      to.push_back(sequence * history_ + (position + 1) % history_);
      if (position == 0)
        for (const Tensor& x : {matrix_, sums_}) x[from.back()].zero_();
    }
    const auto device = parts[0].device();
    const Tensor read = at::tensor(from).to(device), written = at::tensor(to).to(device);
    const auto some = [&](const Tensor& x) { return x.slice(0, begin, end).to(matrix_.scalar_type()); };
    const Tensor v = some(parts[2]), code = some(at::cat({of.cosine, of.sine}, 2)).expand({n, G, v.size(2)});
    const Tensor u = at::cat({v, code, at::ones_like(v.slice(2, 0, 1))}, 2);  // [n, G, 2D + 1]
    const Tensor matrix = matrix_.index_select(0, read) + m_.mapped(some(parts[4])).unsqueeze(3) * u.unsqueeze(2);
    const Tensor sums = sums_.index_select(0, read) + v;
    matrix_.index_copy_(0, written, matrix);
    sums_.index_copy_(0, written, sums);
    const Tensor a = m_.mapped(some(parts[3])).unsqueeze(2);  // [n, H, 1, D]
    const Tensor out = at::matmul(a, matrix.repeat_interleave(H / G, 1)).squeeze(2);
    const Tensor found = out.slice(2, 0, -1) / out.slice(2, -1);
    const Tensor means = sums / (of.position.slice(0, begin, end) + 1).view({n, 1, 1});
    for (int64_t i = 0; i < n; ++i) cp[begin + i] = found[i], mean[begin + i] = means[i];
  }

  const EstimatedMixer& m_;
  int64_t history_;
  Tensor keys_, values_;  // [pages · kPagePositions, G, D]
  Tensor matrix_, sums_;  // [sequences · history, G, D, 2D + 1] and [.., G, D]
};

template <class Storage>
struct PackedEstimated : PackedMixer<Storage> {
  PackedEstimated(const EstimatedMixer& mixer, const Packer<Storage>& packer)
      : config(mixer.config()),
        qkv(packer.weight(mixer.qkv)),
        o(packer.weight(mixer.o)),
        in(packer.copy(mixer.in)),
        norm(packer.copy(mixer.norm)),
        columns(packer.copy(mixer.columns)),
        bias(packer.copy(mixer.bias)),
        conv(packer.copy(mixer.conv)),
        gate(packer.copy(mixer.gate)),
        gate_bias(packer.copy(mixer.gate_bias)),
        o_norm(packer.copy(mixer.o_norm)) {}
  std::unique_ptr<PackedMixerSession<Storage>> session(int64_t pages, int64_t history) const override;

  DecoderConfig config;
  PackedWeight qkv, o;
  Tensor in, norm, columns, bias, conv, gate, gate_bias, o_norm;
};

float widened(float x) { return x; }
float widened(uint16_t x) { return c10::BFloat16(x, c10::BFloat16::from_bits()); }

float dot(int64_t n, const float* a, const float* b) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class Storage>
class PackedEstimatedSession : public PackedMixerSession<Storage> {
 public:
  PackedEstimatedSession(const PackedEstimated<Storage>& mixer, int64_t pages, int64_t history)
      : m_(mixer),
        H_(m_.config.num_attention_heads),
        G_(m_.config.num_key_value_heads),
        D_(m_.config.head_size()),
        M_(m_.config.estimated.columns),
        matrix_(G_ * D_ * (2 * D_ + 1)),
        states_(history, matrix_ + G_ * D_),
        memory_(pages * kPagePositions * 2 * G_ * D_),
        a_(H_ * D_),
        b_(D_),
        u_(2 * D_ + 1),
        out_(H_ * (2 * D_ + 1)),
        read_(4 * D_),
        z_(2 * D_),
        rows_(H_ * (M_ + 2)),
        logits_(H_ * M_),
        gates_(H_ * 2),
        order_(H_ * M_),
        chosen_(H_ * M_) {}

  void step(std::span<const DecodeRow> rows, const PageTable& pages, const float* x, float* stream,
            DecodeScratch<Storage>& scratch) override {
    auto* projected = scratch.projected.template data_ptr<float>();
    auto* mixed = scratch.mixed.template data_ptr<float>();
    const auto n = static_cast<int64_t>(rows.size());
    scratch.multiply(n, x, m_.qkv, projected, false);
    for (int64_t i = 0; i < n; ++i) {
      const auto [from, to] = states_.step(rows[i]);
      mix(rows[i].position, pages.pages(rows[i].sequence), projected + i * m_.qkv.rows, from, to, mixed + i * H_ * D_,
          scratch);
    }
    scratch.multiply(n, mixed, m_.o, stream, true);
  }

  void copy_page(int32_t from, int32_t to) override {
    const int64_t page = kPagePositions * 2 * G_ * D_;
    std::copy_n(memory_.data() + from * page, page, memory_.data() + to * page);
  }
  void copy_state(int64_t from, int64_t to) override { states_.copy(from, to); }

 private:
  static const float* numbers(const Tensor& x) { return x.const_data_ptr<float>(); }

  // x [D] → φ(x), EstimatedMixer::mapped
  void map(const float* x, float* y) const {
    if (m_.config.estimated.feature_map == "elu_plus_one") {
      for (int64_t d = 0; d < D_; ++d) y[d] = x[d] > 0 ? x[d] + 1 : std::exp(x[d]);
      return;
    }
    const float most = *std::max_element(x, x + D_);
    float total = 0;
    for (int64_t d = 0; d < D_; ++d) total += y[d] = std::exp(x[d] - most);
    for (int64_t d = 0; d < D_; ++d) y[d] /= total;
  }

  // One token: projected q | k | v | a | b and the state before → out [H · D] and the state behind, which may be the same.
  // A state: [G, D, 2D + 1] | the sum of the values [G, D].
  template <class Pages>
  void mix(int64_t position, const Pages& table, float* projected, const float* from, float* to, float* out,
           DecodeScratch<Storage>& scratch) {
    const int64_t W = 2 * D_ + 1, group = H_ / G_, count = position + 1;
    float *q = projected, *k = q + H_ * D_, *v = k + G_ * D_;
    const float *a = v + G_ * D_, *b = a + H_ * D_;
    const float *cosine = scratch.cosine.template data_ptr<float>() + position * (D_ / 2),
                *sine = scratch.sine.template data_ptr<float>() + position * (D_ / 2);
    const auto place = [&](int64_t s) { return table[s / kPagePositions] * kPagePositions + s % kPagePositions; };

    for (int64_t h = 0; h < H_; ++h) map(a + h * D_, a_.data() + h * D_);
    std::copy_n(cosine, D_ / 2, u_.data() + D_);
    std::copy_n(sine, D_ / 2, u_.data() + D_ + D_ / 2);
    u_[2 * D_] = 1;
    for (int64_t g = 0; g < G_; ++g) {
      map(b + g * D_, b_.data());
      std::copy_n(v + g * D_, D_, u_.data());
      scratch.kernels.recurrence_step(D_, W, 1, 0, b_.data(), u_.data(), group, a_.data() + g * group * D_,
                                      from + g * D_ * W, to + g * D_ * W, spare(W), out_.data() + g * group * W);
    }
    for (int64_t i = 0; i < G_ * D_; ++i) to[matrix_ + i] = from[matrix_ + i] + v[i];
    choose(count, v, cosine, sine, scratch.kernels);

    scratch.kernels.rotate(H_, D_, q, D_, q, D_, cosine, sine, 1);
    scratch.kernels.rotate(G_, D_, k, D_, k, D_, cosine, sine, 1);
    narrow(2 * G_ * D_, k, memory_.data() + place(position) * 2 * G_ * D_);  // k | v
    for (int64_t h = 0; h < H_; ++h) {
      seen_.clear();
      bool own = false;
      for (int64_t m = 0; m < M_; ++m) {
        if (chosen_[h * M_ + m] == 0) continue;
        const int64_t end = ((m + 1) * count + M_ - 1) / M_;
        for (int64_t s = (m * count + M_ - 1) / M_; s < end; ++s) seen_.push_back(place(s));
        own = own || end == count;
      }
      if (!own) seen_.push_back(place(position));
      float* y = out + h * D_;
      attend(h / group, q + h * D_, y);
      const float f = gates_[2 * h], g = gates_[2 * h + 1];
      const float* sum = to + matrix_ + h / group * D_;
      for (int64_t d = 0; d < D_; ++d) y[d] = g * f * y[d] + (1 - g) * sum[d] / static_cast<float>(count);
      scratch.kernels.rms_norm(1, D_, m_.config.rms_norm_eps, y, nullptr, numbers(m_.o_norm), nullptr, b_.data(),
                               nullptr);
      for (int64_t d = 0; d < D_; ++d) y[d] += b_[d];
    }
  }

  float* spare(int64_t n) {
    spare_.resize(n);
    return spare_.data();
  }

  // gates_ and chosen_ from what the linear attention gave, out_: EstimatedMixer::estimated and chosen.
  void choose(int64_t count, const float* v, const float* cosine, const float* sine, const CpuKernels<float>& kernels) {
    const int64_t W = 2 * D_ + 1, half = D_ / 2;
    std::fill(rows_.begin(), rows_.end(), 0.0f);
    for (int64_t h = 0; h < H_; ++h) {
      const float *found = out_.data() + h * W, *p = found + D_;
      const float scale = 1 / found[2 * D_];
      for (int64_t d = 0; d < D_; ++d) read_[d] = scale * found[d];
      for (int64_t i = 0; i < half; ++i) {
        const float x = scale * p[i], y = scale * p[half + i];
        read_[D_ + i] = cosine[i] * x + sine[i] * y;
        read_[D_ + half + i] = sine[i] * x - cosine[i] * y;
      }
      std::copy_n(v + h * G_ / H_ * D_, D_, read_.data() + 2 * D_);
      std::copy_n(cosine, half, read_.data() + 3 * D_);
      std::copy_n(sine, half, read_.data() + 3 * D_ + half);
      for (int64_t j = 0; j < 2 * D_; ++j) z_[j] = dot(4 * D_, numbers(m_.in) + j * 4 * D_, read_.data());
      kernels.rms_norm(1, 2 * D_, m_.config.rms_norm_eps, z_.data(), nullptr, numbers(m_.norm), nullptr, z_.data(),
                       nullptr);
      for (float& x : z_) x = 0.5f * x * (1 + std::erf(x * std::numbers::sqrt2_v<float> / 2));
      for (int64_t m = 0; m < M_; ++m)
        rows_[h * (M_ + 2) + m + 1] = numbers(m_.bias)[m] + dot(2 * D_, numbers(m_.columns) + m * 2 * D_, z_.data());
      for (int64_t i = 0; i < 2; ++i)
        gates_[2 * h + i] =
            1 / (1 + std::exp(-numbers(m_.gate_bias)[i] - dot(2 * D_, numbers(m_.gate) + i * 2 * D_, z_.data())));
    }
    int64_t cells = 0;
    for (int64_t h = 0; h < H_; ++h) {
      float* to = logits_.data() + h * M_;
      for (int64_t m = 0; m < M_; ++m) {
        float sum = rows_[h * (M_ + 2) + m + 1];
        for (int64_t from = 0; from < H_; ++from)
          sum += dot(3, numbers(m_.conv) + (h * H_ + from) * 3, rows_.data() + from * (M_ + 2) + m);
        const bool empty = (m * count + M_ - 1) / M_ == ((m + 1) * count + M_ - 1) / M_;
        to[m] = empty ? -std::numeric_limits<float>::infinity() : sum;
      }
      const float most = *std::max_element(to, to + M_);
      float total = 0;
      for (int64_t m = 0; m < M_; ++m) total += std::exp(to[m] - most);
      for (int64_t m = 0; m < M_; ++m) to[m] -= most + std::log(total);
      for (int64_t m = 0; m < M_; ++m)
        if (std::isfinite(to[m])) order_[cells++] = h * M_ + m;
    }
    const int64_t k = m_.config.estimated.keep,
                  wanted = std::min(cells, H_ * std::max<int64_t>(1, (2 * k * M_ + count) / (2 * count)));
    std::fill(chosen_.begin(), chosen_.end(), uint8_t{0});
    std::nth_element(order_.begin(), order_.begin() + wanted, order_.begin() + cells, [&](int64_t x, int64_t y) {
      return logits_[x] > logits_[y] || (logits_[x] == logits_[y] && x < y);
    });
    for (int64_t i = 0; i < wanted; ++i) chosen_[order_[i]] = 1;
  }

  // The softmax attention of a query over the places of seen_; q, out [D].
  void attend(int64_t head, const float* q, float* out) {
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D_)));
    scores_.resize(seen_.size());
    float most = -std::numeric_limits<float>::infinity(), total = 0;
    for (size_t j = 0; j < seen_.size(); ++j) {
      const Storage* key = memory_.data() + seen_[j] * 2 * G_ * D_ + head * D_;
      float sum = 0;
      for (int64_t d = 0; d < D_; ++d) sum += q[d] * widened(key[d]);
      scores_[j] = sum * scale;
      most = std::max(most, scores_[j]);
    }
    std::fill_n(out, D_, 0.0f);
    for (size_t j = 0; j < seen_.size(); ++j) {
      const Storage* value = memory_.data() + seen_[j] * 2 * G_ * D_ + G_ * D_ + head * D_;
      const float weight = std::exp(scores_[j] - most);
      total += weight;
      for (int64_t d = 0; d < D_; ++d) out[d] += weight * widened(value[d]);
    }
    for (int64_t d = 0; d < D_; ++d) out[d] /= total;
  }

  const PackedEstimated<Storage>& m_;
  int64_t H_, G_, D_, M_, matrix_;  // floats of the matrix of a state
  SequenceStates states_;
  std::vector<Storage> memory_;  // [pages · kPagePositions, keys | values, G, D]
  std::vector<float> a_, b_, u_, out_, read_, z_, rows_, logits_, gates_, scores_, spare_;
  std::vector<int64_t> order_, seen_;  // cells h · M + m; places of the keys of a row
  std::vector<uint8_t> chosen_;        // [H, M]
};

template <class Storage>
std::unique_ptr<PackedMixerSession<Storage>> PackedEstimated<Storage>::session(int64_t pages, int64_t history) const {
  return std::make_unique<PackedEstimatedSession<Storage>>(*this, pages, history);
}

}  // namespace

std::unique_ptr<AtenMixerSession> EstimatedMixer::session(int64_t pages, int64_t history) const {
  return std::make_unique<AtenEstimated>(*this, pages, history);
}
std::unique_ptr<PackedMixer<float>> EstimatedMixer::packed(const Packer<float>& packer) const {
  return std::make_unique<PackedEstimated<float>>(*this, packer);
}
std::unique_ptr<PackedMixer<uint16_t>> EstimatedMixer::packed(const Packer<uint16_t>& packer) const {
  return std::make_unique<PackedEstimated<uint16_t>>(*this, packer);
}

}  // namespace isentrope::model
