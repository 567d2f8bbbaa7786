#include "csrc/methods/entropy_discriminator.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>
#include <vector>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {
namespace {

constexpr double kLeastStd = 1e-12;  // as released

// What a method says of the tokens that count.
struct Deviations {
  std::vector<double> z;  // of each token
  double mean = 0, std = 0;
};

// value(i) of each token that counts, with mean and population standard deviation.
template <class Function>
Deviations deviations(const TokenTable& given, const Function& value) {
  Deviations d{std::vector<double>(static_cast<size_t>(given.size()))};
  double sum = 0, tokens = 0, squares = 0;
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i]) sum += d.z[i] = value(i), ++tokens;
  if (tokens == 0) return d;
  d.mean = sum / tokens;
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i]) squares += (d.z[i] - d.mean) * (d.z[i] - d.mean);
  d.std = std::sqrt(squares / tokens);
  return d;
}

void check_keys(const char* op, double mu_low, std::optional<double> mu_high, c10::string_view signs, double max_frac) {
  check_number(op, "mu_low", mu_low, mu_low >= 0, "at least 0");
  if (mu_high) check_number(op, "mu_high", *mu_high, *mu_high >= 0, "at least 0");
  OP_CHECK(op, signs == "neg" || signs == "pos" || signs == "both", "signs is \"", signs,
           "\"; wanted \"neg\", \"pos\" or \"both\"");
  check_number(op, "max_frac", max_frac, max_frac > 0 && max_frac <= 1, "above 0 to 1");
}

// The rule, of deviations from `centre`.
Tensor taken_out(const TokenTable& given, const double* advantage, const Deviations& d, double centre, double mu_low,
                 std::optional<double> mu_high, c10::string_view signs, double max_frac) {
  Tensor out = torch::zeros({given.rows(), given.length()}, torch::kBool);
  if (!(d.std >= kLeastStd)) return given.give_flags(out);
  const bool negative = signs != "pos", positive = signs != "neg";
  std::vector<std::pair<double, int64_t>> beyond;  // by how far, and which
  int64_t tokens = 0;
  for (int64_t i = 0; i < given.size(); ++i) {
    if (!given.mask()[i]) continue;
    ++tokens;
    if (!((negative && advantage[i] < 0) || (positive && advantage[i] > 0))) continue;
    const double z = d.z[i] - centre, low = -z - mu_low * d.std, high = mu_high ? z - *mu_high * d.std : -1;
    if (low > 0 || high > 0) beyond.emplace_back(std::max(low, high), i);
  }
  auto last = beyond.end();
  if (static_cast<double>(beyond.size()) > max_frac * static_cast<double>(tokens)) {
    const auto most = std::max<int64_t>(1, static_cast<int64_t>(max_frac * static_cast<double>(tokens)));
    last = beyond.begin() + std::min<int64_t>(most, std::ssize(beyond));
    std::partial_sort(beyond.begin(), last, beyond.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
  }
  for (auto one = beyond.begin(); one != last; ++one) out.mutable_data_ptr<bool>()[one->second] = true;
  return given.give_flags(out);
}

// p (H + log p); a log-prob that rounding left above 0 counts as 0.
double discriminator(double logprob, double entropy) {
  const double l = std::min(logprob, 0.0);
  return std::exp(l) * (entropy + l);
}

Deviations of_batch(TokenTable& given, const double* entropy) {
  return deviations(given, [&](int64_t i) { return discriminator(given.first()[i], entropy[i]); });
}
Deviations of_vocabulary(TokenTable& given, const double* entropy, const double* sum_p2, const double* sum_p2_logp) {
  return deviations(given, [&](int64_t i) {
    return discriminator(given.first()[i], entropy[i]) - (entropy[i] * sum_p2[i] + sum_p2_logp[i]);
  });
}

Weighted weighted(const char* kind, const Tensor& removed, const Deviations& d, const Update& u, Context& context) {
  const std::string name = kind;
  const double tokens = std::max(u.mask.sum().item<double>(), 1.0);
  context.stats[name + "/mean"] = d.mean;
  context.stats[name + "/std"] = d.std;
  context.stats[name + "/removed"] = removed.sum().item<double>() / tokens;
  return {(u.mask & removed.logical_not()).to(torch::kFloat32), removed};
}

}  // namespace

Tensor clip_b(const Tensor& logprob, const Tensor& entropy, const Tensor& advantage, const Tensor& mask, double mu_low,
              std::optional<double> mu_high, c10::string_view signs, double max_frac) {
  constexpr const char* kOp = "method_clip_b";
  TokenTable given(kOp, "logprob", logprob, mask);
  const double *H = given.take("entropy", entropy), *A = given.take("advantage", advantage);
  check_keys(kOp, mu_low, mu_high, signs, max_frac);
  const Deviations d = of_batch(given, H);
  return taken_out(given, A, d, d.mean, mu_low, mu_high, signs, max_frac);
}

Tensor clip_v(const Tensor& logprob, const Tensor& entropy, const Tensor& sum_p2, const Tensor& sum_p2_logp,
              const Tensor& advantage, const Tensor& mask, double mu_low, std::optional<double> mu_high,
              c10::string_view signs, double max_frac) {
  constexpr const char* kOp = "method_clip_v";
  TokenTable given(kOp, "logprob", logprob, mask);
  const double *H = given.take("entropy", entropy), *p2 = given.take("sum_p2", sum_p2),
               *p2_logp = given.take("sum_p2_logp", sum_p2_logp), *A = given.take("advantage", advantage);
  check_keys(kOp, mu_low, mu_high, signs, max_frac);
  return taken_out(given, A, of_vocabulary(given, H, p2, p2_logp), 0, mu_low, mu_high, signs, max_frac);
}

Weighted ClipB::apply(const Update& u, Context& context) const {
  TokenTable given("method_clip_b", "logprob", u.logprob, u.mask);
  const Deviations d = of_batch(given, given.take("entropy", u.entropy));
  return weighted(
      kKind, clip_b(u.logprob, u.entropy, u.advantage, u.mask, mu_low, mu_high, signs, max_frac).to(u.mask.device()), d,
      u, context);
}

Weighted ClipV::apply(const Update& u, Context& context) const {
  if (!u.sum_p2.defined() || !u.sum_p2_logp.defined())
    throw std::invalid_argument(
        "clip_v: the update has no Σ p² and Σ p² log p; wanted those of the policy that learns");
  TokenTable given("method_clip_v", "logprob", u.logprob, u.mask);
  const double *H = given.take("entropy", u.entropy), *p2 = given.take("sum_p2", u.sum_p2),
               *p2_logp = given.take("sum_p2_logp", u.sum_p2_logp);
  const Deviations d = of_vocabulary(given, H, p2, p2_logp);
  return weighted(
      kKind,
      clip_v(u.logprob, u.entropy, u.sum_p2, u.sum_p2_logp, u.advantage, u.mask, mu_low, mu_high, signs, max_frac)
          .to(u.mask.device()),
      d, u, context);
}

namespace {

Tensor flags_like(const Tensor& x) { return torch::empty_symint(x.sym_sizes(), x.options().dtype(torch::kBool)); }
Tensor clip_b_meta(const Tensor& logprob, const Tensor&, const Tensor&, const Tensor&, double, std::optional<double>,
                   c10::string_view, double) {
  return flags_like(logprob);
}
Tensor clip_v_meta(const Tensor& logprob, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                   double, std::optional<double>, c10::string_view, double) {
  return flags_like(logprob);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_clip_b(Tensor logprob, Tensor entropy, Tensor advantage, Tensor mask, *, float mu_low=2.5, float? "
         "mu_high=None, str signs=\"neg\", float max_frac=1.0) -> Tensor",
         clip_b, clip_b_meta);
  define(m,
         "method_clip_v(Tensor logprob, Tensor entropy, Tensor sum_p2, Tensor sum_p2_logp, Tensor advantage, Tensor "
         "mask, *, float mu_low=8.5, float? mu_high=None, str signs=\"neg\", float max_frac=0.0001) -> Tensor",
         clip_v, clip_v_meta);
}

}  // namespace isentrope::methods
