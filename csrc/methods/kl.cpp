#include "csrc/methods/kl.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "csrc/methods/op.h"

namespace isentrope::methods {
namespace {

constexpr const char* kOp = "method_kl";
constexpr double kMostDelta = 20, kMostK3 = 10;  // as k3 has them in kernels/grpo_loss.h, and in verl

// Σ_t of a row. Row by row, so that the bits do not depend on the number of threads.
template <class T>
double sum_of(const std::string& estimator, const T* logprob, const T* reference, const bool* mask, int64_t n) {
  double sum = 0;
  const auto add = [&](auto of) {
    for (int64_t t = 0; t < n; ++t)
      if (mask[t]) sum += of(static_cast<double>(logprob[t]) - static_cast<double>(reference[t]));
  };
  if (estimator == "k1") {
    add([](double d) { return d; });
  } else if (estimator == "abs") {
    add([](double d) { return std::abs(d); });
  } else if (estimator == "k2") {
    add([](double d) { return 0.5 * d * d; });
  } else {
    add([](double d) {
      const double near = std::clamp(d, -kMostDelta, kMostDelta);
      return std::min(std::exp(-near) + near - 1, kMostK3);
    });
  }
  return sum;
}

// [B] double: Σ_t k_t of each completion.
Tensor divergence(const Tensor& logprob, const Tensor& ref_logprob, const Tensor& mask, c10::string_view estimator) {
  check_rows(kOp, "logprob", logprob);
  check_floating(kOp, "logprob", logprob);
  check_like(kOp, "ref_logprob", ref_logprob, "logprob", logprob);
  check_like(kOp, "mask", mask, "logprob", logprob);
  const std::string kind(estimator);
  OP_CHECK(kOp, kind == "k1" || kind == "k2" || kind == "k3" || kind == "abs", "estimator is \"", kind,
           "\"; wanted k1, k2, k3 or abs");
  const Tensor own = host(logprob), reference = host(ref_logprob, own.scalar_type()), counts = host_mask(mask);
  const int64_t B = own.size(0), n = own.size(1);
  Tensor sums = torch::empty({B}, torch::kFloat64);
  const auto fill = [&]<class T>(const T* l) {
    const T* r = reference.const_data_ptr<T>();
    const bool* m = counts.const_data_ptr<bool>();
    double* out = sums.mutable_data_ptr<double>();
    at::parallel_for(0, B, std::max<int64_t>(1, 16384 / std::max<int64_t>(n, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) out[b] = sum_of(kind, l + b * n, r + b * n, m + b * n, n);
    });
  };
  own.scalar_type() == torch::kFloat64 ? fill(own.const_data_ptr<double>()) : fill(own.const_data_ptr<float>());
  return sums;
}

Tensor kl_meta(const Tensor& logprob, const Tensor&, const Tensor&, double, c10::string_view) {
  return torch::empty_symint({logprob.sym_size(0)}, logprob.options().dtype(torch::kFloat64));
}

}  // namespace

Tensor kl(const Tensor& logprob, const Tensor& ref_logprob, const Tensor& mask, double coef,
          c10::string_view estimator) {
  check_number(kOp, "coef", coef, coef >= 0 && std::isfinite(coef), "at least 0, and finite");
  return divergence(logprob, ref_logprob, mask, estimator).mul_(-coef).to(logprob.device());
}

void KlReward::apply(Completions& c, Context& context) const {
  if (!c.ref_logprob.defined())
    throw std::invalid_argument(
        "reward, kl: there are no log-probabilities of a reference; wanted a source of completions that has one "
        "(objective.reference)");
  // All that was drawn, also what another branch learns from or a cut leaves out: the reward is of the whole completion.
  const Tensor drawn = torch::arange(c.mask.size(1)) < c.length.unsqueeze(1);
  const Tensor sums = divergence(c.logprob, c.ref_logprob, drawn, estimator);
  const double weight = control ? context.state.item<double>() : coef, tokens = c.length.sum().item<double>();
  c.add(kKind, -weight * sums);
  if (tokens == 0) return;
  const double mean = sums.sum().item<double>() / tokens;
  context.stats["kl_reward/mean"] = mean;
  context.stats["kl_reward/coef"] = weight;
  context.stats["kl_reward/penalty"] = weight * sums.mean().item<double>();
  if (control)
    context.state = torch::tensor({adaptive_kl(weight, mean, control->target, control->horizon)}, torch::kFloat64);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m,
      "method_kl(Tensor logprob, Tensor ref_logprob, Tensor mask, *, float coef=0.001, str estimator='k1') -> Tensor",
      kl, kl_meta);
}

}  // namespace isentrope::methods
