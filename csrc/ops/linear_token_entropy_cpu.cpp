// The CPU backend of linear_token_entropy: products of blocks (cpu_product.h, or linear_token_entropy_pairs.h where the processor
// multiplies bfloat16 itself) and token_entropy's arithmetic of rows (token_entropy_rows.h), block of the vocabulary by block.
//
//   forward    tasks of some rows and some blocks: z = h·Wᵀ of a chunk of rows, added to the rows' sums
//   backward   block by block: z of all rows again, dz in its place; then dh += dz·W by rows and dW = dzᵀ·h by columns
//
// Every element of every product is one sum in a fixed order, and blocks are taken in their order: no bit depends on the number
// of threads, nor a row's on the rows beside it.
#include "csrc/ops/linear_token_entropy_cpu.h"

#include <cstring>

#include "csrc/ops/linear_token_entropy_pairs.h"
#include "csrc/ops/linear_token_entropy_rows.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace {

constexpr int64_t kChunk = 96;  // rows of a product: a multiple of every kTile
// Summed in registers before it goes to memory: a panel of so many rows and the operand beside it fit the first-level cache, and
// short sums keep digits (with 384 the entropy of [97, 300] x [5003, 300] misses its bound of twice plain torch's error).
constexpr int64_t kDepth = 192;

// Rows first … first + count - 1 of the M as Real: where they lie if they can be read there, else in copy [count, C].
template <class Real>
struct Rows {
  const Real* data;
  int64_t stride;

  Rows(const LinearLogits& p, int64_t first, int64_t count, Real* copy) {
    const bool run = p.row[first + count - 1] - p.row[first] == count - 1;
    if (run && kernels::size_of(p.dtype) == sizeof(Real)) {
      data = static_cast<const Real*>(p.hidden) + p.row[first] * p.hidden_stride;
      stride = p.hidden_stride;
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      load_row(p.dtype, p.hidden, p.row[first + i] * p.hidden_stride, p.width, copy + i * p.width);
    data = copy;
    stride = p.width;
  }
};

// to [C, kPanel]: rows first … of weight as columns, 0 beyond its last.
template <class Real>
void pack_logit_panel(const LinearLogits& p, int64_t first, Real* to) {
  constexpr int64_t P = kPanel<Real>, kPiece = 64;
  const int64_t rows = smaller(P, p.vocab - first), C = p.width;
  if (rows == P && kernels::size_of(p.dtype) == sizeof(Real))
    return pack_columns(C, static_cast<const Real*>(p.weight) + first * p.weight_stride, p.weight_stride, to);
  Real piece[P * kPiece] = {};
  for (int64_t k = 0; k < C; k += kPiece, to += kPiece * P) {
    const int64_t length = smaller(kPiece, C - k);
    for (int64_t i = 0; i < rows; ++i)
      load_row(p.dtype, p.weight, (first + i) * p.weight_stride + k, length, piece + i * kPiece);
    pack_columns(length, piece, kPiece, to);
  }
}

// to [count, kPanel]: columns first … of rows of x [., columns], 0 beyond the last; row i at offset_of(i).
template <class Real, class Offset>
void pack_row_panel(DType dtype, const void* x, int64_t columns, int64_t first, int64_t count, const Offset& offset_of,
                    Real* to) {
  constexpr int64_t P = kPanel<Real>;
  const int64_t width = smaller(P, columns - first);
  if (width < P) std::memset(to, 0, count * P * sizeof(Real));
  for (int64_t i = 0; i < count; ++i) load_row(dtype, x, offset_of(i) + first, width, to + i * P);
}

// z [rows, ldz] of whole panels = rows · weightᵀ, packed [panels, C, kPanel].
template <class Real>
void logits_of(const Rows<Real>& rows, int64_t count, int64_t C, int64_t panels, const Real* packed, Real* z,
               int64_t ldz) {
  constexpr int64_t P = kPanel<Real>;
  const int64_t depth = parts(C, parts(C, kDepth));
  for (int64_t k = 0; k < C; k += depth) {
    const auto all = [n = smaller(depth, C - k)](int64_t, int64_t) { return Span{0, n}; };
    if (k == 0)
      product<false, false>(count, panels * P, kTile, rows.data, rows.stride, packed, C * P, z, ldz, all);
    else
      product<false, true>(count, panels * P, kTile, rows.data + k, rows.stride, packed + k * P, C * P, z, ldz, all);
  }
}

template <class R>
struct PlainLogits {
  using Real = R;
  using Operand = R;
  static constexpr int64_t kPanel = CPU_CAPABILITY::kPanel<R>, kChunk = CPU_CAPABILITY::kChunk;
  static int64_t packed_size(const LinearLogits& p) { return vocab_block(p.vocab) * p.width; }
  static int64_t copy_size(const LinearLogits& p) { return kChunk * p.width; }
  static void pack(const LinearLogits& p, int64_t first, Real* to) { pack_logit_panel(p, first, to); }
  static void logits_of(const LinearLogits& p, int64_t m, int64_t count, Real* copy, int64_t panels, const Real* packed,
                        Real* z, int64_t ldz) {
    CPU_CAPABILITY::logits_of(Rows<Real>(p, m, count, copy), count, p.width, panels, packed, z, ldz);
  }
  static void end_task() {}
};

// ---- backward -------------------------------------------------------------------------------------------------------

// dz [n] of a row's block, in place of its logits z.
template <class Real>
void gradient_row(const LinearTokenEntropyCpuBackward& p, int64_t row, int64_t first, int64_t n, Real* z, Real* slope,
                  Real* bias) {
  const LinearLogits& logits = p.logits;
  finish_logits(logits, first, n, z, bias, logits.softcap != 0 ? slope : nullptr);
  const RowGradient<Real> gradient(p, row);
  gradient.write(z, z, first, n, logits.target[row] - first, true, logits.temperature, false);
  if (logits.softcap != 0)
    for (int64_t i = 0; i < n; ++i) z[i] *= slope[i];
}

// dweight of rows first … first + n - 1 of the vocabulary, in the columns of panel c: dzᵀ · h.
template <class Real>
void weight_panel(const LinearTokenEntropyCpuBackward& p, int64_t first, int64_t n, const Real* dz, int64_t ldz,
                  int64_t c) {
  const LinearLogits& logits = p.logits;
  constexpr int64_t P = kPanel<Real>;
  const int64_t M = logits.rows, C = logits.width, width = smaller(P, C - c * P);
  Real *packed = own_scratch.get<Real>((kDepth + n) * P), *sum = packed + kDepth * P;
  for (int64_t m = 0; m < M; m += kDepth) {
    const int64_t depth = smaller(kDepth, M - m);
    pack_row_panel(
        logits.dtype, logits.hidden, C, c * P, depth,
        [&](int64_t i) { return logits.row[m + i] * logits.hidden_stride; }, packed);
    const auto all = [depth](int64_t, int64_t) { return Span{0, depth}; };
    if (m == 0)
      product<true, false>(n, P, kTile, dz, ldz, packed, 0, sum, P, all);
    else
      product<true, true>(n, P, kTile, dz + m * ldz, ldz, packed, 0, sum, P, all);
  }
  for (int64_t v = 0; v < n; ++v) store_row(logits.dtype, sum + v * P, width, p.dweight, (first + v) * C + c * P);
}

template <class Real>
void bias_block(const LinearTokenEntropyCpuBackward& p, int64_t first, int64_t n, const Real* dz, int64_t ldz) {
  double* sum = own_scratch.get<double>(2 * n);
  Real* rounded = reinterpret_cast<Real*>(sum + n);
  std::memset(sum, 0, n * sizeof(double));
  for (int64_t m = 0; m < p.logits.rows; ++m)
    for (int64_t v = 0; v < n; ++v) sum[v] += dz[m * ldz + v];
  for (int64_t v = 0; v < n; ++v) rounded[v] = static_cast<Real>(sum[v]);
  store_row(p.logits.dtype, rounded, n, p.dbias, first);
}

template <class Real>
void backward(const LinearTokenEntropyCpuBackward& p) {
  const LinearLogits& logits = p.logits;
  constexpr int64_t P = kPanel<Real>;
  const int64_t M = logits.rows, C = logits.width, V = logits.vocab, ldz = dlogits_stride(V);
  const int64_t width = vocab_block(V), columns = parts(C, P), chunks = parts(M, kChunk);
  Real *dz = static_cast<Real*>(p.dlogits), *dhidden = static_cast<Real*>(p.dhidden);
  // The block of weight in panels, for the logits and then, over them, for dhidden.
  Real* packed = shared_scratch.get<Real>(width * round_up(C, P));
  for (int64_t first = 0; first < V; first += width) {
    const int64_t n = smaller(width, V - first), panels = parts(n, P);
    for_tasks(panels, [&](int64_t i) { pack_logit_panel(logits, first + i * P, packed + i * C * P); });
    for_tasks(chunks, [&](int64_t task) {
      const int64_t m = task * kChunk, count = smaller(kChunk, M - m);
      Real* copy = own_scratch.get<Real>(kChunk * C + 2 * width);
      Real *slope = copy + kChunk * C, *bias = slope + width;
      logits_of(Rows<Real>(logits, m, count, copy), count, C, panels, packed, dz + m * ldz, ldz);
      for (int64_t i = 0; i < count; ++i) gradient_row(p, logits.row[m + i], first, n, dz + (m + i) * ldz, slope, bias);
    });
    if (dhidden != nullptr)
      for_tasks(columns, [&](int64_t i) {
        pack_row_panel(
            logits.dtype, logits.weight, C, i * P, n, [&](int64_t v) { return (first + v) * logits.weight_stride; },
            packed + i * n * P);
      });
    const int64_t of_hidden = dhidden != nullptr ? chunks : 0, of_weight = p.dweight != nullptr ? columns : 0;
    for_tasks(of_hidden + of_weight + (p.dbias != nullptr), [&](int64_t task) {
      if (task < of_hidden) {
        const int64_t m = task * kChunk, count = smaller(kChunk, M - m);
        if (first == 0)
          whole_product<false, false>(count, C, n, dz + m * ldz, ldz, packed, n * P, dhidden + m * C, C);
        else
          whole_product<false, true>(count, C, n, dz + m * ldz, ldz, packed, n * P, dhidden + m * C, C);
      } else if (task < of_hidden + of_weight) {
        weight_panel(p, first, n, dz, ldz, task - of_hidden);
      } else {
        bias_block(p, first, n, dz, ldz);
      }
    });
  }
}

}  // namespace

void linear_token_entropy_forward(const LinearTokenEntropyCpuForward& p) {
  const auto run = [&p](auto products) {
    using Products = decltype(products);
    p.sum_p2 != nullptr ? forward_of<Products, true>(p) : forward_of<Products, false>(p);
  };
  if constexpr (kPairs)
    if (p.logits.pairs) return run(PairLogits());
  p.logits.dtype == DType::kDouble ? run(PlainLogits<double>()) : run(PlainLogits<float>());
}

void linear_token_entropy_backward(const LinearTokenEntropyCpuBackward& p) {
  if constexpr (kPairs)
    if (p.logits.pairs) return backward_of_pairs(p);
  p.logits.dtype == DType::kDouble ? backward<double>(p) : backward<float>(p);
}

}  // namespace isentrope::ops::CPU_CAPABILITY
