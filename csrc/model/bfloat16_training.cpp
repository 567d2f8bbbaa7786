#include "csrc/model/bfloat16_training.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "csrc/model/bfloat16_kernels.h"
#include "csrc/model/single_pass.h"
#include "csrc/ops/cpu_parallel.h"

namespace isentrope::model {
namespace {

using at::Tensor;

thread_local bool single_pass = false;  // what SinglePass says

// Whether a copy of the weight is wanted once alone. A weight that is not trained is the same in the next update.
bool once(const Tensor& weight) { return single_pass && weight.requires_grad(); }

// Rows of a task: each reads all of B once from the third-level cache for as long as its products take.
constexpr int64_t kTaskRows = 48;
// Rows that one task rounds, packs or transposes.
constexpr int64_t kMoveRows = 64;
// Added to the width of a transposed operand, so that its rows do not fall on the same cache sets.
constexpr int64_t kPad = 32;

int64_t even(int64_t n) { return (n + 1) / 2 * 2; }
int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

const uint16_t* bits(const Tensor& x) { return static_cast<const uint16_t*>(x.const_data_ptr()); }
uint16_t* new_bits(const Tensor& x) { return static_cast<uint16_t*>(x.data_ptr()); }

// body(first, count) for runs of `size` of n.
template <class Body>
void for_runs(int64_t n, int64_t size, const Body& body) {
  ops::for_tasks(parts(n, size), [&](int64_t i) { body(i * size, std::min(size, n - i * size)); });
}

// The weight's rows as bfloat16, times scale.
Tensor rounded(const Tensor& weight, const Tensor& scale) {
  const int64_t M = weight.size(0), K = weight.size(1);
  const Tensor narrow = at::empty({M, K}, at::kBFloat16);
  for_runs(M, kMoveRows, [&](int64_t first, int64_t count) {
    bfloat16_kernels().round(count, K, K, weight.const_data_ptr<float>() + first * K,
                             scale.defined() ? scale.const_data_ptr<float>() + first : nullptr,
                             new_bits(narrow) + first * K);
  });
  return narrow;
}

// Panels of x [rows, width], ld apart, as B.
Bfloat16Panels row_panels(int64_t rows, int64_t width, const uint16_t* x, int64_t ld) {
  Bfloat16Panels panels(rows, width);
  ops::for_tasks(panels.panels(), [&](int64_t i) {
    const int64_t at = i * kPairPanel;
    bfloat16_kernels().pack_rows(rows, std::min(kPairPanel, width - at), x + at, ld, panels.panel(i));
  });
  return panels;
}

// y [rows, B's columns] = a · B by tasks.
Tensor product_of(int64_t rows, const uint16_t* a, int64_t lda, const Bfloat16Panels& b) {
  const int64_t N = b.columns();
  if (b.depth() == 0) return at::zeros({rows, N}, at::kFloat);
  const Tensor y = at::empty({rows, N}, at::kFloat);
  float* const to = y.data_ptr<float>();
  for_runs(rows, kTaskRows, [&](int64_t first, int64_t count) {
    std::vector<float> staging;
    b.multiply(count, a + first * lda, lda, to + first * N, N, false, staging);
    end_bfloat16_step();
  });
  return y;
}

}  // namespace

SinglePass::SinglePass(bool single) : before_(std::exchange(single_pass, single)) {}
SinglePass::~SinglePass() { single_pass = before_; }

void Bfloat16Copy::look(const Tensor& weight, const Tensor& scale) {
  const bool same_scale = scale.defined() == scale_.defined() && (!scale.defined() || at::equal(scale, scale_));
  if (data_ == weight.const_data_ptr() && version_ == weight._version() && same_scale) return;
  output_ = gradient_ = nullptr;
  data_ = weight.const_data_ptr();
  version_ = weight._version();
  scale_ = scale.defined() ? scale.detach().clone() : Tensor();
}

std::shared_ptr<const Bfloat16Panels> Bfloat16Copy::for_output(const Tensor& weight, const Tensor& scale) {
  const std::lock_guard lock(mutex_);
  look(weight, scale);
  if (output_) return once(weight) ? std::exchange(output_, nullptr) : output_;
  const int64_t M = weight.size(0), K = weight.size(1);
  const Tensor narrow = rounded(weight, scale);
  auto panels = std::make_shared<Bfloat16Panels>(K, M);
  for_runs(M, kPairPanel, [&](int64_t first, int64_t count) {
    bfloat16_kernels().pack_columns(count, K, bits(narrow) + first * K, K, panels->panel(first / kPairPanel));
  });
  if (!once(weight)) output_ = panels;
  return panels;
}

std::shared_ptr<const Bfloat16Panels> Bfloat16Copy::for_gradient(const Tensor& weight, const Tensor& scale) {
  const std::lock_guard lock(mutex_);
  look(weight, scale);
  if (gradient_) return once(weight) ? std::exchange(gradient_, nullptr) : gradient_;
  const Tensor narrow = rounded(weight, scale);
  const int64_t M = weight.size(0), K = weight.size(1);
  auto panels = std::make_shared<Bfloat16Panels>(row_panels(M, K, bits(narrow), K));
  if (!once(weight)) gradient_ = panels;
  return panels;
}

Tensor bfloat16_operand(const Tensor& x_in) {
  const int64_t N = x_in.size(0), K = x_in.size(1), depth = even(K);
  const Tensor x = x_in.contiguous();
  if (x.scalar_type() == at::kBFloat16 && depth == K) return x;
  if (x.scalar_type() == at::kBFloat16) return at::constant_pad_nd(x, {0, depth - K});
  const Tensor narrow = at::empty({N, depth}, at::kBFloat16);
  for_runs(N, kMoveRows, [&](int64_t first, int64_t count) {
    bfloat16_kernels().round(count, K, depth, x.const_data_ptr<float>() + first * K, nullptr,
                             new_bits(narrow) + first * depth);
  });
  return narrow;
}

Tensor bfloat16_product_with(const Tensor& a, const Bfloat16Panels& b) {
  return product_of(a.size(0), bits(a), a.size(1), b);
}

Tensor bfloat16_weight_gradient(const Tensor& dy, const Tensor& x, int64_t M, int64_t K) {
  const int64_t N = dy.size(0), ldy = dy.size(1), depth = even(N), ld = depth + kPad;
  const Bfloat16Panels b = row_panels(N, K, bits(x), x.size(1));
  const Tensor transposed = at::empty({M, ld}, at::kBFloat16);
  for_runs(M, kMoveRows, [&](int64_t first, int64_t count) {
    uint16_t* const to = new_bits(transposed) + first * ld;
    bfloat16_kernels().transpose(N, count, bits(dy) + first, ldy, to, ld);
    if (N < depth)
      for (int64_t i = 0; i < count; ++i) to[i * ld + N] = 0;
  });
  return product_of(M, bits(transposed), ld, b);
}

}  // namespace isentrope::model
