// One-token steps of natsl: keys and values in pages, and a state a sequence, of which a session keeps `history` as recurrence_decode.cpp has
// it. What a chunk was routed to stands with its last page, which no other sequence has when the chunk ends.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "csrc/model/mixers/convolution.h"
#include "csrc/model/mixers/natsl.h"
#include "csrc/model/mixers/session_memory.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {
namespace {

class AtenNatsl : public AtenMixerSession {
 public:
  AtenNatsl(const NatslMixer& mixer, int64_t pages, int64_t history) : m_(mixer), history_(history) {
    const int64_t H = m_.options().queries, D = m_.options().D;
    keys_ = at::zeros({pages * kPagePositions, H, D}, m_.qkv.weight.options().requires_grad(false));
    values_ = at::zeros_like(keys_);
    chosen_ = at::zeros({pages * kPagePositions, H}, keys_.options().dtype(at::kBool));
  }

  Tensor step(const Tensor& x, const AtenRows& of) override {
    const int64_t n = x.size(0), H = m_.options().queries, D = m_.options().D, chunk = m_.config().natsl.chunk;
    const auto parts = m_.parts(plain_product(x, m_.qkv));
    // The recurrence goes by waves, a row of each sequence at most.
    std::vector<Tensor> qkv(n), lin(n);
    for (size_t first = 0; first < of.rows.size();) {
      std::set<int64_t> sequences;
      size_t end = first;
      while (end < of.rows.size() && sequences.insert(of.rows[end].sequence).second) ++end;
      run(parts, of, static_cast<int64_t>(first), static_cast<int64_t>(end), qkv, lin);
      first = end;
    }
    const auto heads = at::stack(qkv).view({n, 3, H, D}).unbind(1);
    keys_.index_put_({of.own}, m_.normed(heads[1], m_.k_norm));
    values_.index_put_({of.own}, heads[2]);

    const Tensor place = at::arange(of.places.size(1), of.position.options());  // [S]
    const Tensor there = place <= of.position.unsqueeze(1);                     // [n, S]
    const Tensor alike = place.div(chunk, "floor") == of.position.div(chunk, "floor").unsqueeze(1);
    // Of each place the last of its chunk, where that has ended.
    const Tensor last = (place.div(chunk, "floor") * chunk + chunk - 1).clamp_max(of.places.size(1) - 1);
    const Tensor chosen = chosen_.index({of.places.index_select(1, last)});  // [n, S, H]
    const Tensor sight = there.unsqueeze(2).logical_and(alike.unsqueeze(2).logical_or(chosen));
    const Tensor q = m_.normed(heads[0], m_.q_norm).unsqueeze(1);
    Tensor logits = (q * keys_.index({of.places})).sum(-1) / std::sqrt(static_cast<double>(D));
    if (logits.scalar_type() != at::kDouble) logits = logits.to(at::kFloat);
    const Tensor weights = logits.masked_fill(sight.logical_not(), -std::numeric_limits<double>::infinity()).softmax(1);
    const Tensor soft = (weights.unsqueeze(3) * values_.index({of.places})).sum(1);
    return plain_product(m_.joined(heads[0], soft, at::stack(lin), parts[1]).to(x.scalar_type()), m_.o);
  }

  void copy_page(int32_t from, int32_t to) override { copy_unit({keys_, values_, chosen_}, from, to, kPagePositions); }
  void copy_state(int64_t from, int64_t to) override {
    make_room(std::max(from, to));
    copy_unit(all(), from, to, history_);
  }

 private:
  std::vector<Tensor> all() const {
    std::vector<Tensor> all{states_.matrix, before_, sums_};
    if (states_.tail.defined()) all.push_back(states_.tail);
    return all;
  }

  void make_room(int64_t sequence) {
    const int64_t wanted = (sequence + 1) * history_, H = m_.options().queries;
    const int64_t old = states_.matrix.defined() ? states_.matrix.size(0) : 0;
    if (old >= wanted) return;
    const RecurrentState more = m_.empty_state(wanted - old);
    const auto grow = [&](Tensor& x, const Tensor& y) {
      if (y.defined()) x = x.defined() ? at::cat({x, y}) : y.clone();
    };
    grow(before_, more.matrix);
    grow(sums_, at::zeros({wanted - old, 2 * H}, more.matrix.options()));
    grow(states_.tail, more.tail);
    grow(states_.matrix, more.matrix);
  }

  // Rows begin … end − 1, each of a sequence of its own: their q, k and v behind the convolution [3 · H · D], and what the rule gives [H, D].
  void run(const std::vector<Tensor>& parts, const AtenRows& of, int64_t begin, int64_t end, std::vector<Tensor>& qkv,
           std::vector<Tensor>& lin) {
    const int64_t n = end - begin, H = m_.options().queries, D = m_.options().D, chunk = m_.config().natsl.chunk;
    std::vector<int64_t> from, to, ended;
    for (int64_t i = begin; i < end; ++i) {
      const auto [token, position, sequence, slot] = of.rows[i];
      make_room(sequence);
      from.push_back(sequence * history_ + position % history_);
      to.push_back(sequence * history_ + (position + 1) % history_);
      if (position == 0)
        for (const Tensor& x : all()) x[from.back()].zero_();
      if ((position + 1) % chunk == 0) ended.push_back(i - begin);
    }
    const auto device = parts[0].device();
    const Tensor read = at::tensor(from).to(device), written = at::tensor(to).to(device);
    const auto some = [&](size_t part) { return parts[part].slice(0, begin, end); };
    RecurrentState state{states_.matrix.index_select(0, read), {}};
    if (states_.tail.defined()) state.tail = states_.tail.index_select(0, read);
    const Tensor channels = m_.convolved(some(0), 1, nullptr, &state);
    const auto heads = channels.view({n, 3, H, D}).unbind(1);
    const auto unit = [](const Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); };
    const auto laid = [](const Tensor& x) { return x.unsqueeze(2); };  // [n, H, 1, …]
    const Tensor decay = m_.log_decay(some(3));
    const auto found = ops::gated_delta_rule(laid(unit(heads[0]) * m_.options().scale), laid(unit(heads[1])),
                                             laid(heads[2]), laid(m_.strength(some(2))), laid(decay),
                                             {.write = {}, .state = state.matrix, .key_lengths = {}, .cu_seqlens = {}});
    Tensor matrix = found.state;
    Tensor before = before_.index_select(0, read) * decay.exp().to(matrix.scalar_type()).unsqueeze(2).unsqueeze(3);
    Tensor sums = sums_.index_select(0, read) + some(4).to(matrix.scalar_type());
    if (!ended.empty()) {
      const Tensor at = at::tensor(ended).to(device);
      const Tensor chosen = m_.chosen(sums.index_select(0, at) / static_cast<double>(chunk));  // [ended, H]
      const Tensor kept =
          at::where(chosen.unsqueeze(2).unsqueeze(3), before.index_select(0, at), matrix.index_select(0, at));
      matrix = matrix.index_copy(0, at, kept);
      before = before.index_copy(0, at, kept);
      sums = sums.index_fill(0, at, 0);
      chosen_.index_put_({of.own.slice(0, begin, end).index_select(0, at)}, chosen);
    }
    states_.matrix.index_copy_(0, written, matrix);
    before_.index_copy_(0, written, before);
    sums_.index_copy_(0, written, sums);
    if (states_.tail.defined()) states_.tail.index_copy_(0, written, state.tail);
    for (int64_t i = 0; i < n; ++i) qkv[begin + i] = channels[i], lin[begin + i] = found.out[i].squeeze(1);
  }

  const NatslMixer& m_;
  int64_t history_;
  Tensor keys_, values_;   // [pages · kPagePositions, H, D]
  Tensor chosen_;          // [pages · kPagePositions, H] bool, of the last position of each chunk
  RecurrentState states_;  // [sequences · history, …]
  Tensor before_,
      sums_;  // the state without the chunk in hand; the sums of its tokens' projections for the router, [.., 2 · H]
};

template <class Storage>
struct PackedNatsl : PackedMixer<Storage> {
  PackedNatsl(const NatslMixer& mixer, const Packer<Storage>& packer)
      : r(mixer.options()),
        chunk(mixer.config().natsl.chunk),
        eps(mixer.eps()),
        qkv(packer.weight(mixer.qkv)),
        o(packer.weight(mixer.o)),
        A(mixer.A_log.detach().exp()),
        dt_bias(packer.copy(mixer.dt_bias)),
        q_norm(packer.copy(mixer.q_norm)),
        k_norm(packer.copy(mixer.k_norm)),
        soft_norm(packer.copy(mixer.soft_norm)),
        linear_norm(packer.copy(mixer.linear_norm)),
        o_norm(packer.copy(mixer.o_norm)),
        blend(packer.copy(mixer.blend)),
        route_bias(packer.copy(mixer.route_bias)) {
    if (mixer.conv.defined()) taps = mixer.conv.detach().squeeze(1).t().contiguous();
  }
  std::unique_ptr<PackedMixerSession<Storage>> session(int64_t pages, int64_t history) const override;

  RecurrenceOptions r;
  int64_t chunk;
  double eps;
  PackedWeight qkv, o;
  Tensor taps;                                            // [conv_size, channels], or undefined
  Tensor A, dt_bias;                                      // [H]
  Tensor q_norm, k_norm, soft_norm, linear_norm, o_norm;  // [D]
  Tensor blend, route_bias;                               // [2, D], [2 · H]
};

template <class Storage>
class PackedNatslSession : public PackedMixerSession<Storage> {
 public:
  PackedNatslSession(const PackedNatsl<Storage>& mixer, int64_t pages, int64_t history)
      : m_(mixer),
        H_(m_.r.queries),
        D_(m_.r.D),
        matrix_(H_ * D_ * D_),
        tail_(m_.r.conv_size > 1 ? (m_.r.conv_size - 1) * m_.r.channels() : 0),
        states_(history, 2 * matrix_ + tail_ + 2 * H_),
        plane_(D_ * kPagePositions),
        page_stride_(2 * H_ * plane_),
        memory_(pages * page_stride_),
        chosen_(pages * H_),
        inputs_(m_.r.channels()),
        q_(D_),
        k_(D_),
        u_(D_),
        lin_(D_) {}

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
    std::copy_n(memory_.data() + from * page_stride_, page_stride_, memory_.data() + to * page_stride_);
    std::copy_n(chosen_.data() + from * H_, H_, chosen_.data() + to * H_);
  }
  void copy_state(int64_t from, int64_t to) override { states_.copy(from, to); }

 private:
  static const float* numbers(const Tensor& x) { return x.const_data_ptr<float>(); }

  void unit(const float* x, float scale, float* y) const {
    float squares = 0;
    for (int64_t d = 0; d < D_; ++d) squares += x[d] * x[d];
    for (int64_t d = 0; d < D_; ++d) y[d] = scale * x[d] / std::max(std::sqrt(squares), 1e-12f);
  }

  // One token: projected [rows of the projection] and the state before → out [H · D] and the state behind, which may be the same.
  // A state: matrix | the matrix without the chunk in hand | the convolution's last inputs | the router's sums [2 · H].
  template <class Pages>
  void mix(int64_t position, const Pages& table, const float* projected, float* from, float* to, float* out,
           DecodeScratch<Storage>& scratch) {
    const RecurrenceOptions& r = m_.r;
    const CpuKernels<float>& kernels = scratch.kernels;
    const float* inputs = projected;
    if (r.conv_size > 1) {
      convolve_token(r.channels(), r.conv_size, numbers(m_.taps), projected, from + 2 * matrix_, to + 2 * matrix_,
                     inputs_.data());
      inputs = inputs_.data();
    }
    const float *g = projected + r.channels(), *b = g + H_ * D_, *decay = b + H_, *route = decay + H_;
    const float* old_sums = from + 2 * matrix_ + tail_;
    float* sums = to + 2 * matrix_ + tail_;
    for (int64_t i = 0; i < 2 * H_; ++i) sums[i] = old_sums[i] + route[i];
    const bool ends = (position + 1) % m_.chunk == 0;
    const int64_t page = position / kPagePositions, own = position / m_.chunk * m_.chunk / kPagePositions;
    const auto norm = [&](const Tensor& weight, const float* a, float* y) {
      kernels.rms_norm(1, D_, m_.eps, a, nullptr, numbers(weight), nullptr, y, nullptr);
    };
    PagedAttention<Storage> p{};
    p.heads = p.kv_heads = 1;
    p.head_size = D_;
    p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D_)));
    p.page_stride = page_stride_;
    p.scores = scratch.scores.data();
    p.q = q_.data();
    for (int64_t h = 0; h < H_; ++h) {
      const float *q = inputs + h * D_, *k = q + H_ * D_, *v = k + H_ * D_;
      float* soft = out + h * D_;
      norm(m_.k_norm, k, k_.data());
      put(table[page], position % kPagePositions, h, k_.data(), v);
      pages_.clear();
      const int64_t of_chunk = m_.chunk / kPagePositions;
      for (int64_t first = 0; first < own; first += of_chunk)
        if (chosen_[table[first + of_chunk - 1] * H_ + h] != 0)
          for (int64_t i = first; i < first + of_chunk; ++i) pages_.push_back(table[i]);
      for (int64_t i = own; i <= page; ++i) pages_.push_back(table[i]);
      p.count = static_cast<int64_t>(pages_.size() - 1) * kPagePositions + position % kPagePositions + 1;
      p.pages = pages_.data();
      p.memory = memory_.data() + 2 * h * plane_;
      p.out = soft;
      norm(m_.q_norm, q, q_.data());
      scratch.decode.attention(p);

      const float step = decay[h] + numbers(m_.dt_bias)[h];
      const float share = std::exp(-numbers(m_.A)[h] * (step > 20 ? step : std::log1p(std::exp(step))));
      const float beta = static_cast<float>(r.beta) / (1 + std::exp(-b[h]));
      unit(q, static_cast<float>(r.scale), q_.data());
      unit(k, 1, k_.data());
      const int64_t at = h * D_ * D_;
      kernels.recurrence_step(D_, D_, share, beta, k_.data(), v, 1, q_.data(), from + at, to + at, u_.data(),
                              lin_.data());
      for (int64_t i = at; i < at + D_ * D_; ++i) to[matrix_ + i] = share * from[matrix_ + i];
      if (ends) {
        const auto size = static_cast<float>(m_.chunk);
        const float *bias = numbers(m_.route_bias) + 2 * h, first = sums[2 * h] / size + bias[0],
                    second = sums[2 * h + 1] / size + bias[1];
        chosen_[table[page] * H_ + h] = first >= second;
        float *kept = to + (first >= second ? matrix_ : 0) + at, *other = to + (first >= second ? 0 : matrix_) + at;
        std::copy_n(kept, D_ * D_, other);
      }

      float scores[2] = {0, 0};
      for (int64_t i = 0; i < 2; ++i)
        for (int64_t d = 0; d < D_; ++d) scores[i] += numbers(m_.blend)[i * D_ + d] * q[d];
      const float of_soft = 1 / (1 + std::exp(scores[1] - scores[0])),
                  of_lin = 1 / (1 + std::exp(scores[0] - scores[1]));
      norm(m_.soft_norm, soft, soft);
      norm(m_.linear_norm, lin_.data(), lin_.data());
      for (int64_t d = 0; d < D_; ++d) soft[d] = of_soft * soft[d] + of_lin * lin_[d];
      norm(m_.o_norm, soft, soft);
      for (int64_t d = 0; d < D_; ++d) soft[d] *= g[h * D_ + d] / (1 + std::exp(-g[h * D_ + d]));
    }
    if (ends) std::fill_n(sums, 2 * H_, 0.0f);
  }

  // key, value [D] of a head in their place of a page.
  void put(int32_t page, int64_t n, int64_t h, const float* key, const float* value) {
    Storage* keys = memory_.data() + page * page_stride_ + 2 * h * plane_;
    for (int64_t d = 0; d < D_; ++d) narrow(1, key + d, keys + d * kPagePositions + n);
    narrow(D_, value, keys + plane_ + n * D_);
  }

  const PackedNatsl<Storage>& m_;
  int64_t H_, D_, matrix_, tail_;  // floats of the parts of a state
  SequenceStates states_;
  int64_t plane_, page_stride_;  // of one head's keys or values in a page, of a page
  std::vector<Storage> memory_;  // [pages, H, keys | values, …]: CpuKernels' PagedAttention of a head
  std::vector<uint8_t> chosen_;  // [pages, H], of the last page of each chunk
  std::vector<int32_t> pages_;   // of the keys that a row of a head sees
  std::vector<float> inputs_, q_, k_, u_, lin_;
};

template <class Storage>
std::unique_ptr<PackedMixerSession<Storage>> PackedNatsl<Storage>::session(int64_t pages, int64_t history) const {
  return std::make_unique<PackedNatslSession<Storage>>(*this, pages, history);
}

}  // namespace

std::unique_ptr<AtenMixerSession> NatslMixer::session(int64_t pages, int64_t history) const {
  return std::make_unique<AtenNatsl>(*this, pages, history);
}
std::unique_ptr<PackedMixer<float>> NatslMixer::packed(const Packer<float>& packer) const {
  return std::make_unique<PackedNatsl<float>>(*this, packer);
}
std::unique_ptr<PackedMixer<uint16_t>> NatslMixer::packed(const Packer<uint16_t>& packer) const {
  return std::make_unique<PackedNatsl<uint16_t>>(*this, packer);
}

}  // namespace isentrope::model
