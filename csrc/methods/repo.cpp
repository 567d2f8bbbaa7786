#include "csrc/methods/repo.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {

Tensor repo(const Tensor& advantage, const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double beta,
            c10::string_view form, c10::string_view centre) {
  constexpr const char* kOp = "method_repo";
  TokenTable given(kOp, "advantage", advantage, mask);
  const double *A = given.first(), *l = given.take("logprob", logprob), *H = given.take("entropy", entropy);
  check_number(kOp, "beta", beta, std::isfinite(beta), "a finite number");
  const bool rescale = form == "rescale", batch = centre == "batch";
  OP_CHECK(kOp, rescale || form == "decorrelate", "form is \"", form, "\"; wanted \"decorrelate\" or \"rescale\"");
  OP_CHECK(kOp, batch || centre == "state", "centre is \"", centre, "\"; wanted \"state\" or \"batch\"");
  if (rescale)
    return given.give([&](int64_t i) {
      if (A[i] > 0) return std::max(0.0, A[i] * (1 - beta * l[i]));
      return A[i] < 0 ? std::min(0.0, A[i] * (1 + beta * l[i])) : A[i];
    });
  double sum = 0, tokens = 0;
  for (int64_t i = 0; batch && i < given.size(); ++i)
    if (given.mask()[i]) sum += l[i], ++tokens;
  const double mean = tokens > 0 ? sum / tokens : 0;
  return given.give([&](int64_t i) { return A[i] - beta * (batch ? l[i] - mean : l[i] + H[i]); });
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_repo(Tensor advantage, Tensor logprob, Tensor entropy, Tensor mask, *, float beta=0.01, str "
         "form=\"decorrelate\", str centre=\"state\") -> Tensor",
         repo);
}

}  // namespace isentrope::methods
