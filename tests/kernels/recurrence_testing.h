// What the tests of linear_attention's and gated_delta_rule's kernels share: cases, arrays on the device, and errors of many cases
// taken together.
#pragma once
#include <algorithm>
#include <map>
#include <memory>

#include "kernels/recurrence.h"
#include "tests/kernels/row_array.h"

namespace isentrope::testing {

struct RecurrenceCase {
  int64_t B = 1, H = 1, G = 1, T = 1, D = 8, E = 8, chunk = 64;
  bool decays = false, state = false, dlast = true;
  bool extra = false;                            // linear_attention's normalizer
  bool write = false;                            // gated_delta_rule's gate
  bool rows_first = false;                       // [B, T, H, D], else [B, H, T, D]
  std::vector<int64_t> key_lengths, cu_seqlens;  // [B], [N + 1]; packed: B is 1, T the total

  bool packed() const { return !cu_seqlens.empty(); }
  int64_t sequences() const { return packed() ? static_cast<int64_t>(cu_seqlens.size()) - 1 : B; }
  int64_t columns() const { return E + extra; }
  int64_t chunks() const { return (T + chunk - 1) / chunk; }
  int64_t first(int64_t n) const { return packed() ? cu_seqlens[n] : 0; }
  int64_t batch(int64_t n) const { return packed() ? 0 : n; }
  int64_t count(int64_t n) const {
    return packed() ? cu_seqlens[n + 1] - cu_seqlens[n] : key_lengths.empty() ? T : key_lengths[n];
  }
  // Row t of sequence n of an array of `heads` heads, [B, heads, T].
  int64_t row(int64_t n, int64_t heads, int64_t head, int64_t t) const {
    return (batch(n) * heads + head) * T + first(n) + t;
  }
  std::string name() const {
    std::ostringstream text;
    text << "B " << B << ", H " << H << ", G " << G << ", T " << T << ", D " << D << ", E " << E << ", chunk " << chunk
         << (decays ? ", decays" : "") << (state ? ", state" : "") << (dlast ? "" : ", no dlast")
         << (extra ? ", normalizer" : "") << (write ? ", write" : "") << (rows_first ? ", rows first" : "")
         << (key_lengths.empty() ? "" : ", key_lengths") << (packed() ? ", packed" : "");
    return text.str();
  }
};

// One of values, by the n-th draw of a case.
template <class Value>
Value choose(uint64_t index, uint64_t n, const std::vector<Value>& values) {
  return values[philox(7, index, n).word[0] % values.size()];
}

// The index-th of the cases that combine odd shapes and options.
inline RecurrenceCase mixed_case(uint64_t index) {
  RecurrenceCase t;
  t.D = choose<int64_t>(index, 0, {1, 8, 40, 64, 72});
  t.E = choose<int64_t>(index, 1, {1, 8, 33, 64, 70});
  t.T = choose<int64_t>(index, 2, {1, 31, 33, 64, 65, 97, 130});
  t.G = choose<int64_t>(index, 3, {1, 1, 2});
  t.H = t.G * choose<int64_t>(index, 4, {1, 1, 3});
  t.B = choose<int64_t>(index, 5, {1, 2});
  t.decays = choose<bool>(index, 6, {false, true});
  t.state = choose<bool>(index, 7, {false, true});
  t.dlast = choose<bool>(index, 8, {true, true, false});
  t.rows_first = choose<bool>(index, 9, {false, true});
  t.chunk = choose<int64_t>(index, 10, {16, 48, 64, 128});
  const int lengths = choose<int>(index, 11, {0, 0, 1, 2});
  if (lengths == 1)
    for (int64_t b = 0; b < t.B; ++b)
      t.key_lengths.push_back(choose<int64_t>(index, 12 + b, {0, t.T, t.T / 2, t.T - 1}));
  if (lengths == 2) {  // one of none among them
    t.B = 1;
    t.cu_seqlens = {0, t.T / 3, t.T / 3, t.T};
  }
  return t;
}

// Rows of a case, [B, heads, T, columns].
template <class T>
struct StepRows : RowArray<T> {
  template <class... Values>
  StepRows(const RecurrenceCase& t, int64_t heads, int64_t columns, const char* name, const Values&... values)
      : RowArray<T>(t.rows_first, t.B, heads, t.T, columns, name, values...) {}
};

template <class T>
std::unique_ptr<DeviceBuffer<T>> device_or_null(bool given, const std::vector<T>& values, const char* name) {
  return given ? std::make_unique<DeviceBuffer<T>>(values, name) : nullptr;
}
template <class T>
T* data_or_null(const std::unique_ptr<DeviceBuffer<T>>& buffer) {
  return buffer ? buffer->data() : nullptr;
}

inline void set_shape(const RecurrenceCase& t, kernels::RecurrenceShape& s, const int64_t* key_lengths,
                      const int64_t* cu_seqlens) {
  s.sequences = t.sequences();
  s.heads = t.H;
  s.kv_heads = t.G;
  s.steps = t.T;
  s.key_size = t.D;
  s.value_size = t.E;
  s.chunk = t.chunk;
  s.key_lengths = key_lengths;
  s.cu_seqlens = cu_seqlens;
}

// What comes out, by name, as doubles.
using Named = std::map<std::string, std::vector<double>>;

// Errors of many cases, each in the norm relative to the exact value: together at most twice those of a plain loop in the same type,
// or a rounding of each. A checked run compares nothing: its plain twin does.
class Judge {
 public:
  explicit Judge(double step) : step_(step) {}
  ~Judge() {
    if (kChecked) return;
    for (const auto& [name, sums] : errors_) {
      const double allowed = 2 * std::max(sums.plain, step_ * step_ * static_cast<double>(sums.cases));
      EXPECT_LE(std::sqrt(sums.actual), std::sqrt(2 * allowed)) << name << ", worst in " << sums.worst;
    }
  }
  void add(const std::string& test, const Named& actual, const Named& plain, const Named& exact) {
    for (const auto& [name, e] : exact) {
      const auto &a = actual.at(name), &p = plain.at(name);
      ASSERT_EQ(a.size(), e.size()) << name << " of " << test;
      double size = 0, ours = 0, theirs = 0;
      for (size_t i = 0; i < e.size(); ++i) {
        ASSERT_EQ(std::isfinite(a[i]), std::isfinite(e[i]))
            << name << "[" << i << "] is " << a[i] << ", expected " << e[i] << " in " << test;
        if (!std::isfinite(e[i])) continue;
        size += e[i] * e[i];
        ours += (a[i] - e[i]) * (a[i] - e[i]);
        theirs += (p[i] - e[i]) * (p[i] - e[i]);
      }
      if (size == 0) {
        EXPECT_EQ(ours, 0) << name << " of " << test;
      }
      if (size < 1e-20) continue;  // exact is 0 but for a rounding of double: of weights of one sum, say, or of one key
      Sums& sums = errors_[name];
      sums.actual += ours / size;
      sums.plain += theirs / size;
      ++sums.cases;
      EXPECT_LT(ours / size, 0.01) << name << " of " << test;  // a wrong value, not a rounding
      if (ours / size > sums.largest) sums.largest = ours / size, sums.worst = test;
    }
  }

 private:
  struct Sums {
    double actual = 0, plain = 0, largest = 0;
    int cases = 0;
    std::string worst;
  };
  double step_;
  std::map<std::string, Sums> errors_;
};

template <class T>
constexpr double kStepOf = sizeof(T) == 4                 ? 0x1p-24
                           : std::is_same_v<T, gpu::half> ? 0x1p-11
                                                          : 0x1p-8;

}  // namespace isentrope::testing
