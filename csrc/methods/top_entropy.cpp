#include "csrc/methods/top_entropy.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/kth.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

namespace {

// most(N): how many of the N tokens that count; at least one is taken, and at most all.
template <class Most>
Tensor largest(const TokenArguments& given, Most most) {
  KeptLoop p{given.rows()};
  Tensor factor = given.make();
  const int64_t n = p.size(), tokens = count_marked(p.mask, n);
  if (tokens == 0) return given.give(factor.zero_());
  const int64_t k = std::clamp<int64_t>(most(static_cast<double>(tokens)), 1, tokens);
  p.x = given.first();
  const auto find = [&]<class T>(const T* x) {
    const Kth<T> found = Kth<T>::largest(x, p.mask, n, k);
    p.key = found.key, p.equal = found.equal;
  };
  p.wide ? find(static_cast<const double*>(p.x)) : find(static_cast<const float*>(p.x));
  p.factor = factor.mutable_data_ptr();
  ISENTROPE_PICK(kept_on_cpu)(p);
  return given.give(factor);
}

}  // namespace

Tensor top_entropy(const Tensor& entropy, const Tensor& mask, double fraction) {
  constexpr const char* kOp = "method_top_entropy";
  const TokenArguments given(kOp, "entropy", entropy, mask);
  check_number(kOp, "fraction", fraction, fraction > 0 && fraction <= 1, "above 0 to 1");
  return largest(given, [&](double tokens) { return std::llround(fraction * tokens); });
}

Tensor entropy_sft(const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double fraction,
                   double lambda_entropy) {
  constexpr const char* kOp = "method_entropy_sft";
  const TokenArguments given(kOp, "logprob", logprob, mask);
  check_floating(kOp, "entropy", entropy);
  check_like(kOp, "entropy", entropy, "logprob", logprob);
  check_number(kOp, "fraction", fraction, fraction > 0 && fraction <= 1, "above 0 to 1");
  check_number(kOp, "lambda_entropy", lambda_entropy, std::isfinite(lambda_entropy), "a finite number");
  const TokenArguments score(kOp, "logprob", -(logprob + lambda_entropy * entropy), mask);
  const Tensor learnt = largest(score, [&](double tokens) { return static_cast<int64_t>(fraction * tokens); });
  return mask.ne(0).logical_and(learnt == 0);
}

namespace {

Tensor entropy_sft_meta(const Tensor& logprob, const Tensor&, const Tensor&, double, double) {
  return torch::empty_symint(logprob.sym_sizes(), logprob.options().dtype(torch::kBool));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_top_entropy(Tensor entropy, Tensor mask, *, float fraction=0.2) -> Tensor", top_entropy);
  define(m,
         "method_entropy_sft(Tensor logprob, Tensor entropy, Tensor mask, *, float fraction=0.8, float "
         "lambda_entropy=0.8) -> Tensor",
         entropy_sft, entropy_sft_meta);
}

}  // namespace isentrope::methods
