// Every chunk at once, but for the sum of states: what a chunk adds to the state (states), the states before the chunks from
// those (scan), outputs and gradients of a chunk from its state (kernels/recurrence.cuh). Chunks are of 64 steps whatever p.shape says.
#include "kernels/linear_attention.h"
#include "kernels/recurrence.cuh"

namespace isentrope::kernels {
namespace recurrence {

template <class T, class Parameters>
struct Arrays {
  const Parameters& p;
  const Chunk& c;
  int64_t E;  // columns of a state: those of v, and the weight's with normalizer
  GPU_DEVICE Arrays(const Parameters& p, const Chunk& c) : p(p), c(c), E(p.shape.value_size + p.normalizer) {}
  GPU_DEVICE int64_t head(int64_t i) const { return c.g * (p.shape.heads / p.shape.kv_heads) + i; }
  GPU_DEVICE RowsOf<T> q(int64_t i) const { return rows_of<T>(c, p.q, p.q_strides, head(i), p.shape.key_size); }
  GPU_DEVICE RowsOf<T> k() const { return rows_of<T>(c, p.k, p.k_strides, c.g, p.shape.key_size); }
  // [v, 1]
  struct Values {
    RowsOf<T> v;
    bool one;
    GPU_DEVICE float operator()(int row, int e) const {
      return one && e == v.size ? (row < v.valid ? 1.0f : 0.0f) : v(row, e);
    }
  };
  GPU_DEVICE Values v() const { return {rows_of<T>(c, p.v, p.v_strides, c.g, p.shape.value_size), p.normalizer}; }
};

// Workspace: states [places · G, D, E'], the decays over whole chunks [places · G]; backward: the same of gradients, and dweight.
struct Workspace {
  float *states, *totals, *dstates, *dweight;
  int64_t size, places;  // D · E', places · G
  GPU_HOST_DEVICE Workspace(void* memory, const RecurrenceShape& s, bool normalizer)
      : size(s.key_size * (s.value_size + normalizer)), places(chunk_places(s) * s.kv_heads) {
    states = static_cast<float*>(memory);
    totals = states + places * size;
    dstates = totals + places;
    dweight = dstates + places * size;
  }
};

// ---- states ---------------------------------------------------------------------------------------------------------

// What a chunk adds to the state, (fall ⊙ K)ᵀ V. Grid: places · G, tiles of D · tiles of E'.
template <class T, class Parameters>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_states_kernel(Parameters p) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(Decays, decays, 1);
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  if (c.rows == 0) return;
  const Arrays<T, Parameters> a(p, c);
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int64_t tiles = gpu::ceil_div<int64_t>(a.E, kTile);
  const int d0 = static_cast<int>(blockIdx.y / tiles) * kTile, e0 = static_cast<int>(blockIdx.y % tiles) * kTile;
  read_decays(c, p.log_decay, p.decay_strides, decays[0]);
  const Decays& b = decays[0];
  const auto k = a.k();
  Sums sums;
  sums.clear();
  multiply<false, false>(
      sums, c.valid, [&](int d, int t) { return b.between(kTile - 1, t) * k(t, d0 + d); }, shifted(a.v(), e0),
      &factors[0]);
  sums.each([&](int d, int e, float& sum) {
    if (d0 + d < p.shape.key_size && e0 + e < a.E) w.states[c.place * w.size + (d0 + d) * a.E + e0 + e] = sum;
  });
  if (threadIdx.x == 0 && blockIdx.y == 0) w.totals[c.place] = b.rise(kTile - 1);
}

// From what chunks add to the states before them, and after the last. Grid: N · G, elements of a state.
__global__ void __launch_bounds__(kThreads, kBlocks)
    linear_attention_scan_kernel(RecurrenceShape s, Workspace w, const void* state, void* last_state) {
  const int64_t element = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (element >= w.size) return;
  const int64_t n = blockIdx.x / s.kv_heads, g = blockIdx.x % s.kv_heads;
  const RecurrenceRows rows = recurrence_rows(s, n);
  const int64_t chunks = gpu::ceil_div(rows.count, s.chunk), first = first_chunk(s, n, rows);
  float sum = state != nullptr ? static_cast<const float*>(state)[blockIdx.x * w.size + element] : 0.0f;
  for (int64_t i = first; i < first + chunks; ++i) {
    float& before = w.states[(i * s.kv_heads + g) * w.size + element];
    const float added = before;
    before = sum;
    sum = w.totals[i * s.kv_heads + g] * sum + added;
  }
  if (last_state != nullptr) static_cast<float*>(last_state)[blockIdx.x * w.size + element] = sum;
}

// The same of gradients, from the last chunk to the first: of the states after the chunks.
__global__ void __launch_bounds__(kThreads, kBlocks)
    linear_attention_scan_back_kernel(RecurrenceShape s, Workspace w, const void* dlast_state, void* dstate) {
  const int64_t element = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  if (element >= w.size) return;
  const int64_t n = blockIdx.x / s.kv_heads, g = blockIdx.x % s.kv_heads;
  const RecurrenceRows rows = recurrence_rows(s, n);
  const int64_t chunks = gpu::ceil_div(rows.count, s.chunk), first = first_chunk(s, n, rows);
  float sum = dlast_state != nullptr ? static_cast<const float*>(dlast_state)[blockIdx.x * w.size + element] : 0.0f;
  for (int64_t i = first + chunks - 1; i >= first; --i) {
    float& after = w.dstates[(i * s.kv_heads + g) * w.size + element];
    const float added = after;
    after = sum;
    sum = w.totals[i * s.kv_heads + g] * sum + added;
  }
  if (dstate != nullptr) static_cast<float*>(dstate)[blockIdx.x * w.size + element] = sum;
}

// ---- forward --------------------------------------------------------------------------------------------------------

// Grid: places · G, H / G · tiles of E.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_forward_kernel(LinearAttentionForward p) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(float, square, kTile* kWidth);
  GPU_SHARED(Decays, decays, 1);
  GPU_SHARED(float, weight, kTile);
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  if (c.rows == 0) return;
  const Arrays<T, LinearAttentionForward> a(p, c);
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int64_t E = p.shape.value_size, tiles = gpu::ceil_div<int64_t>(E, kTile), i = blockIdx.y / tiles;
  const int e0 = static_cast<int>(blockIdx.y % tiles) * kTile, D = static_cast<int>(p.shape.key_size);
  read_decays(c, p.log_decay, p.decay_strides, decays[0]);
  const Decays& b = decays[0];
  const auto q = a.q(i);
  const StateOf state{w.states + c.place * w.size, D, a.E};
  weighed_scores(b, D, q, a.k(), &square[0], &factors[0]);
  Sums sums;
  sums.clear();
  multiply<true, false>(
      sums, D, q, [&](int d, int e) { return e0 + e < E ? state(d, e0 + e) : 0.0f; }, &factors[0]);
  sums.each([&](int row, int, float& sum) { sum *= b.rise(row); });
  multiply<true, false>(
      sums, c.valid, [&](int row, int t) { return square[row * kWidth + t]; },
      shifted(rows_of<T>(c, p.v, p.v_strides, c.g, E), e0), &factors[0]);
  if (p.normalizer) {
    if (threadIdx.x < kTile) {
      const int row = static_cast<int>(threadIdx.x);
      float before = 0, within = 0;
      for (int d = 0; d < D; ++d) before += q(row, d) * state(d, static_cast<int>(E));
      for (int t = 0; t <= row; ++t) within += square[row * kWidth + t];
      weight[row] = row < c.valid ? before * b.rise(row) + within : 0.0f;
      if (row < c.rows && e0 == 0)
        static_cast<float*>(p.weight)[row_offset(c, p.weight_strides, a.head(i), row)] = weight[row];
    }
    __syncthreads();
    sums.each([&](int row, int, float& sum) { sum = weight[row] == 0 ? 0.0f : sum / weight[row]; });
  }
  store_tile<T>(c, sums, p.out, p.out_strides, a.head(i), e0, E);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// The gradient of each row's weight, -dout·out / weight. Grid: places · G, H / G; a thread a row.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_dweight_kernel(LinearAttentionBackward p) {
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  const Arrays<T, LinearAttentionBackward> a(p, c);
  const int row = static_cast<int>(threadIdx.x);
  if (row >= c.valid) return;
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int64_t E = p.shape.value_size, head = a.head(blockIdx.y);
  const auto dout = rows_of<T>(c, p.dout, p.dout_strides, head, E), out = rows_of<T>(c, p.out, p.out_strides, head, E);
  const float weight = static_cast<const float*>(p.weight)[row_offset(c, p.weight_strides, head, row)];
  float sum = 0;
  for (int e = 0; e < E; ++e) sum += dout(row, e) * out(row, e);
  w.dweight[(c.batch * p.shape.heads + head) * p.shape.steps + c.first_row + row] = weight == 0 ? 0.0f : -sum / weight;
}

// [dout, dweight], or dout, of query head i: what comes in to [Q S, weights].
template <class T>
struct Incoming {
  RowsOf<T> dout;
  const float *weight, *dweight;  // of the chunk's first row; null without normalizer
  int64_t stride;
  GPU_DEVICE float operator()(int row, int e) const {
    if (weight == nullptr) return dout(row, e);
    if (row >= dout.valid) return 0.0f;
    if (e == dout.size) return dweight[row];
    return weight[row * stride] == 0 ? 0.0f : dout(row, e) / weight[row * stride];
  }
};
template <class T>
GPU_DEVICE Incoming<T> incoming(const Arrays<T, LinearAttentionBackward>& a, const Workspace& w, int64_t i) {
  const auto& p = a.p;
  const auto dout = rows_of<T>(a.c, p.dout, p.dout_strides, a.head(i), p.shape.value_size);
  if (!p.normalizer) return {dout, nullptr, nullptr, 0};
  return {dout, static_cast<const float*>(p.weight) + row_offset(a.c, p.weight_strides, a.head(i), 0),
          w.dweight + (a.c.batch * p.shape.heads + a.head(i)) * p.shape.steps + a.c.first_row, p.weight_strides.row};
}

// What a chunk adds to the gradient of the state before it. Grid: places · G, tiles of D · tiles of E'.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_dstates_kernel(LinearAttentionBackward p) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(Decays, decays, 1);
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  if (c.rows == 0) return;
  const Arrays<T, LinearAttentionBackward> a(p, c);
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int64_t tiles = gpu::ceil_div<int64_t>(a.E, kTile);
  const int d0 = static_cast<int>(blockIdx.y / tiles) * kTile, e0 = static_cast<int>(blockIdx.y % tiles) * kTile;
  read_decays(c, p.log_decay, p.decay_strides, decays[0]);
  const Decays& b = decays[0];
  Sums sums;
  sums.clear();
  for (int64_t i = 0; i < p.shape.heads / p.shape.kv_heads; ++i) {
    const auto q = a.q(i);
    const auto in = incoming<T>(a, w, i);
    multiply<false, false>(
        sums, c.valid, [&](int d, int t) { return b.rise(t) * q(t, d0 + d); }, shifted(in, e0), &factors[0]);
  }
  sums.each([&](int d, int e, float& sum) {
    if (d0 + d < p.shape.key_size && e0 + e < a.E) w.dstates[c.place * w.size + (d0 + d) * a.E + e0 + e] = sum;
  });
}

// Grid: places · G, H / G · tiles of D.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_dq_kernel(LinearAttentionBackward p) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(float, square, kTile* kWidth);
  GPU_SHARED(Decays, decays, 1);
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  if (c.rows == 0) return;
  const Arrays<T, LinearAttentionBackward> a(p, c);
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int64_t tiles = gpu::ceil_div<int64_t>(p.shape.key_size, kTile), i = blockIdx.y / tiles;
  const int d0 = static_cast<int>(blockIdx.y % tiles) * kTile, E = static_cast<int>(a.E);
  read_decays(c, p.log_decay, p.decay_strides, decays[0]);
  const Decays& b = decays[0];
  const auto in = incoming<T>(a, w, i);
  const StateOf state{w.states + c.place * w.size, p.shape.key_size, a.E};
  weighed_scores(b, E, in, a.v(), &square[0], &factors[0]);
  Sums sums;
  sums.clear();
  multiply<true, true>(
      sums, E, in, [&](int e, int d) { return state(d0 + d, e); }, &factors[0]);
  sums.each([&](int row, int, float& sum) { sum *= b.rise(row); });
  multiply<true, false>(
      sums, c.valid, [&](int row, int t) { return square[row * kWidth + t]; }, shifted(a.k(), d0), &factors[0]);
  store_tile<T>(c, sums, p.dq, p.dq_strides, a.head(i), d0, p.shape.key_size);
}

// Grid: places · G, tiles of D (dk), then tiles of E (dv).
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_dkdv_kernel(LinearAttentionBackward p) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(float, square, kTile* kWidth);
  GPU_SHARED(Decays, decays, 1);
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  if (c.rows == 0) return;
  const Arrays<T, LinearAttentionBackward> a(p, c);
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int tiles = static_cast<int>(gpu::ceil_div<int64_t>(p.shape.key_size, kTile)),
            tile = static_cast<int>(blockIdx.y);
  const bool of_keys = tile < tiles;
  const int first = (of_keys ? tile : tile - tiles) * kTile, D = static_cast<int>(p.shape.key_size),
            E = static_cast<int>(a.E);
  read_decays(c, p.log_decay, p.decay_strides, decays[0]);
  const Decays& b = decays[0];
  const StateOf dstate{w.dstates + c.place * w.size, D, a.E};
  Sums sums;
  sums.clear();
  if (of_keys)
    multiply<true, true>(
        sums, E, a.v(), [&](int e, int d) { return dstate(first + d, e); }, &factors[0]);
  else
    multiply<true, false>(
        sums, D, a.k(), [&](int d, int e) { return dstate(d, first + e); }, &factors[0]);
  sums.each([&](int row, int, float& sum) { sum *= b.between(kTile - 1, row); });
  for (int64_t i = 0; i < p.shape.heads / p.shape.kv_heads; ++i) {
    const auto in = incoming<T>(a, w, i);
    const auto transposed = [&](int row, int t) { return square[t * kWidth + row]; };
    __syncthreads();  // the last head's scores are read
    if (of_keys) {
      weighed_scores(b, E, in, a.v(), &square[0], &factors[0]);
      multiply<false, false>(sums, c.valid, transposed, shifted(a.q(i), first), &factors[0]);
    } else {
      weighed_scores(b, D, a.q(i), a.k(), &square[0], &factors[0]);
      multiply<false, false>(sums, c.valid, transposed, shifted(in, first), &factors[0]);
    }
  }
  if (of_keys)
    store_tile<T>(c, sums, p.dk, p.dk_strides, c.g, first, D);
  else
    store_tile<T>(c, sums, p.dv, p.dv_strides, c.g, first, p.shape.value_size);
}

// Grid: places · G.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) linear_attention_ddecay_kernel(LinearAttentionBackward p) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(float, square, kTile* kWidth);
  GPU_SHARED(Decays, decays, 1);
  GPU_SHARED(float, terms, 3 * kTile);  // that lie at or behind a step, before it, and between
  GPU_SHARED(float, scratch, kThreads / 32);
  const Chunk c = chunk_of(p.shape, blockIdx.x);
  if (c.rows == 0) return;
  const Arrays<T, LinearAttentionBackward> a(p, c);
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const int D = static_cast<int>(p.shape.key_size), E = static_cast<int>(a.E), thread = static_cast<int>(threadIdx.x);
  read_decays(c, p.log_decay, p.decay_strides, decays[0]);
  const Decays& b = decays[0];
  const StateOf state{w.states + c.place * w.size, D, a.E}, dstate{w.dstates + c.place * w.size, D, a.E};
  float through = 0;
  for (int64_t n = thread; n < w.size; n += kThreads) through += state.base[n] * dstate.base[n];
  through = gpu::block_reduce<kThreads>(through, gpu::Sum{}, &scratch[0]) * w.totals[c.place];
  if (thread < 3 * kTile) terms[thread] = 0;

  // Σ_e (A S)_e x_e of each row, for A S: rows of keys or queries times a state.
  const auto add_rows = [&](const auto& rows, const StateOf& s, const auto& x, float* to, const auto& factor) {
    for (int e0 = 0; e0 < E; e0 += kTile) {
      Sums sums;
      sums.clear();
      multiply<true, false>(
          sums, D, rows, [&](int d, int e) { return s(d, e0 + e); }, &factors[0]);
      GPU_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int row = thread / 16 + 16 * i;
        float sum = 0;
        GPU_UNROLL
        for (int j = 0; j < 4; ++j) sum += sums.value[i][j] * x(row, e0 + thread % 16 + 16 * j);
        sum = gpu::warp_reduce<16>(sum, gpu::Sum{});
        if (thread % 16 == 0 && row < c.valid) to[row] += sum * factor(row);
      }
    }
  };
  add_rows(a.k(), dstate, a.v(), &terms[kTile], [&](int row) { return b.between(kTile - 1, row); });
  for (int64_t i = 0; i < p.shape.heads / p.shape.kv_heads; ++i) {
    const auto in = incoming<T>(a, w, i);
    add_rows(a.q(i), state, in, &terms[0], [&](int row) { return b.rise(row); });
    weighed_scores(b, D, a.q(i), a.k(), &square[0], &factors[0]);
    Sums sums;
    sums.clear();
    multiply<true, true>(
        sums, E, in, [&, v = a.v()](int e, int t) { return v(t, e); }, &factors[0]);
    sums.each([&](int row, int t, float& sum) { square[row * kWidth + t] *= t < row ? sum : 0.0f; });
    __syncthreads();
    if (thread < kTile)
      for (int t = 0; t < kTile; ++t)
        terms[2 * kTile + thread] += square[thread * kWidth + t] - square[t * kWidth + thread];
    __syncthreads();
  }
  if (thread < c.rows) {
    float sum = through;
    for (int t = 0; t < thread; ++t) sum += terms[kTile + t];
    for (int t = c.valid - 1; t >= thread; --t) sum += terms[t] + terms[2 * kTile + t];
    static_cast<float*>(p.dlog_decay)[row_offset(c, p.ddecay_strides, c.g, thread)] = thread < c.valid ? sum : 0.0f;
  }
}

RecurrenceShape by_tiles(RecurrenceShape s) {
  s.chunk = kTile;
  return s;
}

int64_t workspace_bytes(const RecurrenceShape& shape, bool backward) {
  const RecurrenceShape s = by_tiles(shape);
  const Workspace w(nullptr, s, /*normalizer=*/true);
  int64_t count = w.places * (w.size + 1);
  if (backward) count += w.places * w.size + (s.cu_seqlens ? 1 : s.sequences) * s.heads * s.steps;
  return count * static_cast<int64_t>(sizeof(float));
}

// The states before the chunks, and after the last.
template <class T, class Parameters>
void launch_states(const Parameters& p, void* last_state, void* stream) {
  const Workspace w(p.workspace, p.shape, p.normalizer);
  const auto tiles = static_cast<unsigned>(tiles_of(p.shape.key_size) * tiles_of(p.shape.value_size + p.normalizer));
  gpu::launch(linear_attention_states_kernel<T, Parameters>, dim3(static_cast<unsigned>(w.places), tiles), kThreads, 0,
              stream, p);
  gpu::launch(linear_attention_scan_kernel,
              dim3(static_cast<unsigned>(p.shape.sequences * p.shape.kv_heads),
                   static_cast<unsigned>(gpu::ceil_div<int64_t>(w.size, kThreads))),
              kThreads, 0, stream, p.shape, w, p.state, last_state);
}

}  // namespace recurrence

int64_t linear_attention_workspace(const RecurrenceShape& shape, DType) {
  return recurrence::workspace_bytes(shape, false);
}
int64_t linear_attention_backward_workspace(const RecurrenceShape& shape, DType) {
  return recurrence::workspace_bytes(shape, true);
}

void linear_attention_forward_cuda(const LinearAttentionForward& parameters, void* stream) {
  using namespace recurrence;
  LinearAttentionForward p = parameters;
  p.shape = by_tiles(p.shape);
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf>(
      "linear_attention_forward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        launch_states<T>(p, p.last_state, stream);
        const auto places = static_cast<unsigned>(chunk_places(p.shape) * p.shape.kv_heads);
        const auto tiles = static_cast<unsigned>(p.shape.heads / p.shape.kv_heads * tiles_of(p.shape.value_size));
        gpu::launch(linear_attention_forward_kernel<T>, dim3(places, tiles), kThreads, 0, stream, p);
      });
}

void linear_attention_backward_cuda(const LinearAttentionBackward& parameters, void* stream) {
  using namespace recurrence;
  LinearAttentionBackward p = parameters;
  p.shape = by_tiles(p.shape);
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf>(
      "linear_attention_backward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        const Workspace w(p.workspace, p.shape, p.normalizer);
        const auto places = static_cast<unsigned>(w.places),
                   group = static_cast<unsigned>(p.shape.heads / p.shape.kv_heads),
                   keys = static_cast<unsigned>(tiles_of(p.shape.key_size)),
                   values = static_cast<unsigned>(tiles_of(p.shape.value_size)),
                   columns = static_cast<unsigned>(tiles_of(p.shape.value_size + p.normalizer));
        launch_states<T>(p, nullptr, stream);
        if (p.normalizer) gpu::launch(linear_attention_dweight_kernel<T>, dim3(places, group), kThreads, 0, stream, p);
        gpu::launch(linear_attention_dstates_kernel<T>, dim3(places, keys * columns), kThreads, 0, stream, p);
        gpu::launch(linear_attention_scan_back_kernel,
                    dim3(static_cast<unsigned>(p.shape.sequences * p.shape.kv_heads),
                         static_cast<unsigned>(gpu::ceil_div<int64_t>(w.size, kThreads))),
                    kThreads, 0, stream, p.shape, w, p.dlast_state, p.dstate);
        gpu::launch(linear_attention_dq_kernel<T>, dim3(places, group * keys), kThreads, 0, stream, p);
        gpu::launch(linear_attention_dkdv_kernel<T>, dim3(places, keys + values), kThreads, 0, stream, p);
        if (p.dlog_decay != nullptr)
          gpu::launch(linear_attention_ddecay_kernel<T>, dim3(places), kThreads, 0, stream, p);
      });
}

}  // namespace isentrope::kernels
