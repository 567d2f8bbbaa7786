// The CPU backend of token_entropy. Memory is the limit: the logits are read once forward, and once, with one write,
// backward; for the kept tokens again, a row while it lies in cache.
#include "csrc/ops/token_entropy_cpu.h"

#include "csrc/ops/token_entropy_keep.h"
#include "csrc/ops/token_entropy_rows.h"

namespace isentrope::ops::CPU_CAPABILITY {
namespace {

using kernels::DType;
using kernels::LogitRows;
using kernels::TokenEntropyBackward;
using kernels::TokenEntropyForward;
using kernels::TokenEntropyKeep;

constexpr int64_t kPastCache = int64_t{8} << 20;  // a gradient above these bytes is not in cache when it is wanted next

template <class T>
const T* row_of(const void* base, const LogitRows& rows, int64_t n) {
  return static_cast<const T*>(base) + n / rows.group_rows * rows.group_stride + n % rows.group_rows * rows.row_stride;
}

// ---- forward ------------------------------------------------------------------------------------------------------

template <class T>
void forward(const TokenEntropyForward& p, int64_t begin, int64_t end, TokenEntropySums* sums) {
  const int64_t V = p.layout.vocab, chunks = token_entropy_chunks(V);
  const ScalarOf<T> c = static_cast<ScalarOf<T>>(kLog2e / p.temperature);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / chunks, first = i % chunks * kTokenEntropyChunk;
    if (p.target[row] == p.ignore_index) continue;
    const T* z = row_of<T>(p.logits, p.layout, row) + first;
    const int64_t n = V - first < kTokenEntropyChunk ? V - first : kTokenEntropyChunk;
    sums[i] = kNoLogits;
    p.sum_p2 ? add_logits<T, true>(sums[i], z, n, c) : add_logits<T, false>(sums[i], z, n, c);
  }
}

// ---- outputs of a row -----------------------------------------------------------------------------------------------

template <class T>
void finish(const TokenEntropyForward& p, int64_t begin, int64_t end, const TokenEntropySums* sums) {
  using S = ScalarOf<T>;
  const int64_t V = p.layout.vocab, chunks = token_entropy_chunks(V);
  const double c = static_cast<S>(kLog2e / p.temperature);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t y = p.target[n];
    RowOutputs out;
    if (y != p.ignore_index) {
      const bool valid = y >= 0 && y < V;
      const double z_y = valid ? widen(row_of<T>(p.logits, p.layout, n) + y) : kNaN;
      out = row_outputs(sums + n * chunks, chunks, z_y, p.temperature, c);
      if (!valid) out = {kNaN, kNaN, kNaN, kNaN, kNaN, kNaN, kNaN};
    }
    write_row<S>(p, n, out);
  }
}

// ---- backward -------------------------------------------------------------------------------------------------------

template <class T>
void backward(const TokenEntropyBackward& p, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  const int64_t vocab = p.layout.vocab, chunks = token_entropy_chunks(vocab);
  const bool past_cache = p.dlogits != p.logits && p.layout.rows * vocab * static_cast<int64_t>(sizeof(T)) > kPastCache;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / chunks, first = i % chunks * kTokenEntropyChunk, y = p.target[row] - first;
    const int64_t n = vocab - first < kTokenEntropyChunk ? vocab - first : kTokenEntropyChunk;
    const T* z = row_of<T>(p.logits, p.layout, row) + first;
    T* dz = const_cast<T*>(row_of<T>(p.dlogits, p.dlogits_layout, row)) + first;
    const RowGradient<S> gradient(p, row);
    if (p.target[row] == p.ignore_index || gradient.zero())
      std::memset(static_cast<void*>(dz), 0, n * sizeof(T));
    else
      gradient.write(z, dz, first, n, y, p.target[row] >= 0 && p.target[row] < vocab, p.temperature, past_cache);
  }
  if (past_cache) stream_fence();
}

// ---- kept tokens ----------------------------------------------------------------------------------------------------

template <class T>
void keep(const TokenEntropyKeep& p, int64_t begin, int64_t end) {
  using S = ScalarOf<T>;
  const int64_t V = p.layout.vocab;
  for (int64_t n = begin; n < end; ++n) {
    const T* z = row_of<T>(p.logits, p.layout, n);
    const S* row = reinterpret_cast<const S*>(z);
    if constexpr (sizeof(T) != sizeof(S)) {
      S* copy = keep_copy.get<S>(V);
      if (p.target[n] != p.ignore_index) load_row(p.dtype, z, 0, V, copy);
      row = copy;
    }
    keep_row(p, n, row);
  }
}

template <class Function>
void for_dtype(DType dtype, const Function& function) {
  switch (dtype) {
    case DType::kFloat:
      return function(static_cast<float*>(nullptr));
    case DType::kBFloat16:
      return function(static_cast<BFloat16*>(nullptr));
    case DType::kHalf:
      return function(static_cast<Half*>(nullptr));
    case DType::kDouble:
      return function(static_cast<double*>(nullptr));
  }
}

}  // namespace

void token_entropy_forward_chunks(const TokenEntropyForward& p, int64_t begin, int64_t end, TokenEntropySums* sums) {
  for_dtype(p.dtype, [&]<class T>(T*) { forward<T>(p, begin, end, sums); });
}

void token_entropy_finish(const TokenEntropyForward& p, int64_t begin, int64_t end, const TokenEntropySums* sums) {
  for_dtype(p.dtype, [&]<class T>(T*) { finish<T>(p, begin, end, sums); });
}

void token_entropy_keep(const TokenEntropyKeep& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&]<class T>(T*) { keep<T>(p, begin, end); });
}

void token_entropy_backward_chunks(const TokenEntropyBackward& p, int64_t begin, int64_t end) {
  for_dtype(p.dtype, [&]<class T>(T*) { backward<T>(p, begin, end); });
}

}  // namespace isentrope::ops::CPU_CAPABILITY
