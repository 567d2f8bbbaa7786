// linear_token_entropy on a GPU, block of the vocabulary by block: a product, then a kernel.
#include <ATen/ATen.h>

#include <algorithm>

#include "csrc/ops/check.h"
#include "csrc/ops/entries.h"

namespace isentrope::ops {
namespace {

constexpr const char* kOp = "linear_token_entropy";

// Wide enough to fill a GPU with a product of a few hundred rows; 1/64 of a large vocabulary.
int64_t gpu_block(int64_t vocab) { return std::min(vocab, std::max<int64_t>(1024, vocab / 64)); }

// Rows whose logits exist together for the kept tokens: at most 256 MiB of floats, a multiple of 64.
int64_t gpu_rows(int64_t vocab) { return std::max<int64_t>((int64_t{1} << 26) / vocab / 64, 1) * 64; }

// The logits of one block after the other.
struct Blocks {
  Tensor hidden, weight, bias, target;  // [N, C], [V, C], [V], [N]
  Tensor buffer;
  bool by_rows;  // products take gpu_rows() at a time, so that a row's logits have the same bits in both directions

  Blocks(const Tensor& hidden_in, const Tensor& weight_in, const Tensor& target_in, const OptionalTensor& bias_in,
         bool by_rows)
      : hidden(with_rows(hidden_in.reshape({-1, hidden_in.size(-1)}))),
        weight(with_rows(weight_in)),
        target(target_in.contiguous()),
        buffer(at::empty({hidden.size(0) * gpu_block(weight.size(0))}, hidden.options().dtype(statistic_type(hidden)))),
        by_rows(by_rows) {
    if (bias_in) bias = bias_in->contiguous();
  }

  Tensor weight_of(const kernels::LogitBlock& p) const { return weight.slice(0, p.first, p.first + p.columns); }

  // body(p, logits [N, columns]) for every block, p with all but what is its own of the op.
  template <class Parameters, class Body>
  void each(Parameters p, std::optional<double> softcap, double temperature, int64_t ignore_index,
            const LogitBackend& backend, const Body& body) const {
    p.dtype = kernel_dtype(kOp, hidden);
    p.rows = hidden.size(0);
    p.vocab = weight.size(0);
    p.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
    p.target = target.const_data_ptr<int64_t>();
    p.ignore_index = ignore_index;
    p.softcap = softcap.value_or(0);
    p.temperature = temperature;
    for (p.first = 0; p.first < p.vocab; p.first += p.columns) {
      p.columns = std::min(gpu_block(p.vocab), p.vocab - p.first);
      const Tensor logits = buffer.narrow(0, 0, p.rows * p.columns).view({p.rows, p.columns});
      const int64_t at_once = by_rows ? gpu_rows(p.vocab) : p.rows;
      for (int64_t n = 0; n < p.rows; n += at_once) {
        const int64_t count = std::min(at_once, p.rows - n);
        backend.product(logits.narrow(0, n, count), hidden.narrow(0, n, count), weight_of(p).t(), false);
      }
      p.logits = logits.const_data_ptr();
      body(p, logits);
    }
  }
};

}  // namespace

TokenEntropyOutputs linear_token_entropy_run(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                             const OptionalTensor& bias, std::optional<double> softcap,
                                             double temperature, int64_t ignore_index, bool moments,
                                             const LogitBackend& backend) {
  check_linear_arguments(hidden, weight, target, bias, softcap, temperature);
  const auto outputs = token_entropy_empty(hidden, target, moments);
  if (target.numel() == 0) return outputs;
  const Blocks blocks(hidden, weight, target, bias, false);
  const Tensor sums = at::empty({target.numel(), kernels::kLogitBlockSums}, blocks.buffer.options());
  kernels::LinearTokenEntropyForward p;
  token_entropy_rows(p, outputs);
  p.sums = sums.mutable_data_ptr();
  blocks.each(p, softcap, temperature, ignore_index, backend,
              [&](const auto& block, const Tensor&) { backend.forward(block); });
  return outputs;
}

KeptTokenEntropyOutputs linear_token_entropy_kept_run(const Tensor& hidden, const Tensor& weight,
                                                      const Tensor& target_in, const OptionalTensor& bias,
                                                      std::optional<double> softcap, double temperature,
                                                      int64_t ignore_index, bool moments, c10::string_view keep,
                                                      double share, const LogitBackend& backend) {
  check_linear_arguments(hidden, weight, target_in, bias, softcap, temperature);
  kernels::TokenEntropyKeep k;
  k.keep = keep_kind(kOp, keep, share);
  const auto outputs = token_entropy_empty(hidden, target_in, moments);
  const auto all = with_kept(outputs, target_in);
  if (target_in.numel() == 0) return all;
  const Tensor rows = with_rows(hidden.reshape({-1, hidden.size(-1)})), target = target_in.contiguous().view({-1});
  const int64_t N = rows.size(0), V = weight.size(0), at_once = std::min(N, gpu_rows(V));
  const auto options = hidden.options().dtype(statistic_type(hidden));
  const Tensor capped = at::empty({at_once, V}, options),
               sums = at::empty({at_once, kernels::kLogitBlockSums}, options);
  k.dtype = kernel_dtype(kOp, capped);
  k.logits = capped.const_data_ptr();
  k.ignore_index = ignore_index;
  k.temperature = temperature;
  k.share = share;
  for (int64_t n = 0; n < N; n += at_once) {
    const int64_t count = std::min(at_once, N - n);
    const auto part = [&](const Tensor& x) { return x.numel() == 0 ? x : x.view({N, -1}).narrow(0, n, count); };
    const auto of_rows = std::apply([&](const auto&... x) { return TokenEntropyOutputs(part(x)...); }, outputs);
    const Tensor targets = target.narrow(0, n, count);
    const Blocks blocks(rows.narrow(0, n, count), weight, targets, bias, false);
    kernels::LinearTokenEntropyForward p;
    token_entropy_rows(p, of_rows);
    p.sums = sums.mutable_data_ptr();
    p.capped = capped.mutable_data_ptr();
    blocks.each(p, softcap, temperature, ignore_index, backend,
                [&](const auto& block, const Tensor&) { backend.forward(block); });
    k.layout = {count, V, count, 0, V};
    k.target = targets.const_data_ptr<int64_t>();
    k.entropy = p.entropy;
    k.anchor = p.anchor;
    k.log_sum = p.log_sum;
    k.kept_entropy = part(std::get<7>(all)).mutable_data_ptr();
    k.kept = static_cast<kernels::KeptTokens*>(part(std::get<8>(all)).mutable_data_ptr());
    backend.keep(k);
  }
  return all;
}

LinearTokenEntropyGradients linear_token_entropy_backward_run(
    const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& entropy, const Tensor& anchor,
    const Tensor& log_sum, const OptionalTensor& dlogprob, const OptionalTensor& dentropy, const OptionalTensor& dlse,
    const OptionalTensor& bias, std::optional<double> softcap, double temperature, int64_t ignore_index,
    std::array<bool, 3> wanted, const OptionalTensor& dkept_entropy, const OptionalTensor& kept,
    const LogitBackend& backend) {
  check_linear_arguments(hidden, weight, target, bias, softcap, temperature);
  const LinearStatistics statistics(hidden, target, entropy, anchor, log_sum, dlogprob, dentropy, dlse, bias, wanted,
                                    dkept_entropy, kept);
  const bool rows = target.numel() > 0;
  auto new_gradient = [&](bool of, at::IntArrayRef sizes) {
    if (!of) return at::empty({0}, hidden.options());
    return rows ? at::empty(sizes, hidden.options()) : at::zeros(sizes, hidden.options());
  };
  Tensor dhidden = new_gradient(wanted[0], hidden.sizes()), dweight = new_gradient(wanted[1], weight.sizes()),
         dbias = new_gradient(wanted[2], {weight.size(0)});
  if (!rows) return {dhidden, dweight, dbias};
  const Blocks blocks(hidden, weight, target, bias, statistics.dkept.defined());
  const bool wide = hidden.scalar_type() == blocks.buffer.scalar_type();
  const Tensor narrow = wide ? blocks.buffer : at::empty(blocks.buffer.sizes(), hidden.options());
  Tensor sums;  // of dhidden, [N, C]
  if (wanted[0])
    sums = wide ? dhidden.view({-1, weight.size(1)}) : at::empty(blocks.hidden.sizes(), blocks.buffer.options());
  kernels::LinearTokenEntropyBackward p;
  statistics.fill(p);
  p.dlogits = narrow.mutable_data_ptr();
  blocks.each(p, softcap, temperature, ignore_index, backend, [&](const auto& block, const Tensor& logits) {
    backend.backward(block);
    const Tensor dz = narrow.narrow(0, 0, logits.numel()).view(logits.sizes());
    if (wanted[0]) backend.product(sums, dz, blocks.weight_of(block), block.first > 0);
    if (wanted[1])
      backend.product(dweight.slice(0, block.first, block.first + block.columns), dz.t(), blocks.hidden, false);
    if (wanted[2]) {
      Tensor part = dbias.slice(0, block.first, block.first + block.columns);
      at::sum_out(part, dz, 0);
    }
  });
  if (wanted[0] && !wide) dhidden.view(sums.sizes()).copy_(sums);
  return {dhidden, dweight, dbias};
}

}  // namespace isentrope::ops
