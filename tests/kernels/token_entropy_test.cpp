// token_entropy's kernels against a plain loop in double.
#include "kernels/token_entropy.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>

#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

using kernels::LogitRows;

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNaN = std::nan("");

enum Output { kLogprob, kEntropy, kLse, kSumP2, kSumP2Logp, kKept, kOutputs };
const char* const kNames[kOutputs] = {"logprob", "entropy", "lse", "sum_p2", "sum_p2_logp", "kept_entropy"};

struct Case {
  int64_t N = 1, V = 2;
  double temperature = 1.0;
  int64_t offset = 0;      // elements by which the first row is past a 256-byte boundary
  int64_t group_rows = 0;  // 0: all rows in one group
  int64_t pad = 0;         // elements between rows
  int64_t ignore_index = -100;
  std::vector<double> logits;   // [N, V]
  std::vector<int64_t> target;  // [N]
  std::optional<kernels::Keep> keep;
  double share = 1.0;
  std::vector<double> gradient[4];  // [N] of logprob, entropy, lse, kept_entropy; empty for none

  LogitRows layout() const {
    const int64_t group = group_rows ? group_rows : N;
    return {N, V, group, group * (V + pad) + pad, V + pad};
  }
  int64_t at(int64_t n, int64_t v) const {
    const LogitRows rows = layout();
    return n / rows.group_rows * rows.group_stride + n % rows.group_rows * rows.row_stride + v;
  }
  int64_t extent() const { return at(N - 1, V - 1) + 1; }
};

// The tokens that are kept of s [V] / τ, by a sort.
template <class A>
std::vector<bool> kept_tokens(const Case& t, const std::vector<A>& s) {
  std::vector<int64_t> order(t.V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return s[a] > s[b]; });
  std::vector<bool> kept(t.V);
  double total = 0, sum = 0;
  for (const int64_t v : order) total += std::exp(static_cast<double>(s[v] - s[order[0]]));
  const double count = static_cast<double>(t.V) - std::floor(t.share * static_cast<double>(t.V));
  for (int64_t i = 0; i < t.V; ++i) {
    const bool reached =
        *t.keep == kernels::Keep::kTopP ? t.share < 1 && sum >= t.share * total : static_cast<double>(i) >= count;
    if (reached) break;
    kept[order[i]] = true;
    sum += std::exp(static_cast<double>(s[order[i]] - s[order[0]]));
  }
  return kept;
}

// What the contract says, computed in A: long double for the truth, the kernel's own type for the plain loop whose error
// sets the tolerance.
template <class A>
struct Expected {
  std::vector<A> output[kOutputs], dlogits;  // [N], [N, V]

  explicit Expected(const Case& t) : dlogits(t.N * t.V, A(0)) {
    for (auto& x : output) x.assign(t.N, A(0));
    for (int64_t n = 0; n < t.N; ++n)
      if (t.target[n] != t.ignore_index) row(t, n);
  }

  void row(const Case& t, int64_t n) {
    std::vector<A> s(t.V), logp(t.V), p(t.V);
    A largest = -kInf, sum = 0;
    bool bad = t.target[n] < 0 || t.target[n] >= t.V;
    for (int64_t v = 0; v < t.V; ++v) {
      s[v] = static_cast<A>(t.logits[n * t.V + v]) / static_cast<A>(t.temperature);
      bad = bad || std::isnan(s[v]) || s[v] == A(kInf);
      largest = std::max(largest, s[v]);
    }
    if (bad || largest == A(-kInf)) return special(t, n, bad);
    for (int64_t v = 0; v < t.V; ++v) sum += std::exp(s[v] - largest);
    A H = 0, p2 = 0, p2_logp = 0;
    for (int64_t v = 0; v < t.V; ++v) {
      logp[v] = s[v] - largest - std::log(sum);
      p[v] = std::exp(logp[v]);
      if (p[v] > 0) H -= p[v] * logp[v], p2 += p[v] * p[v], p2_logp += p[v] * p[v] * logp[v];
    }
    output[kLogprob][n] = logp[t.target[n]];
    output[kEntropy][n] = H;
    output[kLse][n] = largest + std::log(sum);
    output[kSumP2][n] = p2;
    output[kSumP2Logp][n] = p2_logp;
    auto incoming = [&](int i) { return t.gradient[i].empty() ? A(0) : static_cast<A>(t.gradient[i][n]); };
    for (int64_t v = 0; v < t.V; ++v) {
      const A hit = v == t.target[n], entropy_part = p[v] > 0 ? p[v] * (logp[v] + H) : A(0);
      dlogits[n * t.V + v] = (incoming(0) * (hit - p[v]) - incoming(1) * entropy_part + incoming(2) * p[v]) /
                             static_cast<A>(t.temperature);
    }
    if (t.keep) kept_row(t, n, s, std::vector<A>(t.V, A(1)), incoming(3));
  }

  void kept_row(const Case& t, int64_t n, const std::vector<A>& s, const std::vector<A>& slope, A incoming) {
    const std::vector<bool> kept = kept_tokens(t, s);
    A largest = -kInf, sum = 0, H = 0;
    for (int64_t v = 0; v < t.V; ++v) largest = std::max(largest, s[v]);
    for (int64_t v = 0; v < t.V; ++v) sum += kept[v] ? std::exp(s[v] - largest) : A(0);
    std::vector<A> logp(t.V), p(t.V);
    for (int64_t v = 0; v < t.V; ++v) {
      logp[v] = s[v] - largest - std::log(sum);
      p[v] = kept[v] ? std::exp(logp[v]) : A(0);
      if (p[v] > 0) H -= p[v] * logp[v];
    }
    output[kKept][n] = H;
    for (int64_t v = 0; v < t.V; ++v)
      if (p[v] > 0) dlogits[n * t.V + v] -= slope[v] * incoming * p[v] * (logp[v] + H) / static_cast<A>(t.temperature);
  }

  void special(const Case& t, int64_t n, bool bad) {
    for (int i = 0; i < kOutputs; ++i) output[i][n] = bad ? A(kNaN) : i == kLogprob || i == kLse ? A(-kInf) : A(0);
    bool none = true;
    for (const auto& g : t.gradient) none = none && (g.empty() || g[n] == 0);
    if (bad && !none) std::fill_n(dlogits.begin() + n * t.V, t.V, A(kNaN));
  }
};

// Runs both kernels, and compares each output with the truth.
template <class T>
void run(Case t, bool moments = true, bool in_place = false) {
  using A = gpu::Accumulator<T>;
  t.logits = to_doubles(convert<T>(t.logits));
  std::vector<T> stored(t.extent());
  for (int64_t n = 0; n < t.N; ++n)
    for (int64_t v = 0; v < t.V; ++v) stored[t.at(n, v)] = convert<T>({t.logits[n * t.V + v]})[0];
  DeviceBuffer<T> logits(stored, "logits", t.offset);
  DeviceBuffer<int64_t> target(t.target, "target");
  DeviceBuffer<A> out[kOutputs] = {DeviceBuffer<A>(t.N, "logprob"),     DeviceBuffer<A>(t.N, "entropy"),
                                   DeviceBuffer<A>(t.N, "lse"),         DeviceBuffer<A>(t.N, "sum_p2"),
                                   DeviceBuffer<A>(t.N, "sum_p2_logp"), DeviceBuffer<A>(t.N, "kept_entropy")};
  DeviceBuffer<kernels::KeptTokens> kept(t.N, "kept");
  DeviceBuffer<A> anchor(t.N, "anchor"), log_sum(t.N, "log_sum");

  kernels::TokenEntropyForward f;
  f.dtype = kDTypeOf<T>;
  f.layout = t.layout();
  f.logits = logits.data();
  f.target = target.data();
  f.ignore_index = t.ignore_index;
  f.temperature = t.temperature;
  f.logprob = out[kLogprob].data();
  f.entropy = out[kEntropy].data();
  f.lse = out[kLse].data();
  f.anchor = anchor.data();
  f.log_sum = log_sum.data();
  f.sum_p2 = moments ? out[kSumP2].data() : nullptr;
  f.sum_p2_logp = moments ? out[kSumP2Logp].data() : nullptr;
  kernels::token_entropy_forward_cuda(f, nullptr);

  kernels::TokenEntropyKeep k;
  k.dtype = f.dtype;
  k.layout = f.layout;
  k.logits = f.logits;
  k.target = target.data();
  k.ignore_index = t.ignore_index;
  k.temperature = t.temperature;
  k.keep = t.keep.value_or(kernels::Keep::kTopP);
  k.share = t.share;
  k.entropy = out[kEntropy].data();
  k.anchor = anchor.data();
  k.log_sum = log_sum.data();
  k.kept_entropy = out[kKept].data();
  k.kept = kept.data();
  if (t.keep) kernels::token_entropy_keep_cuda(k, nullptr);

  // Rounded as the kernel is given them.
  for (auto& g : t.gradient) g = to_doubles(convert<A>(g));
  std::vector<std::unique_ptr<DeviceBuffer<A>>> gradient;
  for (const auto& g : t.gradient)
    gradient.push_back(g.empty() ? nullptr : std::make_unique<DeviceBuffer<A>>(convert<A>(g), "gradient"));
  auto data = [&](int i) { return gradient[i] ? gradient[i]->data() : nullptr; };
  DeviceBuffer<T> separate(t.N * t.V, "dlogits");
  kernels::TokenEntropyBackward b;
  b.dtype = f.dtype;
  b.layout = f.layout;
  b.dlogits_layout = in_place ? f.layout : LogitRows{t.N, t.V, t.N, 0, t.V};
  b.logits = f.logits;
  b.target = f.target;
  b.ignore_index = t.ignore_index;
  b.temperature = t.temperature;
  b.entropy = f.entropy;
  b.anchor = f.anchor;
  b.log_sum = f.log_sum;
  b.dlogprob = data(0);
  b.dentropy = data(1);
  b.dlse = data(2);
  b.dkept = data(3);
  b.kept = b.dkept ? kept.data() : nullptr;
  b.dlogits = in_place ? logits.data() : separate.data();
  kernels::token_entropy_backward_cuda(b, nullptr);

  const Expected<long double> exact(t);
  const Expected<A> plain(t);
  auto doubles = [](const auto& x) { return std::vector<double>(x.begin(), x.end()); };
  for (int i = 0; i < kOutputs; ++i) {
    if (i == kKept ? !t.keep : i >= kSumP2 && !moments) continue;
    EXPECT_TRUE(within_twice(kNames[i], out[i].read(), plain.output[i], doubles(exact.output[i])));
  }
  std::vector<T> dlogits;
  if (in_place) {
    const std::vector<T> all = logits.read();
    for (int64_t n = 0; n < t.N; ++n)
      for (int64_t v = 0; v < t.V; ++v) dlogits.push_back(all[t.at(n, v)]);
  } else {
    dlogits = separate.read();
  }
  EXPECT_TRUE(within_twice("dlogits", dlogits, convert<T>(doubles(plain.dlogits)), doubles(exact.dlogits)));
}

Case random_case(int64_t N, int64_t V, double deviation = 3.0, double offset = 0.0) {
  Case t;
  t.N = N;
  t.V = V;
  t.logits = normal(N * V, 1, deviation);
  for (double& z : t.logits) z += offset;
  for (int64_t n = 0; n < N; ++n) t.target.push_back((7919 * n + 5) % V);
  for (int i = 0; i < 3; ++i) t.gradient[i] = normal(N, 2 + i);
  return t;
}

template <class T>
class TokenEntropy : public ::testing::Test {};
using Types = ::testing::Types<float, gpu::bfloat16, gpu::half, double>;
TYPED_TEST_SUITE(TokenEntropy, Types);

TYPED_TEST(TokenEntropy, OddShapes) {
  for (const int64_t V : {1, 2, 3, 31, 33, 97, 1024, 1025, 4099, 20011})
    for (const int64_t offset : {0, 1, 3}) {
      SCOPED_TRACE("V " + std::to_string(V) + ", offset " + std::to_string(offset));
      Case t = random_case(V > 4000 ? 3 : 64, V);  // enough rows for the plain loop to meet its usual error
      t.offset = offset;
      t.temperature = 0.7;
      run<TypeParam>(t);
    }
}

TYPED_TEST(TokenEntropy, RowsApartAndInGroups) {
  for (const int64_t pad : {1, 5, 8}) {
    Case t = random_case(48, 301);
    t.group_rows = 3;
    t.pad = pad;
    run<TypeParam>(t);
    run<TypeParam>(t, false, true);
  }
}

TYPED_TEST(TokenEntropy, InPlace) {
  for (const int64_t V : {33, 2050}) {
    Case t = random_case(17, V);
    t.offset = 1;
    run<TypeParam>(t, false, true);
  }
}

TYPED_TEST(TokenEntropy, LogitsFarFromZero) {
  for (const double offset : {-3e4, 3e4}) run<TypeParam>(random_case(16, 1500, 2.0, offset));
  Case t = random_case(16, 1500);  // both at once: all but a few p are 0
  for (size_t i = 0; i < t.logits.size(); ++i) t.logits[i] += i % 7 ? -3e4 : 3e4;
  run<TypeParam>(t);
}

TYPED_TEST(TokenEntropy, MinusInfinity) {
  for (const int64_t V : {40, 3000}) {
    Case t = random_case(16, V);
    for (int64_t v = 0; v < V; ++v) {
      if (v % 3) t.logits[0 * V + v] = -kInf;       // two thirds, in every pack
      if (v != V - 1) t.logits[1 * V + v] = -kInf;  // all but the last
      t.logits[2 * V + v] = -kInf;                  // all
      if (v < V / 2) t.logits[3 * V + v] = -kInf;   // the first half
    }
    t.target[0] = 1, t.target[1] = t.target[3] = V - 1;  // the first has p = 0
    t.gradient[0][0] = 0;  // whose log-probability -inf has no finite gradient in the plain loop
    run<TypeParam>(t);
    Case entropy_alone = t;
    entropy_alone.gradient[0].clear(), entropy_alone.gradient[2].clear();
    run<TypeParam>(entropy_alone);
  }
}

TYPED_TEST(TokenEntropy, RowsThatSayNothing) {
  for (const int64_t V : {40, 3000}) {
    Case t = random_case(40, V);
    t.target[0] = t.ignore_index;
    t.target[1] = V;  // out of range: NaN, and no read past the row
    t.target[2] = -1;
    t.logits[3 * V + V / 2] = kNaN;
    t.logits[4 * V + 3] = kInf;
    t.logits[5 * V + 7] = kNaN;  // but nothing flows back into it
    for (auto& g : t.gradient)
      if (!g.empty()) g[5] = 0;
    for (int64_t v = 0; v < V; ++v) t.logits[6 * V + v] = kNaN;
    run<TypeParam>(t);
  }
}

// ---- kept tokens ----------------------------------------------------------------------------------------------------

Case keeping(Case t, kernels::Keep keep, double share) {
  t.keep = keep;
  t.share = share;
  t.gradient[3] = normal(t.N, 7);
  return t;
}

template <class T>
void run_keeping(const Case& t, bool in_place = false) {
  for (const double share : {1e-9, 0.3, 0.8, 0.999, 1.0}) {
    SCOPED_TRACE("top_p " + std::to_string(share));
    run<T>(keeping(t, kernels::Keep::kTopP, share), false, in_place);
  }
  for (const double share : {0.0, 0.2, 0.9}) {
    SCOPED_TRACE("without_lowest " + std::to_string(share));
    run<T>(keeping(t, kernels::Keep::kWithoutLowest, share), false, in_place);
  }
}

TYPED_TEST(TokenEntropy, KeptTokens) {
  for (const int64_t V : {1, 2, 33, 97, 1025, 4099}) {
    SCOPED_TRACE("V " + std::to_string(V));
    Case t = random_case(V > 1000 ? 5 : 48, V);
    t.offset = 1;
    t.temperature = 0.7;
    run_keeping<TypeParam>(t, V == 33);
  }
}

TYPED_TEST(TokenEntropy, KeptTokensOfEqualLogits) {
  for (const int64_t V : {40, 700}) {
    Case t = random_case(24, V);
    for (size_t i = 0; i < t.logits.size(); ++i) t.logits[i] = i % 5 == 0 ? 1.0 : i % 3 ? 0.0 : -0.0;
    run_keeping<TypeParam>(t);
  }
}

TYPED_TEST(TokenEntropy, KeptTokensFarFromZeroAndApart) {
  run_keeping<TypeParam>(random_case(16, 300, 2.0, 3e4));
  Case t = random_case(16, 300);  // both at once: all but a few p are 0
  for (size_t i = 0; i < t.logits.size(); ++i) t.logits[i] += i % 7 ? -3e4 : 3e4;
  run_keeping<TypeParam>(t);
}

TYPED_TEST(TokenEntropy, KeptTokensOfSpecialRows) {
  for (const int64_t V : {40, 1100}) {
    Case t = random_case(24, V);
    t.target[0] = t.ignore_index;
    t.target[1] = V;
    t.logits[3 * V + V / 2] = kNaN;
    t.logits[4 * V + 3] = kInf;
    for (int64_t v = 0; v < V; ++v) {
      t.logits[6 * V + v] = kNaN;
      t.logits[7 * V + v] = -kInf;
      if (v % 3) t.logits[8 * V + v] = -kInf;
      if (v != V - 1) t.logits[9 * V + v] = -kInf;
    }
    t.target[7] = 0, t.target[8] = 0, t.target[9] = V - 1;
    run_keeping<TypeParam>(t);
  }
}

TEST(TokenEntropyLaunch, NoRows) {
  kernels::TokenEntropyForward f;
  f.layout.vocab = 5;
  EXPECT_NO_THROW(kernels::token_entropy_forward_cuda(f, nullptr));
  kernels::TokenEntropyKeep k;
  k.layout.vocab = 5;
  EXPECT_NO_THROW(kernels::token_entropy_keep_cuda(k, nullptr));
  kernels::TokenEntropyBackward b;
  b.layout.vocab = b.dlogits_layout.vocab = 5;
  EXPECT_NO_THROW(kernels::token_entropy_backward_cuda(b, nullptr));
}

}  // namespace
}  // namespace isentrope::testing
