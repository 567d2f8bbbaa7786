#include "csrc/model/mixers/convolution.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "csrc/model/layers.h"

namespace isentrope::model {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Rows of one task and of one partial sum of the weight's gradient: fixed, so that sums do not depend on threads.
constexpr int64_t kRowsOfTask = 128;

template <class F>
void for_tasks(int64_t rows, const F& f) {
  at::parallel_for(0, (rows + kRowsOfTask - 1) / kRowsOfTask, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i, i * kRowsOfTask, std::min((i + 1) * kRowsOfTask, rows));
  });
}

struct ShortConvolution : Function<ShortConvolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& weight, const Tensor& position) {
    const Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous();
    const Tensor taps = weight.squeeze(1).t().contiguous();  // [K, channels]
    const int64_t N = x.size(0), W = x.size(1), K = taps.size(0);
    Tensor y = at::empty({N, W}, x.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "short_convolution", [&] {
      const auto *from = x.const_data_ptr<scalar_t>(), *tap = taps.const_data_ptr<scalar_t>();
      const auto* place = position.const_data_ptr<int64_t>();
      auto* to = y.data_ptr<scalar_t>();
      const int64_t ld = x.stride(0);
      for_tasks(N, [&](int64_t, int64_t first, int64_t end) {
        for (int64_t n = first; n < end; ++n) {
          scalar_t* out = to + n * W;
          for (int64_t l = 0; l <= std::min(place[n], K - 1); ++l) {
            const scalar_t *in = from + (n - l) * ld, *w = tap + (K - 1 - l) * W;
            if (l == 0)
              for (int64_t c = 0; c < W; ++c) out[c] = w[c] * in[c];
            else
              for (int64_t c = 0; c < W; ++c) out[c] += w[c] * in[c];
          }
        }
      });
    });
    ctx->save_for_backward({x, taps, position});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &taps = saved[1], &position = saved[2], dy = grads[0].contiguous();
    const int64_t N = x.size(0), W = x.size(1), K = taps.size(0);
    Tensor dx = at::empty({N, W}, dy.options());
    Tensor partial = at::zeros({(N + kRowsOfTask - 1) / kRowsOfTask, K, W}, dy.options());
    AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "short_convolution_backward", [&] {
      const auto *from = x.const_data_ptr<scalar_t>(), *tap = taps.const_data_ptr<scalar_t>(),
                 *grad = dy.const_data_ptr<scalar_t>();
      const auto* place = position.const_data_ptr<int64_t>();
      auto *to = dx.data_ptr<scalar_t>(), *sums = partial.data_ptr<scalar_t>();
      const int64_t ld = x.stride(0);
      for_tasks(N, [&](int64_t task, int64_t first, int64_t end) {
        for (int64_t n = first; n < end; ++n) {
          scalar_t* out = to + n * W;
          std::fill_n(out, W, scalar_t(0));
          for (int64_t l = 0; l < K && n + l < N; ++l) {
            if (place[n + l] < l) break;  // of the next sequence
            const scalar_t *g = grad + (n + l) * W, *w = tap + (K - 1 - l) * W;
            for (int64_t c = 0; c < W; ++c) out[c] += w[c] * g[c];
          }
          for (int64_t l = 0; l <= std::min(place[n], K - 1); ++l) {
            const scalar_t *in = from + (n - l) * ld, *g = grad + n * W;
            scalar_t* sum = sums + (task * K + K - 1 - l) * W;
            for (int64_t c = 0; c < W; ++c) sum[c] += g[c] * in[c];
          }
        }
      });
    });
    return {dx, partial.sum(0).t().unsqueeze(1), Tensor()};
  }
};

}  // namespace

Tensor short_convolution(const Tensor& x, const Tensor& weight, const Tensor& position) {
  if (has_cpu_kernels(x)) return ShortConvolution::apply(x, weight, position.contiguous());
  const int64_t N = x.size(0), K = weight.size(2);
  Tensor y = x * weight.select(2, K - 1).squeeze(1);
  for (int64_t l = 1; l < std::min(K, N); ++l) {
    const Tensor earlier = at::constant_pad_nd(x.slice(0, 0, N - l), {0, 0, l, 0});
    y = y + at::where((position >= l).unsqueeze(1), earlier, 0) * weight.select(2, K - 1 - l).squeeze(1);
  }
  return y;
}

Tensor continued_convolution(const Tensor& x, const Tensor& weight, Tensor& tail) {
  const int64_t T = x.size(1), K = weight.size(2);
  const Tensor all = at::cat({tail.to(x.scalar_type()), x}, 1);  // [B, K − 1 + T, channels]
  Tensor y = all.slice(1, K - 1) * weight.select(2, K - 1).squeeze(1);
  for (int64_t l = 1; l < K; ++l)
    y = y + all.slice(1, K - 1 - l, K - 1 - l + T) * weight.select(2, K - 1 - l).squeeze(1);
  tail = all.slice(1, T);
  return y;
}

void convolve_token(int64_t channels, int64_t K, const float* taps, const float* x, const float* from, float* to,
                    float* y) {
  for (int64_t c = 0; c < channels; ++c) y[c] = taps[(K - 1) * channels + c] * x[c];
  for (int64_t j = 0; j < K - 1; ++j)
    for (int64_t c = 0; c < channels; ++c) y[c] += taps[j * channels + c] * from[j * channels + c];
  for (int64_t j = 0; j + 1 < K - 1; ++j) std::copy_n(from + (j + 1) * channels, channels, to + j * channels);
  std::copy_n(x, channels, to + (K - 2) * channels);
  for (int64_t c = 0; c < channels; ++c) y[c] /= 1 + std::exp(-y[c]);
}

}  // namespace isentrope::model
