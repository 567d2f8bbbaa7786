// A block goes through the chunks of a key head one after the other: forward for 64 columns of the values, backward for all of them.
// States and U of every chunk lie in the workspace (kernels/recurrence.cuh). Chunks here are of at most 64 steps, whole parts of
// those of p.shape where a gate is given; the gate acts where one of those ends.
#pragma once
#include "kernels/gated_delta_rule.h"
#include "kernels/recurrence.cuh"

namespace isentrope::kernels::recurrence {

// Workspace: states [places · G, D, E] before the chunks and U [places · G, kTile, E]; backward: of each key head dS [D, E], what of it goes
// around a gated chunk [D, E], Y [kTile, E] and dk [kTile, D].
struct DeltaWorkspace {
  float *states, *u, *heads;
  int64_t D, E, places, of_head;
  GPU_HOST_DEVICE DeltaWorkspace(void* memory, const RecurrenceShape& s)
      : D(s.key_size), E(s.value_size), places(chunk_places(s) * s.kv_heads), of_head(2 * D * E + kTile * (D + E)) {
    states = static_cast<float*>(memory);
    u = states + places * D * E;
    heads = u + places * kTile * E;
  }
};

// The chunks of p.shape that hold the chunks of here.
struct Gate {
  int64_t parts;  // chunks of here in one of p.shape
  int64_t all;    // of those a sequence, as write has them
  const float* write;
};

template <class T, class Parameters>
struct DeltaChunk : Chunk {
  const Parameters& p;
  GPU_DEVICE DeltaChunk(const Parameters& p, int64_t index) : Chunk(chunk_of(p.shape, index)), p(p) {}
  GPU_DEVICE int64_t group() const { return p.shape.heads / p.shape.kv_heads; }
  GPU_DEVICE int64_t head(int64_t i) const { return g * group() + i; }
  GPU_DEVICE RowsOf<T> q(int64_t i) const { return rows_of<T>(*this, p.q, p.q_strides, head(i), p.shape.key_size); }
  GPU_DEVICE RowsOf<T> k() const { return rows_of<T>(*this, p.k, p.k_strides, g, p.shape.key_size); }
  GPU_DEVICE RowsOf<T> v() const { return rows_of<T>(*this, p.v, p.v_strides, g, p.shape.value_size); }
  GPU_DEVICE float beta(int t) const {
    return t < valid ? static_cast<const float*>(p.beta)[row_offset(*this, p.beta_strides, g, t)] : 0.0f;
  }
};

// The gate of chunk i of a sequence of `chunks`, where it ends one of p.shape: `write`, the first chunk of that, the decay over all of it.
struct GateEnd {
  bool here;
  float write, decay;
  int64_t first, column;
};
template <class Parameters>
GPU_DEVICE GateEnd gate_of(const Parameters& p, const Gate& gate, int64_t n, int64_t g, int64_t i, int64_t chunks) {
  GateEnd end = {gate.write != nullptr && ((i + 1) % gate.parts == 0 || i + 1 == chunks), 1.0f, 1.0f,
                 i / gate.parts * gate.parts, i / gate.parts};
  if (!end.here) return end;
  end.write = gate.write[(n * p.shape.kv_heads + g) * gate.all + end.column];
  const RecurrenceRows rows = recurrence_rows(p.shape, n);
  double sum = 0;
  if (p.log_decay != nullptr)
    for (int64_t t = end.first * p.shape.chunk; t < (i + 1) * p.shape.chunk && t < rows.count; ++t) {
      const double x =
          static_cast<const float*>(p.log_decay)[rows.batch * p.decay_strides.batch + g * p.decay_strides.head +
                                                 (rows.first + t) * p.decay_strides.row];
      sum += x < kLowestLogDecay ? kLowestLogDecay : x;
    }
  end.decay = gpu::exp2_approx(static_cast<float>(sum * 1.4426950408889634074));
  return end;
}

// square ← L, below the diagonal.
template <class C>
GPU_DEVICE void lower_of_keys(const C& c, const Decays& decays, float* square, float* factors GPU_AT) {
  Sums sums;
  sums.clear();
  const auto k = c.k();
  multiply<true, true>(
      sums, k.size, k, [&](int d, int t) { return k(t, d); }, factors GPU_HERE);
  sums.each([&](int i, int j, float& sum) {
    square[i * kWidth + j] = j < i ? c.beta(i) * sum * decays.between(i, j) : 0.0f;
  });
}

// ---- forward --------------------------------------------------------------------------------------------------------

// Grid: N · G, tiles of E. Without out: states and U alone.
template <class T, class Parameters>
__global__ void __launch_bounds__(kThreads, kBlocks)
    gated_delta_rule_forward_kernel(Parameters p, Gate gate, void* out, HeadStrides out_strides, void* last_state) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(float, square, kTile* kWidth);
  GPU_SHARED(float, u, kTile* kWidth);
  GPU_SHARED(Decays, decays, 1);
  const Decays& b = decays[0];
  const DeltaWorkspace w(p.workspace, p.shape);
  const int64_t n = blockIdx.x / p.shape.kv_heads, g = blockIdx.x % p.shape.kv_heads, size = w.D * w.E;
  const int e0 = static_cast<int>(blockIdx.y) * kTile, thread = static_cast<int>(threadIdx.x),
            D = static_cast<int>(w.D);
  const RecurrenceRows rows = recurrence_rows(p.shape, n);
  const int64_t first = first_chunk(p.shape, n, rows), chunks = gpu::ceil_div(rows.count, p.shape.chunk);
  const auto place = [&](int64_t i) { return (first + i) * p.shape.kv_heads + g; };
  float* last = last_state != nullptr ? static_cast<float*>(last_state) + blockIdx.x * size : nullptr;
  {  // the columns of this tile: those of the first state
    float* to = chunks > 0 ? w.states + place(0) * size : last;
    for (int64_t i = thread; to != nullptr && i < w.D * kTile; i += kThreads) {
      const int64_t at = i / kTile * w.E + e0 + i % kTile;
      if (e0 + i % kTile < w.E)
        to[at] = p.state != nullptr ? static_cast<const float*>(p.state)[blockIdx.x * size + at] : 0.0f;
    }
  }
  for (int64_t i = 0; i < chunks; ++i) {
    const DeltaChunk<T, Parameters> c(p, place(i));
    const StateOf state{w.states + place(i) * size, w.D, w.E};
    const auto k = c.k();
    const auto v = shifted(c.v(), e0);
    __syncthreads();  // the last chunk's decays are read
    read_decays(c, p.log_decay, p.decay_strides, decays[0]);
    lower_of_keys(c, b, &square[0], &factors[0]);
    Sums sums;
    sums.clear();
    multiply<true, false>(
        sums, D, k, [&](int d, int e) { return state(d, e0 + e); }, &factors[0]);
    sums.each([&](int t, int e, float& sum) { u[t * kWidth + e] = c.beta(t) * (v(t, e) - b.rise(t) * sum); });
    __syncthreads();
    if (thread < kTile)  // a column
      for (int t = 1; t < c.valid; ++t) {
        float sum = u[t * kWidth + thread];
        for (int s = 0; s < t; ++s) sum -= square[t * kWidth + s] * u[s * kWidth + thread];
        u[t * kWidth + thread] = sum;
      }
    __syncthreads();
    for (int e = thread; e < kTile * kTile; e += kThreads)
      if (e0 + e % kTile < w.E)
        w.u[(place(i) * kTile + e / kTile) * w.E + e0 + e % kTile] =
            e / kTile < c.valid ? u[e / kTile * kWidth + e % kTile] : 0.0f;
    for (int64_t h = 0; out != nullptr && h < c.group(); ++h) {
      const auto q = c.q(h);
      __syncthreads();  // what the square held is read
      weighed_scores(b, D, q, k, &square[0], &factors[0]);
      sums.clear();
      multiply<true, false>(
          sums, D, q, [&](int d, int e) { return state(d, e0 + e); }, &factors[0]);
      sums.each([&](int row, int, float& sum) { sum *= b.rise(row); });
      multiply<true, false>(
          sums, c.valid, [&](int row, int t) { return square[row * kWidth + t]; },
          [&](int t, int e) { return u[t * kWidth + e]; }, &factors[0]);
      store_tile<T>(c, sums, out, out_strides, c.head(h), e0, w.E);
    }
    const GateEnd end = gate_of(p, gate, n, g, i, chunks);
    const float* before = w.states + place(end.first) * size;
    float* next = i + 1 < chunks ? w.states + place(i + 1) * size : last;
    for (int d0 = 0; next != nullptr && d0 < D; d0 += kTile) {
      sums.clear();
      multiply<false, false>(
          sums, c.valid, [&](int d, int t) { return b.between(kTile - 1, t) * k(t, d0 + d); },
          [&](int t, int e) { return u[t * kWidth + e]; }, &factors[0]);
      sums.each([&](int d, int e, float& sum) {
        if (d0 + d >= D || e0 + e >= w.E) return;
        const int64_t at = (d0 + d) * w.E + e0 + e;
        float value = end.write == 0 ? 0.0f : end.write * (b.rise(kTile - 1) * state.base[at] + sum);
        if (end.here) value += (1 - end.write) * end.decay * before[at];
        next[at] = value;
      });
    }
  }
  if (out == nullptr || p.shape.cu_seqlens != nullptr) return;
  const int64_t group = p.shape.heads / p.shape.kv_heads;  // steps that do not exist
  for (int64_t t = rows.count + thread; t < p.shape.steps; t += kThreads)
    for (int64_t h = 0; h < group; ++h)
      for (int64_t e = e0; e < e0 + kTile && e < w.E; ++e)
        static_cast<T*>(out)[n * out_strides.batch + (g * group + h) * out_strides.head + t * out_strides.row + e] =
            gpu::narrow<T>(0.0f);
}

// ---- launches -------------------------------------------------------------------------------------------------------

// The most steps, 16 times a divisor of the chunk's, that a tile holds.
inline int64_t steps_of_tile(int64_t chunk) {
  for (int64_t parts = 1; parts <= chunk / 16; ++parts)
    if (chunk / 16 % parts == 0 && chunk / parts <= kTile) return chunk / parts;
  return 16;
}

// p.shape in chunks of here; and the gate.
template <class Parameters>
Gate divide(Parameters& p) {
  Gate gate = {1, (p.shape.steps + p.shape.chunk - 1) / p.shape.chunk, static_cast<const float*>(p.write)};
  const int64_t steps = steps_of_tile(p.shape.chunk);
  gate.parts = p.shape.chunk / steps;
  p.shape.chunk = steps;
  return gate;
}

inline int64_t delta_workspace_bytes(RecurrenceShape s, bool backward) {
  s.chunk = steps_of_tile(s.chunk);
  const DeltaWorkspace w(nullptr, s);
  const int64_t count = w.places * (w.D + kTile) * w.E + (backward ? s.sequences * s.kv_heads * w.of_head : 0);
  return count * static_cast<int64_t>(sizeof(float));
}

template <class T, class Parameters>
void launch_forward(const Parameters& p, const Gate& gate, void* out, const HeadStrides& out_strides, void* last_state,
                    void* stream) {
  gpu::launch(gated_delta_rule_forward_kernel<T, Parameters>,
              dim3(static_cast<unsigned>(p.shape.sequences * p.shape.kv_heads),
                   static_cast<unsigned>(tiles_of(p.shape.value_size))),
              kThreads, 0, stream, p, gate, out, out_strides, last_state);
}

}  // namespace isentrope::kernels::recurrence
