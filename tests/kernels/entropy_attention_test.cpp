// entropy_attention's kernels against a plain loop in double.
#include "kernels/entropy_attention.h"

#include <algorithm>
#include <functional>
#include <memory>

#include "tests/kernels/row_array.h"

namespace isentrope::testing {
namespace {

using kernels::DType;
using kernels::HeadStrides;

constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNaN = std::nan("");

enum Temperature { kNone, kHead, kRow, kBatchRow };
enum Gradient { kDout = 1, kDlse = 2, kDentropy = 4, kAll = 7 };

struct Sequence {
  int64_t b, row, queries, keys, start, index;  // row: packed: of all before it; index: of all sequences
};

struct Case {
  int64_t B = 1, H = 1, G = 1, T = 1, S = 1, D = 8;
  bool causal = false;
  int64_t window = 0;
  double scale = 0, softcap = 0;                              // scale 0: 1 / sqrt(D)
  std::vector<int64_t> key_lengths, query_start, cu_seqlens;  // [B], [B], [B + 1]; empty: none
  Temperature temperature = kNone;
  int gradients = kAll;
  int64_t block_size = 0;  // with a mask
  bool gated = false, sunk = false, sloped = false;
  std::vector<int64_t> places;        // [B, T], or none
  std::vector<double> mask, gates;    // [B, H, R, C] 1: kept, 0: not; both of sequences as long as may be
  std::vector<double> sinks, slopes;  // [H]
  bool rows_first = false;            // [B, T, H, D] with a gap between rows, else [B, H, T, D]
  std::vector<double> q, k, v, tau;   // [B, H, T, D], [B, G, S, D] twice, [B, H, T]; packed: B is 1, T and S are total
  std::vector<double> dout, dlse, dentropy;  // [B, H, T, D], [B, H, T] twice

  bool packed() const { return !cu_seqlens.empty(); }
  int64_t batch() const { return packed() ? 1 : B; }
  int64_t rows() const { return packed() ? cu_seqlens.back() : T; }
  int64_t key_rows() const { return packed() ? cu_seqlens.back() : S; }
  double tau_at(int64_t b, int64_t h, int64_t t) const {
    if (temperature == kNone) return 1.0;
    return tau[((temperature == kBatchRow ? b : 0) * H + h) * rows() + (temperature == kHead ? 0 : t)];
  }
  int64_t row_blocks() const { return (T + block_size - 1) / block_size; }
  int64_t column_blocks() const { return (S + block_size - 1) / block_size; }
  int64_t block(const Sequence& s, int64_t h, int64_t t, int64_t j) const {
    return ((s.index * H + h) * row_blocks() + t / block_size) * column_blocks() + j / block_size;
  }
  double gate_at(const Sequence& s, int64_t h, int64_t t, int64_t j) const {
    return gated ? gates[block(s, h, t, j)] : 1.0;
  }
  int64_t place(const Sequence& s, int64_t t) const { return places.empty() ? s.start + t : places[s.b * T + t]; }
  double scale_or_default() const { return scale != 0 ? scale : 1 / std::sqrt(static_cast<double>(D)); }

  std::vector<Sequence> sequences() const {
    std::vector<Sequence> all;
    for (int64_t b = 0; b < B; ++b) {
      if (packed()) {
        const int64_t length = cu_seqlens[b + 1] - cu_seqlens[b];
        all.push_back({0, cu_seqlens[b], length, length, 0, b});
      } else {
        all.push_back(
            {b, 0, T, key_lengths.empty() ? S : key_lengths[b], query_start.empty() ? S - T : query_start[b], b});
      }
    }
    return all;
  }
  bool sees(const Sequence& s, int64_t h, int64_t t, int64_t j) const {
    const int64_t at = place(s, t);
    if (j >= s.keys || (causal && (j > at || (window != 0 && j <= at - window)))) return false;
    return block_size == 0 || (mask[block(s, h, t, j)] != 0 && gate_at(s, h, t, j) != 0);
  }

  // Seeded values for whatever has none yet. Keys that are not to be read are NaN.
  void fill(uint64_t seed) {
    const int64_t queries = batch() * H * rows(), keys = batch() * G * key_rows();
    if (q.empty()) q = normal(queries * D, seed);
    if (k.empty()) k = normal(keys * D, seed + 1);
    if (v.empty()) v = normal(keys * D, seed + 2);
    tau = uniform(batch() * H * rows(), seed + 3, 0.5, 2.0);
    dout = normal(queries * D, seed + 4);
    dlse = normal(queries, seed + 5);
    dentropy = normal(queries, seed + 6);
    if (block_size > 0) {
      const int64_t blocks = B * H * row_blocks() * column_blocks();
      if (mask.empty())
        for (const double x : uniform(blocks, seed + 7, 0, 1)) mask.push_back(x < 0.4 ? 1 : 0);
      gates = uniform(blocks, seed + 8, 0.2, 2.0);
      for (int64_t n = 0; n < blocks; n += 5) gates[n] = 0;
    }
    sinks = normal(H, seed + 9);
    slopes = uniform(H, seed + 10, 0, 0.1);
    for (const Sequence& s : sequences())
      for (int64_t g = 0; g < G; ++g)
        for (int64_t j = s.keys; !packed() && j < S; ++j)
          for (int64_t d = 0; d < D; ++d)
            k[((s.b * G + g) * S + j) * D + d] = v[((s.b * G + g) * S + j) * D + d] = kNaN;
  }

  std::string name() const {
    std::ostringstream text;
    text << "B " << B << ", H " << H << ", G " << G << ", T " << T << ", S " << S << ", D " << D
         << (causal ? ", causal" : "") << ", window " << window << ", softcap " << softcap << ", temperature "
         << temperature << ", gradients " << gradients << (key_lengths.empty() ? "" : ", key_lengths")
         << (query_start.empty() ? "" : ", query_start") << (packed() ? ", packed" : "") << ", blocks of " << block_size
         << (gated ? ", gates" : "") << (sunk ? ", sinks" : "") << (sloped ? ", slopes" : "")
         << (places.empty() ? "" : ", places") << (rows_first ? ", rows first" : "");
    return text.str();
  }
};

enum Output { kOut, kLse, kEntropy, kMaxLogit, kDq, kDk, kDv, kDtau, kDgates, kDsinks, kOutputs };
const char* const kNames[kOutputs] = {"out", "lse", "entropy",      "max_logit", "dq",
                                      "dk",  "dv",  "dtemperature", "dgates",    "dsinks"};

// A case whose numbers are of type A.
template <class A>
struct Numbers : Case {
  explicit Numbers(const Case& t)
      : Case(t), q(t.q.begin(), t.q.end()), k(t.k.begin(), t.k.end()), v(t.v.begin(), t.v.end()) {}
  std::vector<A> q, k, v;
};

// What the contract says, computed in A. round: to what the plain loop of a dtype keeps P, dz and its results in, else nothing.
template <class A>
struct Expected {
  std::vector<A> value[kOutputs], gate_sizes;
  // The largest sum of the sizes of the terms that an element is summed of: what its rounding errors are in proportion to.
  double size[kOutputs] = {};

  template <class Round>
  Expected(const Numbers<A>& t, Round round) {
    const int64_t queries = t.batch() * t.H * t.rows(), keys = t.batch() * t.G * t.key_rows();
    for (const Output i : {kOut, kDq}) value[i].assign(queries * t.D, A(0));
    for (const Output i : {kDk, kDv}) value[i].assign(keys * t.D, A(0));
    for (const Output i : {kLse, kEntropy, kMaxLogit, kDtau, kDsinks}) value[i].assign(queries, A(0));
    value[kDgates].assign(t.gates.size(), A(0));
    gate_sizes.assign(t.gates.size(), A(0));
    for (const Sequence& s : t.sequences())
      for (int64_t h = 0; h < t.H; ++h)
        for (int64_t query = 0; query < s.queries; ++query) row(t, s, h, query, round);
    for (const A x : gate_sizes) grow(kDgates, x);
    for (const Output i : {kOut, kDq, kDk, kDv})
      for (A& x : value[i]) x = round(x);
  }

  template <class Round>
  void row(const Numbers<A>& t, const Sequence& s, int64_t h, int64_t query, Round round) {
    const int64_t D = t.D, n = (s.b * t.H + h) * t.rows() + s.row + query;
    const int64_t first_key = (s.b * t.G + h / (t.H / t.G)) * t.key_rows() + s.row;
    const A scale = static_cast<A>(t.scale_or_default()), cap = static_cast<A>(t.softcap),
            tau = static_cast<A>(t.tau_at(s.b, h, s.row + query));
    const A *q = t.q.data() + n * D, *k = t.k.data() + first_key * D, *v = t.v.data() + first_key * D;
    std::vector<int64_t> seen;
    std::vector<A> logit, slope, log_gate;
    A largest = -kInf, sum = 0, dot_size = 0;
    for (int64_t j = 0; j < s.keys; ++j) {
      if (!t.sees(s, h, query, j)) continue;
      A z = 0, terms = 0;
      for (int64_t d = 0; d < D; ++d) {
        z += q[d] * k[j * D + d];
        terms += std::abs(q[d] * k[j * D + d]);
      }
      z *= scale;
      dot_size = std::max(dot_size, std::abs(terms * scale / tau));
      const A bend = cap > 0 ? std::tanh(z / cap) : A(0);
      seen.push_back(j);
      const A far = t.sloped ? static_cast<A>(t.slopes[h] * std::abs(t.place(s, query) - j)) : A(0);
      log_gate.push_back(std::log(static_cast<A>(t.gate_at(s, h, query, j))));
      logit.push_back(((cap > 0 ? cap * bend : z) - far) / tau + log_gate.back());
      dot_size = std::max(dot_size, far / tau + std::abs(log_gate.back()));
      slope.push_back(1 - bend * bend);
      largest = std::max(largest, logit.back());
    }
    const size_t keys = seen.size();  // what follows is the sink
    if (t.sunk) {
      seen.push_back(-1);
      logit.push_back(static_cast<A>(t.sinks[h]));
      largest = std::max(largest, logit.back());
      dot_size = std::max(dot_size, std::abs(logit.back()));
    }
    if (seen.empty()) {
      value[kLse][n] = value[kMaxLogit][n] = -kInf;
      return;
    }
    for (const A x : logit) sum += std::exp(x - largest);
    const A lse = largest + std::log(sum);
    A H = 0;
    A* out = value[kOut].data() + n * D;
    std::vector<A> log_p, p;
    for (size_t i = 0; i < seen.size(); ++i) {
      log_p.push_back(logit[i] - largest - std::log(sum));
      p.push_back(std::exp(log_p[i]));
      if (p[i] > 0) H -= p[i] * log_p[i];
      const A weight = round(p[i]);
      for (int64_t d = 0; i < keys && d < D; ++d) out[d] += weight * v[seen[i] * D + d];
    }
    value[kLse][n] = lse;
    value[kEntropy][n] = H;
    value[kMaxLogit][n] = largest;
    grow(kLse, dot_size + std::abs(lse));
    grow(kMaxLogit, dot_size);
    grow(kEntropy, dot_size + H);

    const A dlse = t.gradients & kDlse ? static_cast<A>(t.dlse[n]) : A(0),
            dentropy = t.gradients & kDentropy ? static_cast<A>(t.dentropy[n]) : A(0);
    std::vector<A> dout(D, A(0));
    A delta = dentropy * H - dlse, v_size = 0, k_size = 0, dout_size = 0, q_size = 0, dtau_size = 0, sum_size = 0;
    for (int64_t d = D - 1; d >= 0;
         --d) {  // not in the order of dP: where both should cancel, each has its own rounding
      if (t.gradients & kDout) dout[d] = static_cast<A>(t.dout[n * D + d]);
      delta += dout[d] * round(out[d]);
      dout_size = std::max(dout_size, std::abs(dout[d]));
      q_size = std::max(q_size, std::abs(q[d]));
    }
    for (size_t i = 0; i < seen.size(); ++i) {
      log_p[i] = logit[i] - lse;  // all that the contract gives: far from zero it has lost the digits that lse has
      p[i] = std::exp(log_p[i]);
      A dp = 0, terms = std::abs(delta) + std::abs(dentropy) + std::abs(dlse);
      if (i == keys) {
        const A part = p[i] > 0 ? dentropy * log_p[i] : A(0);
        value[kDsinks][n] = p[i] * (-delta - part);
        grow(kDsinks, p[i] * (terms + std::abs(part) + dout_size * v_size * static_cast<A>(D)));
        break;
      }
      const A *key = k + seen[i] * D, *v_row = v + seen[i] * D;
      for (int64_t d = 0; d < D; ++d) {
        dp += dout[d] * v_row[d];
        terms += std::abs(dout[d] * v_row[d]);
        v_size = std::max(v_size, std::abs(v_row[d]));
        k_size = std::max(k_size, std::abs(key[d]));
      }
      const A entropy_part = p[i] > 0 ? dentropy * log_p[i] : A(0), ds = p[i] * (dp - delta - entropy_part);
      value[kDtau][n] -= ds * (logit[i] - log_gate[i]) / tau;
      if (t.gated) {
        const A gate = static_cast<A>(t.gate_at(s, h, query, seen[i]));
        const int64_t block = t.block(s, h, query, seen[i]);
        value[kDgates][block] += ds / gate;
        gate_sizes[block] += p[i] * (terms + std::abs(entropy_part)) / gate;
      }
      terms = p[i] * (terms + std::abs(entropy_part)) / tau;
      sum_size += terms;
      dtau_size += terms * (std::abs(logit[i]) + std::abs(log_p[i]) + dot_size);
      const A dz = round(ds / tau * slope[i]), weight = round(p[i]);
      A *dq = value[kDq].data() + n * D, *dk = value[kDk].data() + (first_key + seen[i]) * D,
        *dv = value[kDv].data() + (first_key + seen[i]) * D;
      for (int64_t d = 0; d < D; ++d) {
        dq[d] += scale * dz * key[d];
        dk[d] += scale * dz * q[d];
        dv[d] += weight * dout[d];
      }
    }
    grow(kOut, v_size);
    grow(kDq, sum_size * k_size * std::abs(scale));
    grow(kDk, sum_size * q_size * std::abs(scale));
    grow(kDv, dout_size);
    grow(kDtau, dtau_size);
  }

  void grow(Output i, A x) { size[i] = std::max(size[i], static_cast<double>(x)); }
};

template <class T>
struct Rows : RowArray<T> {
  template <class... Values>
  Rows(const Case& t, int64_t heads, int64_t rows, int64_t columns, const char* name, const Values&... values)
      : RowArray<T>(t.rows_first, t.batch(), heads, rows, columns, name, values...) {}
};

std::unique_ptr<DeviceBuffer<int64_t>> device(const std::vector<int64_t>& values, const char* name) {
  return values.empty() ? nullptr : std::make_unique<DeviceBuffer<int64_t>>(values, name);
}

// Values that T holds, where T is what q, k, v and dout are stored in.
template <class T>
void round_values(Case* t) {
  for (auto* x : {&t->q, &t->k, &t->v, &t->dout}) *x = to_doubles(convert<T>(*x));
  for (auto* x : {&t->tau, &t->dlse, &t->dentropy, &t->gates, &t->sinks, &t->slopes})
    *x = to_doubles(convert<float>(*x));
}

// What both kernels give: [B, H, T, D] and so on, in the order of Output, as doubles, exactly.
template <class T>
struct Results {
  std::vector<T> wide[kOutputs];        // out, dq, dk, dv
  std::vector<float> narrow[kOutputs];  // the statistics
  bool operator==(const Results& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0);
    };
    for (int i = 0; i < kOutputs; ++i)
      if (!same(wide[i], other.wide[i]) || !same(narrow[i], other.narrow[i])) return false;
    return true;
  }
};

template <class T>
Results<T> compute(const Case& t, bool statistics = true) {
  const int64_t rows = t.rows(), keys = t.key_rows();
  Rows<T> q(t, t.H, rows, t.D, "q", t.q), k(t, t.G, keys, t.D, "k", t.k), v(t, t.G, keys, t.D, "v", t.v);
  Rows<T> out(t, t.H, rows, t.D, "out");
  Rows<float> lse(t, t.H, rows, 1, "lse"), entropy(t, t.H, rows, 1, "entropy"), max_logit(t, t.H, rows, 1, "max_logit");
  Rows<float> anchor(t, t.H, rows, 1, "anchor"), log_sum(t, t.H, rows, 1, "log_sum");
  DeviceBuffer<float> tau(convert<float>(t.tau), "temperature");
  const auto key_lengths = device(t.key_lengths, "key_lengths"), query_start = device(t.query_start, "query_start"),
             cu_seqlens = device(t.cu_seqlens, "cu_seqlens"), places = device(t.places, "places");
  std::vector<char> kept(t.mask.begin(), t.mask.end());
  DeviceBuffer<char> mask(kept, "block_mask");
  DeviceBuffer<float> gates(convert<float>(t.gates), "gates"), sinks(convert<float>(t.sinks), "sinks"),
      slopes(convert<float>(t.slopes), "slopes");

  kernels::EntropyAttentionForward f;
  f.dtype = kDTypeOf<T>;
  f.shape.batch = t.B;
  f.shape.heads = t.H;
  f.shape.kv_heads = t.G;
  f.shape.queries = t.T;
  f.shape.keys = t.S;
  f.shape.head_size = t.D;
  f.shape.scale = t.scale_or_default();
  f.shape.causal = t.causal;
  f.shape.window = t.window;
  f.shape.softcap = t.softcap;
  f.shape.key_lengths = key_lengths ? key_lengths->data() : nullptr;
  f.shape.query_start = query_start ? query_start->data() : nullptr;
  f.shape.cu_seqlens = cu_seqlens ? cu_seqlens->data() : nullptr;
  f.shape.total = t.packed() ? rows : 0;
  f.shape.places = places ? places->data() : nullptr;
  if (t.block_size > 0) {
    const int64_t row = t.column_blocks(), head = t.row_blocks() * row;
    f.shape.block_mask = reinterpret_cast<const bool*>(mask.data());
    f.shape.block_size = t.block_size;
    f.shape.block_strides = f.bias.gate_strides = {t.H * head, head, row};
    if (t.gated) f.bias.gates = gates.data();
  }
  if (t.sunk) f.bias.sinks = sinks.data();
  if (t.sloped) f.bias.slopes = slopes.data();
  f.q = q.data(), f.k = k.data(), f.v = v.data();
  f.temperature = t.temperature == kNone ? nullptr : tau.data();
  f.temperature_strides = {t.temperature == kBatchRow ? t.H * rows : 0, rows,
                           t.temperature == kRow || t.temperature == kBatchRow ? 1 : 0};
  f.out = out.data();
  f.lse = lse.data();
  f.entropy = statistics ? entropy.data() : nullptr;
  f.max_logit = statistics ? max_logit.data() : nullptr;
  f.anchor = anchor.data(), f.log_sum = log_sum.data();
  f.q_strides = q.strides, f.k_strides = k.strides, f.v_strides = v.strides, f.out_strides = out.strides;
  f.statistic_strides = lse.strides;
  DeviceBuffer<char> workspace(kernels::entropy_attention_workspace(f.shape, f.dtype), "workspace");
  f.workspace = workspace.data();
  kernels::entropy_attention_forward_cuda(f, nullptr);

  Rows<T> dout(t, t.H, rows, t.D, "dout", t.gradients & kDout ? t.dout : std::vector<double>(t.dout.size(), 0.0));
  Rows<float> dlse(t, t.H, rows, 1, "dlse", t.dlse), dentropy(t, t.H, rows, 1, "dentropy", t.dentropy);
  Rows<T> dq(t, t.H, rows, t.D, "dq"), dk(t, t.G, keys, t.D, "dk"), dv(t, t.G, keys, t.D, "dv");
  Rows<float> dtau(t, t.H, rows, 1, "dtemperature");
  kernels::EntropyAttentionBackward b;
  b.dtype = f.dtype;
  b.shape = f.shape;
  b.bias = f.bias;
  b.shape.of_gates = t.gated;
  Rows<float> dsinks(t, t.H, rows, 1, "dsinks");
  DeviceBuffer<float> dgates(std::vector<float>(t.gates.size(), 0.0f), "dgates");
  b.dgates = t.gated ? dgates.data() : nullptr;
  b.dsinks = t.sunk ? dsinks.data() : nullptr;
  b.q = f.q, b.k = f.k, b.v = f.v, b.temperature = f.temperature;
  b.out = f.out, b.anchor = f.anchor, b.log_sum = f.log_sum;
  b.entropy = t.gradients & kDentropy ? f.entropy : nullptr;
  b.dout = dout.data();
  b.dlse = t.gradients & kDlse ? dlse.data() : nullptr;
  b.dentropy = t.gradients & kDentropy && statistics ? dentropy.data() : nullptr;
  b.dq = dq.data(), b.dk = dk.data(), b.dv = dv.data();
  b.dtemperature = t.temperature == kNone ? nullptr : dtau.data();
  b.q_strides = q.strides, b.k_strides = k.strides, b.v_strides = v.strides, b.out_strides = out.strides;
  b.dout_strides = dout.strides, b.dq_strides = dq.strides, b.dk_strides = dk.strides, b.dv_strides = dv.strides;
  b.statistic_strides = f.statistic_strides;
  b.temperature_strides = f.temperature_strides;
  DeviceBuffer<char> backward_workspace(kernels::entropy_attention_backward_workspace(b.shape, b.dtype), "workspace");
  b.workspace = backward_workspace.data();
  kernels::entropy_attention_backward_cuda(b, nullptr);

  Results<T> r;
  r.wide[kOut] = out.read(), r.wide[kDq] = dq.read(), r.wide[kDk] = dk.read(), r.wide[kDv] = dv.read();
  r.narrow[kLse] = lse.read();
  if (statistics) r.narrow[kEntropy] = entropy.read(), r.narrow[kMaxLogit] = max_logit.read();
  if (b.dtemperature) r.narrow[kDtau] = dtau.read();
  if (b.dgates) r.narrow[kDgates] = dgates.read();
  if (b.dsinks) r.narrow[kDsinks] = dsinks.read();
  return r;
}

template <class A>
std::vector<double> doubles(const std::vector<A>& x) {
  return std::vector<double>(x.begin(), x.end());
}

// Compares results with the truth, once all cases of a test are known: an error may be twice as large, in proportion to the size
// of what was summed, as the worst that the plain loop makes in any of the cases. (A case alone may have few numbers, or none that
// the plain loop rounds.)
template <class T>
class Judge {
 public:
  void add(const Case& t, const Results<T>& r) {
    if (kChecked) return;
    Entry entry{t.name(), r, Expected<double>(Numbers<double>(t), [](double x) { return x; })};
    const Expected<float> plain(Numbers<float>(t), [](float x) { return gpu::widen(gpu::narrow<T>(x)); });
    for (int i = 0; i < kOutputs; ++i) {
      if (r.wide[i].empty() && r.narrow[i].empty()) continue;
      const double error = worst(doubles(plain.value[i]), entry.exact.value[i]).error;
      if (entry.exact.size[i] > 0) usual_[i] = std::max(usual_[i], error / entry.exact.size[i]);
    }
    entries_.push_back(std::move(entry));
  }

  ~Judge() {
    for (const Entry& entry : entries_) {
      SCOPED_TRACE(entry.name);
      for (int i = 0; i < kOutputs; ++i) {
        const auto& exact = entry.exact.value[i];
        const double allowed = 2 * usual_[i] * entry.exact.size[i];
        if (!entry.results.wide[i].empty()) {
          EXPECT_TRUE(close(kNames[i], entry.results.wide[i], exact, allowed));
        }
        if (!entry.results.narrow[i].empty()) {
          EXPECT_TRUE(close(kNames[i], entry.results.narrow[i], exact, allowed));
        }
      }
    }
  }

 private:
  struct Entry {
    std::string name;
    Results<T> results;
    Expected<double> exact;
  };
  std::vector<Entry> entries_;
  double usual_[kOutputs] = {};
};

// Runs both kernels.
template <class T>
Results<T> run(Judge<T>* judge, Case t, uint64_t seed = 1) {
  SCOPED_TRACE(t.name());
  t.fill(seed);
  round_values<T>(&t);
  Results<T> r = compute<T>(t);
  judge->add(t, r);
  return r;
}

template <class T>
class EntropyAttention : public ::testing::Test {};
using Types = ::testing::Types<float, gpu::bfloat16, gpu::half>;
TYPED_TEST_SUITE(EntropyAttention, Types);

// One of values, by the n-th draw of a case.
template <class Value>
Value choose(uint64_t index, uint64_t n, const std::vector<Value>& values) {
  return values[philox(2, index, n).word[0] % values.size()];
}

// The index-th of the cases that combine odd shapes and options.
Case mixed_case(uint64_t index) {
  const std::vector<int64_t> lengths = {1, 31, 33, 64, 65, 97, 130}, short_lengths = {1, 7, 16, 31, 33, 49};
  Case t;
  t.D = choose<int64_t>(index, 0, {8, 40, 64, 72, 128, 136, 256});
  t.T = choose(index, 1, t.D > 64 ? short_lengths : lengths);
  t.S = choose(index, 2, t.D > 128 ? short_lengths : lengths);
  t.G = choose<int64_t>(index, 3, {1, 1, 2});
  t.H = t.G * choose<int64_t>(index, 4, {1, 1, 3});
  t.B = choose<int64_t>(index, 5, {1, 2});
  const int64_t window = choose<int64_t>(index, 6, {-1, 0, 0, 1, 7, 40});
  t.causal = window >= 0;
  t.window = std::max<int64_t>(window, 0);
  t.softcap = choose<double>(index, 7, {0, 0, 2, 30});
  t.temperature = choose<Temperature>(index, 8, {kNone, kHead, kRow, kBatchRow});
  t.gradients = choose<int>(index, 9, {kAll, kAll, kDout, kDlse, kDentropy, kDout | kDlse});
  t.rows_first = choose<bool>(index, 10, {false, true});
  switch (choose<int>(index, 11, {0, 0, 1, 2, 3, 4})) {
    case 1:
      for (int64_t b = 0; b < t.B; ++b)
        t.key_lengths.push_back(choose<int64_t>(index, 12 + b, {0, t.S, t.S / 2, t.S - 1}));
      break;
    case 2:
      for (int64_t b = 0; b < t.B; ++b) t.query_start.push_back(choose<int64_t>(index, 12 + b, {0, t.S / 2, t.S}));
      break;
    case 3:
      for (int64_t b = 0; b < t.B; ++b) {
        t.key_lengths.push_back(choose<int64_t>(index, 12 + b, {t.S, t.S / 2}));
        t.query_start.push_back(t.key_lengths[b] / 2);
      }
      break;
    case 4:  // packed: T, none, and one of 5
      t.B = 3;
      t.S = t.T = std::max<int64_t>(t.T, 5);
      t.cu_seqlens = {0, t.T, t.T, t.T + 5};
      break;
    default:
      break;
  }
  return t;
}

TYPED_TEST(EntropyAttention, OddShapesAndOptions) {
  Judge<TypeParam> judge;
  const uint64_t first = 1000 * static_cast<uint64_t>(kDTypeOf<TypeParam>);
  for (uint64_t i = 0; i < 80; i += kChecked ? 3 : 1) run(&judge, mixed_case(first + i), 10 * i);
}

// The same with blocks, gates, sinks, slopes and places.
Case case_of_blocks(uint64_t index) {
  Case t = mixed_case(index);
  t.block_size = choose<int64_t>(index, 20, {16, 16, 32, 48, 64, 0});
  t.gated = t.block_size > 0 && choose<bool>(index, 21, {false, true});
  t.sunk = choose<bool>(index, 22, {false, true});
  t.sloped = choose<bool>(index, 23, {false, true});
  if (!t.packed() && choose<bool>(index, 24, {false, true})) {
    t.query_start.clear();
    for (int64_t b = 0; b < t.B; ++b) {
      const std::vector<double> drawn = uniform(t.T, index + b, -1, static_cast<double>(t.S));
      std::vector<int64_t> places(drawn.begin(), drawn.end());
      std::sort(places.begin(), places.end());
      t.places.insert(t.places.end(), places.begin(), places.end());
    }
  }
  return t;
}

TYPED_TEST(EntropyAttention, BlocksGatesSinksSlopesAndPlaces) {
  Judge<TypeParam> judge;
  const uint64_t first = 5000 + 1000 * static_cast<uint64_t>(kDTypeOf<TypeParam>);
  for (uint64_t i = 0; i < 80; i += kChecked ? 3 : 1) run(&judge, case_of_blocks(first + i), 10 * i);
}

// Whole tiles are skipped, the first and the last among them, and whole rows of blocks.
TYPED_TEST(EntropyAttention, FewBlocksOfMany) {
  Judge<TypeParam> judge;
  for (const bool causal : {false, true}) {
    Case t;
    t.H = 2, t.G = 1, t.T = 130, t.S = 600, t.D = 40;
    t.causal = causal;
    t.block_size = 32;
    t.gated = t.sunk = true;
    t.mask.assign(t.B * t.H * t.row_blocks() * t.column_blocks(), 0);
    for (const int64_t kept : {3, 11, 12, 40, 57, 100, 130}) t.mask[kept] = 1;
    for (const uint64_t seed : {1, 100, 200, 300}) run(&judge, t, seed);
  }
}

// The last column moves all logits of a row by about as much.
TYPED_TEST(EntropyAttention, LogitsFarFromZero) {
  Judge<TypeParam> judge;
  for (const double offset : {-3e4, 3e4})
    for (const bool causal : {false, true}) {
      Case t;
      t.H = 2, t.T = 65, t.S = 97, t.D = 40;
      t.causal = causal;
      t.temperature = kHead;
      t.q = normal(t.H * t.T * t.D, 1);
      t.k = normal(t.G * t.S * t.D, 2);
      for (int64_t n = 0; n < t.H * t.T; ++n) t.q[n * t.D + t.D - 1] = 128;
      for (int64_t n = 0; n < t.G * t.S; ++n) t.k[n * t.D + t.D - 1] = offset / 128 / t.scale_or_default();
      run(&judge, t);
    }
}

// Offsets at which a float keeps nothing of log n beside lse. 16 · c and 16 · -c are exact in every type, so that all logits of a
// row are one number and p = 1/n, whatever the order of sums; 1, 2, 4, … keys are seen, so that 1/n is exact too.
TYPED_TEST(EntropyAttention, GradientsAtAnyCommonOffset) {
  constexpr double kChannel = 4096;  // of q; half holds it
  for (const double offset : {-1e8, -1e4, 1e4, 1e8})
    for (const double softcap : {0.0, 2.0}) {
      Case t;
      t.H = 2, t.T = 8, t.S = 64, t.D = 8;
      t.temperature = kNone;
      t.gradients = kDout;
      t.softcap = softcap;
      t.scale = std::abs(offset) / (kChannel * 16);
      t.key_lengths = {32};
      t.q.assign(t.H * t.T * t.D, 0), t.k.assign(t.G * t.S * t.D, 0);
      for (int64_t n = 0; n < t.H * t.T; ++n) t.q[n * t.D] = kChannel;
      for (int64_t n = 0; n < t.G * t.S; ++n) t.k[n * t.D] = offset < 0 ? -16 : 16;
      t.fill(1);
      t.dout.assign(t.dout.size(), 1);
      round_values<TypeParam>(&t);
      const Results<TypeParam> r = compute<TypeParam>(t);
      for (int64_t j = 0; j < t.S; ++j)
        for (int64_t d = 0; d < t.D; ++d)
          EXPECT_EQ(to_double(r.wide[kDv][j * t.D + d]), j < 32 ? t.H * t.T / 32.0 : 0)
              << "offset " << offset << ", softcap " << softcap << ", dv[" << j << ", " << d << "]";
    }
}

TYPED_TEST(EntropyAttention, RowsOfNoKeyAndOfOne) {
  Case t;
  t.B = 2, t.H = 6, t.G = 2, t.T = 70, t.S = 67,
  t.D = 40;  // causal: the first three rows see nothing, the fourth one key
  t.causal = true;
  for (const int64_t window : {0, 1}) {
    t.window = window;
    Judge<TypeParam> judge;
    const Results<TypeParam> r = run(&judge, t);
    Case filled = t;
    filled.fill(1);
    const std::vector<TypeParam> v = convert<TypeParam>(filled.v);
    for (int64_t n = 0; n < t.B * t.H * t.T; ++n) {
      const int64_t row = n % t.T, key = row - 3, head = n / t.T / (t.H / t.G);  // head: of B·G
      SCOPED_TRACE("row " + std::to_string(n));
      if (key < 0) {
        EXPECT_EQ(r.narrow[kLse][n], -kInf);
        EXPECT_EQ(r.narrow[kMaxLogit][n], -kInf);
      }
      if (key < 0 || key == 0 || window == 1) {
        EXPECT_EQ(r.narrow[kEntropy][n], 0);
      }
      for (int64_t d = 0; d < t.D; ++d) {
        if (key < 0) {
          EXPECT_EQ(to_double(r.wide[kOut][n * t.D + d]), 0);
          EXPECT_EQ(to_double(r.wide[kDq][n * t.D + d]), 0);
        } else if (key == 0 || window == 1) {
          EXPECT_EQ(to_double(r.wide[kOut][n * t.D + d]), to_double(v[(head * t.S + key) * t.D + d]));
        }
      }
    }
  }
}

// The keys of a few rows are cut into parts; how many follows from S, so key_lengths gives a twin that is not cut.
TYPED_TEST(EntropyAttention, PartsAreJoined) {
  Judge<TypeParam> judge;
  kernels::AttentionShape shape;
  shape.batch = shape.heads = shape.kv_heads = shape.queries = 1;
  shape.head_size = 64;
  shape.keys = 511;
  EXPECT_EQ(kernels::entropy_attention_workspace(shape, kDTypeOf<TypeParam>), 0);
  shape.keys = 1100;
  EXPECT_GT(kernels::entropy_attention_workspace(shape, kDTypeOf<TypeParam>), 0);

  Case t;
  t.H = 3, t.T = 3, t.S = 1100, t.D = 40;
  for (const int64_t length : {1100, 511, 70, 0}) {
    t.key_lengths = {length};
    t.causal = length != 70;
    t.query_start = {std::max<int64_t>(length - t.T, 0)};
    t.window = length == 1100 ? 300 : 0;
    t.temperature = length == 511 ? kRow : kNone;
    t.softcap = length == 511 ? 3 : 0;
    const Results<TypeParam> cut = run(&judge, t);
    if (length == 511) {
      Case whole = t;
      whole.fill(1);
      for (auto* x : {&whole.k, &whole.v}) x->resize(length * t.D);
      whole.S = length;
      const Results<TypeParam> r = run(&judge, whole);
      EXPECT_EQ(r.narrow[kMaxLogit], cut.narrow[kMaxLogit]);
    }
  }
}

TYPED_TEST(EntropyAttention, EntropyOffChangesNothingElse) {
  Case t;
  t.H = 2, t.T = 33, t.S = 70, t.D = 64;
  t.causal = true;
  t.gradients = kDout | kDlse;
  t.fill(1);
  round_values<TypeParam>(&t);
  const Results<TypeParam> with = compute<TypeParam>(t);
  Results<TypeParam> without = compute<TypeParam>(t, false);
  without.narrow[kEntropy] = with.narrow[kEntropy], without.narrow[kMaxLogit] = with.narrow[kMaxLogit];
  EXPECT_TRUE(with == without);
}

TYPED_TEST(EntropyAttention, LengthsOutOfRangeAreBounded) {
  Case t;
  t.B = 3, t.T = 33, t.S = 40, t.D = 8;
  t.causal = true;
  t.key_lengths = {0, t.S, 20};
  t.query_start = {0, t.S, 0};
  t.fill(1);
  round_values<TypeParam>(&t);
  Case wild = t;
  wild.key_lengths = {-5, int64_t{1} << 40, 20};
  wild.query_start = {-(int64_t{1} << 40), t.S + 7, -1};
  EXPECT_TRUE(compute<TypeParam>(t) == compute<TypeParam>(wild));
}

TYPED_TEST(EntropyAttention, NanStaysInItsRow) {
  Case t;
  t.H = 2, t.T = 70, t.S = 70, t.D = 72;
  t.causal = true;
  t.fill(1);
  round_values<TypeParam>(&t);
  const Results<TypeParam> clean = compute<TypeParam>(t);
  constexpr int64_t kBad = 77;
  t.q[kBad * t.D + 5] = kNaN;
  const Results<TypeParam> r = compute<TypeParam>(t);
  for (const Output i : {kOut, kDq})
    for (int64_t n = 0; n < t.H * t.T * t.D; ++n) {
      const double value = to_double(r.wide[i][n]);
      if (n / t.D == kBad) {
        EXPECT_TRUE(std::isnan(value)) << kNames[i] << "[" << n << "] is " << value << "; wanted NaN";
      } else {
        EXPECT_EQ(value, to_double(clean.wide[i][n])) << kNames[i] << "[" << n << "]";
      }
    }
  for (const Output i : {kLse, kEntropy, kMaxLogit})
    for (int64_t n = 0; n < t.H * t.T; ++n) {
      if (n == kBad) {
        EXPECT_TRUE(std::isnan(r.narrow[i][n])) << kNames[i] << "[" << n << "] is " << r.narrow[i][n] << "; wanted NaN";
      } else {
        EXPECT_EQ(r.narrow[i][n], clean.narrow[i][n]) << kNames[i] << "[" << n << "]";
      }
    }
}

TYPED_TEST(EntropyAttention, TheSameBitsAtEveryRun) {
  std::vector<Case> cases(3);
  cases[0].H = 2, cases[0].T = cases[0].S = 70, cases[0].D = 72, cases[0].causal = true, cases[0].temperature = kRow;
  cases[1].H = 2, cases[1].G = 2, cases[1].T = 1, cases[1].S = 600, cases[1].D = 136;  // in parts
  cases[2].H = 4, cases[2].G = 2, cases[2].T = 65, cases[2].S = 97, cases[2].block_size = 16, cases[2].gated = true;
  cases[2].sunk = cases[2].sloped = cases[2].causal = true;
  for (Case& t : cases) {
    t.fill(1);
    round_values<TypeParam>(&t);
    const Results<TypeParam> expected = compute<TypeParam>(t);
#if defined(__CUDACC__)
    for (int run = 0; run < 5; ++run) EXPECT_TRUE(compute<TypeParam>(t) == expected);
#else
    const simt::Config before = simt::config();
    for (const auto order : {simt::Order::kFifo, simt::Order::kLifo, simt::Order::kRandom})
      for (const int os_threads : {1, 3}) {
        if (kChecked && (order == simt::Order::kFifo || os_threads > 1)) continue;  // the checker uses one
        simt::config().order = order;
        simt::config().os_threads = os_threads;
        simt::config().seed += 1;
        EXPECT_TRUE(compute<TypeParam>(t) == expected)
            << "order " << static_cast<int>(order) << ", " << os_threads << " threads";
      }
    simt::config() = before;
#endif
  }
}

TEST(EntropyAttentionLaunch, NoRowsAndNoKeys) {
  for (const auto& [T, S] : {std::pair<int64_t, int64_t>{0, 5}, {5, 0}, {0, 0}}) {
    Case t;
    t.H = 2, t.T = T, t.S = S;
    Judge<float> judge;
    run(&judge, t);
  }
  Case t;
  t.B = 0;
  EXPECT_NO_THROW(compute<float>(t));
}

TEST(EntropyAttentionLaunch, Refuses) {
  for (const auto& [D, dtype] : {std::pair{int64_t{12}, DType::kFloat},
                                 {int64_t{264}, DType::kHalf},
                                 {int64_t{0}, DType::kHalf},
                                 {int64_t{64}, DType::kDouble}}) {
    kernels::EntropyAttentionForward f;
    kernels::EntropyAttentionBackward b;
    f.shape.heads = f.shape.kv_heads = 1;
    f.shape.head_size = D;
    b.shape = f.shape;
    f.dtype = b.dtype = dtype;
    EXPECT_THROW(kernels::entropy_attention_forward_cuda(f, nullptr), std::invalid_argument) << D;
    EXPECT_THROW(kernels::entropy_attention_backward_cuda(b, nullptr), std::invalid_argument) << D;
  }
}

#if !defined(__CUDACC__)
// Of the last launch of each pass. The tiles' permutation of chunks is there for this.
TEST(EntropyAttentionLaunch, MatricesAreLoadedWithoutBankConflicts) {
  for (const int64_t D : {64, 128, 256}) {
    Case t;
    t.T = t.S = 64, t.D = D;
    t.fill(1);
    compute<gpu::bfloat16>(t);
    EXPECT_GT(simt::statistics().ldmatrix, 0u);
    EXPECT_EQ(simt::statistics().bank_conflicts, 0u) << "D " << D;
  }
}
#endif

}  // namespace
}  // namespace isentrope::testing
