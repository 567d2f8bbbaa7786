// grpo_loss's kernels against plain loops, and its selection against a sort.
#include "kernels/grpo_loss.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <utility>

#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

using kernels::DType;
using kernels::GrpoAggregate;
using kernels::GrpoChoice;
using kernels::GrpoForm;
using kernels::GrpoKl;
using kernels::GrpoLossRule;

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNaN = std::nan("");

// ---- cases -----------------------------------------------------------------------------------------------------------

struct Case {
  int64_t B = 1, T = 1;
  GrpoLossRule rule;
  std::vector<double> logprob, old_logprob, advantage, entropy, ref_logprob,
      ref_kl_weight;                    // [B, T]; the last three may be empty
  std::vector<uint8_t> mask, selected;  // [B, T]; selected may be empty
  double normalizer = 0;                // 0: none

  int64_t size() const { return B * T; }
};

GrpoLossRule rule_of(const std::string& mode) {
  GrpoLossRule rule;
  rule.dual_clip = kInf;
  if (mode == "clip") rule.dual_clip = 1.5;
  if (mode == "clip_higher") rule.upper = 1.28;
  if (mode == "clip_cov") rule.drop = 1;
  if (mode == "kl_cov") rule.penalty = 0.7;
  if (mode == "gspo" || mode == "two-sided gspo") rule.form = GrpoForm::kSequenceRatio;
  if (mode == "two-sided gspo") rule.dual_clip = 1.3;
  if (mode == "cispo" || mode == "reinforce") rule.form = GrpoForm::kClippedWeight;
  if (mode == "gpg") rule.form = GrpoForm::kUnitWeight;
  if (mode == "dppo_tv") rule.form = GrpoForm::kTotalVariation;
  if (mode == "dppo_kl") rule.form = GrpoForm::kBinaryKl;
  if (mode == "sapo") rule.form = GrpoForm::kSoftGate;
  if (mode == "geo_mean") rule.form = GrpoForm::kGeometricMean;
  if (mode == "vespo") rule.form = GrpoForm::kGammaWeight;
  if (mode == "ce_gppo") rule.form = GrpoForm::kKeptGradient;
  if (mode == "dro") rule.form = GrpoForm::kQuadratic;
  if (mode == "kl_cov" || mode == "gpg" || mode == "reinforce") {
    rule.lower = 0;
    rule.upper = mode == "reinforce" ? 2 : kInf;
  }
  if (mode == "dppo_tv" || mode == "dppo_kl" || mode == "geo_mean") {
    rule.lower = mode == "dppo_kl" ? -0.02 : -0.1;
    rule.upper = mode == "dppo_kl" ? 0.03 : 0.15;
    rule.dual_clip = 1.5;
  }
  if (mode == "ce_gppo") rule.dual_clip = 1.6, rule.kept_low = 0.75, rule.kept_high = 0.5;
  rule.tau_neg = 1.5;
  rule.k_pos = 2, rule.lambda_pos = 3, rule.k_neg = 3, rule.lambda_neg = 2;
  rule.quadratic = 0.3;
  return rule;
}
const char* const kModes[] = {"clip",     "clip_higher", "clip_cov",  "kl_cov",  "gspo",    "two-sided gspo",
                              "cispo",    "gpg",         "reinforce", "dppo_tv", "dppo_kl", "sapo",
                              "geo_mean", "vespo",       "ce_gppo",   "dro"};

// Log-ratios of a few tenths and, in some tokens, beyond the clamps; every third token masked, every row else.
Case random_case(int64_t B, int64_t T, const std::string& mode = "clip", bool extras = false) {
  Case t;
  t.B = B;
  t.T = T;
  t.rule = rule_of(mode);
  const int64_t n = B * T;
  t.logprob = uniform(n, 1, -4, -0.01);
  t.advantage = normal(n, 3);
  if (t.rule.form == GrpoForm::kGeometricMean)  // a zero has a sign, by which its token is clipped
    for (int64_t i = 3; i < n; i += 7) t.advantage[i] = std::copysign(0.0, t.advantage[i]);
  const bool gamma = t.rule.form == GrpoForm::kGammaWeight;  // of the sum over a sequence: it has to stay near 0
  const std::vector<double> d = normal(n, 2, gamma ? 0.02 : 0.3), delta = normal(n, 4, 0.5),
                            chance = uniform(n, 5, 0, 1);
  for (int64_t i = 0; i < n; ++i) {
    t.old_logprob.push_back(t.logprob[i] - d[i]);
    if (i % 17 == 5 && !gamma) t.old_logprob[i] = t.logprob[i] + (i % 2 ? 25 : -1.5);
    t.mask.push_back(chance[i] < 0.7);
  }
  if (t.rule.drop > 0 || t.rule.penalty > 0)
    for (int64_t i = 0; i < n; ++i) t.selected.push_back(i % 5 == 2);
  if (extras) {
    t.entropy = uniform(n, 6, 0, 3);
    for (int64_t i = 0; i < n; ++i) t.ref_logprob.push_back(t.logprob[i] - (i % 13 == 4 ? -30 : delta[i]));
    t.rule.entropy_coef = 0.3;
    t.rule.ref_kl_coef = 0.2;
  }
  return t;
}

// ---- what the contract says, in A ------------------------------------------------------------------------------------

// A sum, and what it would be if nothing in it cancelled.
template <class A>
struct Total {
  A value = 0;
  double magnitude = 0;
  void add(A x, A size) { value += x, magnitude += static_cast<double>(std::fabs(size)); }
  void add(A x) { add(x, x); }
};

template <class A>
struct Expected {
  std::vector<A> token_loss, slope, weight;  // [B, T], [B, T], [B]
  Total<A> loss, stats[kernels::kGrpoStats];

  explicit Expected(const Case& t) : token_loss(t.size(), A(0)), slope(t.size(), A(0)), weight(t.B, A(0)) {
    std::vector<int64_t> tokens(t.B, 0);
    std::vector<A> ratio(t.B, A(0));
    int64_t N = 0, S = 0;
    A advantage = 0, logprob = 0, entropy = 0;
    for (int64_t b = 0; b < t.B; ++b) {
      for (int64_t i = b * t.T; i < (b + 1) * t.T; ++i) {
        if (!t.mask[i]) continue;
        ++tokens[b];
        ratio[b] += of_sequence(t.rule, A(t.logprob[i]) - A(t.old_logprob[i]), A(t.advantage[i]));
        advantage += A(t.advantage[i]);
        logprob += A(t.logprob[i]);
        entropy += t.entropy.empty() ? A(0) : A(t.entropy[i]);
      }
      N += tokens[b];
      S += tokens[b] > 0;
      if (tokens[b] > 0 && t.rule.form != GrpoForm::kGammaWeight) ratio[b] /= A(tokens[b]);
    }
    if (N == 0) return;
    advantage /= A(N), logprob /= A(N), entropy /= A(N);
    for (int64_t b = 0; b < t.B; ++b) {
      weight[b] = tokens[b] > 0 ? weight_of(t, A(N), A(S), A(tokens[b])) : A(0);
      for (int64_t i = b * t.T; i < (b + 1) * t.T; ++i)
        if (t.mask[i]) token(t, b, i, ratio[b], advantage, logprob, entropy);
    }
    finish(A(N), A(S), advantage, logprob, entropy);
  }

  // What a token adds to the log-ratio of its sequence.
  static A of_sequence(const GrpoLossRule& rule, A d, A advantage) {
    if (rule.form == GrpoForm::kGammaWeight) return std::clamp(d, A(-20), A(20));
    if (rule.form != GrpoForm::kGeometricMean) return d;
    return std::signbit(advantage) ? std::max(d, A(rule.lower)) : std::min(d, A(rule.upper));
  }

  static A weight_of(const Case& t, A N, A S, A tokens) {
    const A given = A(t.normalizer);
    switch (t.rule.aggregate) {
      case GrpoAggregate::kTokenMean:
        return 1 / (given > 0 ? given : N);
      case GrpoAggregate::kSequenceMeanTokenSum:
        return 1 / (given > 0 ? given : S);
      case GrpoAggregate::kSequenceMeanTokenMean:
        return 1 / ((given > 0 ? given : S) * tokens);
      case GrpoAggregate::kSequenceMeanTokenSumNorm:
        return 1 / (given > 0 ? given : S * A(t.T));
      case GrpoAggregate::kTokenSum:
        return 1 / (given > 0 ? given : A(1));
      default:
        return 1 / (given > 0 ? given : A(t.T));
    }
  }

  void token(const Case& t, int64_t b, int64_t i, A mean_d, A mean_advantage, A mean_logprob, A mean_entropy) {
    const GrpoLossRule& rule = t.rule;
    const A l = A(t.logprob[i]), advantage = A(t.advantage[i]), raw = l - A(t.old_logprob[i]);
    const A d = std::clamp(raw, A(-20), A(20)), exp_d = std::exp(d);
    const GrpoForm form = rule.form;
    const bool selected = !t.selected.empty() && t.selected[i], gamma = form == GrpoForm::kGammaWeight;
    const bool whole = form == GrpoForm::kSequenceRatio || form == GrpoForm::kGeometricMean || gamma;
    const A own = whole ? mean_d : raw, most = whole ? A(10) : A(20);
    const A r = gamma   ? std::exp(std::clamp(mean_d, A(std::log(1e-8)), A(20)))
                : whole ? std::exp(std::clamp(mean_d, A(-20), A(10)))
                        : exp_d;
    const bool inside = own >= A(-20) && own <= most;
    const A clipped = std::clamp(r, A(rule.lower), A(rule.upper));
    bool low = r<A(rule.lower), high = r> A(rule.upper), dual = false;
    A L = 0, dL = 0;
    if (form == GrpoForm::kUnitWeight || form == GrpoForm::kQuadratic) {
      L = -advantage * l, dL = -advantage;
      low = high = false;
      if (form == GrpoForm::kQuadratic) {
        L += A(rule.quadratic) * d * d / 2;
        if (inside) dL += A(rule.quadratic) * d;
      }
    } else if (form == GrpoForm::kClippedWeight) {
      L = -clipped * advantage * l, dL = -clipped * advantage;
    } else if (gamma) {
      const A k = A(advantage < 0 ? rule.k_neg : rule.k_pos),
              lambda = A(advantage < 0 ? rule.lambda_neg : rule.lambda_pos);
      const A log_w = std::clamp(mean_d, A(std::log(1e-8)), A(20));
      const A phi = std::exp(lambda + k * log_w - lambda * r);
      low = high = false;
      L = -phi * advantage * l, dL = -phi * advantage;
    } else if (form == GrpoForm::kSoftGate) {
      const A tau = A(advantage > 0 ? rule.tau_pos : rule.tau_neg), e = std::exp(-tau * (r - 1));
      low = high = false;
      L = -advantage * 4 / tau / (1 + e);
      if (inside) dL = -advantage * 4 * r * e / ((1 + e) * (1 + e));
    } else if (form == GrpoForm::kTotalVariation || form == GrpoForm::kBinaryKl) {
      const A p = std::exp(std::min(l, A(0))), q = std::exp(std::min(A(t.old_logprob[i]), A(0))), tiny = A(1e-8);
      A D = p - q;
      if (form == GrpoForm::kBinaryKl) {
        D = q * (A(t.old_logprob[i]) - l) + (1 - q) * (std::log(1 - q + tiny) - std::log(1 - p + tiny));
        if (p <= q) D = -D;
      }
      high = advantage > 0 && D > A(rule.upper), low = advantage <= 0 && D < A(rule.lower);
      dual = !high && !low && r > A(rule.dual_clip);
      if (!high && !low) dL = -advantage * std::min(r, A(rule.dual_clip)), L = dL * l;
    } else if (form == GrpoForm::kGeometricMean) {
      high = advantage > 0 && raw > A(rule.upper), low = advantage < 0 && raw < A(rule.lower);
      L = -advantage * r;
      if (inside && !high && !low) dL = L;
    } else {
      L = -advantage * r, dL = inside ? L : A(0);
      const bool held = -advantage * clipped > L;
      low = low && held, high = high && held;
      if (held) L = -advantage * clipped, dL = 0;
      if (held && form == GrpoForm::kKeptGradient) L *= A(low ? rule.kept_low : rule.kept_high), dL = L;
      dual = advantage < 0 && L > -advantage * A(rule.dual_clip);
      if (dual) L = -advantage * A(rule.dual_clip), dL = 0;
      if (selected && rule.drop > 0) L = dL = 0;
      const A zone = A(std::ldexp(1.0, -20)) * std::max(A(1), std::min(-l, -A(t.old_logprob[i])));
      if (selected && rule.penalty > 0 && std::fabs(d) > zone) {
        L += A(rule.penalty) * std::fabs(d);
        if (inside) dL += A(rule.penalty) * A(d > 0 ? 1 : -1);
      }
    }
    if (!t.ref_logprob.empty())
      reference(rule, l - A(t.ref_logprob[i]), exp_d, t.ref_kl_weight.empty() ? A(1) : A(t.ref_kl_weight[i]), L, dL);
    if (!t.entropy.empty()) {
      const A H = A(t.entropy[i]);
      L -= A(rule.entropy_coef) * H;
      stats[kernels::kEntropyMean].add(H);
      stats[kernels::kEntropyStd].add((H - mean_entropy) * (H - mean_entropy), H * H);
    }
    token_loss[i] = L;
    slope[i] = dL;
    loss.add(weight[b] * L);
    const A c = (advantage - mean_advantage) * (l - mean_logprob);
    const A size = (std::fabs(advantage) + std::fabs(mean_advantage)) * (std::fabs(l) + std::fabs(mean_logprob));
    stats[kernels::kAdvantageMean].add(advantage);
    stats[kernels::kLogprobMean].add(l);
    stats[kernels::kRatioMean].add(r);
    stats[kernels::kKlK1].add(-d);
    stats[kernels::kKlK2].add(d * d / 2);
    stats[kernels::kKlK3].add(exp_d - 1 - d, exp_d + 1 + std::fabs(d));
    stats[kernels::kClipFrac].add(A(low || high));
    stats[kernels::kClipLow].add(A(low));
    stats[kernels::kClipHigh].add(A(high));
    stats[kernels::kClipDual].add(A(dual));
    stats[kernels::kSelectFrac].add(A(selected));
    stats[kernels::kCovMean].add(c, size);
    largest(kernels::kRatioMax, r, r);
    largest(kernels::kCovMax, c, size);
  }

  void reference(const GrpoLossRule& rule, A delta, A ratio, A weight, A& L, A& dL) {
    const A near = std::clamp(delta, A(-20), A(20)), k2 = delta * delta / 2;
    A k3 = std::exp(-near) + near - 1, dk3 = 1 - std::exp(-near);
    const A size = std::min(std::exp(-near) + std::fabs(near) + 1, A(20));
    if (k3 > 10) k3 = 10, dk3 = 0;
    const GrpoKl kind = rule.ref_kl;
    A k = kind == GrpoKl::kK1 || kind == GrpoKl::kK1Plus ? delta : kind == GrpoKl::kK2 ? k2 : k3;
    A dk = kind == GrpoKl::kK1 ? A(1) : kind == GrpoKl::kK3 ? dk3 : delta;
    if (kind == GrpoKl::kK3Is) k = ratio * k3, dk = ratio * delta;
    L += A(rule.ref_kl_coef) * weight * k, dL += A(rule.ref_kl_coef) * weight * dk;
    stats[kernels::kRefK1].add(delta);
    stats[kernels::kRefK2].add(k2);
    stats[kernels::kRefK3].add(k3, size);
  }

  void largest(int stat, A x, A size) {
    if (stats[stat].magnitude == 0 || x > stats[stat].value) stats[stat].value = x;
    stats[stat].magnitude = std::max(stats[stat].magnitude, static_cast<double>(std::fabs(size)));
  }

  void finish(A N, A S, A advantage, A logprob, A entropy) {
    for (int k = 0; k < kernels::kGrpoStats; ++k) {
      if (k == kernels::kRatioMax || k == kernels::kCovMax) continue;
      stats[k].value /= N, stats[k].magnitude /= static_cast<double>(N);
    }
    stats[kernels::kTokens].value = N;
    stats[kernels::kSequences].value = S;
    stats[kernels::kAdvantageMean].value = advantage;
    stats[kernels::kLogprobMean].value = logprob;
    stats[kernels::kEntropyMean].value = entropy;
    Total<A>& deviation = stats[kernels::kEntropyStd];
    deviation.value = std::sqrt(deviation.value), deviation.magnitude = std::sqrt(deviation.magnitude);
  }
};

// ---- runs ------------------------------------------------------------------------------------------------------------

template <class T>
struct Arrays {
  DeviceBuffer<T> logprob, old_logprob, advantage;
  DeviceBuffer<uint8_t> mask;
  // offset: rows of odd lengths lie at every alignment; so may the first.
  Arrays(const Case& t, int64_t offset)
      : logprob(convert<T>(t.logprob), "logprob", offset),
        old_logprob(convert<T>(t.old_logprob), "old_logprob", offset),
        advantage(convert<T>(t.advantage), "advantage"),
        mask(t.mask, "mask") {}
  const bool* mask_data() { return reinterpret_cast<const bool*>(mask.data()); }
};

template <class T>
std::unique_ptr<DeviceBuffer<T>> optional(const std::vector<double>& values, const char* name) {
  return values.empty() ? nullptr : std::make_unique<DeviceBuffer<T>>(convert<T>(values), name);
}
template <class Buffer>
auto data(const Buffer& buffer) {
  return buffer ? buffer->data() : nullptr;
}
template <class A>
std::vector<double> doubles(const std::vector<A>& x) {
  return std::vector<double>(x.begin(), x.end());
}

// One rounding of the magnitudes counts as exact: a plain sum may be right by luck.
template <class T, class A, class P>
void expect_total(const char* name, T actual, const Total<P>& plain, const Total<A>& exact) {
  const double step = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  const double expected = static_cast<double>(exact.value);
  const double error = std::fabs(static_cast<double>(static_cast<T>(plain.value)) - expected);
  const double allowed = 2 * std::max(error, step * std::max(exact.magnitude, std::fabs(expected)));
  EXPECT_LE(std::fabs(static_cast<double>(actual) - expected), allowed)
      << name << " is " << actual << ", expected " << expected;
}

// Both kernels, and every output against the plain loops.
template <class T>
void run(Case t, bool with_slope = true, int64_t offset = 0, bool with_stats = true) {
  for (auto* x : {&t.logprob, &t.old_logprob, &t.advantage, &t.entropy, &t.ref_logprob, &t.ref_kl_weight})
    *x = doubles(convert<float>(*x));
  using Exact = std::conditional_t<sizeof(T) == 8, long double, double>;
  const Expected<Exact> exact(t);
  const Expected<T> plain(t);

  Arrays<T> in(t, offset);
  const auto entropy = optional<T>(t.entropy, "entropy"), ref_logprob = optional<T>(t.ref_logprob, "ref_logprob"),
             ref_kl_weight = optional<T>(t.ref_kl_weight, "ref_kl_weight");
  const auto normalizer =
      optional<T>(t.normalizer > 0 ? std::vector<double>{t.normalizer} : std::vector<double>{}, "normalizer");
  DeviceBuffer<uint8_t> selected(t.selected, "selected");
  DeviceBuffer<T> loss(1, "loss"), token_loss(t.size(), "token_loss"), slope(t.size(), "slope"), weight(t.B, "weight");
  DeviceBuffer<float> stats(kernels::kGrpoStats, "stats");
  DeviceBuffer<double> workspace(kernels::grpo_loss_workspace(t.B, t.T) / 8, "workspace");
  kernels::GrpoLossForward f;
  f.dtype = kDTypeOf<T>;
  f.batch = t.B;
  f.length = t.T;
  f.rule = t.rule;
  f.logprob = in.logprob.data();
  f.old_logprob = in.old_logprob.data();
  f.advantage = in.advantage.data();
  f.mask = in.mask_data();
  f.selected = t.selected.empty() ? nullptr : reinterpret_cast<const bool*>(selected.data());
  f.ref_logprob = data(ref_logprob);
  f.ref_kl_weight = data(ref_kl_weight);
  f.entropy = data(entropy);
  f.normalizer = data(normalizer);
  f.loss = loss.data();
  f.token_loss = token_loss.data();
  f.stats = with_stats ? stats.data() : nullptr;
  f.slope = with_slope ? slope.data() : nullptr;
  f.weight = weight.data();
  f.workspace = workspace.data();
  kernels::grpo_loss_forward_cuda(f, nullptr);

  EXPECT_TRUE(within_twice("token_loss", token_loss.read(), plain.token_loss, doubles(exact.token_loss)));
  EXPECT_TRUE(within_twice("weight", weight.read(), plain.weight, doubles(exact.weight)));
  expect_total("loss", loss.read()[0], plain.loss, exact.loss);
  const std::vector<float> got = stats.read();
  for (int k = 0; with_stats && k < kernels::kGrpoStats; ++k)
    expect_total(kernels::kGrpoStatNames[k], got[k], plain.stats[k], exact.stats[k]);
  if (!with_slope) return;
  EXPECT_TRUE(within_twice("slope", slope.read(), plain.slope, doubles(exact.slope)));

  const std::vector<double> given = doubles(convert<float>(normal(t.size(), 9)));
  DeviceBuffer<T> dloss(convert<T>({1.75}), "dloss"), dtoken_loss(convert<T>(given), "dtoken_loss");
  for (const auto& [with_loss, with_tokens] : {std::pair{true, false}, {false, true}, {true, true}}) {
    SCOPED_TRACE(std::string(with_loss ? "dloss " : "") + (with_tokens ? "dtoken_loss" : ""));
    DeviceBuffer<T> dlogprob(t.size(), "dlogprob"), dentropy(t.size(), "dentropy");
    kernels::GrpoLossBackward b;
    b.dtype = f.dtype;
    b.batch = t.B;
    b.length = t.T;
    b.entropy_coef = t.rule.entropy_coef;
    b.dloss = with_loss ? dloss.data() : nullptr;
    b.dtoken_loss = with_tokens ? dtoken_loss.data() : nullptr;
    b.slope = slope.data();
    b.weight = weight.data();
    b.mask = in.mask_data();
    b.dlogprob = dlogprob.data();
    b.dentropy = t.entropy.empty() ? nullptr : dentropy.data();
    kernels::grpo_loss_backward_cuda(b, nullptr);
    auto gradient = [&](const auto& e, bool of_entropy) {
      std::vector<std::decay_t<decltype(e.slope[0])>> d(t.size());
      for (int64_t i = 0; i < t.size(); ++i) {
        d[i] = t.mask[i] ? (with_loss ? e.weight[i / t.T] * 1.75f : 0) + (with_tokens ? given[i] : 0.0) : 0;
        d[i] *= of_entropy ? -t.rule.entropy_coef * t.mask[i] : e.slope[i];
      }
      return d;
    };
    EXPECT_TRUE(within_twice("dlogprob", dlogprob.read(), gradient(plain, false), doubles(gradient(exact, false))));
    if (t.entropy.empty()) continue;
    EXPECT_TRUE(within_twice("dentropy", dentropy.read(), gradient(plain, true), doubles(gradient(exact, true))));
  }
}

template <class T>
class GrpoLoss : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GrpoLoss, Types);

TYPED_TEST(GrpoLoss, OddShapes) {
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1},   {7, 1},    {1, 33},   {3, 97},
                                                {300, 2}, {2, 2048}, {2, 2049}, {1, 4100}};
  for (const auto& [B, T] : shapes) {
    SCOPED_TRACE(std::to_string(B) + " x " + std::to_string(T));
    run<TypeParam>(random_case(B, T), true, B % 2);
  }
}

TYPED_TEST(GrpoLoss, EveryMode) {
  for (const char* mode : kModes)
    for (const bool extras : {false, true}) {
      SCOPED_TRACE(std::string(mode) + (extras ? " with reference and entropy" : ""));
      run<TypeParam>(random_case(5, 331, mode, extras));
    }
}

// What rounding makes of two equal log-probabilities is not penalised, more of it is.
TYPED_TEST(GrpoLoss, RoundingIsNotPenalised) {
  for (const double size : {0.3, 40.0}) {
    SCOPED_TRACE(size);
    Case t = random_case(1, 33, "kl_cov");
    for (int64_t i = 0; i < t.size(); ++i) {
      t.mask[i] = t.selected[i] = 1;
      t.old_logprob[i] = -size;
      t.logprob[i] = -size + std::ldexp(static_cast<double>(i % 11 - 5), i < 22 ? -23 : -10) * std::max(1.0, size);
    }
    run<TypeParam>(t);
  }
}

TYPED_TEST(GrpoLoss, EveryDivergence) {
  for (const GrpoKl kind : {GrpoKl::kK1, GrpoKl::kK2, GrpoKl::kK3, GrpoKl::kK1Plus, GrpoKl::kK3Plus, GrpoKl::kK3Is}) {
    SCOPED_TRACE("kind " + std::to_string(static_cast<int>(kind)));
    Case t = random_case(3, 257, "clip_higher", true);
    t.rule.ref_kl = kind;
    run<TypeParam>(t);
  }
}

// Statistics are of the divergence itself, with and without them.
TYPED_TEST(GrpoLoss, WeightOfTheDivergence) {
  for (const bool statistics : {true, false}) {
    Case t = random_case(3, 257, "clip", true);
    t.ref_kl_weight = uniform(t.size(), 8, 0, 3);
    for (int64_t i = 0; i < t.size(); ++i)
      if (!t.mask[i]) t.ref_kl_weight[i] = kNaN;
    run<TypeParam>(t, true, 0, statistics);
  }
}

TYPED_TEST(GrpoLoss, EveryAggregateWithAndWithoutNormalizer) {
  for (const GrpoAggregate aggregate :
       {GrpoAggregate::kTokenMean, GrpoAggregate::kSequenceMeanTokenSum, GrpoAggregate::kSequenceMeanTokenMean,
        GrpoAggregate::kSequenceMeanTokenSumNorm, GrpoAggregate::kTokenSumNorm, GrpoAggregate::kTokenSum})
    for (const double normalizer : {0.0, 37.0}) {
      SCOPED_TRACE("aggregate " + std::to_string(static_cast<int>(aggregate)) + ", normalizer " +
                   std::to_string(normalizer));
      Case t = random_case(6, 131, "gspo");
      t.rule.aggregate = aggregate;
      t.normalizer = normalizer;
      std::fill_n(t.mask.begin() + 131, 131, uint8_t{0});  // a sequence without a token
      run<TypeParam>(t);
    }
}

// A sequence whose mean log-ratio is beyond the clamps of gspo.
TYPED_TEST(GrpoLoss, SequenceRatiosBeyondTheClamps) {
  Case t = random_case(4, 65, "gspo");
  t.rule.upper = 1e6;
  for (int64_t i = 0; i < 65; ++i) {
    t.old_logprob[i] = t.logprob[i] - 11;
    t.old_logprob[65 + i] = t.logprob[65 + i] + 22;
  }
  run<TypeParam>(t);
  for (const char* mode : {"geo_mean", "vespo"}) {
    SCOPED_TRACE(mode);
    Case of = random_case(4, 65, mode);
    of.old_logprob = t.old_logprob;
    for (int64_t i = 0; i < 65; ++i) of.advantage[i] = -1, of.advantage[65 + i] = 1;
    run<TypeParam>(of);
  }
}

// Gates and weights whose exponentials are beyond float's range, and probabilities next to 0 and 1.
TYPED_TEST(GrpoLoss, ExtremesOfTheForms) {
  for (const char* mode : {"sapo", "dppo_tv", "dppo_kl", "ce_gppo", "dro", "reinforce"}) {
    SCOPED_TRACE(mode);
    Case t = random_case(1, 40, mode);
    t.rule.tau_pos = 16, t.rule.tau_neg = 1.0 / 64;
    const double ends[] = {-1e-7, -1e-3, -0.5, -5, -30, -120};
    for (int64_t i = 0; i < t.size(); ++i) {
      t.mask[i] = 1;
      t.logprob[i] = ends[i % 6];
      t.old_logprob[i] = ends[i / 6 % 6];
    }
    run<TypeParam>(t);
  }
}

TYPED_TEST(GrpoLoss, WithoutStatistics) {
  for (const char* mode : kModes)
    for (const bool extras : {false, true}) {
      SCOPED_TRACE(std::string(mode) + (extras ? " with reference and entropy" : ""));
      run<TypeParam>(random_case(5, 331, mode, extras), true, 0, false);
    }
}

TYPED_TEST(GrpoLoss, WithoutSlope) { run<TypeParam>(random_case(3, 97, "kl_cov", true), false); }

TYPED_TEST(GrpoLoss, WhatIsMaskedIsNotUsed) {
  for (const char* mode : kModes) {
    SCOPED_TRACE(mode);
    Case t = random_case(4, 101, mode, true);
    std::fill_n(t.mask.begin() + 2 * 101, 101, uint8_t{0});
    for (int64_t i = 0; i < t.size(); ++i)
      if (!t.mask[i]) t.logprob[i] = t.old_logprob[i] = t.advantage[i] = t.entropy[i] = t.ref_logprob[i] = kNaN;
    run<TypeParam>(t);
  }
}

TYPED_TEST(GrpoLoss, NoTokens) {
  for (const auto& [B, T] : {std::pair<int64_t, int64_t>{3, 50}, {0, 5}, {5, 0}, {0, 0}}) {
    SCOPED_TRACE(std::to_string(B) + " x " + std::to_string(T));
    Case t = random_case(B, T, "clip", B * T > 0);
    std::fill(t.mask.begin(), t.mask.end(), uint8_t{0});
    run<TypeParam>(t);
  }
}

TEST(GrpoLoss, RefusesOtherTypes) {
  kernels::GrpoLossForward forward;
  kernels::GrpoLossBackward backward;
  kernels::GrpoSelect select;
  forward.dtype = backward.dtype = select.dtype = DType::kBFloat16;
  EXPECT_THROW(kernels::grpo_loss_forward_cuda(forward, nullptr), std::invalid_argument);
  EXPECT_THROW(kernels::grpo_loss_backward_cuda(backward, nullptr), std::invalid_argument);
  EXPECT_THROW(kernels::grpo_select_cuda(select, nullptr), std::invalid_argument);
}

// ---- selection -------------------------------------------------------------------------------------------------------

struct Choice {
  GrpoChoice choice = GrpoChoice::kKlCov;
  double fraction = 0.1;
  int64_t minimum = 1;
  uint64_t seed = 1;
};

std::vector<uint8_t> expected_selection(const Case& t, const Choice& c) {
  double advantage = 0, logprob = 0;
  int64_t tokens = 0;
  for (int64_t i = 0; i < t.size(); ++i)
    if (t.mask[i]) ++tokens, advantage += t.advantage[i], logprob += t.logprob[i];
  std::vector<std::pair<double, int64_t>> order;  // rank, number
  int64_t available = 0;
  for (int64_t i = 0; i < t.size(); ++i) {
    if (!t.mask[i]) continue;
    const double cov = (t.advantage[i] - advantage / tokens) * (t.logprob[i] - logprob / tokens);
    const double r = std::exp(std::clamp(t.logprob[i] - t.old_logprob[i], -20.0, 20.0)), a = t.advantage[i];
    const bool held = (a > 0 && r > 1.2) || (a < 0 && r < 0.8), in_band = cov > 1 && cov < 5 && !held;
    const bool by_band = c.choice == GrpoChoice::kClipCov || c.choice == GrpoChoice::kRandomClipCov;
    available += in_band || !by_band;
    if (c.choice == GrpoChoice::kClipCov && !in_band) continue;
    const double draw = philox(c.seed, static_cast<uint64_t>(i) / 4, 0).word[i % 4];
    order.push_back({c.choice == GrpoChoice::kKlCov ? -static_cast<float>(cov) : draw, i});
  }
  const int64_t wanted = std::max(static_cast<int64_t>(c.fraction * static_cast<double>(tokens)), c.minimum);
  std::sort(order.begin(), order.end());
  std::vector<uint8_t> selected(t.size(), 0);
  for (int64_t k = 0; k < std::min(wanted, available); ++k) selected[order[k].second] = 1;
  return selected;
}

template <class T>
std::vector<uint8_t> select(Case t, const Choice& c) {
  Arrays<T> in(t, 0);
  DeviceBuffer<uint8_t> selected(t.size(), "selected");
  DeviceBuffer<double> workspace(kernels::grpo_select_workspace(t.B, t.T) / 8, "workspace");
  kernels::GrpoSelect p;
  p.dtype = kDTypeOf<T>;
  p.batch = t.B;
  p.length = t.T;
  p.choice = c.choice;
  p.seed = c.seed;
  p.fraction = c.fraction;
  p.minimum = c.minimum;
  p.logprob = in.logprob.data();
  p.old_logprob = in.old_logprob.data();
  p.advantage = in.advantage.data();
  p.mask = in.mask_data();
  p.selected = reinterpret_cast<bool*>(selected.data());
  p.workspace = workspace.data();
  kernels::grpo_select_cuda(p, nullptr);
  return selected.read();
}

const GrpoChoice kChoices[] = {GrpoChoice::kClipCov, GrpoChoice::kKlCov, GrpoChoice::kRandomClipCov,
                               GrpoChoice::kRandomKlCov};

std::string name_of(const Choice& c) {
  return "choice " + std::to_string(static_cast<int>(c.choice)) + ", fraction " + std::to_string(c.fraction) +
         ", minimum " + std::to_string(c.minimum);
}

template <class T>
class GrpoSelect : public ::testing::Test {};
TYPED_TEST_SUITE(GrpoSelect, Types);

TYPED_TEST(GrpoSelect, TheRightTokensAndAsManyAsWanted) {
  for (const auto& [B, T] : {std::pair<int64_t, int64_t>{1, 1}, {3, 97}, {1, 4100}, {40, 5}})
    for (const GrpoChoice choice : kChoices)
      for (const auto& [fraction, minimum] : {std::pair{1e-4, 1}, {1e-4, 0}, {0.13, 1}, {1.0, 1}, {0.01, 1000000}}) {
        Case t = random_case(B, T);
        for (auto* x : {&t.logprob, &t.old_logprob, &t.advantage}) *x = doubles(convert<float>(*x));
        Choice c{choice, fraction, minimum, 77};
        SCOPED_TRACE(std::to_string(B) + " x " + std::to_string(T) + ", " + name_of(c));
        EXPECT_EQ(select<TypeParam>(t, c), expected_selection(t, c));
      }
}

// Four values of the covariance in all: most of the order is decided by the number of the token.
TYPED_TEST(GrpoSelect, TiesFallToTheLowerNumber) {
  Case t = random_case(5, 211);
  for (int64_t i = 0; i < t.size(); ++i) {
    t.logprob[i] = i % 3 ? -1 : -3;
    t.advantage[i] = i % 7 < 3 ? 1 : -1;
    t.mask[i] = i % 11 != 0;
  }
  for (const double fraction : {0.01, 0.1, 0.3, 0.6, 0.9}) {
    const Choice c{GrpoChoice::kKlCov, fraction, 1, 1};
    SCOPED_TRACE(name_of(c));
    EXPECT_EQ(select<TypeParam>(t, c), expected_selection(t, c));
  }
  std::fill(t.advantage.begin(), t.advantage.end(), 1.0);  // every covariance is 0, of either sign
  const Choice c{GrpoChoice::kKlCov, 0.2, 1, 1};
  std::vector<uint8_t> first(t.size(), 0);
  int64_t wanted = static_cast<int64_t>(0.2 * static_cast<double>(std::count(t.mask.begin(), t.mask.end(), 1)));
  for (int64_t i = 0; wanted > 0; ++i)
    if (t.mask[i]) first[i] = 1, --wanted;
  EXPECT_EQ(select<TypeParam>(t, c), first);
}

TYPED_TEST(GrpoSelect, WhatIsMaskedIsNotUsed) {
  Case t = random_case(3, 97);
  for (auto* x : {&t.logprob, &t.old_logprob, &t.advantage}) *x = doubles(convert<float>(*x));
  for (const GrpoChoice choice : kChoices) {
    const Choice c{choice, 0.2, 1, 5};
    SCOPED_TRACE(name_of(c));
    Case poisoned = t;
    for (int64_t i = 0; i < t.size(); ++i)
      if (!t.mask[i]) poisoned.logprob[i] = poisoned.old_logprob[i] = poisoned.advantage[i] = kNaN;
    EXPECT_EQ(select<TypeParam>(poisoned, c), expected_selection(t, c));
    std::fill(poisoned.mask.begin(), poisoned.mask.end(), uint8_t{0});
    EXPECT_EQ(select<TypeParam>(poisoned, c), std::vector<uint8_t>(t.size(), 0));
  }
}

TYPED_TEST(GrpoSelect, TheSeedDecides) {
  const Case t = random_case(4, 300);
  const Choice one{GrpoChoice::kRandomKlCov, 0.1, 1, 1}, other{GrpoChoice::kRandomKlCov, 0.1, 1, 2};
  EXPECT_EQ(select<TypeParam>(t, one), select<TypeParam>(t, one));
  EXPECT_NE(select<TypeParam>(t, one), select<TypeParam>(t, other));
}

}  // namespace
}  // namespace isentrope::testing
