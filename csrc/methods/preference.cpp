#include "csrc/methods/preference.h"

#include <cmath>

#include "csrc/methods/op.h"

namespace isentrope::methods {

bool preference_by_token(std::string_view loss) { return loss == "ipo" || loss == "sigmoid_norm"; }

Tensor preference_loss(const Tensor& chosen, const Tensor& rejected, std::string_view loss, double beta,
                       double label_smoothing) {
  constexpr const char* kOp = "method_preference";
  check_floating(kOp, "chosen", chosen);
  check_floating(kOp, "rejected", rejected);
  check_like(kOp, "rejected", rejected, "chosen", chosen);
  check_number(kOp, "beta", beta, std::isfinite(beta) && beta > 0, "a finite number above 0");
  check_number(kOp, "label_smoothing", label_smoothing, label_smoothing >= 0 && label_smoothing <= 0.5, "0 to 0.5");
  const Tensor h = chosen - rejected;
  const double e = label_smoothing;
  if (loss == "hinge") return (1 - beta * h).clamp_min(0);
  if (loss == "ipo") return (h - 1 / (2 * beta)).square();
  const Tensor right = at::log_sigmoid(beta * h);
  if (loss == "sigmoid" || loss == "sigmoid_norm")
    return e == 0 ? -right : -(1 - e) * right - e * at::log_sigmoid(-beta * h);
  OP_CHECK(kOp, loss == "robust", "loss is \"", std::string(loss),
           "\"; wanted sigmoid, sigmoid_norm, hinge, ipo or robust");
  check_number(kOp, "label_smoothing", e, e < 0.5, "below 0.5 for robust");
  return (-(1 - e) * right + e * at::log_sigmoid(-beta * h)) / (1 - 2 * e);
}

Tensor differential_information(const Tensor& logprob, const Tensor& ref_logprob) {
  constexpr const char* kOp = "method_differential_information";
  check_floating(kOp, "logprob", logprob);
  check_floating(kOp, "ref_logprob", ref_logprob);
  check_like(kOp, "ref_logprob", ref_logprob, "logprob", logprob);
  OP_CHECK(kOp, logprob.dim() >= 1 && logprob.size(-1) >= 1, "logprob has shape ", logprob.sizes(),
           "; wanted [..., K] of at least one answer");
  const Tensor log_q = at::log_softmax((logprob.detach() - ref_logprob.detach()).to(torch::kDouble), -1);
  return -at::where(log_q == -INFINITY, 0.0, log_q.exp() * log_q).sum(-1);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  // Of differentiable ATen operators: autograd and Meta come of them.
  m.def(
      "method_preference(Tensor chosen, Tensor rejected, *, str loss='sigmoid', float beta=0.1, float "
      "label_smoothing=0.0) -> Tensor",
      [](const Tensor& chosen, const Tensor& rejected, c10::string_view loss, double beta, double label_smoothing) {
        return preference_loss(chosen, rejected, std::string_view(loss.data(), loss.size()), beta, label_smoothing);
      });
  m.def("method_differential_information(Tensor logprob, Tensor ref_logprob) -> Tensor", differential_information);
}

}  // namespace isentrope::methods
