#include "csrc/methods/turn_credit.h"

#include <cmath>
#include <vector>

#include "csrc/methods/estimator.h"
#include "csrc/methods/token_table.h"

namespace isentrope::methods {
namespace {

// x ← (x − mean) / (std + eps) of those that are numbers; 0 where they are equal or one alone.
void normalise(const std::vector<double*>& x, double eps) {
  std::vector<double> there;
  for (const double* one : x) there.push_back(*one);
  const bool same = there.size() < 2 || equal(there);
  const double mean = same ? 0 : sum(there) / static_cast<double>(there.size());
  const double scale = same ? 0 : inverse_std(there, eps);
  for (double* one : x) *one = (*one - mean) * scale;
}

}  // namespace

Tensor turn_credit(const Tensor& advantage, const Tensor& reward, const Tensor& mask, const Tensor& turn,
                   const Tensor& group, double coef, double discount, c10::string_view normalize, double eps) {
  constexpr const char* kOp = "method_turn_credit";
  TokenTable given(kOp, "advantage", advantage, mask);
  const double* A = given.first();
  const int64_t* turns = given.take_whole("turn", turn);
  const Groups groups = given.take_groups(group);
  check_floating(kOp, "reward", reward);
  OP_CHECK(kOp, reward.dim() == 2 && reward.size(0) == given.rows(), "reward has shape ", reward.sizes(), "; wanted [",
           given.rows(), ", K], a row for each of advantage");
  check_number(kOp, "coef", coef, coef >= 0 && std::isfinite(coef), "at least 0, and finite");
  check_number(kOp, "discount", discount, discount >= 0 && discount <= 1, "0 to 1");
  check_number(kOp, "eps", eps, eps >= 0 && eps <= 1, "0 to 1");
  OP_CHECK(kOp, normalize == "turn" || normalize == "group" || normalize == "none", "normalize is \"", normalize,
           "\"; wanted \"turn\", \"group\" or \"none\"");

  const int64_t K = reward.size(1);
  const Tensor returns = host(reward, torch::kFloat64).clone();
  auto* const G = returns.mutable_data_ptr<double>();
  for (int64_t b = 0; b < given.rows(); ++b) {
    double later = 0;
    bool behind = true;  // the row's last turn
    for (int64_t k = K - 1; k >= 0; --k) {
      double& r = G[b * K + k];
      OP_CHECK(kOp, std::isfinite(r) || (behind && std::isnan(r)), "reward of turn ", k, " in row ", b, " is ", r,
               "; wanted a finite number, or NaN behind the row's last turn");
      if (std::isnan(r)) continue;
      behind = false;
      later = r += discount * later;
    }
  }
  for (int64_t i = 0; i < given.size(); ++i) {
    if (!given.mask()[i]) continue;
    const int64_t b = i / given.length();
    OP_CHECK(kOp, turns[i] >= 0 && turns[i] < K && !std::isnan(G[b * K + turns[i]]), "turn is ", turns[i], " at token ",
             i % given.length(), " of row ", b, ", and that turn has no reward; wanted 0 … ", K - 1);
  }
  if (normalize != "none")
    for (size_t g = 0; g + 1 < groups.size(); ++g) {
      std::vector<std::vector<double*>> of(normalize == "turn" ? static_cast<size_t>(K) : 1);
      for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
        for (int64_t k = 0; k < K; ++k)
          if (double* x = G + b * K + k; !std::isnan(*x)) of[normalize == "turn" ? k : 0].push_back(x);
      for (const auto& one : of) normalise(one, eps);
    }
  return given.give([&](int64_t i) {
    const double credit = G[i / given.length() * K + turns[i]];
    return coef == 0 ? A[i] : A[i] + coef * credit;
  });
}

void TurnCredit::apply(Completions& c, Context&) const {
  if (!c.turn.defined()) return;  // no conversation of the step had a turn that was answered
  const auto found = c.turn_reward.find(score);
  if (found == c.turn_reward.end()) {
    std::string names;
    for (const auto& one : c.turn_reward) names += (names.empty() ? "" : ", ") + one.first;
    throw std::invalid_argument("advantage: turn_credit: the environment gave no score \"" + score + "\"; it has " +
                                names);
  }
  c.advantage = turn_credit(c.advantage, found->second, c.mask, c.turn, c.group, coef, discount, normalize, eps);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_turn_credit(Tensor advantage, Tensor reward, Tensor mask, Tensor turn, Tensor group, *, float "
         "coef=1.0, float discount=1.0, str normalize=\"turn\", float eps=1e-06) -> Tensor",
         turn_credit);
}

}  // namespace isentrope::methods
