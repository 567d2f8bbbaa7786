// One-token steps of recurrent mixers, over a state a sequence. A session keeps `history` states of each, that of n tokens at place
// n mod history, so that a branch may leave where its parent was some tokens before.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "csrc/model/mixers/convolution.h"
#include "csrc/model/mixers/recurrence.h"
#include "csrc/model/mixers/session_memory.h"

namespace isentrope::model {
namespace {

class AtenRecurrence : public AtenMixerSession {
 public:
  AtenRecurrence(const RecurrenceMixer& mixer, int64_t history) : m_(mixer), history_(history) {}

  Tensor step(const Tensor& x, const AtenRows& of) override {
    const Tensor projected = plain_product(x, m_.qkv);
    std::vector<Tensor> outs;
    for (size_t first = 0; first < of.rows.size();) {
      size_t end =
          first + 1;  // rows of one sequence go together, where no state between them is wanted, as in a prefix
      while ((history_ == 1 || of.prefix) && end < of.rows.size() && of.rows[end].sequence == of.rows[first].sequence)
        ++end;
      size_t last = end;  // or rows of several sequences, one of each
      if (end == first + 1)
        while (last < of.rows.size() && is_new(of.rows.subspan(first, last - first), of.rows[last].sequence) &&
               (last + 1 == of.rows.size() || of.rows[last + 1].sequence != of.rows[last].sequence))
          ++last;
      outs.push_back(run(projected, of.rows.subspan(first, last - first), first, end > first + 1, of.prefix));
      first = last;
    }
    return plain_product(at::cat(outs), m_.o);
  }

  void copy_state(int64_t from, int64_t to) override {
    make_room(to);
    copy_unit({states_.matrix, states_.tail}, from, to, history_);
  }

 private:
  static bool is_new(std::span<const DecodeRow> rows, int64_t sequence) {
    return std::none_of(rows.begin(), rows.end(), [&](const DecodeRow& row) { return row.sequence == sequence; });
  }

  void make_room(int64_t sequence) {
    const int64_t wanted = (sequence + 1) * history_;
    if (states_.matrix.defined() && states_.matrix.size(0) >= wanted) return;
    const RecurrentState more = m_.empty_state(states_.matrix.defined() ? wanted - states_.matrix.size(0) : wanted);
    const auto grown = [](const Tensor& x, const Tensor& y) { return x.defined() ? at::cat({x, y}) : y; };
    states_.matrix = grown(states_.matrix, more.matrix);
    if (more.tail.defined()) states_.tail = grown(states_.tail, more.tail);
  }

  // Rows first … of the step: of one sequence one after the other, or one of each of several.
  Tensor run(const Tensor& projected, std::span<const DecodeRow> rows, size_t first, bool of_one, bool prefix) {
    std::vector<int64_t> from, to;
    std::vector<bool> begins;
    for (size_t i = 0; i < (of_one ? 1 : rows.size()); ++i) {
      const auto [token, position, sequence, slot] = rows[i];
      make_room(sequence);
      from.push_back(sequence * history_ + position % history_);
      const int64_t fed = of_one ? static_cast<int64_t>(rows.size()) : 1;
      to.push_back(sequence * history_ + (position + fed) % history_);
      if (position == 0) states_.matrix[from.back()].zero_();
      if (position == 0 && states_.tail.defined()) states_.tail[from.back()].zero_();
    }
    const auto device = projected.device();
    const Tensor read = at::tensor(from).to(device), written = at::tensor(to).to(device);
    RecurrentState state{states_.matrix.index_select(0, read), {}};
    if (states_.tail.defined()) state.tail = states_.tail.index_select(0, read);
    const auto begin = static_cast<int64_t>(first), count = static_cast<int64_t>(rows.size());
    const Tensor read_whole = prefix ? torch::ones({count}, projected.options().dtype(at::kBool)) : Tensor();
    const Tensor out =
        m_.mix(projected.slice(0, begin, begin + count).contiguous(), of_one ? count : 1, nullptr, &state, read_whole);
    states_.matrix.index_copy_(0, written, state.matrix);
    if (states_.tail.defined()) states_.tail.index_copy_(0, written, state.tail);
    return out;
  }

  const RecurrenceMixer& m_;
  int64_t history_;
  RecurrentState states_;  // [sequences · history, …]
};

float silu(float x) { return x / (1 + std::exp(-x)); }
float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }
float softplus(float x) { return x > 20 ? x : std::log1p(std::exp(x)); }

template <class Storage>
struct PackedRecurrence : PackedMixer<Storage> {
  PackedRecurrence(const RecurrenceMixer& mixer, const Packer<Storage>& packer)
      : r(mixer.options()),
        shape(mixer.shape),
        eps(mixer.eps()),
        qkv(packer.weight(mixer.qkv)),
        o(packer.weight(mixer.o)),
        dt_bias(packer.copy(mixer.dt_bias)),
        skip(packer.copy(mixer.skip)),
        o_norm(packer.copy(mixer.o_norm)) {
    if (mixer.conv.defined()) taps = mixer.conv.detach().squeeze(1).t().contiguous();
    if (mixer.A_log.defined()) A = mixer.A_log.detach().exp();
    if (mixer.head_decay.defined()) share = (-at::softplus(mixer.head_decay.detach())).exp();
  }
  std::unique_ptr<PackedMixerSession<Storage>> session(int64_t pages, int64_t history) const override;

  int64_t first_of(const char* name) const {  // column of a part of the projection
    int64_t first = 0;
    for (const auto& [part, rows] : shape.parts) {
      if (part == name) return first;
      first += rows;
    }
    return first;
  }

  RecurrenceOptions r;
  MixerShape shape;
  double eps;
  PackedWeight qkv, o;
  Tensor taps;                     // [conv_size, channels], or undefined, as those below
  Tensor A, dt_bias, share, skip;  // [states]
  Tensor o_norm;                   // [E]
};

template <class Storage>
class PackedRecurrenceSession : public PackedMixerSession<Storage> {
 public:
  PackedRecurrenceSession(const PackedRecurrence<Storage>& mixer, int64_t history)
      : m_(mixer),
        matrix_(m_.r.states() * m_.r.features() * m_.r.width()),
        tail_(m_.r.conv_size > 1 ? (m_.r.conv_size - 1) * m_.r.channels() : 0),
        states_(history, matrix_ + tail_),
        inputs_(m_.r.channels()),
        q_(m_.r.queries * m_.r.features()),
        k_(m_.r.keys * m_.r.features()),
        u_(m_.r.width()),
        v_(m_.r.width()),
        out_(m_.r.heads() * m_.r.width()) {}

  void step(std::span<const DecodeRow> rows, const PageTable&, const float* x, float* stream,
            DecodeScratch<Storage>& scratch) override {
    auto* projected = scratch.projected.template data_ptr<float>();
    auto* mixed = scratch.mixed.template data_ptr<float>();
    const auto n = static_cast<int64_t>(rows.size());
    scratch.multiply(n, x, m_.qkv, projected, false);
    const bool prefix = m_.r.prefix && scratch.prefix;
    if (prefix) read_prefix(n, projected, states_.of(rows[0].sequence), scratch.kernels);
    for (int64_t i = 0; i < n; ++i) {
      const auto [from, to] = states_.step(rows[i], prefix ? matrix_ : 0);
      mix(projected + i * m_.qkv.rows, from, to, mixed + i * m_.shape.output, scratch.kernels);
    }
    scratch.multiply(n, mixed, m_.o, stream, true);
  }

  void copy_state(int64_t from, int64_t to) override { states_.copy(from, to); }

 private:
  // The convolution of one token; from and to [conv_size − 1, channels], the oldest first.
  const float* convolved(const float* x, const float* from, float* to) {
    if (m_.r.conv_size == 1) return x;
    convolve_token(m_.r.channels(), m_.r.conv_size, m_.taps.template const_data_ptr<float>(), x, from, to,
                   inputs_.data());
    return inputs_.data();
  }

  // x [D] → y [features]: RecurrenceMixer::mapped
  void map(const float* x, float* y) const {
    const int64_t D = m_.r.D;
    const std::string& kind = m_.r.feature_map;
    if (kind == "elu_plus_one") {
      for (int64_t d = 0; d < D; ++d) y[d] = x[d] > 0 ? x[d] + 1 : std::exp(x[d]);
    } else if (kind == "relu") {
      for (int64_t d = 0; d < D; ++d) y[d] = std::max(x[d], 0.0f);
    } else if (kind == "exp_normalized") {
      const float most = *std::max_element(x, x + D);
      float total = 0;
      for (int64_t d = 0; d < D; ++d) total += y[d] = std::exp(x[d] - most);
      for (int64_t d = 0; d < D; ++d) y[d] /= total;
    } else if (kind == "taylor2") {
      const auto root = std::sqrt(static_cast<float>(D));
      *y++ = 1;
      for (int64_t d = 0; d < D; ++d) *y++ = x[d] / std::sqrt(root);
      for (int64_t i = 0; i < D; ++i)
        for (int64_t j = i; j < D; ++j) *y++ = x[i] * x[j] * (i == j ? 1 / (std::sqrt(2.0f) * root) : 1 / root);
    } else {
      float scale = 1;
      if (m_.r.unit) {
        float squares = 0;
        for (int64_t d = 0; d < D; ++d) squares += x[d] * x[d];
        scale = 1 / std::max(std::sqrt(squares), 1e-12f);
      }
      for (int64_t d = 0; d < D; ++d) y[d] = scale * x[d];
    }
  }

  // state: the matrix that a sequence begins with, from the projected [n, rows of the projection] of its prefix.
  void read_prefix(int64_t n, const float* projected, float* state, const CpuKernels<float>& kernels) {
    const RecurrenceOptions& r = m_.r;
    const int64_t F = r.features(), E = r.E, W = r.width();
    std::vector<float> tail(tail_), next(tail_);
    std::fill_n(state, matrix_, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      const float* keys =
          convolved(projected + i * m_.qkv.rows, tail.data(), next.data()) + r.queries * r.D + r.written();
      const float* values = keys + r.keys * r.D;
      tail.swap(next);
      for (int64_t s = 0; s < r.states(); ++s) {
        map(keys + s * r.keys / r.states() * r.D, k_.data());
        std::copy_n(values + s * r.values / r.states() * E, E, v_.data());
        if (r.normalizer) v_[E] = 1;
        kernels.recurrence_step(F, W, 1, 0, k_.data(), v_.data(), 0, q_.data(), state + s * F * W, state + s * F * W,
                                u_.data(), out_.data());
      }
    }
  }

  // projected [rows of the projection] and the state before → out [shape.output] and the state behind, which may be the same.
  void mix(const float* projected, float* from, float* to, float* out, const CpuKernels<float>& kernels) {
    const RecurrenceOptions& r = m_.r;
    const int64_t F = r.features(), E = r.E, W = r.width(), S = r.states(), H = r.heads();
    const float* inputs = convolved(projected, from + matrix_, to + matrix_);
    for (int64_t h = 0; h < r.queries; ++h) map(inputs + h * r.D, q_.data() + h * F);
    if (r.scale != 1)
      for (float& value : q_) value *= static_cast<float>(r.scale);
    for (int64_t h = 0; h < r.keys; ++h) map(inputs + (r.queries + h) * r.D, k_.data() + h * F);
    const float* values = inputs + (r.queries + r.keys) * r.D;
    const float *b = projected + m_.first_of("b"), *decays = projected + m_.first_of("decay"),
                *g = projected + m_.first_of("g"), *n = projected + m_.first_of("n");
    const auto number = [](const Tensor& x, int64_t s) { return x.const_data_ptr<float>()[s]; };
    for (int64_t s = 0; s < S; ++s) {
      float share = m_.share.defined() ? number(m_.share, s) : 1, size = 1;
      if (m_.A.defined()) {
        const float step = softplus(decays[s] + number(m_.dt_bias, s));
        share = std::exp(-number(m_.A, s) * step);
        if (r.steps) size = step;
      }
      const float* value = values + s * r.values / S * E;
      for (int64_t e = 0; e < E; ++e) v_[e] = size * value[e];
      if (r.normalizer) v_[E] = 1;
      const float beta = r.beta > 0 ? static_cast<float>(r.beta) * sigmoid(b[s]) : 0;
      const int64_t group = H / S;  // results of a state, each with a query of its own; or a query of several states
      kernels.recurrence_step(F, W, share, beta, k_.data() + s * r.keys / S * F, v_.data(), group,
                              q_.data() + s * r.queries / S * F, from + s * F * W, to + s * F * W, u_.data(),
                              out_.data() + s * group * W);
    }
    for (int64_t h = 0; h < H; ++h) {
      float* y = out + h * E;
      const float* found = out_.data() + h * W;
      float scale = 1;
      if (r.normalizer) scale = found[E] == 0 ? 0 : 1 / found[E];
      if (r.denominator != "none")
        scale = 1 / (r.denominator == "exp"        ? std::exp(n[h])
                     : r.denominator == "softplus" ? softplus(n[h])
                                                   : sigmoid(n[h]));
      for (int64_t e = 0; e < E; ++e) y[e] = scale * found[e];
      const auto gate = [&] {
        if (r.gate)
          for (int64_t e = 0; e < E; ++e) y[e] *= silu(g[h * E + e]);
      };
      if (r.steps) {
        for (int64_t e = 0; e < E; ++e) y[e] += number(m_.skip, h) * values[h * E + e];
        gate();
      }
      if (r.norm) kernels.rms_norm(1, E, m_.eps, y, nullptr, m_.o_norm.template data_ptr<float>(), nullptr, y, nullptr);
      if (!r.steps) gate();
    }
  }

  const PackedRecurrence<Storage>& m_;
  int64_t matrix_, tail_;  // floats of the parts of a state
  SequenceStates states_;
  std::vector<float> inputs_, q_, k_, u_, v_, out_;
};

template <class Storage>
std::unique_ptr<PackedMixerSession<Storage>> PackedRecurrence<Storage>::session(int64_t, int64_t history) const {
  return std::make_unique<PackedRecurrenceSession<Storage>>(*this, history);
}

}  // namespace

std::unique_ptr<AtenMixerSession> RecurrenceMixer::session(int64_t, int64_t history) const {
  return std::make_unique<AtenRecurrence>(*this, history);
}
std::unique_ptr<PackedMixer<float>> RecurrenceMixer::packed(const Packer<float>& packer) const {
  return std::make_unique<PackedRecurrence<float>>(*this, packer);
}
std::unique_ptr<PackedMixer<uint16_t>> RecurrenceMixer::packed(const Packer<uint16_t>& packer) const {
  return std::make_unique<PackedRecurrence<uint16_t>>(*this, packer);
}

}  // namespace isentrope::model
