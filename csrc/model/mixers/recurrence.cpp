#include "csrc/model/mixers/recurrence.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "csrc/model/layers.h"
#include "csrc/model/mixers/convolution.h"
#include "csrc/model/mixers/state_record.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

using torch::Tensor;

// ---- weights ---------------------------------------------------------------------------------------------------------

RecurrenceMixer::RecurrenceMixer(const MixerBuilder& b, const RecurrenceOptions& options)
    : Mixer(b, /*bias=*/false, /*output_bias=*/false), r_(options) {
  const int64_t S = r_.states();
  if (r_.conv_size > 1) {
    const double most = 1 / std::sqrt(static_cast<double>(r_.conv_size));  // torch's Conv1d
    conv = b.block.register_parameter("conv", b.uniform({r_.channels(), 1, r_.conv_size}, -most, most));
  }
  if (r_.decay == "token") {  // Mamba-2's: A from 1 to 16, softplus(dt_bias) log-uniform from 1e-3 to 0.1
    const Tensor A = b.uniform({S}, 1, 16).to(torch::kFloat64).clamp_min(1);
    A_log = b.block.register_parameter("A_log", A.log().to(torch::kFloat32));
    const Tensor dt = b.uniform({S}, std::log(1e-3), std::log(0.1)).to(torch::kFloat64).exp();
    dt_bias = b.block.register_parameter("dt_bias", (dt + torch::log(-torch::expm1(-dt))).to(torch::kFloat32));
  }
  if (r_.decay == "head")  // from −1/2 to −1/512
    head_decay = b.block.register_parameter(
        "head_decay", torch::log(torch::expm1(torch::logspace(-1, -9, S, 2, torch::kFloat64))).to(torch::kFloat32));
  if (r_.steps) skip = b.block.register_parameter("D", torch::ones({S}));
  if (r_.norm) o_norm = b.block.register_parameter("o_norm", torch::ones({r_.E}));
}

std::vector<MixerWeight> RecurrenceMixer::others() {
  return {{"self_attn.conv.weight", &conv},
          {"self_attn.decay.A_log", &A_log, /*wide=*/true},
          {"self_attn.decay.dt_bias", &dt_bias, /*wide=*/true},
          {"self_attn.head_decay", &head_decay, /*wide=*/true},
          {"self_attn.D", &skip, /*wide=*/true},
          {"self_attn.o_norm.weight", &o_norm}};
}

RecurrentState RecurrenceMixer::empty_state(int64_t sequences) const {
  const auto options = qkv.weight.options().requires_grad(false);
  const auto sums = options.dtype(options.dtype() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32);
  RecurrentState state{torch::zeros({sequences, r_.states(), r_.features(), r_.width()}, sums), {}};
  if (conv.defined()) state.tail = torch::zeros({sequences, r_.conv_size - 1, r_.channels()}, options);
  return state;
}

// ---- the pass --------------------------------------------------------------------------------------------------------

namespace {

// float, or double for double.
Tensor wide(const Tensor& x) { return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32); }

Tensor of_unit_length(const Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); }

// 1, x_i / d^(1/4), x_i x_j / √d for i < j, x_i² / √(2d): python/isentrope/feature_maps.py
Tensor taylor2(const Tensor& x) {
  const int64_t d = x.size(-1);
  const auto root = std::sqrt(static_cast<double>(d));
  const Tensor pairs = torch::triu_indices(d, d, 0, x.options().dtype(torch::kLong));
  const Tensor i = pairs[0], j = pairs[1];
  const auto doubles = x.options().dtype(torch::kFloat64);
  const Tensor once = torch::full({}, 1 / (std::sqrt(2.0) * root), doubles), twice = torch::full({}, 1 / root, doubles);
  const Tensor factor = torch::where(i == j, once, twice).to(x.scalar_type());
  return torch::cat({torch::ones_like(x.slice(-1, 0, 1)), x / std::sqrt(root),
                     x.index_select(-1, i) * x.index_select(-1, j) * factor},
                    -1);
}

// x [N, heads, …] with every head repeated to `heads` of them.
Tensor repeated(const Tensor& x, int64_t heads) {
  return x.size(1) == heads ? x : x.repeat_interleave(heads / x.size(1), 1);
}

}  // namespace

Tensor RecurrenceMixer::mapped(const Tensor& x) const {
  if (r_.feature_map == "elu_plus_one") return at::elu(x) + 1;
  if (r_.feature_map == "relu") return x.relu();
  if (r_.feature_map == "exp_normalized") return x.softmax(-1);
  if (r_.feature_map == "taylor2") return taylor2(x);
  return r_.unit ? of_unit_length(x) : x;
}

Tensor RecurrenceMixer::convolved(const Tensor& inputs, int64_t T, const Packing* packing,
                                  RecurrentState* state) const {
  if (!conv.defined()) return inputs;
  const int64_t N = inputs.size(0), B = N / std::max<int64_t>(T, 1);
  if (state != nullptr)
    return at::silu(continued_convolution(inputs.view({B, T, -1}), conv, state->tail).reshape({N, -1}));
  const Tensor position =
      packing ? packing->position : torch::arange(T, inputs.options().dtype(torch::kLong)).repeat({B});
  return at::silu(short_convolution(inputs, conv, position));
}

Tensor RecurrenceMixer::steps(const Tensor& decay) const {
  return at::softplus(wide(decay) + dt_bias.expand_as(decay));
}

Tensor RecurrenceMixer::mix(const Tensor& projected, int64_t T, const Packing* packing, RecurrentState* state,
                            const Tensor& prefix, AttentionRecord* record) const {
  const int64_t N = projected.size(0), B = N / std::max<int64_t>(T, 1), S = r_.states();
  const size_t mapped_parts = r_.prefix ? 5 : 3;  // q, k, v, and of a prefix k and v
  std::vector<int64_t> heights{r_.channels()};
  for (size_t i = mapped_parts; i < shape.parts.size(); ++i) heights.push_back(shape.parts[i].second);
  const auto parts = projected.split_with_sizes(heights, 1);
  const auto part = [&](const char* name) {
    for (size_t i = mapped_parts; i < shape.parts.size(); ++i)
      if (shape.parts[i].first == name) return parts[i + 1 - mapped_parts];
    return Tensor();
  };
  const Tensor inputs = convolved(parts[0], T, packing, state);
  const int64_t of_keys = r_.keys * r_.D, of_values = r_.values * r_.E;
  std::vector<int64_t> widths{r_.queries * r_.D, of_keys, of_values};
  if (r_.prefix) widths.insert(widths.end(), {of_keys, of_values});
  const auto qkv_parts = inputs.split_with_sizes(widths, 1);
  Tensor q = mapped(qkv_parts[0].view({N, r_.queries, r_.D})), k = mapped(qkv_parts[1].view({N, r_.keys, r_.D}));
  const Tensor v = qkv_parts[2].view({N, r_.values, r_.E});
  if (r_.scale != 1) q = q * r_.scale;
  if (r_.values > r_.keys) q = repeated(q, S), k = repeated(k, S);

  Tensor log_decay, written = v;  // [N, S]
  if (A_log.defined()) {
    const Tensor step = steps(part("decay"));
    log_decay = -A_log.exp().expand({N, S}) * step;
    if (r_.steps) written = v * step.to(v.scalar_type()).unsqueeze(2);
  }
  if (head_decay.defined()) log_decay = -at::softplus(head_decay).expand({N, S});

  // [N, heads, …] → as the ops take it
  const auto laid = [&](const Tensor& x) {
    if (!x.defined() || packing) return x;
    const auto sizes = x.sizes().slice(1);
    std::vector<int64_t> split{B, T};
    split.insert(split.end(), sizes.begin(), sizes.end());
    return x.view(split).transpose(1, 2);
  };
  const auto given = [](const Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
  const std::optional<Tensor> ends = packing ? std::optional(packing->ends) : std::nullopt;
  std::optional<Tensor> before = state ? std::optional(state->matrix) : std::nullopt;
  Tensor early;  // φ of the keys of a prefix, [N, keys, features]
  if (r_.prefix && prefix.defined()) {
    // The keys of other tokens are 0 behind φ, so that they add nothing to the sum of the weights either.
    const Tensor e = mapped(qkv_parts[3].view({N, r_.keys, r_.D})) * prefix.to(k.scalar_type()).view({N, 1, 1});
    early = e;
    const Tensor w = qkv_parts[4].view({N, r_.values, r_.E});
    before = ops::linear_attention(
                 laid(e.detach()), laid(e), laid(w),
                 {.log_decay = {}, .state = {}, .key_lengths = {}, .cu_seqlens = ends, .normalizer = r_.normalizer})
                 .state;
  }
  ops::LinearAttention found;
  const Tensor beta = r_.beta > 0 ? wide(part("b")).sigmoid() * r_.beta : Tensor();
  if (r_.beta > 0) {
    found = ops::gated_delta_rule(laid(q), laid(k), laid(written), laid(beta), given(laid(log_decay)),
                                  {.write = {}, .state = before, .key_lengths = {}, .cu_seqlens = ends});
  } else {
    found = ops::linear_attention(laid(q), laid(k), laid(written),
                                  {.log_decay = given(laid(log_decay)),
                                   .state = before,
                                   .key_lengths = {},
                                   .cu_seqlens = ends,
                                   .normalizer = r_.normalizer});
  }
  if (state != nullptr) state->matrix = found.state;
  if (record != nullptr && record->with_states) {
    const auto again = [&](std::optional<Tensor> lengths) {
      const Tensor u = laid(written);
      return r_.beta > 0
                 ? ops::gated_delta_rule(laid(q), laid(k), u, laid(beta), given(laid(log_decay)),
                                         {.write = {}, .state = before, .key_lengths = lengths, .cu_seqlens = {}})
                 : ops::linear_attention(laid(q), laid(k), u,
                                         {.log_decay = given(laid(log_decay)),
                                          .state = before,
                                          .key_lengths = lengths,
                                          .cu_seqlens = {},
                                          .normalizer = r_.normalizer});
    };
    tell_states(*record, layer_, packing, found.state, r_.E,
                [&](const Tensor& lengths) { return again(lengths).state; });
    if (r_.weighs()) record->states.back().entropy = weight_entropy(q, k, log_decay, early, T, packing);
  }
  const Tensor out = packing ? found.out : found.out.transpose(1, 2).reshape({N, r_.heads(), r_.E});
  return finished(out, v, part("g"), part("n"));
}

Tensor RecurrenceMixer::finished(Tensor out, const Tensor& v, const Tensor& gate, const Tensor& denominator) const {
  const int64_t N = out.size(0), H = r_.heads(), E = r_.E;
  if (denominator.defined()) {
    const Tensor x = wide(denominator);
    const Tensor eta = r_.denominator == "exp" ? x.exp() : r_.denominator == "softplus" ? at::softplus(x) : x.sigmoid();
    out = out / eta.to(out.scalar_type()).unsqueeze(2);
  }
  const auto gated = [&](const Tensor& x) { return gate.defined() ? x * at::silu(gate).view({N, H, E}) : x; };
  if (r_.steps) out = gated(out + v * skip.to(v.scalar_type()).unsqueeze(1).expand({N, H, 1}));
  if (r_.norm) out = std::get<1>(add_rms_norm(out.reshape({N * H, E}), {}, o_norm, eps())).view({N, H, E});
  if (!r_.steps) out = gated(out);
  return out.reshape({N, H * E});
}

Tensor RecurrenceMixer::forward(const Tensor& x, const Origin& origin, const MixerPass& pass) const {
  const Tensor projected = model::linear(x, qkv, origin);
  const Tensor mixed =
      mix(projected, pass.packing ? x.size(0) : pass.cosine.size(0), pass.packing, nullptr, pass.prefix, pass.record);
  return model::linear(mixed, o);
}

}  // namespace isentrope::model
