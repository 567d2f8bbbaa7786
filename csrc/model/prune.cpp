#include "csrc/model/prune.h"

#include <ATen/ops/linalg_eigvalsh.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/model/decode.h"
#include "csrc/model/layers.h"

namespace isentrope::model {
namespace {

constexpr int64_t kMostOfHead = 128;
constexpr double kLeast = 1e-10;       // of an eigenvalue
constexpr int64_t kTogether = 1024;    // tokens whose matrices are there at once
constexpr size_t kPromptsOfLayer = 8;  // that tell the layer of the largest drop

}  // namespace

Tensor matrix_entropy(const Tensor& Z, const std::string& form) {
  const int64_t H = Z.size(1), d = Z.size(2);
  Tensor z = Z.to(at::kCPU, at::kDouble);
  if (d > kMostOfHead) {
    int64_t groups = (d + kMostOfHead - 1) / kMostOfHead;
    while (d % groups != 0) ++groups;
    z = z.view({-1, H, d / groups, groups}).mean(3);
  }
  z = z - z.mean(1, true);
  Tensor values = at::linalg_eigvalsh(at::matmul(z, z.mT()) / H);  // [n, H]
  const auto entropy = [&](const Tensor& of) {
    const Tensor x = of.clamp_min(kLeast);
    return -(x * x.log()).sum(1) / std::log(static_cast<double>(H));
  };
  if (form == "raw") return entropy(values);
  const Tensor trace = values.clamp_min(0).sum(1, true);
  return entropy(values / trace.clamp_min(1e-300)).clamp_min(0).masked_fill(trace.select(1, 0).le(0), 0);
}

std::string problem_of(const PruneConfig& config, const DecoderConfig& c) {
  const int64_t L = c.num_hidden_layers;
  if (!(config.keep > 0 && config.keep <= 1))
    return "keep is " + std::to_string(config.keep) + ", wanted above 0, at most 1";
  if (config.layer && (*config.layer < 0 || *config.layer >= L))
    return "layer is " + std::to_string(*config.layer) + ", and the model has " + std::to_string(L) +
           " layers; wanted 0 to " + std::to_string(L - 1) + ", or auto";
  if (any_mixer(c, &MixerShape::reads_prefix))
    return "layer: one of the model's is of kind prefix_linear, which reads a prompt as a whole; wanted none";
  for (int64_t l = config.layer.value_or(L); l < L; ++l) {
    const MixerShape shape = mixer_shape(c, l);
    const std::string which = "layer is " + std::to_string(*config.layer) + ", and layer " + std::to_string(l);
    if (!shape.attends || shape.cached == 0 || shape.sight > 0)
      return which + " is of kind " + c.mixer_of(l) +
             "; wanted softmax or softmax_rnn from there on, which keep single tokens in a cache";
    if (c.attention.window_of(l) > 0)
      return which + " sees a window of " + std::to_string(c.attention.window_of(l)) +
             " tokens; wanted layers that see all from there on";
  }
  if (config.form == "random")
    return config.layer ? "" : "layer is auto, and form random, which has no entropy; wanted a layer";
  if (c.num_attention_heads < 2)
    return "matrix: it has a row a head, and the model has one head; wanted two or more, or form random";
  if (config.matrix == "hidden" && c.hidden_size % c.num_attention_heads != 0)
    return "matrix is hidden, and a width of " + std::to_string(c.hidden_size) + " is no multiple of the " +
           std::to_string(c.num_attention_heads) + " heads; wanted query";
  return "";
}

Pruning::Pruning(const Decoder& decoder, const PruneConfig& config)
    : config_(config), heads_(decoder->config().num_attention_heads), eps_(decoder->config().rms_norm_eps) {
  require_causal(decoder->config());
  if (const std::string problem = problem_of(config, decoder->config()); !problem.empty())
    throw std::invalid_argument("prune." + problem);
  if (config.form == "random" || config.matrix == "hidden") return;
  const at::NoGradGuard no_grad;
  const int64_t L = decoder->config().num_hidden_layers;
  queries_.resize(L);
  for (int64_t l = 0; l < L; ++l) {
    if (config.layer && *config.layer != l) continue;
    const LayerWeights& layer = decoder->layers()[l];
    const int64_t rows = layer.mixer->shape.parts.front().second;
    const auto plain = [](const Tensor& x) { return x.defined() ? x.detach() : x; };
    queries_[l] = {plain(layer.input_norm), folded(layer.mixer->qkv).detach().slice(0, 0, rows),
                   layer.mixer->qkv.bias.defined() ? plain(layer.mixer->qkv.bias).slice(0, 0, rows) : Tensor()};
  }
}

int64_t Pruning::stay(int64_t count, bool text) const {
  const auto share = std::llround(config_.keep * static_cast<double>(count));
  return std::clamp<int64_t>(share, std::min(count, std::max<int64_t>(config_.first + text, 1)), count);
}

int64_t Pruning::dropped(int64_t tokens, int64_t prefix) const {
  const int64_t count = prefix > 0 ? prefix : tokens;
  return count - stay(count, prefix == 0);
}

Tensor Pruning::entropies(int64_t block, const Tensor& x) const {
  const at::NoGradGuard no_grad;
  std::vector<Tensor> found;
  for (const Tensor& some : x.split(kTogether)) {
    Tensor rows = some;
    if (config_.matrix == "query") {
      const Query& q = queries_.at(block);
      rows = some.to(q.weight.options());
      if (q.norm.defined()) rows = std::get<1>(add_rms_norm(rows, {}, q.norm, eps_));
      rows = q.bias.defined() ? at::linear(rows, q.weight, q.bias) : at::linear(rows, q.weight);
    }
    found.push_back(matrix_entropy(rows.view({rows.size(0), heads_, -1}), config_.form));
  }
  return at::cat(found);
}

std::vector<int64_t> Pruning::kept(std::span<const int64_t> tokens, const Tensor& x) const {
  const int64_t n = std::ssize(tokens),
                prefix =
                    std::find_if(tokens.begin(), tokens.end(), [](int64_t t) { return t != kHidden; }) - tokens.begin(),
                count = prefix > 0 ? prefix : n, stays = stay(count, prefix == 0);
  std::vector<int64_t> places(n);
  std::iota(places.begin(), places.end(), 0);
  if (stays == count) return places;
  std::vector<double> h(count);
  if (config_.form == "random") {
    uint64_t hash = static_cast<uint64_t>(n);
    for (const int64_t token : tokens) hash = (hash ^ static_cast<uint64_t>(token)) * 0x100000001B3ull;
    data::Stream stream(hash, data::Purpose::selection);
    for (double& one : h) one = stream.uniform();
  } else {
    const Tensor found = entropies(layer(), x.slice(0, 0, count));
    std::copy_n(found.const_data_ptr<double>(), count, h.begin());
  }
  // What stays whatever its entropy stands at the front of the order.
  for (int64_t i = 0; i < config_.first && i < count; ++i) h[i] = INFINITY;
  if (prefix == 0) h.back() = INFINITY;
  std::stable_sort(places.begin(), places.begin() + count, [&](int64_t a, int64_t b) { return h[a] > h[b]; });
  std::sort(places.begin(), places.begin() + stays);
  places.erase(places.begin() + stays, places.begin() + count);
  return places;
}

PruneConfig with_layer(const PruneConfig& config, const Decoder& decoder,
                       const std::vector<std::vector<int64_t>>& prompts, const std::vector<Tensor>& embeddings) {
  if (config.layer) return config;
  const DecoderConfig& c = decoder->config();
  const Pruning watch(decoder, config);
  const auto model = make_decode_model(decoder);
  double tokens = 0;
  Tensor sum = at::zeros({c.num_hidden_layers}, at::kDouble);
  for (size_t i = 0; i < std::min(prompts.size(), kPromptsOfLayer); ++i) {
    const int64_t n = std::ssize(prompts[i]);
    const auto session = model->session(pages_of(n), model->preferred_rows());
    const int64_t sequence = session->pages().open();
    session->pages().extend(sequence, n);
    sum += session->matrix_entropies(prompts[i], sequence, watch, i < embeddings.size() ? embeddings[i] : Tensor());
    tokens += static_cast<double>(n);
  }
  PruneConfig found = config;
  double most = 0;
  for (int64_t l = 1; l < c.num_hidden_layers; ++l) {
    PruneConfig here = config;
    here.layer = l;
    const double drop = (sum[l - 1] - sum[l]).item<double>() / tokens;
    if (!(drop > most)) continue;
    if (!problem_of(here, c).empty()) continue;  // a block behind it cannot
    most = drop;
    found.layer = l;
  }
  if (!found.layer)
    throw std::invalid_argument(
        "prune.layer is auto, and the mean entropy of the tokens falls at no layer that can prune; wanted a layer, 0 "
        "to " +
        std::to_string(c.num_hidden_layers - 1));
  return found;
}

// ---- sessions --------------------------------------------------------------------------------------------------------

Tensor DecodeSession::embedded(std::span<const int64_t> tokens, const Tensor& embeddings) const {
  Tensor x = embedded(tokens);
  const auto prefix =
      std::find_if(tokens.begin(), tokens.end(), [](int64_t t) { return t != kHidden; }) - tokens.begin();
  TORCH_CHECK(
      (embeddings.defined() ? embeddings.dim() == 2 && embeddings.size(0) == prefix && embeddings.size(1) == x.size(1)
                            : prefix == 0) &&
          prefix < std::ssize(tokens) && std::count(tokens.begin(), tokens.end(), kHidden) == prefix,
      "prefill: embeddings are ", embeddings.defined() ? embeddings.sizes() : at::IntArrayRef(),
      ", and the prompt begins with ", prefix, " tokens that are hidden; wanted [", prefix, ", ", x.size(1),
      "], with at least one token behind them");
  if (prefix > 0) x.slice(0, 0, prefix).copy_(embeddings);
  return x;
}

void DecodeSession::pass(std::span<const DecodeRow> rows, int64_t first, int64_t last, const Tensor& stream) {
  for (int64_t begin = 0; begin < std::ssize(rows) && first < last; begin += rows_) {
    const int64_t count = std::min<int64_t>(rows_, std::ssize(rows) - begin);
    Tensor x = stream.slice(0, begin, begin + count);
    blocks(rows.subspan(begin, count), first, last, x);
  }
}

Logits DecodeSession::prefill(std::span<const int64_t> tokens, int64_t sequence, const Tensor& embeddings,
                              std::vector<int64_t>* kept) {
  const at::NoGradGuard no_grad;
  std::vector<DecodeRow> rows;
  for (int64_t t = 0; t < std::ssize(tokens); ++t) rows.push_back({tokens[t], t, sequence});
  Tensor stream = embedded(tokens, embeddings);
  pass(rows, 0, cut_, stream);
  if (pruning_) {
    const std::vector<int64_t> places = pruning_->kept(tokens, stream);
    for (size_t i = 0; i < places.size(); ++i) {
      rows[i] = rows[places[i]];
      rows[i].slot = static_cast<int64_t>(i);
    }
    rows.resize(places.size());
    stream = stream.index_select(0, at::tensor(places, at::kLong).to(stream.device()));
    pass(rows, cut_, layer_count_, stream);
    if (kept) *kept = places;
  }
  return head(stream.slice(0, stream.size(0) - 1));
}

Tensor DecodeSession::matrix_entropies(std::span<const int64_t> tokens, int64_t sequence, const Pruning& by,
                                       const Tensor& embeddings) {
  const at::NoGradGuard no_grad;
  std::vector<DecodeRow> rows;
  for (int64_t t = 0; t < std::ssize(tokens); ++t) rows.push_back({tokens[t], t, sequence});
  const Tensor stream = embedded(tokens, embeddings);
  Tensor sums = at::zeros({layer_count_}, at::kDouble);
  for (int64_t l = 0; l < layer_count_; ++l) {
    sums[l] = by.entropies(l, stream).sum();
    pass(rows, l, l + 1, stream);
  }
  return sums;
}

}  // namespace isentrope::model
