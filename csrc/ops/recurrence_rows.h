// The rows of a chunk of steps for the CPU backends of linear_attention and gated_delta_rule: sizes, memory of a task, where the rows of a
// key head lie in every array, and the lines of them that are wanted next.
#pragma once
#include "csrc/ops/cpu_product.h"
#include "csrc/ops/cpu_rows.h"
#include "kernels/recurrence.h"

namespace isentrope::ops::CPU_CAPABILITY::recurrence {

using kernels::HeadStrides;
using kernels::RecurrenceShape;

constexpr int64_t kPad = 16;  // added to the width of a square block, so that rows do not fall on the same cache sets
constexpr int64_t kKeptBytes = int64_t{32} << 20;  // scratch above this goes back to the system after a task
constexpr int64_t kMostChunk = 256;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

inline thread_local Scratch own_scratch;
struct Lease {
  ~Lease() {
    if (own_scratch.bytes > kKeptBytes) own_scratch.release();
  }
};

// Memory of a task, taken piece by piece: counted first, then given.
template <class Real>
struct Arena {
  Real* next = nullptr;
  int64_t counted = 0;
  Real* take(int64_t count) {
    count = round_up(count, kLanes<Real>);
    counted += count;
    return next == nullptr ? nullptr : (next += count) - count;
  }
};
// A workspace W<Real>, whose constructor takes its pieces from an Arena.
template <class W, class Real, class Sizes>
W workspace_of(const Sizes& sizes) {
  Arena<Real> count;
  W(sizes, count);
  Arena<Real> arena{own_scratch.get<Real>(count.counted), 0};
  return W(sizes, arena);
}

// ---- sizes and steps ------------------------------------------------------------------------------------------------

template <class Real>
struct Sizes {
  int64_t D, E, C;  // C: rows of a block, whole panels of steps
  int64_t d, e, c;  // the width of a row of D, of E, of a square block
  int64_t group;    // query heads of a key head
  int64_t chunks;
  Sizes(const RecurrenceShape& s, int64_t steps)
      : D(s.key_size),
        E(s.value_size),
        C(round_up(s.chunk, kPanel<Real>)),
        d(round_up(D, kPanel<Real>)),
        e(round_up(E, kPanel<Real>)),
        c(C + kPad),
        group(s.heads / s.kv_heads),
        chunks(parts(steps, s.chunk)) {}
};

// One key head g of one sequence n: its rows in every array.
struct Steps {
  int64_t n, g, group;
  kernels::RecurrenceRows rows;
  Steps(const RecurrenceShape& s, int64_t index)
      : n(index / s.kv_heads),
        g(index % s.kv_heads),
        group(s.heads / s.kv_heads),
        rows(kernels::recurrence_rows(s, index / s.kv_heads)) {}
  int64_t at(const HeadStrides& x, int64_t head, int64_t t) const {
    return rows.batch * x.batch + head * x.head + (rows.first + t) * x.row;
  }
  int64_t key(const HeadStrides& x, int64_t t) const { return at(x, g, t); }
  int64_t query(const HeadStrides& x, int64_t i, int64_t t) const { return at(x, g * group + i, t); }
};

// ---- rows -----------------------------------------------------------------------------------------------------------

// to [C, width] = count rows of n elements, at(t) where row t begins; 0 beyond, to whole panels of rows.
template <class Real, class At>
void load_rows(DType dtype, const void* x, int64_t count, int64_t n, int64_t width, const At& at, Real* to) {
  for (int64_t t = 0; t < count; ++t, to += width) {
    load_row(dtype, x, at(t), n, to);
    for (int64_t i = n; i < width; ++i) to[i] = 0;
  }
  std::memset(to, 0, (round_up(count, kPanel<Real>) - count) * width * sizeof(Real));
}
template <class Real, class At>
void store_rows(DType dtype, const Real* from, int64_t count, int64_t n, int64_t width, void* x, const At& at) {
  for (int64_t t = 0; t < count; ++t, from += width) store_row(dtype, from, n, x, at(t));
}

// Rows of a chunk where they lie: in an array itself, if its elements are Real and fill whole panels, else in a block.
template <class Real>
struct Rows {
  Real* data;
  int64_t width;
  Real* operator[](int64_t t) const { return data + t * width; }
};
template <class Real>
bool in_place(DType dtype, int64_t n, int64_t width) {
  return dtype == (sizeof(Real) == 8 ? DType::kDouble : DType::kFloat) && n == width;
}
// filled: to whole panels of rows, as a transpose needs them.
template <class Real, class At>
Rows<const Real> rows_of(DType dtype, const void* x, int64_t row, int64_t count, int64_t n, int64_t width, const At& at,
                         Real* block, bool filled = false) {
  if (in_place<Real>(dtype, n, width) && !(filled && count % kPanel<Real>))
    return {static_cast<const Real*>(x) + at(0), row};
  load_rows(dtype, x, count, n, width, at, block);
  return {block, width};
}
// Where rows are computed: store_rows takes them to x, where they are not there yet.
template <class Real, class At>
Rows<Real> target_of(DType dtype, void* x, int64_t row, int64_t n, int64_t width, const At& at, Real* block) {
  if (in_place<Real>(dtype, n, width)) return {static_cast<Real*>(x) + at(0), row};
  return {block, width};
}
template <class Real, class At>
void store_rows(DType dtype, const Rows<Real>& from, int64_t count, int64_t n, int64_t width, void* x, const At& at) {
  if (!in_place<Real>(dtype, n, width)) store_rows(dtype, from.data, count, n, from.width, x, at);
}

// Rows of arrays that are wanted soon. Every tile of a product asks for a few lines of them, so that memory works while it runs:
// otherwise a chunk of 32 waits for its rows for a fifth of its time.
class Ahead {
 public:
  // rows of n elements, the first of which lies at element `at` of x.
  void add(DType dtype, const void* x, int64_t at, int64_t row, int64_t rows, int64_t n, bool written = false) {
    if (rows <= 0 || end_ - next_ == kMost) return;
    const int64_t size = dtype == DType::kDouble ? 8 : dtype == DType::kFloat ? 4 : 2;
    parts_[end_++ % kMost] = {static_cast<const char*>(x) + at * size, row * size, rows, n * size, written};
  }
  void ask() {
    for (int64_t lines = kLines; lines > 0 && next_ < end_; --lines) {
      Part& part = parts_[next_ % kMost];
      const char* line = part.data + byte_;
      part.written ? __builtin_prefetch(line, 1, 3) : __builtin_prefetch(line, 0, 2);
      if ((byte_ += kLineBytes) < part.bytes) continue;
      byte_ = 0;
      part.data += part.row;
      if (--part.rows == 0) ++next_;
    }
  }

 private:
  static constexpr int64_t kMost = 16, kLineBytes = 64;
  static constexpr int64_t kLines = 24;  // about as many as a core can wait for at once; of 8 … 32 the fastest
  struct Part {
    const char* data;
    int64_t row, rows, bytes;
    bool written;
  };
  Part parts_[kMost];
  int64_t next_ = 0, end_ = 0, byte_ = 0;
};

// While query head i of a chunk's key head is at work, forward: what is written for it, what the next head reads and is written,
// and what the next chunk reads.
template <class Real, class Parameters>
void ask_forward(const Parameters& p, const Sizes<Real>& s, const Steps& steps, int64_t first, int64_t count, int64_t i,
                 Ahead& ahead) {
  const int64_t next = first + count, later = smaller(p.shape.chunk, steps.rows.count - next);
  const auto ask = [&](const void* x, const HeadStrides& strides, int64_t at, int64_t rows, int64_t n, bool written) {
    ahead.add(p.dtype, x, at, strides.row, rows, n, written);
  };
  if (i == 0) {
    ask(p.out, p.out_strides, steps.query(p.out_strides, 0, first), count, s.E, true);
    ask(p.k, p.k_strides, steps.key(p.k_strides, next), later, s.D, false);
    ask(p.v, p.v_strides, steps.key(p.v_strides, next), later, s.E, false);
  }
  if (i + 1 < s.group) {
    ask(p.q, p.q_strides, steps.query(p.q_strides, i + 1, first), count, s.D, false);
    ask(p.out, p.out_strides, steps.query(p.out_strides, i + 1, first), count, s.E, true);
  } else {
    ask(p.q, p.q_strides, steps.query(p.q_strides, 0, next), later, s.D, false);
  }
}
// The same backward, where chunks come from the last to the first: with i = 0 what is read and written of the keys of the chunk
// before, and of its state, of `size` numbers in states. Its rows are whole: only the last chunk may be shorter.
template <class Real, class Parameters>
void ask_backward(const Parameters& p, const Sizes<Real>& s, const Steps& steps, int64_t first, int64_t count,
                  int64_t i, const Real* states, int64_t size, Ahead& ahead) {
  const int64_t before = first - p.shape.chunk;
  const auto ask = [&](const void* x, const HeadStrides& strides, int64_t at, int64_t rows, int64_t n, bool written) {
    ahead.add(p.dtype, x, at, strides.row, rows, n, written);
  };
  if (i == 0 && before >= 0) {
    constexpr DType real = sizeof(Real) == 8 ? DType::kDouble : DType::kFloat;
    ask(p.k, p.k_strides, steps.key(p.k_strides, before), p.shape.chunk, s.D, false);
    ahead.add(real, states, before / p.shape.chunk * size, 0, 1, size);
    ask(p.v, p.v_strides, steps.key(p.v_strides, before), p.shape.chunk, s.E, false);
    ask(p.dv, p.dv_strides, steps.key(p.dv_strides, before), p.shape.chunk, s.E, true);
    ask(p.dk, p.dk_strides, steps.key(p.dk_strides, before), p.shape.chunk, s.D, true);
  }
  const bool last = i + 1 == s.group;
  if (last && before < 0) return;
  const int64_t head = last ? 0 : i + 1, from = last ? before : first, rows = last ? p.shape.chunk : count;
  ask(p.q, p.q_strides, steps.query(p.q_strides, head, from), rows, s.D, false);
  ask(p.dout, p.dout_strides, steps.query(p.dout_strides, head, from), rows, s.E, false);
  ask(p.dq, p.dq_strides, steps.query(p.dq_strides, head, from), rows, s.D, true);
}

// n of these counts whole vectors.
template <class Real>
void scale_row(int64_t n, Real factor, Real* x) {
  for (int64_t i = 0; i < n; i += kLanes<Real>) *reinterpret_cast<Lanes<Real>*>(x + i) *= factor;
}
template <class Real>
void scaled_row(int64_t n, Real factor, const Real* x, Real* to) {
  for (int64_t i = 0; i < n; i += kLanes<Real>)
    *reinterpret_cast<Lanes<Real>*>(to + i) = factor * load_lanes<Real>(x + i);
}
template <class Real>
void add_row(int64_t n, Real factor, const Real* x, Real* to) {
  for (int64_t i = 0; i < n; i += kLanes<Real>)
    *reinterpret_cast<Lanes<Real>*>(to + i) += factor * load_lanes<Real>(x + i);
}
// to = y + factor · x; y may be to.
template <class Real>
void sum_of_rows(int64_t n, const Real* y, Real factor, const Real* x, Real* to) {
  for (int64_t i = 0; i < n; i += kLanes<Real>)
    *reinterpret_cast<Lanes<Real>*>(to + i) = load_lanes<Real>(y + i) + factor * load_lanes<Real>(x + i);
}
template <class Real>
Real dot(int64_t n, const Real* a, const Real* b) {
  using V = Vector<Real>;
  V even(Real(0)), odd(Real(0));
  int64_t i = 0;
  for (; i + 2 * kWidth<Real> <= n; i += 2 * kWidth<Real>) {
    even = fma(load(a + i), load(b + i), even);
    odd = fma(load(a + i + kWidth<Real>), load(b + i + kWidth<Real>), odd);
  }
  if (i < n) even = fma(load(a + i), load(b + i), even);
  return reduce_add(even + odd);
}
template <class Real>
Real row_sum(int64_t n, const Real* a) {
  Vector<Real> sum(Real(0));
  for (int64_t i = 0; i < n; i += kWidth<Real>) sum = sum + load(a + i);
  return reduce_add(sum);
}

}  // namespace isentrope::ops::CPU_CAPABILITY::recurrence
