// Products of W with a vector, a warp a row; dots in parts that one block joins; and power steps, where a block takes a
// slab of rows of one layer: first W u of its rows, then its share of Wᵀ(W u), for which the rows come from cache.
#include <algorithm>

#include "kernels/gpu/dispatch.h"
#include "kernels/gpu/launch.h"
#include "kernels/gpu/reduce.h"
#include "kernels/gpu/vector.h"
#include "kernels/sigma_linear.h"

namespace isentrope::kernels {
namespace sigma_linear {

constexpr int kThreads = 128;  // few enough that a row of 768 bfloat16, 96 packs, keeps most of a block busy
constexpr int kWarps = kThreads / 32;
constexpr int kJoinThreads = 512;  // of the one block that joins what the others left

GPU_DEVICE double square_root(double x) { return ::sqrt(x); }

template <class A>
GPU_DEVICE A at(const void* x, int64_t i = 0) {
  return static_cast<const A*>(x)[i];
}

// Whether p begins on a 16-byte boundary.
GPU_DEVICE bool aligned(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 15) == 0; }

// Elements of A that go with a pack of T; u 16-byte aligned.
template <class T>
struct Facing {
  gpu::Accumulator<T> value[gpu::Pack<T>::kSize];
  GPU_DEVICE explicit Facing(const gpu::Accumulator<T>* u) {
    using Pack = gpu::Pack<gpu::Accumulator<T>>;
    GPU_UNROLL
    for (int k = 0; k < gpu::Pack<T>::kSize; k += Pack::kSize) {
      const Pack part = gpu::load_pack(u + k);
      GPU_UNROLL
      for (int j = 0; j < Pack::kSize; ++j) value[k + j] = part.value[j];
    }
  }
};

// Whether every row of W, and u with it, can be read by packs.
template <class T>
GPU_DEVICE bool packed_rows(const void* weight, int64_t stride, const void* u) {
  return aligned(weight) && aligned(u) && stride % gpu::Pack<T>::kSize == 0;
}

// row·u over the warp; every lane gets it. row [columns], u [columns].
template <class T>
GPU_DEVICE gpu::Accumulator<T> row_dot(const T* row, const gpu::Accumulator<T>* u, int64_t columns,
                                       bool packed GPU_AT) {
  using Pack = gpu::Pack<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t packs = packed ? columns / Pack::kSize : 0;
  gpu::Accumulator<T> sum = 0;
  GPU_UNROLL_BY(4)
  for (int64_t i = lane; i < packs; i += 32) {
    const Pack w = gpu::load_pack(row + i * Pack::kSize);
    const Facing<T> facing(u + i * Pack::kSize);
    GPU_UNROLL
    for (int k = 0; k < Pack::kSize; ++k) sum += gpu::widen(w.value[k]) * facing.value[k];
  }
  for (int64_t i = packs * Pack::kSize + lane; i < columns; i += 32) sum += gpu::widen(row[i]) * u[i];
  return gpu::warp_reduce(
      sum, gpu::Sum {} GPU_HERE);
}

// ---- σ ---------------------------------------------------------------------------------------------------------------

// p = W u into v. Grid: blocks of kWarps rows.
template <class T>
__global__ void __launch_bounds__(kThreads) sigma_matvec_kernel(const SigmaNorm p) {
  using A = gpu::Accumulator<T>;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= p.weight.rows) return;  // the whole warp leaves
  const A* u = static_cast<const A*>(p.u);
  const A sum = row_dot<T>(static_cast<const T*>(p.weight.data) + row * p.weight.stride, u, p.weight.columns,
                           packed_rows<T>(p.weight.data, p.weight.stride, u));
  if (threadIdx.x % 32 == 0) static_cast<A*>(p.v)[row] = sum;
}

// σ, v and the factors from p. Grid: one block.
template <class A>
__global__ void __launch_bounds__(kJoinThreads) sigma_norm_kernel(const SigmaNorm p) {
  GPU_SHARED(double, scratch, kJoinThreads / 32);
  A* v = static_cast<A*>(p.v);
  const int thread = static_cast<int>(threadIdx.x);
  double sum = 0;
  for (int64_t i = thread; i < p.weight.rows; i += kJoinThreads)
    sum += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  // Rounded before it is used: γ = σ then gives a scale of exactly 1.
  const double sigma =
      static_cast<double>(static_cast<A>(square_root(gpu::block_reduce<kJoinThreads>(sum, gpu::Sum{}, &scratch[0]))));
  for (int64_t i = thread; i < p.weight.rows; i += kJoinThreads)
    v[i] = sigma == 0 ? A(0) : static_cast<A>(v[i] / sigma);
  if (thread == 0) {
    const A c = static_cast<A>(sigma_scale(static_cast<double>(at<A>(p.gamma)), sigma));
    A* factors = static_cast<A*>(p.factors);
    static_cast<A*>(p.sigma)[0] = static_cast<A>(sigma);
    factors[kScale] = c;
    factors[kScaleOrOne] = c == 0 ? A(1) : c;
    factors[kZero] = 0;
    factors[kOne] = 1;
  }
}

// ---- ⟨G, W⟩ ----------------------------------------------------------------------------------------------------------

// Grid: a block a part.
template <class T>
__global__ void __launch_bounds__(kThreads) sigma_dot_kernel(const SigmaDot p) {
  using A = gpu::Accumulator<T>;
  using Pack = gpu::Pack<T>;
  GPU_SHARED(double, scratch, kWarps);
  T* a = static_cast<T*>(p.a);
  const T* b = static_cast<const T*>(p.b);
  const int64_t begin = int64_t{blockIdx.x} * kSigmaDotPart;
  const int64_t end = begin + kSigmaDotPart < p.count ? begin + kSigmaDotPart : p.count;
  const bool clear = p.clear && at<A>(p.factors, kScale) == 0;
  const int64_t packs = aligned(a) && aligned(b) ? (end - begin) / Pack::kSize : 0;
  A sum = 0;
  GPU_UNROLL_BY(2)
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    const int64_t first = begin + i * Pack::kSize;
    const Pack left = gpu::load_pack_mutable(a + first), right = gpu::load_pack(b + first);
    GPU_UNROLL
    for (int k = 0; k < Pack::kSize; ++k) sum += gpu::widen(left.value[k]) * gpu::widen(right.value[k]);
  }
  const int64_t rest = begin + packs * Pack::kSize;
  for (int64_t i = rest + threadIdx.x; i < end; i += kThreads) sum += gpu::widen(a[i]) * gpu::widen(b[i]);
  if (clear) {
    __syncthreads();  // all threads of the block have read what is cleared
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) a[i] = gpu::narrow<T>(A(0));
  }
  const double total = gpu::block_reduce<kThreads>(static_cast<double>(sum), gpu::Sum{}, &scratch[0]);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = total;
}

// dγ and r from the parts. Grid: one block.
template <class A>
__global__ void __launch_bounds__(kJoinThreads) sigma_gradient_kernel(const SigmaDot p) {
  GPU_SHARED(double, scratch, kJoinThreads / 32);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < sigma_dot_parts(p.count); i += kJoinThreads) sum += p.partial[i];
  const double s =
      gpu::block_reduce<kJoinThreads>(sum, gpu::Sum{}, &scratch[0]) / static_cast<double>(at<A>(p.divisor));
  if (threadIdx.x != 0) return;
  const SigmaGradient gradient =
      sigma_gradient(s, static_cast<double>(at<A>(p.factors, kScale)), static_cast<double>(at<A>(p.sigma)),
                     p.dsigma ? static_cast<double>(at<A>(p.dsigma)) : 0.0, p.through);
  static_cast<A*>(p.dgamma)[0] = static_cast<A>(gradient.dgamma);
  static_cast<A*>(p.rank_one)[0] = static_cast<A>(gradient.rank_one);
}

// ---- the rank-one term of dW ------------------------------------------------------------------------------------------

template <class T>
constexpr int64_t kColumns = kThreads* gpu::Pack<T>::kSize;  // of a block

// Grid: rows · ceil(columns / kColumns) blocks.
template <class T>
__global__ void __launch_bounds__(kThreads) sigma_rank_one_kernel(const SigmaRankOne p) {
  using A = gpu::Accumulator<T>;
  using Pack = gpu::Pack<T>;
  const int64_t blocks = gpu::ceil_div(p.columns, kColumns<T>), row = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kColumns<T>;
  T* dweight = static_cast<T*>(p.dweight) + row * p.columns;
  const A* u = static_cast<const A*>(p.u);
  const A factor = at<A>(p.rank_one) * at<A>(p.v, row), scale = p.scale ? at<A>(p.scale) : A(0);
  if (packed_rows<T>(p.dweight, p.columns, u)) {
    const int64_t column = first + threadIdx.x * Pack::kSize;
    if (column >= p.columns) return;
    const Facing<T> facing(u + column);
    Pack out;
    if (p.scale) out = gpu::load_pack_mutable(dweight + column);
    GPU_UNROLL
    for (int k = 0; k < Pack::kSize; ++k) {
      const A old = p.scale ? scale * gpu::widen(out.value[k]) : A(0);
      out.value[k] = gpu::narrow<T>(old + factor * facing.value[k]);
    }
    gpu::store_pack(dweight + column, out);
  } else {
    const int64_t end = first + kColumns<T> < p.columns ? first + kColumns<T> : p.columns;
    for (int64_t i = first + threadIdx.x; i < end; i += kThreads) {
      const A old = p.scale ? scale * gpu::widen(dweight[i]) : A(0);
      dweight[i] = gpu::narrow<T>(old + factor * u[i]);
    }
  }
}

// ---- power steps ------------------------------------------------------------------------------------------------------

// Layers of one launch. 64 of them make a table of 3 KB, under the 4 KB that arguments of a kernel may have everywhere:
// so the table travels with the launch, and no copy to the device has to be waited for.
constexpr int kLayers = 64;

struct PowerEntry {
  const void* weight;  // [rows, columns] T
  int64_t stride;
  void* u;       // [columns] A
  int64_t sums;  // where the layer's slabs begin in Table::sums
  int32_t rows, columns;
  int32_t first_slab;  // where they begin among the blocks
  int32_t slabs;
};
struct PowerTable {
  int32_t count;
  double tolerance;
  double* squares;  // [slabs] Σ (W u)² of a slab's rows
  void* sums;       // A, a slab after the other: Wᵀ(W u) of its rows [power_step_columns(columns)]
  void* sigma;      // [count] A
  int32_t* steps;   // [count]
  int32_t* done;    // [count]
  PowerEntry layer[kLayers];
};

// Grid: a block a slab, of all layers.
template <class T>
__global__ void __launch_bounds__(kThreads) power_slab_kernel(const PowerTable p) {
  using A = gpu::Accumulator<T>;
  using Pack = gpu::Pack<T>;
  GPU_SHARED(A, product, kPowerRows);  // W u of the slab's rows
  const int32_t block = static_cast<int32_t>(blockIdx.x);
  int index = 0;
  while (index + 1 < p.count && p.layer[index + 1].first_slab <= block) ++index;
  if (p.done[index]) return;
  const PowerEntry& layer = p.layer[index];
  const int64_t slab = block - layer.first_slab, first = slab * kPowerRows, columns = layer.columns;
  const int rows = static_cast<int>(layer.rows - first < kPowerRows ? layer.rows - first : kPowerRows);
  const T* weight = static_cast<const T*>(layer.weight) + first * layer.stride;
  const A* u = static_cast<const A*>(layer.u);
  const bool packed = packed_rows<T>(layer.weight, layer.stride, u);

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = warp; r < kPowerRows; r += kWarps) {
    const A sum = r < rows ? row_dot<T>(weight + r * layer.stride, u, columns, packed) : A(0);
    if (lane == 0) product[r] = sum;
  }
  __syncthreads();
  if (warp == 0) {
    static_assert(kPowerRows == 32, "a row a lane");
    const double x = static_cast<double>(product[lane]);
    const double square = gpu::warp_reduce(x * x, gpu::Sum{});
    if (lane == 0) p.squares[block] = square;
  }

  A* sums = static_cast<A*>(p.sums) + layer.sums + slab * power_step_columns(columns);
  const int64_t packs = packed ? columns / Pack::kSize : 0;
  for (int64_t i = threadIdx.x; i < packs; i += kThreads) {
    A sum[Pack::kSize] = {};
    GPU_UNROLL_BY(4)
    for (int r = 0; r < rows; ++r) {
      const Pack w = gpu::load_pack(weight + r * layer.stride + i * Pack::kSize);
      GPU_UNROLL
      for (int k = 0; k < Pack::kSize; ++k) sum[k] += product[r] * gpu::widen(w.value[k]);
    }
    using Out = gpu::Pack<A>;
    GPU_UNROLL
    for (int k = 0; k < Pack::kSize; k += Out::kSize) {
      Out out;
      GPU_UNROLL
      for (int j = 0; j < Out::kSize; ++j) out.value[j] = sum[k + j];
      gpu::store_pack(sums + i * Pack::kSize + k, out);
    }
  }
  for (int64_t i = packs * Pack::kSize + threadIdx.x; i < columns; i += kThreads) {
    A sum = 0;
    for (int r = 0; r < rows; ++r) sum += product[r] * gpu::widen(weight[r * layer.stride + i]);
    sums[i] = sum;
  }
}

// Joins a layer's slabs, in order, and moves its u. Grid: a block a layer.
template <class A>
__global__ void __launch_bounds__(kJoinThreads) power_join_kernel(const PowerTable p) {
  GPU_SHARED(double, scratch, kJoinThreads / 32);
  const int index = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (p.done[index]) return;
  const PowerEntry& layer = p.layer[index];
  A* u = static_cast<A*>(layer.u);
  A* sums = static_cast<A*>(p.sums) + layer.sums;
  const int64_t columns = layer.columns, stride = power_step_columns(columns);

  double square = 0;
  for (int i = thread; i < layer.slabs; i += kJoinThreads) square += p.squares[layer.first_slab + i];
  const double before = square_root(gpu::block_reduce<kJoinThreads>(square, gpu::Sum{}, &scratch[0]));
  square = 0;
  for (int64_t i = thread; i < columns; i += kJoinThreads) {
    A sum = 0;
    GPU_UNROLL_BY(4)
    for (int slab = 0; slab < layer.slabs; ++slab) sum += sums[slab * stride + i];
    sums[i] = sum;  // this thread's own column of the first slab
    square += static_cast<double>(sum) * static_cast<double>(sum);
  }
  const double norm = square_root(gpu::block_reduce<kJoinThreads>(square, gpu::Sum{}, &scratch[0]));
  const PowerOutcome outcome = power_outcome(before, norm, p.tolerance);
  if (outcome.moves)
    for (int64_t i = thread; i < columns; i += kJoinThreads) u[i] = static_cast<A>(sums[i] / norm);
  if (thread == 0) {
    static_cast<A*>(p.sigma)[index] = static_cast<A>(outcome.sigma);
    if (outcome.moves) ++p.steps[index];
    p.done[index] = outcome.done;
  }
}

template <class Function>
void for_types(const char* what, DType dtype, Function&& function) {
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf, DType::kDouble>(what, dtype, function);
}

dim3 blocks(int64_t count) { return dim3(static_cast<unsigned>(count)); }

}  // namespace sigma_linear

void sigma_norm_cuda(const SigmaNorm& p, void* stream) {
  using namespace sigma_linear;
  for_types("sigma_norm: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    gpu::launch(sigma_matvec_kernel<T>, blocks(gpu::ceil_div(p.weight.rows, int64_t{kWarps})), dim3(kThreads), 0,
                stream, p);
    gpu::launch(sigma_norm_kernel<gpu::Accumulator<T>>, dim3(1), dim3(kJoinThreads), 0, stream, p);
  });
}

void sigma_dot_cuda(const SigmaDot& p, void* stream) {
  using namespace sigma_linear;
  for_types("sigma_dot: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    gpu::launch(sigma_dot_kernel<T>, blocks(sigma_dot_parts(p.count)), dim3(kThreads), 0, stream, p);
    gpu::launch(sigma_gradient_kernel<gpu::Accumulator<T>>, dim3(1), dim3(kJoinThreads), 0, stream, p);
  });
}

void sigma_rank_one_cuda(const SigmaRankOne& p, void* stream) {
  using namespace sigma_linear;
  for_types("sigma_rank_one: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    gpu::launch(sigma_rank_one_kernel<T>, blocks(p.rows * gpu::ceil_div(p.columns, kColumns<T>)), dim3(kThreads), 0,
                stream, p);
  });
}

void power_step_cuda(const PowerStep& p, void* stream) {
  using namespace sigma_linear;
  for_types("power_step: dtype", p.dtype, [&](auto type) {
    using T = gpu::TypeOf<type()>;
    using A = gpu::Accumulator<T>;
    for (int64_t begin = 0; begin < p.count; begin += kLayers) {
      const int count = static_cast<int>(std::min<int64_t>(kLayers, p.count - begin));
      PowerTable table = {};
      table.count = count;
      table.tolerance = p.tolerance;
      table.sigma = static_cast<A*>(p.sigma) + begin;
      table.steps = p.steps + begin;
      table.done = p.done + begin;
      int64_t slabs = 0, sums = 0;
      for (int i = 0; i < count; ++i) {
        const PowerLayer& layer = p.layers[begin + i];
        const int64_t own = gpu::ceil_div(layer.weight.rows, kPowerRows);
        table.layer[i] = {layer.weight.data,
                          layer.weight.stride,
                          layer.u,
                          sums,
                          static_cast<int32_t>(layer.weight.rows),
                          static_cast<int32_t>(layer.weight.columns),
                          static_cast<int32_t>(slabs),
                          static_cast<int32_t>(own)};
        slabs += own;
        sums += own * power_step_columns(layer.weight.columns);
      }
      // The sums first: they begin on 16-byte boundaries.
      table.sums = p.workspace;
      table.squares = reinterpret_cast<double*>(static_cast<A*>(p.workspace) + sums);
      for (int64_t step = 0; step < p.steps_max; ++step) {
        gpu::launch(power_slab_kernel<T>, blocks(slabs), dim3(kThreads), 0, stream, table);
        gpu::launch(power_join_kernel<A>, blocks(count), dim3(kJoinThreads), 0, stream, table);
      }
    }
  });
}

}  // namespace isentrope::kernels
