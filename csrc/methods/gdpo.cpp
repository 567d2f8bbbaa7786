#include "csrc/methods/gdpo.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "csrc/methods/estimator.h"

namespace isentrope::methods {
namespace {

void check_scores(const std::string& who, const Rewarded& r, size_t weights) {
  if (weights != 0 && weights != r.scores.size())
    throw std::invalid_argument(who + ": " + std::to_string(weights) + " weights for " +
                                std::to_string(r.scores.size()) + " rewards; wanted one each, or none");
  for (size_t k = 0; k < r.scores.size(); ++k) {
    const std::string name = "score of reward " + std::to_string(k) + " of completion";
    if (r.scores[k].size() != r.reward.size())
      throw std::invalid_argument(who + ": reward " + std::to_string(k) + " has " + std::to_string(r.scores[k].size()) +
                                  " scores for " + std::to_string(r.reward.size()) + " completions; wanted one each");
    for (size_t i = 0; i < r.reward.size(); ++i)
      if (!std::isnan(r.scores[k][i])) check_reward(who, name.c_str(), i, r.scores[k][i]);
  }
}

// What stands in the rewards beside the scores; empty where that is nothing but rounding.
std::vector<double> rest(const Rewarded& r) {
  constexpr double kRounding = 0x1p-40;  // of sums in double of a few scores
  std::vector<double> rest = r.reward;
  bool any = false;
  for (size_t i = 0; i < rest.size(); ++i) {
    double size = std::abs(rest[i]);
    for (size_t k = 0; k < r.scores.size(); ++k)
      if (const double part = (r.weights.empty() ? 1 : r.weights[k]) * r.scores[k][i]; !std::isnan(part))
        rest[i] -= part, size += std::abs(part);
    if (std::abs(rest[i]) <= kRounding * size) rest[i] = 0;
    any |= rest[i] != 0;
  }
  return any ? rest : std::vector<double>();
}

// Adds weight · (s − mean) / (std + eps) of the scores of a group to a.
void add_normalised(std::span<const double> s, double weight, double eps, double* a) {
  std::vector<double> there;
  for (const double x : s)
    if (!std::isnan(x)) there.push_back(x);
  if (s.size() == 1 && there.size() == 1) a[0] += weight * (s[0] / (1 + eps));
  if (there.size() < 2 || equal(there)) return;
  const double mean = sum(there) / static_cast<double>(there.size()), scale = inverse_std(there, eps);
  for (size_t i = 0; i < s.size(); ++i)
    if (!std::isnan(s[i])) a[i] += weight * ((s[i] - mean) * scale);
}

void normalise_completions(const std::vector<bool>& counts, double eps, std::vector<double>& a) {
  std::vector<double> there;
  for (size_t i = 0; i < a.size(); ++i)
    if (counts[i]) there.push_back(a[i]);
  const double mean = sum(there) / static_cast<double>(std::max<size_t>(there.size(), 1));
  const double scale = inverse_std(there, eps);
  const bool same = equal(there);
  for (size_t i = 0; i < a.size(); ++i) a[i] = counts[i] && !same ? (a[i] - mean) * scale : 0;
}

void normalise_tokens(const std::vector<bool>& counts, std::vector<int64_t> lengths, Advantages& a) {
  std::vector<double> there;
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (!counts[i]) lengths[i] = 0;
    if (lengths[i] > 0) there.push_back(a.value[i]);
  }
  whiten_by_token(lengths, a);
  const bool same = equal(there);
  for (size_t i = 0; i < lengths.size(); ++i)
    if (!counts[i] || same) a.value[i] = 0;
}

}  // namespace

Advantages Gdpo::estimate(const Rewarded& r) const {
  check("advantages", r);
  check_scores("advantages: gdpo", r, weights.size());
  const size_t B = r.reward.size();
  Advantages a{std::vector<double>(B, 0.0), std::vector<double>(B, 0.0)};
  std::vector<bool> counts(B, false);
  const auto add = [&](std::span<const double> s, double weight) {
    for (size_t i = 0; i < B; ++i) counts[i] = counts[i] || !std::isnan(s[i]);
    for (size_t g = 0; g + 1 < r.groups.size(); ++g)
      add_normalised(s.subspan(r.groups[g], r.groups[g + 1] - r.groups[g]), weight, eps, a.value.data() + r.groups[g]);
  };
  const std::vector<double>& of_each = weights.empty() ? r.weights : weights;
  for (size_t k = 0; k < r.scores.size(); ++k) add(r.scores[k], of_each.empty() ? 1 : of_each[k]);
  if (const auto others = rest(r); !others.empty()) add(others, 1);
  if (over == "tokens")
    normalise_tokens(counts, r.length, a);
  else
    normalise_completions(counts, eps, a.value);
  return a;
}

namespace {

Tensor gdpo(const Tensor& scores, const Tensor& group, const Tensor& length, const std::optional<Tensor>& weights,
            double eps, c10::string_view over) {
  constexpr const char* kOp = "method_gdpo";
  OP_CHECK(kOp, scores.dim() == 2, "scores has ", scores.dim(), " dimensions; wanted [R, B]");
  check_floating(kOp, "scores", scores);
  OP_CHECK(kOp, over == "completions" || over == "tokens", "over is \"", over, "\"; wanted completions or tokens");
  check_number(kOp, "eps", eps, eps >= 0 && eps <= 1, "0 to 1");
  Gdpo method;
  method.eps = eps;
  method.over = std::string(over);
  if (weights) {
    OP_CHECK(kOp, weights->dim() == 1, "weights has ", weights->dim(), " dimensions; wanted [R]");
    method.weights = numbers(host(*weights, torch::kFloat64));
  }
  const Tensor of_each = host(scores, torch::kFloat64);
  Rewarded r = rewarded(kOp, of_each.nansum(0), group, length);
  for (int64_t k = 0; k < of_each.size(0); ++k) r.scores.push_back(numbers(of_each[k]));
  const Tensor like = scores.new_empty({scores.size(1)});
  return refusing([&] {  // scores first: they are what was handed over
    check_scores(std::string("isentrope::") + kOp, r, method.weights.size());
    return estimated(kOp, method, r, like);
  });
}

Tensor gdpo_meta(const Tensor& scores, const Tensor&, const Tensor&, const std::optional<Tensor>&, double,
                 c10::string_view) {
  return torch::empty_symint({scores.sym_size(1)}, scores.options());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_gdpo(Tensor scores, Tensor group, Tensor length, Tensor? weights=None, float eps=1e-06, "
         "str over='completions') -> Tensor",
         gdpo, gdpo_meta);
}

}  // namespace isentrope::methods
