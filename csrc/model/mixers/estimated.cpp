#include "csrc/model/mixers/estimated.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "csrc/model/attention_losses.h"
#include "csrc/model/layers.h"
#include "csrc/model/mixers/state_record.h"
#include "csrc/ops/ops.h"

namespace isentrope::model {

using torch::Tensor;

namespace {

Tensor of_sums(const Tensor& x) { return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32); }

// Where cell m of a row with n tokens begins: ⌈m n / M⌉.
Tensor begin_of(const Tensor& cell, const Tensor& count, int64_t M) { return (cell * count + (M - 1)).div(M, "floor"); }

// [N, M] bool: cells that hold a token.
Tensor filled(const Tensor& count, int64_t M) {
  const Tensor cell = torch::arange(M, count.options()), n = count.unsqueeze(1);
  return begin_of(cell, n, M).lt(begin_of(cell + 1, n, M));
}

}  // namespace

EstimatedMixer::EstimatedMixer(const MixerBuilder& b) : Mixer(b, /*bias=*/false, /*output_bias=*/false) {
  const int64_t H = config_.num_attention_heads, D = config_.head_size(), M = config_.estimated.columns;
  const auto root = [](int64_t x) { return std::sqrt(static_cast<double>(x)); };
  in = b.block.register_parameter("estimate_in", b.normal({2 * D, 4 * D}, 1 / root(4 * D)));
  norm = b.block.register_parameter("estimate_norm", torch::ones({2 * D}));
  columns = b.block.register_parameter("estimate_columns", b.normal({M, 2 * D}, 1 / root(2 * D)));
  bias = b.block.register_parameter("estimate_bias", torch::zeros({M}));
  conv = b.block.register_parameter("estimate_conv", b.normal({H, H, 3}, 0.1 / root(3 * H)));
  gate = b.block.register_parameter("estimate_gate", b.normal({2, 2 * D}, 0.1 / root(2 * D)));
  gate_bias = b.block.register_parameter("estimate_gate_bias", torch::full({2}, 3.0));  // σ(3) = 0.95
  o_norm = b.block.register_parameter("o_norm", torch::zeros({D}));
  sums_ = b.block.register_buffer("estimate_sums", torch::zeros({H, 3}, torch::kFloat64));
}

std::vector<MixerWeight> EstimatedMixer::others() {
  return {{"self_attn.estimator.in_proj.weight", &in, /*wide=*/true},
          {"self_attn.estimator.norm.weight", &norm, /*wide=*/true},
          {"self_attn.estimator.columns.weight", &columns, /*wide=*/true},
          {"self_attn.estimator.columns.bias", &bias, /*wide=*/true},
          {"self_attn.estimator.conv.weight", &conv, /*wide=*/true},
          {"self_attn.estimator.gate.weight", &gate, /*wide=*/true},
          {"self_attn.estimator.gate.bias", &gate_bias, /*wide=*/true},
          {"self_attn.o_norm.weight", &o_norm, /*wide=*/true}};
}

void EstimatedMixer::take(const Tensor& seen) {
  const bool some = seen.select(1, 2).gt(0).all().item<bool>();
  told_ = some ? (seen.slice(1, 0, 2) / seen.slice(1, 2)).to(torch::kCPU) : Tensor();
}

std::vector<Tensor> EstimatedMixer::parts(const Tensor& projected) const {
  const int64_t N = projected.size(0), D = config_.head_size();
  std::vector<int64_t> widths;
  for (const auto& part : shape.parts) widths.push_back(part.second);
  std::vector<Tensor> found = projected.split_with_sizes(widths, 1);
  for (Tensor& one : found) one = one.reshape({N, -1, D});
  return found;
}

Tensor EstimatedMixer::mapped(const Tensor& x) const {
  return config_.estimated.feature_map == "elu_plus_one" ? at::elu(x) + 1 : x.softmax(-1);
}

EstimatedMixer::Estimate EstimatedMixer::estimated(const Tensor& cp, const Tensor& v, const Tensor& cosine,
                                                   const Tensor& sine, const Tensor& count) const {
  const int64_t N = cp.size(0), H = cp.size(1), D = config_.head_size(), M = config_.estimated.columns;
  const auto found = of_sums(cp).split_with_sizes({D, D / 2, D / 2}, 2);
  const Tensor c = cosine.to(found[0].scalar_type()).unsqueeze(1), s = sine.to(c.scalar_type()).unsqueeze(1);
  const Tensor values = of_sums(v).repeat_interleave(H / v.size(1), 1);
  const Tensor read = torch::cat({found[0], c * found[1] + s * found[2], s * found[1] - c * found[2], values,
                                  c.expand({N, H, D / 2}), s.expand({N, H, D / 2})},
                                 2);
  const Tensor inner = torch::matmul(read.reshape({N * H, 4 * D}), in.t());
  const Tensor z = at::gelu(std::get<1>(add_rms_norm(inner, {}, norm, config_.rms_norm_eps)));
  const Tensor rows = at::addmm(bias, z, columns.t()).view({N, H, M});
  const Tensor beside = at::constant_pad_nd(rows.transpose(1, 2), {0, 0, 1, 1});  // [N, M + 2, H]
  const Tensor three = torch::cat({beside.slice(1, 0, M), beside.slice(1, 1, M + 1), beside.slice(1, 2, M + 2)}, 2);
  const Tensor taps = conv.permute({2, 1, 0}).reshape({3 * H, H});
  const Tensor mixed = rows + torch::matmul(three.reshape({N * M, 3 * H}), taps).view({N, M, H}).transpose(1, 2);
  const Tensor logits =
      mixed.masked_fill(filled(count, M).logical_not().unsqueeze(1), -std::numeric_limits<double>::infinity());
  Tensor gates = at::addmm(gate_bias, z, gate.t()).sigmoid().view({N, H, 2});
  // Where nothing is learnt of the estimate the gradient of its weights is 0, and not missing.
  if (torch::GradMode::is_enabled()) gates = gates + 0 * mixed.slice(2, 0, 1);
  return {logits.log_softmax(-1), gates};
}

Tensor EstimatedMixer::chosen(const Tensor& log, const Tensor& count) const {
  const torch::NoGradGuard no_grad;
  const int64_t N = log.size(0), H = log.size(1), M = log.size(2), k = config_.estimated.keep;
  const Tensor cells = (2 * k * M + count).div(2 * count, "floor").clamp_min(1) * H;  // [N]
  const Tensor order = log.detach().reshape({N, H * M}).argsort(/*stable=*/true, 1, /*descending=*/true);
  const Tensor rank = torch::empty_like(order).scatter_(
      1, order, torch::arange(H * M, order.options()).unsqueeze(0).expand({N, H * M}));
  return rank.lt(cells.unsqueeze(1)).view({N, H, M}).logical_and(filled(count, M).unsqueeze(1));
}

Tensor EstimatedMixer::sight(const Tensor& chosen, const Tensor& count, const Tensor& first, int64_t longest) const {
  const torch::NoGradGuard no_grad;
  const int64_t M = config_.estimated.columns, H = chosen.size(1), N = chosen.size(0);
  // As many as the widest row has; on a device the most there can be, which needs no answer of it.
  const auto most = [&](const Tensor& of_rows, int64_t at_most) {
    return chosen.is_cpu() && of_rows.numel() > 0 ? of_rows.max().item<int64_t>() : at_most;
  };
  const int64_t cells = most(chosen.sum(2), M), width = (longest + M - 1) / M;
  const auto [there, cell] = chosen.to(torch::kUInt8).sort(/*stable=*/true, 2, /*descending=*/true);
  const Tensor taken = cell.slice(2, 0, cells), n = count.view({N, 1, 1});
  const Tensor begin = begin_of(taken, n, M).unsqueeze(3), end = begin_of(taken + 1, n, M).unsqueeze(3);
  const Tensor token = begin + torch::arange(width, begin.options());  // [N, H, cells, width]
  const Tensor real = token.lt(end).logical_and(there.slice(2, 0, cells).unsqueeze(3).gt(0));
  Tensor all = token.masked_fill(real.logical_not(), -1).flatten(2);
  const Tensor own = n - 1, has_own = all.eq(own).any(2, true);
  all = torch::cat({all, own.expand({N, H, 1}).masked_fill(has_own, -1)}, 2);
  const int64_t keys = most(all.ge(0).sum(2), std::min(longest, all.size(2)));
  all = std::get<0>(all.sort(2, /*descending=*/true)).slice(2, 0, keys);
  return torch::where(all.ge(0), all + first.view({N, 1, 1}), all);
}

Tensor EstimatedMixer::joined(const Tensor& y, const Tensor& mean, const Tensor& gates) const {
  const int64_t N = y.size(0), H = y.size(1), D = y.size(2);
  const Tensor f = gates.slice(2, 0, 1), g = gates.slice(2, 1, 2);
  const Tensor means = mean.to(gates.scalar_type()).repeat_interleave(H / mean.size(1), 1);
  const Tensor x = g * f * y.to(gates.scalar_type()) + (1 - g) * means;
  return (x + std::get<1>(add_rms_norm(x.reshape({N * H, D}), {}, o_norm, config_.rms_norm_eps)).view({N, H, D}))
      .view({N, H * D});
}

// What the record and estimate() are told of A, the layer's own full attention or the teacher's; q [N, H, D], k [N, G, D] rotated.
void EstimatedMixer::compare(const Tensor& q, const Tensor& k, const Tensor& out, const Estimate& estimate,
                             const Tensor& chosen, const MixerPass& pass, int64_t B) const {
  AttentionRecord& record = *pass.record;
  const int64_t N = q.size(0), M = config_.estimated.columns;
  const Tensor own = [&] {
    const at::AutoGradMode learnt(torch::GradMode::is_enabled() && record.teacher != nullptr);
    return full_attention(padded(q, B, pass.packing), padded(k, B, pass.packing));
  }();
  std::vector<Tensor> losses(kLosses);
  Tensor A = own.detach().exp();
  if (record.teacher != nullptr) {
    const AttentionMap& teacher = record.teacher->at(layer_);
    compare_with_teacher(losses, teacher, own, out, B, pass.packing);
    A = teacher.weights.to(own.scalar_type());
  }
  const Tensor cells = in_cells(A, M), log = padded(estimate.log, B, pass.packing).transpose(1, 2);
  losses[kEstimateKl] = divergence(cells, log);
  if (record.teacher != nullptr) losses[kEstimateSquare] = (cells - log.exp()).square().sum(-1);
  record.losses.push_back(losses_of_rows(losses, B, N, pass.packing));
  if (!torch::GradMode::is_enabled()) return;
  const torch::NoGradGuard no_grad;
  const auto of_tokens = [&](const Tensor& x) {  // [S, H, L] → [H]
    Tensor rows = unpadded(x.transpose(1, 2), N, pass.packing);
    if (record.real.defined()) rows = rows * record.real.reshape({N, 1});
    return rows.sum(0).to(torch::kFloat64);
  };
  const Tensor kept = (cells * padded(chosen, B, pass.packing).transpose(1, 2)).sum(-1);
  Tensor sums = sums_;
  sums.add_(torch::stack({of_tokens(losses[kEstimateKl]), of_tokens(kept), of_tokens(torch::ones_like(kept))}, 1));
}

Tensor EstimatedMixer::forward(const Tensor& x, const Origin& origin, const MixerPass& pass) const {
  const int64_t N = x.size(0), H = config_.num_attention_heads, G = config_.num_key_value_heads,
                D = config_.head_size();
  const Packing* packing = pass.packing;
  const int64_t T = packing ? N : pass.cosine.size(0), B = packing ? packing->rows : N / std::max<int64_t>(T, 1);
  const int64_t longest = packing ? packing->longest : T;
  const auto of = parts(model::linear(x, qkv, origin));
  const Tensor& v = of[2];
  const Tensor cosine = packing ? pass.cosine : pass.cosine.repeat({B, 1}),
               sine = packing ? pass.sine : pass.sine.repeat({B, 1});
  const auto integers = torch::dtype(torch::kLong).device(x.device());
  const Tensor position = packing ? packing->position : torch::arange(T, integers).repeat({B});
  const Tensor count = position + 1, first = torch::arange(N, integers) - position;

  // The estimate.
  const auto laid = [&](const Tensor& y) { return packing ? y : y.view({B, T, y.size(1), y.size(2)}).transpose(1, 2); };
  const Tensor a = laid(mapped(of_sums(of[3]))), b = laid(mapped(of_sums(of[4])));
  const Tensor code = torch::cat({cosine, sine}, 1).to(a.scalar_type()).unsqueeze(1).expand({N, G, D});
  const Tensor written = laid(torch::cat({of_sums(v), code}, 2));
  ops::LinearAttentionOptions sums{
      .log_decay = {}, .state = {}, .key_lengths = {}, .cu_seqlens = {}, .normalizer = true};
  if (packing) sums.cu_seqlens = packing->ends;
  const ops::LinearAttention linear = ops::linear_attention(a, b, written, sums);
  const Tensor cp = packing ? linear.out : linear.out.transpose(1, 2).reshape({N, H, 2 * D});
  const Estimate estimate = estimated(cp, v, cosine, sine, count);
  const Tensor taken = chosen(estimate.log, count);

  // Attention over what is chosen, all sequences in one row of N tokens: a cluster of one query each.
  const auto turned = [&](const Tensor& y) {
    const auto half = y.chunk(2, 2);
    const Tensor c = cosine.unsqueeze(1), s = sine.unsqueeze(1);
    return torch::cat({half[0] * c - half[1] * s, half[1] * c + half[0] * s}, 2);
  };
  // Operands of products are in bfloat16 where model.compute is that and they are float32.
  const auto by_head = [&](const Tensor& y) {
    const Tensor narrow =
        config_.compute == "bfloat16" && y.scalar_type() == torch::kFloat32 ? y.to(torch::kBFloat16) : y;
    return narrow.transpose(0, 1).unsqueeze(0);
  };
  const Tensor q = turned(of[0]), k = turned(of[1]);
  ops::GatheredAttentionOptions options;
  options.key_index = sight(taken, count, first, longest).transpose(0, 1).unsqueeze(0);
  options.return_entropy = pass.record != nullptr;
  const Tensor queries = torch::arange(N, integers).view({1, 1, N, 1}).expand({1, H, N, 1});
  const ops::EntropyAttention found =
      ops::gathered_attention(by_head(q), by_head(k), by_head(v), queries, options);  // out [1, H, N, 1, D]
  const Tensor y = found.out.view({H, N, D}).transpose(0, 1);

  // The mean of the values up to each token; sums in double, since that of a packed sequence is a difference of two.
  Tensor sum = v.to(torch::kFloat64);
  sum = packing ? sum.cumsum(0) : sum.view({B, T, G, D}).cumsum(1).view({N, G, D});
  if (packing) {
    const Tensor before = torch::cat({torch::zeros_like(sum.slice(0, 0, 1)), sum.slice(0, 0, N - 1)});
    sum = sum - at::embedding(before.view({N, G * D}), first).view({N, G, D});
  }
  const Tensor mean = (sum / count.view({N, 1, 1})).to(of_sums(v).scalar_type());
  const Tensor out = joined(y, mean, estimate.gates);

  if (AttentionRecord* record = pass.record) {
    const auto of_rows = [&](const Tensor& s) { return s.view({H, B, N / B}).transpose(0, 1); };  // [1, H, N, 1]
    record->entropy.push_back(of_rows(found.entropy));
    record->max_logit.push_back(of_rows(found.max_logit));
    if (record->with_bound) record->bound.push_back(torch::zeros_like(record->entropy.back()));  // none is known
    record->layer.push_back(layer_);
    record->window.push_back(shape.sight);
    if (record->with_states)
      tell_states(*record, layer_, packing, linear.state, 2 * D, [&](const Tensor& lengths) {
        sums.key_lengths = lengths;
        return ops::linear_attention(a, b, written, sums).state;
      });
    if (record->with_losses) compare(q, k, out, estimate, taken, pass, B);
  }
  return model::linear(out, o);
}

}  // namespace isentrope::model
