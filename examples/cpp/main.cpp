// Attention with the entropy of its rows, and the gradient of their mean.
#include <isentrope/ops.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>

int main() {
  torch::manual_seed(1);
  const auto q = torch::randn({1, 4, 16, 32}, torch::requires_grad());  // [B, H, T, D]
  const auto k = torch::randn({1, 2, 16, 32}), v = torch::randn({1, 2, 16, 32});
  const auto attention = isentrope::ops::entropy_attention(q, k, v);
  attention.entropy.mean().backward();
  std::printf("entropy of the last row: %.3f of %.3f nats, gradient of q: %.2e\n",
              attention.entropy.select(2, 15).mean().item<double>(), std::log(16.0), q.grad().norm().item<double>());
}
