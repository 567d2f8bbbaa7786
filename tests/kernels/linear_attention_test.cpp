// linear_attention's kernels against the recurrence, a step at a time, and its adjoint.
#include "kernels/linear_attention.h"

#include "tests/kernels/recurrence_testing.h"

namespace isentrope::testing {
namespace {

using kernels::DType;

constexpr double kInf = std::numeric_limits<double>::infinity();

// Inputs as doubles that T holds: q [B, H, T, D], k [B, G, T, D], v [B, G, T, E], g [B, G, T], states [N, G, D, E'], dout [B, H, T, E].
struct Inputs {
  std::vector<double> q, k, v, g, state, dlast, dout;
};

template <class T>
Inputs draw(const RecurrenceCase& t, uint64_t seed) {
  const int64_t queries = t.B * t.H * t.T, keys = t.B * t.G * t.T, states = t.sequences() * t.G * t.D * t.columns();
  // Weights that are divided by are summed of numbers of one sign.
  const auto features = [&](int64_t n, uint64_t s) { return t.extra ? uniform(n, s, 0.05, 1) : normal(n, s); };
  const auto rounded = [](const std::vector<double>& x) { return to_doubles(convert<T>(x)); };
  const auto single = [](const std::vector<double>& x) { return to_doubles(convert<float>(x)); };
  return {rounded(features(queries * t.D, seed)),
          rounded(features(keys * t.D, seed + 1)),
          rounded(normal(keys * t.E, seed + 2)),
          single(uniform(keys, seed + 3, -0.4, 0.05)),
          single(t.extra ? uniform(states, seed + 4, 0, 1) : normal(states, seed + 4)),
          single(normal(states, seed + 5)),
          rounded(normal(queries * t.E, seed + 6))};
}

// The contract, in A; results rounded by round.
template <class A, class Round>
Named recur(const RecurrenceCase& t, const Inputs& x, Round round) {
  const int64_t E = t.columns(), group = t.H / t.G;
  std::vector<A> out(t.B * t.H * t.T * t.E), dq(t.B * t.H * t.T * t.D), dk(t.B * t.G * t.T * t.D),
      dv(t.B * t.G * t.T * t.E), dg(t.B * t.G * t.T), last(t.sequences() * t.G * t.D * E), dstate(last.size());
  for (int64_t n = 0; n < t.sequences(); ++n)
    for (int64_t g = 0; g < t.G; ++g) {
      const int64_t count = t.count(n), place = (n * t.G + g) * t.D * E;
      std::vector<std::vector<A>> S(count + 1, std::vector<A>(t.D * E));
      for (int64_t i = 0; i < t.D * E; ++i) S[0][i] = t.state ? static_cast<A>(x.state[place + i]) : A(0);
      const auto value = [&](int64_t row, int64_t e) { return e == t.E ? A(1) : static_cast<A>(x.v[row * t.E + e]); };
      const auto decay = [&](int64_t row) { return t.decays ? std::exp(static_cast<A>(x.g[row])) : A(1); };
      std::vector<std::vector<A>> incoming(count * group, std::vector<A>(E));  // of [Sᵀ q, z·q]
      for (int64_t s = 0; s < count; ++s) {
        const int64_t row = t.row(n, t.G, g, s);
        for (int64_t d = 0; d < t.D; ++d)
          for (int64_t e = 0; e < E; ++e)
            S[s + 1][d * E + e] = decay(row) * S[s][d * E + e] + static_cast<A>(x.k[row * t.D + d]) * value(row, e);
        for (int64_t i = 0; i < group; ++i) {
          const int64_t query = t.row(n, t.H, g * group + i, s);
          std::vector<A> y(E);
          for (int64_t d = 0; d < t.D; ++d)
            for (int64_t e = 0; e < E; ++e) y[e] += static_cast<A>(x.q[query * t.D + d]) * S[s + 1][d * E + e];
          const A weight = t.extra ? y[t.E] : A(1), inverse = weight == 0 ? A(0) : 1 / weight;
          A dot = 0;
          for (int64_t e = 0; e < t.E; ++e) {
            out[query * t.E + e] = y[e] * inverse;
            const A d = static_cast<A>(x.dout[query * t.E + e]);
            dot += d * round(y[e] * inverse);  // the backward pass is given out as it was stored
            incoming[s * group + i][e] = d * inverse;
          }
          if (t.extra) incoming[s * group + i][t.E] = -dot * inverse;
        }
      }
      for (int64_t i = 0; i < t.D * E; ++i) last[place + i] = S[count][i];
      std::vector<A> dS(t.D * E);
      for (int64_t i = 0; i < t.D * E; ++i) dS[i] = t.dlast ? static_cast<A>(x.dlast[place + i]) : A(0);
      for (int64_t s = count - 1; s >= 0; --s) {
        const int64_t row = t.row(n, t.G, g, s);
        for (int64_t i = 0; i < group; ++i) {
          const int64_t query = t.row(n, t.H, g * group + i, s);
          for (int64_t d = 0; d < t.D; ++d)
            for (int64_t e = 0; e < E; ++e) {
              dq[query * t.D + d] += S[s + 1][d * E + e] * incoming[s * group + i][e];
              dS[d * E + e] += static_cast<A>(x.q[query * t.D + d]) * incoming[s * group + i][e];
            }
        }
        for (int64_t d = 0; d < t.D; ++d)
          for (int64_t e = 0; e < E; ++e) {
            dk[row * t.D + d] += dS[d * E + e] * value(row, e);
            if (e < t.E) dv[row * t.E + e] += dS[d * E + e] * static_cast<A>(x.k[row * t.D + d]);
            dg[row] += decay(row) * dS[d * E + e] * S[s][d * E + e];
          }
        for (A& d : dS) d *= decay(row);
      }
      for (int64_t i = 0; i < t.D * E; ++i) dstate[place + i] = dS[i];
    }
  const auto wide = [&](const std::vector<A>& y) {
    std::vector<double> z;
    for (const A v : y) z.push_back(round(v));
    return z;
  };
  Named named{{"out", wide(out)}, {"dq", wide(dq)}, {"dk", wide(dk)}, {"dv", wide(dv)}};
  named["last_state"] = std::vector<double>(last.begin(), last.end());
  if (t.decays) named["dlog_decay"] = std::vector<double>(dg.begin(), dg.end());
  if (t.state) named["dstate"] = std::vector<double>(dstate.begin(), dstate.end());
  return named;
}

template <class T>
Named compute(const RecurrenceCase& t, const Inputs& x) {
  StepRows<T> q(t, t.H, t.D, "q", x.q), k(t, t.G, t.D, "k", x.k), v(t, t.G, t.E, "v", x.v),
      dout(t, t.H, t.E, "dout", x.dout);
  StepRows<float> g(t, t.G, 1, "log_decay", x.g), weight(t, t.H, 1, "weight"), dg(t, t.G, 1, "dlog_decay");
  StepRows<T> out(t, t.H, t.E, "out"), dq(t, t.H, t.D, "dq"), dk(t, t.G, t.D, "dk"), dv(t, t.G, t.E, "dv");
  DeviceBuffer<float> last(static_cast<int64_t>(x.state.size()), "last_state"), dstate(last.size(), "dstate");
  const auto state = device_or_null<float>(t.state, convert<float>(x.state), "state"),
             dlast = device_or_null<float>(t.dlast, convert<float>(x.dlast), "dlast_state");
  const auto lengths = device_or_null(!t.key_lengths.empty(), t.key_lengths, "key_lengths"),
             ends = device_or_null(t.packed(), t.cu_seqlens, "cu_seqlens");
  const auto inputs = [&](auto& p) {
    p.dtype = kDTypeOf<T>;
    set_shape(t, p.shape, data_or_null(lengths), data_or_null(ends));
    p.normalizer = t.extra;
    p.q = q.data(), p.k = k.data(), p.v = v.data();
    p.log_decay = t.decays ? g.data() : nullptr;
    p.state = data_or_null(state);
    p.q_strides = q.strides, p.k_strides = k.strides, p.v_strides = v.strides, p.decay_strides = g.strides;
    p.out_strides = out.strides, p.weight_strides = weight.strides;
  };
  kernels::LinearAttentionForward f;
  inputs(f);
  f.out = out.data(), f.last_state = last.data();
  f.weight = t.extra ? weight.data() : nullptr;
  DeviceBuffer<unsigned char> workspace(kernels::linear_attention_workspace(f.shape, f.dtype), "workspace");
  f.workspace = workspace.data();
  kernels::linear_attention_forward_cuda(f, nullptr);

  kernels::LinearAttentionBackward b;
  inputs(b);
  b.out = t.extra ? out.data() : nullptr, b.weight = t.extra ? weight.data() : nullptr;
  b.dout = dout.data(), b.dout_strides = dout.strides;
  b.dlast_state = data_or_null(dlast);
  b.dq = dq.data(), b.dk = dk.data(), b.dv = dv.data();
  b.dq_strides = dq.strides, b.dk_strides = dk.strides, b.dv_strides = dv.strides, b.ddecay_strides = dg.strides;
  b.dlog_decay = t.decays ? dg.data() : nullptr;
  b.dstate = t.state ? dstate.data() : nullptr;
  DeviceBuffer<unsigned char> scratch(kernels::linear_attention_backward_workspace(b.shape, b.dtype), "scratch");
  b.workspace = scratch.data();
  kernels::linear_attention_backward_cuda(b, nullptr);

  Named named{{"out", to_doubles(out.read())},
              {"dq", to_doubles(dq.read())},
              {"dk", to_doubles(dk.read())},
              {"dv", to_doubles(dv.read())}};
  named["last_state"] = to_doubles(last.read());
  if (t.decays) named["dlog_decay"] = to_doubles(dg.read());
  if (t.state) named["dstate"] = to_doubles(dstate.read());
  return named;
}

template <class T>
Named run(Judge* judge, const RecurrenceCase& t, uint64_t seed) {
  const Inputs x = draw<T>(t, seed);
  const Named actual = compute<T>(t, x);
  if (!kChecked)
    judge->add(t.name(), actual, recur<float>(t, x, [](float y) { return to_double(convert<T>({y})[0]); }),
               recur<double>(t, x, [](double y) { return y; }));
  return actual;
}

template <class T>
class LinearAttention : public ::testing::Test {};
using Types = ::testing::Types<float, gpu::bfloat16, gpu::half>;
TYPED_TEST_SUITE(LinearAttention, Types);

TYPED_TEST(LinearAttention, ShapesAndOptions) {
  Judge judge(kStepOf<TypeParam>);
  for (uint64_t i = 0; i < 40; i += kChecked ? 3 : 1) {
    RecurrenceCase t = mixed_case(i);
    t.extra = choose<bool>(i, 20, {false, true});
    run<TypeParam>(&judge, t, 10 * i);
  }
}

TYPED_TEST(LinearAttention, ManySequences) {
  Judge judge(kStepOf<TypeParam>);
  RecurrenceCase t;
  t.H = t.G = 2, t.T = 150, t.D = 16, t.E = 24, t.decays = true, t.state = true;
  t.cu_seqlens = {0, 0, 1, 64, 64, 66, 130, 150};
  for (const bool extra : {false, true}) {
    t.extra = extra;
    run<TypeParam>(&judge, t, 900);
  }
}

TEST(LinearAttentionValues, DecaysThatForgetAndGrow) {
  RecurrenceCase t;
  t.T = 100, t.decays = true, t.state = true;
  Inputs x = draw<float>(t, 77);
  x.g[10] = -kInf, x.g[70] = -200, x.g[71] = 80;
  const Named actual = compute<float>(t, x), exact = recur<double>(t, x, [](double y) { return y; });
  for (const char* name : {"out", "last_state", "dv"}) {
    const Worst w = worst(actual.at(name), exact.at(name));
    EXPECT_LE(w.error, 1e-4 * std::fmax(1, std::fabs(w.expected))) << describe(name, w);
  }
}

TEST(LinearAttentionValues, StepsAfterTheLengthAreNotRead) {
  RecurrenceCase t;
  t.B = 2, t.T = 70, t.decays = true, t.key_lengths = {20, 70};
  Inputs x = draw<float>(t, 78);
  for (int64_t s = 20; s < 70; ++s) {
    x.g[s] = std::nan("");
    for (int64_t d = 0; d < 8; ++d) x.q[s * 8 + d] = x.k[s * 8 + d] = x.v[s * 8 + d] = x.dout[s * 8 + d] = std::nan("");
  }
  for (const auto& [name, values] : compute<float>(t, x))
    for (size_t i = 0; i < values.size(); ++i) ASSERT_TRUE(std::isfinite(values[i])) << name << "[" << i << "]";
}

TEST(LinearAttentionValues, SameBitsAtEveryRun) {
  RecurrenceCase t = mixed_case(3);
  t.extra = t.decays = t.state = true;
  const Inputs x = draw<float>(t, 79);
  EXPECT_EQ(compute<float>(t, x), compute<float>(t, x));
}

TEST(LinearAttentionLaunch, NoSteps) {
  for (const auto& [B, T] : {std::pair<int64_t, int64_t>{1, 0}, {0, 5}}) {
    RecurrenceCase t;
    t.B = B, t.T = T, t.state = true, t.decays = true;
    const Inputs x = draw<float>(t, 5);
    const Named y = compute<float>(t, x);
    EXPECT_EQ(y.at("last_state"), x.state);
    EXPECT_EQ(y.at("dstate"), x.dlast);
  }
}

TEST(LinearAttentionLaunch, Refuses) {
  kernels::LinearAttentionForward f;
  f.dtype = DType::kDouble;
  f.shape.sequences = f.shape.heads = f.shape.kv_heads = f.shape.steps = f.shape.key_size = f.shape.value_size = 1;
  EXPECT_THROW(kernels::linear_attention_forward_cuda(f, nullptr), std::invalid_argument);
  kernels::LinearAttentionBackward b;
  b.dtype = DType::kDouble;
  b.shape = f.shape;
  EXPECT_THROW(kernels::linear_attention_backward_cuda(b, nullptr), std::invalid_argument);
}

}  // namespace
}  // namespace isentrope::testing
