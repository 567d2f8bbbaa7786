// The decoder's one-token step in ATen and entropy_attention, for any type and device.
#include <algorithm>
#include <vector>

#include "csrc/model/decode.h"
#include "csrc/model/layers.h"
#include "csrc/model/mixer_decode.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

// A decoder's weights as decoding reads them: plain, of one type.
struct AtenWeights {
  Decoder decoder;  // for its configuration and angles
  Tensor embedding, final_norm, head;
  std::vector<LayerWeights> layers;
};

class AtenSession : public DecodeSession {
 public:
  AtenSession(const AtenWeights& weights, int64_t pages, int64_t rows, int64_t history, const Pruning* pruning,
              int64_t later_pages)
      : DecodeSession(std::ssize(weights.layers), rows, pruning),
        w_(weights),
        pages_(
            pages,
            [this](int32_t from, int32_t to) {
              for (int64_t l = 0; l < cut_; ++l) layers_[l]->copy_page(from, to);
            },
            [this](int64_t from, int64_t to) {
              for (const auto& layer : layers_) layer->copy_state(from, to);
            }),
        later_(later_pages, [this](int32_t from, int32_t to) {
          for (int64_t l = cut_; l < std::ssize(layers_); ++l) layers_[l]->copy_page(from, to);
        }) {
    for (int64_t l = 0; l < layer_count_; ++l) {
      const Mixer& mixer = *w_.layers[l].mixer;
      layers_.push_back(mixer.session(l < cut_ ? pages : later_pages, history));
      has_pages_ = has_pages_ || mixer.shape.cached > 0;
    }
    if (pruning) pages_.lead(later_);
  }

  Logits step(std::span<const DecodeRow> rows, int64_t logits_from, bool prefix) override {
    torch::NoGradGuard no_grad;
    Tensor columns = torch::empty({std::ssize(rows)}, torch::kInt64);
    for (int64_t i = 0; i < std::ssize(rows); ++i) columns.data_ptr<int64_t>()[i] = rows[i].token;
    Tensor x = torch::embedding(w_.embedding, columns.to(w_.embedding.device())), delta;
    run(rows, 0, cut_, x, delta, prefix);
    if (cut_ < layer_count_) {
      std::vector<DecodeRow> behind(rows.begin(), rows.end());
      for (DecodeRow& one : behind) one.slot = one.position - pages_.shorter(one.sequence);
      run(behind, cut_, layer_count_, x, delta, false);
    }
    return logits(x, delta, logits_from);
  }

  PageTable& pages() override { return pages_; }

 protected:
  void blocks(std::span<const DecodeRow> rows, int64_t first, int64_t last, Tensor& x) override {
    torch::NoGradGuard no_grad;
    Tensor delta, stream = x;
    run(rows, first, last, stream, delta, false);
    x.copy_(delta.defined() ? stream + delta : stream);
  }
  Tensor embedded(std::span<const int64_t> tokens) const override {
    torch::NoGradGuard no_grad;
    const Tensor columns = torch::tensor(at::ArrayRef(tokens.data(), tokens.size()), torch::kInt64);
    const Tensor x = torch::embedding(w_.embedding, columns.clamp_min(0).to(w_.embedding.device()));
    return x.masked_fill(columns.lt(0).unsqueeze(1).to(x.device()), 0);
  }
  Logits head(const Tensor& x) override {
    torch::NoGradGuard no_grad;
    return logits(x, {}, 0);
  }

 private:
  // Blocks first … last − 1 of x and the output of the block before it.
  void run(std::span<const DecodeRow> rows, int64_t first, int64_t last, Tensor& x, Tensor& delta, bool prefix) {
    if (first == last) return;  // pruned from the first block on: no table holds all slots
    const DecoderConfig& c = w_.decoder->config();
    const auto options = w_.embedding.options();
    const int64_t n = rows.size();
    const PageTable& table = first < cut_ ? pages_ : later_;
    int64_t S = 0;
    if (has_pages_)
      for (const DecodeRow& row : rows) S = std::max(S, row.slot + 1);
    // Where in the planes the slots of each row's sequence lie; those after the row's own are masked.
    Tensor columns = torch::empty({2, n}, torch::kInt64), places = torch::zeros({n, S}, torch::kInt64);
    auto column = columns.accessor<int64_t, 2>();
    auto place = places.accessor<int64_t, 2>();
    for (int64_t i = 0; i < n; ++i) {
      column[0][i] = rows[i].position;
      column[1][i] = rows[i].slot;
      const auto pages = table.pages(rows[i].sequence);
      for (int64_t s = 0; s < std::min(S, rows[i].slot + 1); ++s)
        place[i][s] = pages[s / kPagePositions] * kPagePositions + s % kPagePositions;
    }
    columns = columns.to(options.device());
    places = places.to(options.device());
    const Tensor position = columns[0], slot = columns[1];
    const AtenRows of_step{rows,
                           position,
                           slot,
                           has_pages_ ? places.gather(1, slot.unsqueeze(1)).squeeze(1) : Tensor(),
                           places,
                           w_.decoder->cosine().to(options).index({position}).unsqueeze(1),
                           w_.decoder->sine().to(options).index({position}).unsqueeze(1),
                           prefix};
    const bool after = c.norm == "post";
    for (int64_t l = first; l < last; ++l) {
      const LayerWeights& layer = w_.layers[l];
      const Residual in = residual(x, delta, layer.input_norm, c.rms_norm_eps, after);
      delta = layers_[l]->step(in.branch, of_step);
      const Residual inner = residual(in.x, delta, layer.post_norm, c.rms_norm_eps, after);
      x = inner.x;
      if (c.merged_mlp()) {
        x = x * layer.beta;
        delta = plain_product(inner.branch, layer.down) / layer.alpha;
        continue;
      }
      const Tensor up = plain_product(inner.branch, layer.gate_up);
      delta = plain_product(c.swiglu() ? swiglu(up) : activated(c.activation, up, layer.epsilon), layer.down);
    }
  }

  Logits logits(const Tensor& x, const Tensor& delta, int64_t from) {
    const DecoderConfig& c = w_.decoder->config();
    const Tensor last = residual(x, delta, w_.final_norm, c.rms_norm_eps, c.norm == "post").branch.slice(0, from);
    logits_ = torch::linear(last, w_.head).to(torch::kCPU, torch::kFloat32).contiguous();
    return {logits_.data_ptr<float>(), logits_.size(1)};
  }

  const AtenWeights& w_;
  std::vector<std::unique_ptr<AtenMixerSession>> layers_;
  bool has_pages_ = false;
  PageTable pages_, later_;  // of blocks before cut_, and from there on
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
      layer.mixer = layer.mixer->clone();
      for (Projection* p : layer.projections()) {
        p->weight = plain(folded(*p));
        p->bias = plain(p->bias);
      }
      for (Tensor* x : {&layer.input_norm, &layer.post_norm, &layer.alpha, &layer.beta}) *x = plain(*x);
      for (const MixerWeight& one : layer.mixer->others())
        if (!one.wide) *one.tensor = plain(*one.tensor);
    }
  }
  std::unique_ptr<DecodeSession> session(int64_t pages, int64_t rows, int64_t history, const Pruning* pruning,
                                         int64_t later_pages) const override {
    return std::make_unique<AtenSession>(w_, pages, rows, history, pruning, later_pages);
  }
  // The more rows, the better a device is used; but attention gathers the positions of each: 2^26 elements at most.
  int64_t preferred_rows() const override {
    const DecoderConfig& c = w_.decoder->config();
    return std::clamp<int64_t>((int64_t{1} << 26) / (c.max_position_embeddings * c.num_key_value_heads * c.head_size()),
                               8, 256);
  }
  bool parallel() const override { return false; }
  bool reads_prefix() const override { return any_mixer(w_.decoder->config(), &MixerShape::reads_prefix); }

 private:
  AtenWeights w_;
};

}  // namespace

std::unique_ptr<DecodeModel> make_aten_decode_model(const Decoder& decoder, bool bfloat16) {
  require_causal(decoder->config());
  return std::make_unique<AtenModel>(decoder, bfloat16);
}

}  // namespace isentrope::model
