#include "csrc/methods/stare.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "csrc/methods/kth.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

Tensor stare(const Tensor& logprob, const Tensor& entropy, const Tensor& advantage, const Tensor& mask, double target,
             double fraction, double up, double down) {
  constexpr const char* kOp = "method_stare";
  TokenArguments given(kOp, "logprob", logprob, mask);
  SumLoop mean{given.rows()};
  mean.x = given.take("entropy", entropy);
  SignLoop sign{given.rows()};
  sign.logprob = given.first(), sign.advantage = given.take("advantage", advantage);
  check_number(kOp, "fraction", fraction, fraction > 0 && fraction <= 1, "above 0 to 1");
  check_number(kOp, "up", up, up >= 0 && std::isfinite(up), "at least 0, and finite");
  check_number(kOp, "down", down, down >= 0 && std::isfinite(down), "at least 0, and finite");

  std::vector<double> sums(static_cast<size_t>(mean.rows));
  std::vector<int64_t> counts(sums.size());
  mean.sum = sums.data(), mean.count = counts.data();
  ISENTROPE_PICK(sum_on_cpu)(mean);
  const double sum = std::accumulate(sums.begin(), sums.end(), 0.0);
  const auto tokens = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  const bool gate = sum < target * static_cast<double>(tokens);

  const Tensor factor = given.make();
  SignedKeptLoop p{given.rows()};
  p.factor = factor.mutable_data_ptr();
  Tensor positive = given.make_flags(), negative = given.make_flags();
  sign.surprisal = p.factor;
  sign.positive = positive.mutable_data_ptr<bool>(), sign.negative = negative.mutable_data_ptr<bool>();
  ISENTROPE_PICK(sign_on_cpu)(sign);
  p.of[0] = sign.positive, p.of[1] = sign.negative;
  p.weight[0] = up, p.weight[1] = down;
  for (int s = 0; s < 2; ++s) {
    p.key[s] = ~uint64_t{0}, p.equal[s] = 0;  // none
    if (!gate || p.weight[s] == 1) continue;
    const int64_t n = count_marked(p.of[s], p.size());
    if (n == 0) continue;
    const auto most = static_cast<int64_t>(fraction * static_cast<double>(n) + 0.999999);
    const auto find = [&]<class T>(const T* x) {
      const Kth<T> found = Kth<T>::largest(x, p.of[s], p.size(), std::clamp<int64_t>(most, 1, n));
      p.key[s] = found.key, p.equal[s] = found.equal;
    };
    p.wide ? find(static_cast<const double*>(p.factor)) : find(static_cast<const float*>(p.factor));
  }
  ISENTROPE_PICK(signed_kept_on_cpu)(p);
  return given.give(factor);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_stare(Tensor logprob, Tensor entropy, Tensor advantage, Tensor mask, *, float target=0.3, float "
         "fraction=0.1, float up=1.1, float down=1.0) -> Tensor",
         stare);
}

}  // namespace isentrope::methods
