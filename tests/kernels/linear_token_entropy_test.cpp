// linear_token_entropy's kernels, block by block of the vocabulary, against a plain loop in double over whole rows.
#include "kernels/linear_token_entropy.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <optional>

#include "tests/kernels/testing.h"

namespace isentrope::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNaN = std::nan("");

enum Output { kLogprob, kEntropy, kLse, kSumP2, kSumP2Logp, kKept, kOutputs };
const char* const kNames[kOutputs] = {"logprob", "entropy", "lse", "sum_p2", "sum_p2_logp", "kept_entropy"};

struct Case {
  int64_t N = 1, V = 2, columns = 2;  // of a block
  double temperature = 1.0, softcap = 0.0;
  int64_t ignore_index = -100;
  std::vector<double> product;  // [N, V] h·Wᵀ
  std::vector<double> bias;     // [V], or empty
  std::vector<int64_t> target;  // [N]
  std::optional<kernels::Keep> keep;
  double share = 1.0;
  std::vector<double> gradient[4];  // [N] of logprob, entropy, lse, kept_entropy; empty for none
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

// What the contract says, computed in A: long double for the truth, the kernel's own type for the plain loop whose error sets
// the tolerance.
template <class A>
struct Expected {
  std::vector<A> output[kOutputs], dlogits;  // [N], [N, V]

  explicit Expected(const Case& t) : dlogits(t.N * t.V, A(0)) {
    for (auto& x : output) x.assign(t.N, A(0));
    for (int64_t n = 0; n < t.N; ++n)
      if (t.target[n] != t.ignore_index) row(t, n);
  }

  void row(const Case& t, int64_t n) {
    std::vector<A> s(t.V), slope(t.V, A(1)), p(t.V), logp(t.V);
    A largest = -kInf, sum = 0;
    bool bad = t.target[n] < 0 || t.target[n] >= t.V;
    for (int64_t v = 0; v < t.V; ++v) {
      A z = static_cast<A>(t.product[n * t.V + v]) + (t.bias.empty() ? A(0) : static_cast<A>(t.bias[v]));
      if (t.softcap > 0) {
        const A share = std::tanh(z / static_cast<A>(t.softcap));
        z = static_cast<A>(t.softcap) * share, slope[v] = 1 - share * share;
      }
      s[v] = z / static_cast<A>(t.temperature);
      bad = bad || std::isnan(s[v]) || s[v] == A(kInf);
      largest = std::max(largest, s[v]);
    }
    auto incoming = [&](int i) { return t.gradient[i].empty() ? A(0) : static_cast<A>(t.gradient[i][n]); };
    if (bad || largest == A(-kInf)) {
      for (int i = 0; i < kOutputs; ++i) output[i][n] = bad ? A(kNaN) : i == kLogprob || i == kLse ? A(-kInf) : A(0);
      if (bad && (incoming(0) != 0 || incoming(1) != 0 || incoming(2) != 0 || incoming(3) != 0))
        std::fill_n(dlogits.begin() + n * t.V, t.V, A(kNaN));
      return;
    }
    for (int64_t v = 0; v < t.V; ++v) sum += std::exp(s[v] - largest);
    A H = 0, p2 = 0, p2_logp = 0;
    for (int64_t v = 0; v < t.V; ++v) {
      logp[v] = s[v] - largest - std::log(sum);
      p[v] = std::exp(logp[v]);
      if (p[v] > 0) H -= p[v] * logp[v], p2 += p[v] * p[v], p2_logp += p[v] * p[v] * logp[v];
    }
    const A values[kKept] = {logp[t.target[n]], H, largest + std::log(sum), p2, p2_logp};
    for (int i = 0; i < kKept; ++i) output[i][n] = values[i];
    for (int64_t v = 0; v < t.V; ++v) {
      const A hit = v == t.target[n], entropy_part = p[v] > 0 ? p[v] * (logp[v] + H) : A(0);
      dlogits[n * t.V + v] = slope[v] * (incoming(0) * (hit - p[v]) - incoming(1) * entropy_part + incoming(2) * p[v]) /
                             static_cast<A>(t.temperature);
    }
    if (t.keep) kept_row(t, n, s, slope, incoming(3));
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
};

// Runs both kernels over all blocks, and compares each output with the truth. in_place: the gradient over the logits.
template <class T>
void run(Case t, bool moments = true, bool in_place = false) {
  using A = gpu::Accumulator<T>;
  t.product = to_doubles(convert<A>(t.product));
  t.bias = to_doubles(convert<T>(t.bias));
  for (auto& g : t.gradient) g = to_doubles(convert<A>(g));
  DeviceBuffer<int64_t> target(t.target, "target");
  DeviceBuffer<A> out[kOutputs] = {DeviceBuffer<A>(t.N, "logprob"),     DeviceBuffer<A>(t.N, "entropy"),
                                   DeviceBuffer<A>(t.N, "lse"),         DeviceBuffer<A>(t.N, "sum_p2"),
                                   DeviceBuffer<A>(t.N, "sum_p2_logp"), DeviceBuffer<A>(t.N, "kept_entropy")};
  DeviceBuffer<kernels::KeptTokens> kept(t.N, "kept");
  DeviceBuffer<A> anchor(t.N, "anchor"), log_sum(t.N, "log_sum"), sums(t.N * kernels::kLogitBlockSums, "sums"),
      capped(t.N * t.V, "capped");
  std::unique_ptr<DeviceBuffer<T>> bias;
  if (!t.bias.empty()) bias = std::make_unique<DeviceBuffer<T>>(convert<T>(t.bias), "bias");

  auto block_of = [&](kernels::LogitBlock& p, int64_t first) {
    p.dtype = kDTypeOf<T>;
    p.rows = t.N;
    p.vocab = t.V;
    p.first = first;
    p.columns = std::min(t.columns, t.V - first);
    p.bias = bias ? bias->data() : nullptr;
    p.target = target.data();
    p.ignore_index = t.ignore_index;
    p.softcap = t.softcap;
    p.temperature = t.temperature;
    std::vector<double> logits;
    for (int64_t n = 0; n < t.N; ++n)
      for (int64_t i = 0; i < p.columns; ++i) logits.push_back(t.product[n * t.V + first + i]);
    return convert<A>(logits);
  };
  for (int64_t first = 0; first < t.V; first += t.columns) {
    kernels::LinearTokenEntropyForward f;
    DeviceBuffer<A> logits(block_of(f, first), "logits");
    f.logits = logits.data();
    f.logprob = out[kLogprob].data();
    f.entropy = out[kEntropy].data();
    f.lse = out[kLse].data();
    f.anchor = anchor.data();
    f.log_sum = log_sum.data();
    f.sum_p2 = moments ? out[kSumP2].data() : nullptr;
    f.sum_p2_logp = moments ? out[kSumP2Logp].data() : nullptr;
    f.sums = sums.data();
    f.capped = t.keep ? capped.data() : nullptr;
    kernels::linear_token_entropy_forward_cuda(f, nullptr);
  }

  kernels::TokenEntropyKeep k;
  k.dtype = kDTypeOf<A>;
  k.layout = {t.N, t.V, t.N, 0, t.V};
  k.logits = capped.data();
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

  std::unique_ptr<DeviceBuffer<A>> gradient[4];
  for (int i = 0; i < 4; ++i)
    if (!t.gradient[i].empty()) gradient[i] = std::make_unique<DeviceBuffer<A>>(convert<A>(t.gradient[i]), "gradient");
  auto data = [&](int i) { return gradient[i] ? gradient[i]->data() : nullptr; };
  std::vector<T> dlogits(t.N * t.V);
  for (int64_t first = 0; first < t.V; first += t.columns) {
    kernels::LinearTokenEntropyBackward b;
    DeviceBuffer<A> logits(block_of(b, first), "logits");
    DeviceBuffer<T> separate(t.N * b.columns, "dlogits");
    b.logits = logits.data();
    b.entropy = out[kEntropy].data();
    b.anchor = anchor.data();
    b.log_sum = log_sum.data();
    b.dlogprob = data(0);
    b.dentropy = data(1);
    b.dlse = data(2);
    b.dkept = data(3);
    b.kept = b.dkept ? kept.data() : nullptr;
    b.dlogits = in_place ? static_cast<void*>(logits.data()) : separate.data();
    kernels::linear_token_entropy_backward_cuda(b, nullptr);
    std::vector<T> block = separate.read();
    if (in_place) block = convert<T>(to_doubles(logits.read()));
    for (int64_t n = 0; n < t.N; ++n)
      std::copy_n(block.begin() + n * b.columns, b.columns, dlogits.begin() + n * t.V + first);
  }

  const Expected<long double> exact(t);
  const Expected<A> plain(t);
  auto doubles = [](const auto& x) { return std::vector<double>(x.begin(), x.end()); };
  for (int i = 0; i < kOutputs; ++i) {
    if (i == kKept ? !t.keep : i >= kSumP2 && !moments) continue;
    EXPECT_TRUE(within_twice(kNames[i], out[i].read(), plain.output[i], doubles(exact.output[i])));
  }
  EXPECT_TRUE(within_twice("dlogits", dlogits, convert<T>(doubles(plain.dlogits)), doubles(exact.dlogits)));
}

Case random_case(int64_t N, int64_t V, int64_t columns, double deviation = 3.0) {
  Case t;
  t.N = N, t.V = V, t.columns = columns;
  t.product = normal(N * V, 1, deviation);
  for (int64_t n = 0; n < N; ++n) t.target.push_back((7919 * n + 5) % V);
  for (int i = 0; i < 3; ++i) t.gradient[i] = normal(N, 2 + i);
  return t;
}

template <class T>
class LinearTokenEntropy : public ::testing::Test {};
using Types = ::testing::Types<float, gpu::bfloat16, gpu::half, double>;
TYPED_TEST_SUITE(LinearTokenEntropy, Types);

TYPED_TEST(LinearTokenEntropy, OddShapes) {
  for (const int64_t V : {1, 33, 97, 1031})
    for (const int64_t columns : {V, int64_t{31}, int64_t{256}}) {
      SCOPED_TRACE("V " + std::to_string(V) + ", blocks of " + std::to_string(columns));
      Case t = random_case(48, V, columns);  // enough rows for the plain loop to meet its usual error
      t.temperature = 0.7;
      run<TypeParam>(t);
    }
}

TYPED_TEST(LinearTokenEntropy, BiasAndSoftcap) {
  for (const double softcap : {0.0, 4.0}) {
    Case t = random_case(48, 301, 64);
    t.bias = normal(t.V, 9);
    t.softcap = softcap;
    run<TypeParam>(t, false);
  }
}

TYPED_TEST(LinearTokenEntropy, InPlace) {
  if (sizeof(TypeParam) < 4) GTEST_SKIP() << "the gradient has another size than the logits";
  Case t = random_case(17, 301, 100);
  t.softcap = 5.0;
  run<TypeParam>(t, false, true);
}

// The reference moves up from block to block, and down never.
TYPED_TEST(LinearTokenEntropy, BlocksFarApart) {
  for (const double step : {-1e3, 1e3}) {
    Case t = random_case(16, 400, 100, 2.0);
    for (int64_t n = 0; n < t.N; ++n)
      for (int64_t v = 0; v < t.V; ++v) t.product[n * t.V + v] += step * static_cast<double>(v / 100);
    run<TypeParam>(t);
  }
}

TYPED_TEST(LinearTokenEntropy, SpecialRows) {
  Case t = random_case(40, 300, 64);
  const int64_t V = t.V;
  t.target[0] = t.ignore_index;
  t.target[1] = V;  // out of range: NaN
  t.target[2] = -1;
  t.product[3 * V + V / 2] = kNaN;
  t.product[4 * V + 3] = kInf;
  t.product[5 * V + 7] = kNaN;  // but nothing flows back into it
  for (auto& g : t.gradient)
    if (!g.empty()) g[5] = 0;
  for (int64_t v = 0; v < V; ++v) {
    t.product[6 * V + v] = -kInf;                         // all
    if (v != V - 1) t.product[7 * V + v] = -kInf;         // all but the last
    if (v < 2 * t.columns) t.product[8 * V + v] = -kInf;  // whole blocks
  }
  t.target[7] = t.target[8] = V - 1;
  run<TypeParam>(t);
}

TYPED_TEST(LinearTokenEntropy, KeptTokens) {
  for (const auto keep : {kernels::Keep::kTopP, kernels::Keep::kWithoutLowest})
    for (const int64_t columns : {64, 301}) {
      Case t = random_case(48, 301, columns);
      t.bias = normal(t.V, 9);
      t.softcap = columns == 64 ? 4.0 : 0.0;
      t.target[0] = t.ignore_index;
      t.target[1] = t.V;
      t.keep = keep;
      t.share = 0.7;
      t.gradient[3] = normal(t.N, 7);
      run<TypeParam>(t, false);
    }
}

TEST(LinearTokenEntropyLaunch, NoRows) {
  kernels::LinearTokenEntropyForward f;
  f.vocab = f.columns = 5;
  EXPECT_NO_THROW(kernels::linear_token_entropy_forward_cuda(f, nullptr));
  kernels::LinearTokenEntropyBackward b;
  b.vocab = b.columns = 5;
  EXPECT_NO_THROW(kernels::linear_token_entropy_backward_cuda(b, nullptr));
}

}  // namespace
}  // namespace isentrope::testing
