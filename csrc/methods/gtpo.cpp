#include "csrc/methods/gtpo.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/methods/estimator.h"
#include "csrc/methods/token_table.h"

namespace isentrope::methods {
namespace {

constexpr double kLeastEntropy = 1e-8;  // below it 1 / H would be another number for every rounding

// Normalises reward at the places, in place.
void normalise(const std::vector<int64_t>& places, double eps, std::vector<double>& reward) {
  if (places.empty()) return;
  std::vector<double> own;
  for (const int64_t i : places) own.push_back(reward[i]);
  const auto n = static_cast<double>(own.size());
  const double mean = sum(own) / n;
  double squares = 0;
  for (const double x : own) squares += (x - mean) * (x - mean);
  const double scale = equal(own) ? 0 : 1 / (std::sqrt(squares / n) + eps);
  for (const int64_t i : places) reward[i] = (reward[i] - mean) * scale;
}

}  // namespace

Tensor gtpo(const Tensor& entropy, const Tensor& right, const Tensor& mask, const Tensor& group, double outcome,
            double share, c10::string_view over, double eps) {
  constexpr const char* kOp = "method_gtpo";
  TokenTable given(kOp, "entropy", entropy, mask);
  const double* H = given.first();
  const bool* rights = given.take_row_flags("right", right);
  const Groups groups = given.take_groups(group);
  check_number(kOp, "outcome", outcome, outcome >= 0 && std::isfinite(outcome), "at least 0, and finite");
  check_number(kOp, "share", share, share >= 0 && std::isfinite(share) && (share > 0 || outcome > 0),
               "at least 0, and above it where outcome is 0");
  check_number(kOp, "eps", eps, eps >= 0 && eps <= 1, "0 to 1");
  const bool apart = over == "outcome";
  OP_CHECK(kOp, apart || over == "group", "over is \"", over, "\"; wanted \"group\" or \"outcome\"");

  const int64_t T = given.length();
  std::vector<double> reward(static_cast<size_t>(given.size()));
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    std::vector<int64_t> places[2];  // wrong, right
    for (int64_t t = 0; t < T; ++t) {
      double sum[2] = {}, count[2] = {};
      const auto part = [&](int64_t b) {
        const double h = std::max(H[b * T + t], kLeastEntropy);
        return rights[b] ? h : 1 / h;
      };
      for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
        if (given.mask()[b * T + t]) sum[rights[b]] += part(b), ++count[rights[b]];
      for (int64_t b = groups[g]; b < groups[g + 1]; ++b) {
        const int64_t i = b * T + t;
        if (!given.mask()[i]) continue;
        const double size = outcome + share * (count[rights[b]] * part(b) / sum[rights[b]]);
        reward[i] = rights[b] ? size : -size;
        places[rights[b]].push_back(i);
      }
    }
    if (apart) {
      for (const auto& own : places) normalise(own, eps, reward);
    } else {
      places[0].insert(places[0].end(), places[1].begin(), places[1].end());
      std::sort(places[0].begin(), places[0].end());
      normalise(places[0], eps, reward);
    }
  }
  return given.give([&](int64_t i) { return reward[i]; });
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_gtpo(Tensor entropy, Tensor right, Tensor mask, Tensor group, *, float outcome=1.0, float share=0.1, "
         "str over=\"group\", float eps=1e-06) -> Tensor",
         gtpo);
}

}  // namespace isentrope::methods
