#include "csrc/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "csrc/data/random.h"
#include "csrc/model/bfloat16_training.h"
#include "csrc/model/layers.h"
#include "csrc/model/recompute.h"

namespace isentrope::model {
namespace {

using torch::Tensor;

// normal(0, std²) by Box and Muller from the stream (seed, initialisation, index), computed in double.
Tensor normal(at::IntArrayRef sizes, double std, uint64_t seed, uint64_t index) {
  Tensor out = torch::empty(sizes, torch::kFloat32);
  data::Stream stream(seed, data::Purpose::initialisation, index);
  float* to = out.data_ptr<float>();
  for (int64_t i = 0; i < out.numel(); i += 2) {
    const double radius = std * std::sqrt(-2 * std::log(stream.uniform()));
    const double angle = 2 * std::numbers::pi * stream.uniform();
    to[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < out.numel()) to[i + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return out;
}

// Whether products keep their inputs for the backward pass: to make those of all blocks again (csrc/model/origin.h) takes 2 % of a step of
// a small model, and so few bytes are no concern.
bool keeps_inputs(const DecoderConfig& config, const Tensor& x) {
  constexpr int64_t kFew = int64_t{16} << 20;
  const int64_t of_token = 2 * config.hidden_size + config.num_attention_heads * config.head_size() +
                           (config.merged_mlp() ? 0 : config.intermediate_size);
  return x.size(0) * config.num_hidden_layers * of_token * x.element_size() <= kFew;
}

}  // namespace

// ---- the model -------------------------------------------------------------------------------------------------------

std::shared_ptr<Bfloat16Copy> DecoderImpl::bfloat16_copy() const {
  return config_.compute == "bfloat16" ? std::make_shared<Bfloat16Copy>() : nullptr;
}

Projection DecoderImpl::projection(torch::nn::Module& owner, const std::string& path, const std::string& name,
                                   Tensor weight, bool bias, const std::vector<SigmaPart>& runs) const {
  Projection p{.name = path + name,
               .weight = owner.register_parameter(name, weight),
               .bias = bias ? owner.register_parameter(name + "_bias", torch::zeros({weight.size(0)})) : Tensor(),
               .parts = {},
               .gamma = {},
               .u = {},
               .through = config_.sigma_reparam.sigma_grad == "through",
               .bfloat16 = bfloat16_copy()};
  for (const SigmaPart& run : runs)
    if (config_.sigma_reparam.takes(run.name == "qkv" ? "q" : run.name))
      p.parts.push_back({path + run.name, run.first, run.rows});
  add_lora_term(p, owner, name, runs);
  if (p.parts.empty()) return p;
  const auto P = static_cast<int64_t>(p.parts.size());
  p.gamma = owner.register_parameter(name + "_gamma", torch::ones({P}));
  p.u = owner.register_buffer(name + "_u", torch::empty({P, weight.size(1)}));
  return p;
}

DecoderImpl::DecoderImpl(const DecoderConfig& config, std::optional<uint64_t> seed) : config_(config) {
  if (const std::string problem = config.problem(); !problem.empty()) throw std::invalid_argument("model." + problem);
  if (config.vocabulary < 1) throw std::invalid_argument("model: vocabulary is 0; it is set from the tokenizer");
  if (config.tokens > config.vocabulary)
    throw std::invalid_argument("model: " + std::to_string(config.tokens) + " tokens, and the embedding has " +
                                std::to_string(config.vocabulary) + " rows; take the tokenizer of the model");
  const int64_t C = config.hidden_size, M = config.intermediate_size, V = config.vocabulary;
  const double fan_in = 1 / std::sqrt(static_cast<double>(C)), mlp_fan_in = 1 / std::sqrt(static_cast<double>(M));
  uint64_t index = 0;
  auto drawn = [&](at::IntArrayRef sizes, double std) {
    if (!seed) return torch::zeros(sizes);
    return normal(sizes, config.initializer_range.value_or(std), *seed, index++);
  };
  reads_prefix_ = any_mixer(config, &MixerShape::reads_prefix);
  embedding_ = register_parameter("embedding", drawn({V, C}, 0.02));
  const bool normed = config.norm != "none", after = config.norm == "post", inner = config.mlp_bias;
  auto blocks = register_module("layers", std::make_shared<torch::nn::Module>());
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    auto block = blocks->register_module(std::to_string(i), std::make_shared<torch::nn::Module>());
    const std::string path = "layers." + std::to_string(i) + ".";
    const auto norm = [&](const char* name, bool wanted) {
      return wanted ? block->register_parameter(name, torch::ones({C})) : Tensor();
    };
    const auto uniform = [&](at::IntArrayRef sizes, double low, double high) {
      Tensor out = torch::zeros(sizes);
      if (!seed) return out;
      data::Stream stream(*seed, data::Purpose::initialisation, index++);
      for (int64_t k = 0; k < out.numel(); ++k)
        out.data_ptr<float>()[k] = static_cast<float>(low + (high - low) * stream.uniform());
      return out;
    };
    const MixerBuilder builder{
        config,
        i,
        *block,
        drawn,
        uniform,
        [&](const std::string& name, Tensor weight, bool bias, const std::vector<SigmaPart>& runs) {
          return projection(*block, path, name, std::move(weight), bias, runs);
        }};
    layers_.push_back({
        .input_norm = norm("input_norm", normed && !(after && i == 0)),
        .mixer = make_mixer(builder),
        .post_norm = norm("post_norm", normed),
        .gate_up = config.merged_mlp() ? Projection()
                   : config.swiglu()   ? projection(*block, path, "gate_up", drawn({2 * M, C}, fan_in), inner,
                                                    {{"gate", 0, M}, {"up", M, M}})
                                       : projection(*block, path, "up", drawn({M, C}, fan_in), inner, {{"up", 0, M}}),
        .down = config.merged_mlp()
                    ? projection(*block, path, "down", drawn({C, C}, 0.5 * fan_in), false, {{"down", 0, C}})
                    : projection(*block, path, "down", drawn({C, M}, 0.5 * mlp_fan_in), inner, {{"down", 0, C}}),
    });
    if (config.activation == "crrelu")  // the paper's ε at the start
      layers_.back().epsilon = block->register_parameter("epsilon", torch::full({1}, 0.01));
    if (config.merged_mlp()) {
      layers_.back().alpha = block->register_parameter("alpha", torch::ones({1}));
      layers_.back().beta = block->register_parameter("beta", torch::ones({1}));
    }
    layers_.back().mixer->register_rest(builder);
  }
  if (normed) final_norm_ = register_parameter("final_norm", torch::ones({C}));
  head_ = config.tie_word_embeddings ? Projection{.name = "head",
                                                  .weight = embedding_,
                                                  .bias = {},
                                                  .parts = {},
                                                  .gamma = {},
                                                  .u = {},
                                                  .bfloat16 = bfloat16_copy()}
                                     : projection(*this, "", "head", drawn({V, C}, 0.02), false, {{"head", 0, V}});
  if (config.lora)
    for (auto& parameter : named_parameters())
      parameter.value().requires_grad_(parameter.key().ends_with("_lora_a") || parameter.key().ends_with("_lora_b"));
  for (const Projection& p : sigma_projections())
    p.u.copy_(normal(p.u.sizes(), 1, seed.value_or(0), index++));  // last: no weight depends on these draws
  if (seed) start_sigma(config.sigma_reparam.gamma_init == "sigma");
  if (config.num_labels > 0) {  // behind all other draws
    score_ = register_parameter("score", drawn({config.num_labels, C}, 0.02));
    score_bias_ = register_parameter("score_bias", torch::zeros({config.num_labels}));
  }
  const int64_t positions = config.max_position_embeddings, D = config.head_size();
  const Tensor frequencies = inverse_frequencies(config.rope_scaling, config.rope_theta, D, positions);
  const Tensor angle = torch::outer(torch::arange(positions, torch::kFloat64), frequencies);
  const double factor = rope_attention_factor(config.rope_scaling);
  cosine_ = angle.cos() * factor;
  sine_ = angle.sin() * factor;
}

Tensor DecoderImpl::operand(const Tensor& x) const {
  return config_.compute == "bfloat16" && x.scalar_type() == torch::kFloat32 ? x.to(torch::kBFloat16) : x;
}

std::pair<Tensor, Tensor> DecoderImpl::block(const Tensor& x_in, const Tensor& delta, size_t index,
                                             const Tensor& cosine, const Tensor& sine, const Packing* packing,
                                             const Places& places, AttentionRecord* record) const {
  const double eps = config_.rms_norm_eps;
  const bool after = config_.norm == "post";
  const LayerWeights& layer = layers_[index];
  const bool keeps = keeps_inputs(config_, x_in);
  const auto again = [keeps](const Origin& made) { return keeps ? Origin() : made; };
  const Residual outer = residual(x_in, delta, layer.input_norm, eps, after);
  const Tensor mixed = layer.mixer->forward(outer.branch, again(outer.origin),
                                            {cosine, sine, packing, places.prefix, record, keeps, places.lengths});
  const Residual inner = residual(outer.x, mixed, layer.post_norm, eps, after);
  if (config_.merged_mlp()) {  // a copy of the factor a row: as in token_entropy()
    const auto of_rows = [&](const Tensor& factor) { return factor.expand({x_in.size(0), 1}); };
    return {inner.x * of_rows(layer.beta),
            model::linear(inner.branch, layer.down, again(inner.origin)) / of_rows(layer.alpha)};
  }
  const Tensor gate_up = model::linear(inner.branch, layer.gate_up, again(inner.origin));
  if (!config_.swiglu())
    return {inner.x, model::linear(activated(config_.activation, gate_up, layer.epsilon), layer.down)};
  return {inner.x, model::linear(swiglu(gate_up), layer.down, again(swiglu_origin(gate_up)))};
}

std::pair<Tensor, Tensor> DecoderImpl::recomputed_block(const Tensor& x, const Tensor& delta, size_t index,
                                                        const Tensor& cosine, const Tensor& sine,
                                                        const std::shared_ptr<const Packing>& packing,
                                                        const Places& places, AttentionRecord* record) const {
  const LayerWeights& layer = layers_[index];
  const bool records = record != nullptr && layer.mixer->shape.attends, with_bound = records && record->with_bound;
  const bool with_states = record != nullptr && record->with_states;
  const bool with_losses = records && record->with_losses;
  const Tensor real = with_states || with_losses ? record->real : Tensor();
  const std::vector<AttentionMap>* const teacher = with_losses ? record->teacher : nullptr;
  const auto run = [=, this](const Tensors& inputs) -> Tensors {
    AttentionRecord own{.entropy = {},
                        .max_logit = {},
                        .layer = {},
                        .window = {},
                        .position = {},
                        .with_bound = with_bound,
                        .bound = {}};
    // States are told once, by the pass without a graph; record may be gone when the block is made again.
    own.with_states = with_states && !torch::GradMode::is_enabled();
    own.real = real;
    own.with_losses = with_losses;
    own.teacher = teacher;
    const auto [sum, out] = block(inputs[0], inputs[1], index, cosine, sine, packing.get(), places,
                                  records || own.with_states ? &own : nullptr);
    if (own.with_states) record->states.insert(record->states.end(), own.states.begin(), own.states.end());
    Tensors outputs{sum, out};
    if (records) outputs.insert(outputs.end(), {own.entropy[0], own.max_logit[0]});
    if (with_bound) outputs.push_back(own.bound[0]);
    outputs.insert(outputs.end(), own.losses.begin(), own.losses.end());
    return outputs;
  };
  Tensors parameters;
  const auto add = [&](const Tensor& one) {
    if (one.defined()) parameters.push_back(one);
  };
  add(layer.input_norm);
  add(layer.post_norm);
  add(layer.alpha);
  add(layer.beta);
  add(layer.epsilon);
  for (const MixerWeight& one : layer.mixer->others()) add(*one.tensor);
  for (const Projection* p : layer.projections())
    for (const Tensor& one : {p->weight, p->bias, p->gamma, p->lora_a, p->lora_b}) add(one);
  const Tensors outputs = recomputed(run, {x, delta}, parameters);
  if (records) {
    record->entropy.push_back(outputs[2]);
    record->max_logit.push_back(outputs[3].detach());
    if (with_bound) record->bound.push_back(outputs[4].detach());
    if (outputs.size() > (with_bound ? 5 : 4)) record->losses.push_back(outputs.back());
    record->layer.push_back(static_cast<int64_t>(index));
    const int64_t sight = layer.mixer->shape.sight;
    record->window.push_back(sight > 0 ? sight : config_.attention.window_of(static_cast<int64_t>(index)));
  }
  return {outputs[0], outputs[1]};
}

Tensor DecoderImpl::hidden(const Tensor& tokens, AttentionRecord* record, const Places& given,
                           std::optional<int64_t> inner) {
  const Tensor& position = given.position;
  TORCH_CHECK(tokens.dim() == 2 && tokens.scalar_type() == torch::kInt64 && tokens.size(1) > 0, "decoder: tokens are ",
              tokens.sizes(), " ", tokens.scalar_type(), ", wanted [B, T] int64 with T ≥ 1");
  const int64_t B = tokens.size(0), T = tokens.size(1), C = config_.hidden_size;
  TORCH_CHECK(T <= config_.max_position_embeddings, "decoder: sequences of ", T,
              " tokens, but model.max_position_embeddings is ", config_.max_position_embeddings,
              "; shorten them or raise model.max_position_embeddings");
  const bool reads = reads_prefix_ && given.prefix.defined();
  if (reads)
    TORCH_CHECK(given.prefix.sizes() == tokens.sizes() && given.prefix.scalar_type() == torch::kBool,
                "decoder: places.prefix is ", given.prefix.sizes(), " ", given.prefix.scalar_type(), ", wanted ",
                tokens.sizes(), " Bool, as tokens are; a prefix is no longer than its sequence");
  const int64_t least = reads ? kHidden : 0;
  if (tokens.is_cpu() && B > 0)
    TORCH_CHECK(tokens.min().item<int64_t>() >= least && tokens.max().item<int64_t>() < config_.token_count(),
                "decoder: a token lies outside 0 … ", config_.token_count() - 1, ", the vocabulary of the model");
  std::shared_ptr<const Packing> packing;  // its B · T tokens go through the blocks as one row
  if (position.defined()) packing = std::make_shared<const Packing>(position);
  const Tensor lengths = config_.causal ? Tensor() : given.lengths;
  TORCH_CHECK(!lengths.defined() || (lengths.sizes() == at::IntArrayRef({B}) && !packing), "decoder: lengths are ",
              lengths.sizes(), ", wanted [", B, "] of rows that are not packed");
  if (record != nullptr) {
    record->position = position;
    record->causal = config_.causal;
    record->lengths = lengths;
  }
  const auto of_rows = [&](const Tensor& table) {
    return (packing ? table.index_select(0, packing->position.to(torch::kCPU)) : table.slice(0, 0, T))
        .to(embedding_.options());
  };
  const Tensor cosine = of_rows(cosine_), sine = of_rows(sine_);
  // As the blocks have their tokens, in one row.
  const Places places{position, reads ? given.prefix.reshape({B * T}) : Tensor(), lengths};
  Tensor x = torch::embedding(embedding_, reads ? tokens.clamp_min(0) : tokens).view({B * T, C}), delta;
  if (reads) x = x.masked_fill(tokens.reshape({B * T, 1}).lt(0), 0);
  const auto pass = [&](size_t first, size_t last) {
    for (size_t layer = first; layer < last; ++layer)
      std::tie(x, delta) = config_.recompute == "blocks"
                               ? recomputed_block(x, delta, layer, cosine, sine, packing, places, record)
                               : block(x, delta, layer, cosine, sine, packing.get(), places, record);
  };
  if (inner && *inner + 1 < config_.num_hidden_layers) {
    pass(0, *inner + 1);
    const Tensor stream = (x + delta).view({B, T, C});
    if (record != nullptr) {
      const torch::NoGradGuard no_grad;
      pass(*inner + 1, layers_.size());
    }
    return stream;
  }
  pass(0, layers_.size());
  return residual(x, delta, final_norm_, config_.rms_norm_eps, config_.norm == "post").branch.view({B, T, C});
}

Tensor DecoderImpl::forward(const Tensor& tokens, AttentionRecord* record, const Places& places) {
  return logits_of(hidden(tokens, record, places));
}

Tensor DecoderImpl::label_logits(const Tensor& tokens, AttentionRecord* record, const Tensor& lengths) {
  TORCH_CHECK(score_.defined(), "decoder: model.num_labels is 0; wanted at least 1 for logits of labels");
  return torch::linear(hidden(tokens, record, {{}, {}, lengths}), score_, score_bias_);
}

Tensor DecoderImpl::logits_of(const Tensor& x) {
  const Tensor logits =
      model::linear(x.view({-1, config_.hidden_size}), head_).view({x.size(0), x.size(1), config_.vocabulary});
  return config_.token_count() < config_.vocabulary ? logits.slice(2, 0, config_.token_count()) : logits;
}

ops::TokenEntropy DecoderImpl::token_entropy(const Tensor& tokens, const Tensor& target, double temperature,
                                             AttentionRecord* record, const Places& places,
                                             const std::optional<ops::Keep>& keep, bool moments,
                                             std::optional<int64_t> inner) {
  Tensor x = hidden(tokens, record, places, inner);
  if (!config_.fused_head)
    return ops::token_entropy(logits_of(x), target, temperature, /*ignore_index=*/-100, moments,
                              /*inplace_backward=*/false, keep);
  // z = γ/σ · (W h) = W (γ/σ · h). One copy of the factor a row: its gradient is summed by rows, in an order that does not depend
  // on the number of threads, as that of all of x at once would.
  if (!head_.parts.empty()) x = x * norm_scale(head_).expand({x.size(0), x.size(1), 1});
  const Tensor head =
      config_.token_count() < config_.vocabulary ? head_.weight.slice(0, 0, config_.token_count()) : head_.weight;
  return ops::linear_token_entropy(operand(x), operand(head), target,
                                   {.temperature = temperature, .moments = moments, .keep = keep});
}

int64_t DecoderImpl::qk_clip(const std::vector<std::vector<double>>& max_logit) {
  const torch::NoGradGuard no_grad;
  int64_t clipped = 0;
  size_t next = 0;
  for (LayerWeights& layer : layers_)
    if (layer.mixer->shape.attends) clipped += layer.mixer->qk_clip(max_logit.at(next++));
  return clipped;
}

void DecoderImpl::forget_seen() {
  const torch::NoGradGuard no_grad;
  for (LayerWeights& layer : layers_)
    if (Tensor seen = layer.mixer->seen(); seen.defined()) seen.zero_();
}

void DecoderImpl::take_seen(const std::function<void(Tensor&)>& sum) {
  const torch::NoGradGuard no_grad;
  for (LayerWeights& layer : layers_)
    if (Tensor seen = layer.mixer->seen(); seen.defined()) {
      sum(seen);
      layer.mixer->take(seen);
    }
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::named(Tensor weight_of(const Projection&)) const {
  const int64_t M = config_.intermediate_size;
  // Rows of gate and of up.
  const std::vector<int64_t> joined = config_.swiglu() ? std::vector{M, M} : std::vector<int64_t>{0, M};
  std::vector<std::pair<std::string, Tensor>> weights{{"model.embed_tokens.weight", embedding_}};
  const auto add = [&](const std::string& name, const Tensor& weight) {
    if (weight.defined()) weights.emplace_back(name, weight);
  };
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LayerWeights& layer = layers_[i];
    const auto gate_up =
        config_.merged_mlp() ? std::vector<Tensor>(2) : weight_of(layer.gate_up).split_with_sizes(joined, 0);
    const std::string at = "model.layers." + std::to_string(i) + ".";
    add(at + "input_layernorm.weight", layer.input_norm);
    for (const auto& [name, weight] : layer.mixer->matrices(weight_of)) add(at + name, weight);
    add(at + "post_attention_layernorm.weight", layer.post_norm);
    if (config_.swiglu()) add(at + "mlp.gate_proj.weight", gate_up[0]);
    add(at + "mlp.up_proj.weight", gate_up[1]);
    add(at + "mlp.down_proj.weight", weight_of(layer.down));
    for (const auto& [name, bias] : layer.mixer->biases()) add(at + name, bias);
    if (layer.gate_up.bias.defined()) {
      const auto biases = layer.gate_up.bias.split_with_sizes(joined, 0);
      if (config_.swiglu()) add(at + "mlp.gate_proj.bias", biases[0]);
      add(at + "mlp.up_proj.bias", biases[1]);
    }
    add(at + "mlp.down_proj.bias", layer.down.bias);
    add(at + "mlp.alpha", layer.alpha);
    add(at + "mlp.beta", layer.beta);
    add(at + "mlp.epsilon", layer.epsilon);
    for (const MixerWeight& one : layer.mixer->others()) add(at + one.name, *one.tensor);
  }
  add("model.norm.weight", final_norm_);
  if (!config_.tie_word_embeddings) add("lm_head.weight", weight_of(head_));
  add("score.weight", score_);
  add("score.bias", score_bias_);
  return weights;
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::named_weights() const {
  return named([](const Projection& p) { return p.weight; });
}

std::vector<std::pair<std::string, Tensor>> DecoderImpl::folded_weights() const { return named(folded); }

}  // namespace isentrope::model
