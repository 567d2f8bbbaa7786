#include "csrc/methods/entropy_discriminator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {
namespace {

constexpr double kLeastStd = 1e-12;  // as released

// What a method says of the tokens that count.
struct Deviations {
  Tensor z;  // [B, T] of each token, on the CPU
  double mean = 0, std = 0;
  int64_t tokens = 0;
};

// p (H + log p), less its mean under the policy where sum_p2 and sum_p2_logp are given, with mean and population standard deviation.
Deviations deviations(const TokenArguments& given, const void* entropy, const void* sum_p2 = nullptr,
                      const void* sum_p2_logp = nullptr) {
  Deviations d{given.make()};
  DiscriminatorLoop p{given.rows()};
  std::vector<double> sums(static_cast<size_t>(p.rows));
  std::vector<int64_t> counts(sums.size());
  p.logprob = given.first(), p.entropy = entropy, p.sum_p2 = sum_p2, p.sum_p2_logp = sum_p2_logp;
  p.z = d.z.mutable_data_ptr(), p.sum = sums.data(), p.count = counts.data();
  ISENTROPE_PICK(discriminator_on_cpu)(p);
  d.tokens = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (d.tokens == 0) return d;
  const auto n = static_cast<double>(d.tokens);
  d.mean = std::accumulate(sums.begin(), sums.end(), 0.0) / n;
  SquareLoop squares{given.rows()};
  squares.x = p.z, squares.centre = d.mean, squares.sum = sums.data();
  ISENTROPE_PICK(square_on_cpu)(squares);
  d.std = std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0) / n);
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
Tensor taken_out(const TokenArguments& given, const void* advantage, const Deviations& d, double centre, double mu_low,
                 std::optional<double> mu_high, c10::string_view signs, double max_frac) {
  Tensor out = given.make_flags();
  if (!(d.std >= kLeastStd)) return given.give(out.zero_());
  const Tensor far = given.make();
  BeyondLoop p{given.rows()};
  std::vector<int64_t> counts(static_cast<size_t>(p.rows));
  p.z = d.z.const_data_ptr(), p.advantage = advantage, p.centre = centre;
  p.low = -mu_low * d.std, p.high = mu_high ? *mu_high * d.std : std::numeric_limits<double>::infinity();
  p.negative = signs != "pos", p.positive = signs != "neg";
  p.beyond = far.mutable_data_ptr(), p.out = out.mutable_data_ptr<bool>(), p.count = counts.data();
  ISENTROPE_PICK(beyond_on_cpu)(p);
  const auto found = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0})),
             tokens = static_cast<double>(d.tokens);
  if (found <= max_frac * tokens) return given.give(out);
  // The farthest alone; of equal ones the earlier.
  std::vector<std::pair<double, int64_t>> beyond;
  for (int64_t i = 0; i < p.size(); ++i)
    if (p.out[i])
      beyond.emplace_back(
          p.wide ? far.const_data_ptr<double>()[i] : static_cast<double>(far.const_data_ptr<float>()[i]), i);
  const auto last = beyond.begin() + std::min<int64_t>(std::max<int64_t>(1, static_cast<int64_t>(max_frac * tokens)),
                                                       std::ssize(beyond));
  std::partial_sort(beyond.begin(), last, beyond.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  out.zero_();
  for (auto one = beyond.begin(); one != last; ++one) p.out[one->second] = true;
  return given.give(out);
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
  TokenArguments given(kOp, "logprob", logprob, mask);
  const void *const H = given.take("entropy", entropy), *const A = given.take("advantage", advantage);
  check_keys(kOp, mu_low, mu_high, signs, max_frac);
  const Deviations d = deviations(given, H);
  return taken_out(given, A, d, d.mean, mu_low, mu_high, signs, max_frac);
}

Tensor clip_v(const Tensor& logprob, const Tensor& entropy, const Tensor& sum_p2, const Tensor& sum_p2_logp,
              const Tensor& advantage, const Tensor& mask, double mu_low, std::optional<double> mu_high,
              c10::string_view signs, double max_frac) {
  constexpr const char* kOp = "method_clip_v";
  TokenArguments given(kOp, "logprob", logprob, mask);
  const void *const H = given.take("entropy", entropy), *const p2 = given.take("sum_p2", sum_p2),
                    *const p2_logp = given.take("sum_p2_logp", sum_p2_logp),
                    *const A = given.take("advantage", advantage);
  check_keys(kOp, mu_low, mu_high, signs, max_frac);
  return taken_out(given, A, deviations(given, H, p2, p2_logp), 0, mu_low, mu_high, signs, max_frac);
}

Weighted ClipB::apply(const Update& u, Context& context) const {
  TokenArguments given("method_clip_b", "logprob", u.logprob, u.mask);
  const Deviations d = deviations(given, given.take("entropy", u.entropy));
  return weighted(
      kKind, clip_b(u.logprob, u.entropy, u.advantage, u.mask, mu_low, mu_high, signs, max_frac).to(u.mask.device()), d,
      u, context);
}

Weighted ClipV::apply(const Update& u, Context& context) const {
  if (!u.sum_p2.defined() || !u.sum_p2_logp.defined())
    throw std::invalid_argument(
        "clip_v: the update has no Σ p² and Σ p² log p; wanted those of the policy that learns");
  TokenArguments given("method_clip_v", "logprob", u.logprob, u.mask);
  const void *const H = given.take("entropy", u.entropy), *const p2 = given.take("sum_p2", u.sum_p2),
                    *const p2_logp = given.take("sum_p2_logp", u.sum_p2_logp);
  const Deviations d = deviations(given, H, p2, p2_logp);
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
