// gated_delta_rule backward (kernels/gated_delta_rule.cuh): states and U once more by the forward kernel, then the chunks from the last
// to the first.
#include "kernels/gated_delta_rule.cuh"

namespace isentrope::kernels {
namespace recurrence {

// Σ of value(i, j) over the columns of each row, by 16 neighbouring threads; to[row] += it · factor(row).
template <class Value, class Factor>
GPU_DEVICE void add_row_sums(int valid, Value value, float* to, Factor factor GPU_AT) {
  const int thread = static_cast<int>(threadIdx.x);
  GPU_UNROLL
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 16 + 16 * i;
    float sum = 0;
    GPU_UNROLL
    for (int j = 0; j < 4; ++j) sum += value(i, j, row, thread % 16 + 16 * j);
    sum = gpu::warp_reduce<16>(
        sum, gpu::Sum {} GPU_HERE);
    if (thread % 16 == 0 && row < valid) to[row] += sum * factor(row);
  }
}

// Grid: N · G.
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) gated_delta_rule_backward_kernel(GatedDeltaBackward p, Gate gate) {
  GPU_SHARED(float, factors, kFactors);
  GPU_SHARED(float, square, kTile* kWidth);
  GPU_SHARED(float, other, kTile* kWidth);
  GPU_SHARED(Decays, decays, 1);
  GPU_SHARED(float, terms, 4 * kTile);  // of dlog_decay at or behind a step, before it, and between; dβ
  GPU_SHARED(float, scratch, kThreads / 32);
  float *rising = &terms[0], *falling = &terms[kTile], *between = &terms[2 * kTile], *dbeta = &terms[3 * kTile];
  const Decays& b = decays[0];
  const DeltaWorkspace w(p.workspace, p.shape);
  const int64_t n = blockIdx.x / p.shape.kv_heads, g = blockIdx.x % p.shape.kv_heads, size = w.D * w.E;
  const int thread = static_cast<int>(threadIdx.x), D = static_cast<int>(w.D), E = static_cast<int>(w.E);
  float *dS = w.heads + blockIdx.x * w.of_head, *around = dS + size, *Y = around + size, *dk = Y + kTile * w.E;
  const StateOf dstate{dS, w.D, w.E};
  const RecurrenceRows rows = recurrence_rows(p.shape, n);
  const int64_t first = first_chunk(p.shape, n, rows), chunks = gpu::ceil_div(rows.count, p.shape.chunk);
  const auto place = [&](int64_t i) { return (first + i) * p.shape.kv_heads + g; };
  const auto each_element = [&](const auto& function) {
    for (int64_t at = thread; at < size; at += kThreads) function(at);
  };
  const auto total_of = [&](const auto& value) {
    float sum = 0;
    each_element([&](int64_t at) { sum += value(at); });
    return gpu::block_reduce<kThreads>(sum, gpu::Sum{}, &scratch[0]);
  };
  each_element([&](int64_t at) {
    dS[at] = p.dlast_state != nullptr ? static_cast<const float*>(p.dlast_state)[blockIdx.x * size + at] : 0.0f;
    around[at] = 0.0f;
  });
  float dwrite = 0, through_gate = 0;
  for (int64_t i = chunks - 1; i >= 0; --i) {
    const DeltaChunk<T, GatedDeltaBackward> c(p, place(i));
    const StateOf state{w.states + place(i) * size, w.D, w.E};
    const float* u = w.u + place(i) * kTile * w.E;
    const auto k = c.k();
    const auto k_deep = [&](int d, int t) { return k(t, d); };
    const auto U = [&](int t, int e) { return t < c.valid && e < E ? u[t * w.E + e] : 0.0f; };
    const auto y = [&](int t, int e) { return t < c.valid && e < E ? Y[t * w.E + e] : 0.0f; };
    __syncthreads();  // the last chunk's decays and terms are read, and dS is written
    read_decays(c, p.log_decay, p.decay_strides, decays[0]);
    terms[thread] = 0;
    Sums sums, more;

    // Where a gated chunk ends: what goes through the recurrence, what around it, and the gate's own gradient.
    const GateEnd end = gate_of(p, gate, n, g, i, chunks);
    if (end.here) {
      float sum = 0, through = 0;
      for (int d0 = 0; d0 < D; d0 += kTile)
        for (int e0 = 0; e0 < E; e0 += kTile) {
          sums.clear();
          multiply<false, false>(
              sums, c.valid, [&](int d, int t) { return b.between(kTile - 1, t) * k(t, d0 + d); },
              [&](int t, int e) { return U(t, e0 + e); }, &factors[0]);
          sums.each([&](int d, int e, float& added) {
            if (d0 + d >= D || e0 + e >= E) return;
            const int64_t at = (d0 + d) * w.E + e0 + e;
            const float last = b.rise(kTile - 1) * state.base[at] + added,
                        past = end.decay * w.states[place(end.first) * size + at];
            sum += dS[at] * (last - past);
            through += dS[at] * past;
            around[at] = (1 - end.write) * end.decay * dS[at];
            dS[at] *= end.write;
          });
        }
      dwrite = gpu::block_reduce<kThreads>(sum, gpu::Sum{}, &scratch[0]);
      through_gate = (1 - end.write) * gpu::block_reduce<kThreads>(through, gpu::Sum{}, &scratch[0]);
      if (p.dwrite != nullptr && thread == 0)
        static_cast<float*>(p.dwrite)[(n * p.shape.kv_heads + g) * gate.all + end.column] = dwrite;
      __syncthreads();
    }
    const float total = b.rise(kTile - 1),
                through = total_of([&](int64_t at) { return dS[at] * state.base[at]; }) * total;

    // dU, Y, dV and the part of dβ that X gives.
    for (int e0 = 0; e0 < E; e0 += kTile) {
      sums.clear();
      multiply<true, false>(
          sums, D, k, [&](int d, int e) { return dstate(d, e0 + e); }, &factors[0]);
      sums.each([&](int t, int, float& sum) { sum *= b.between(kTile - 1, t); });
      for (int64_t h = 0; h < c.group(); ++h) {
        __syncthreads();  // what the square held is read
        weighed_scores(b, D, c.q(h), k, &square[0], &factors[0]);
        multiply<false, false>(
            sums, c.valid, [&](int row, int t) { return square[t * kWidth + row]; },
            shifted(rows_of<T>(c, p.dout, p.dout_strides, c.head(h), E), e0), &factors[0]);
      }
      sums.each([&](int t, int e, float& sum) { other[t * kWidth + e] = sum; });
      __syncthreads();
      lower_of_keys(c, b, &square[0], &factors[0]);
      __syncthreads();
      if (thread < kTile)  // a column
        for (int t = c.valid - 2; t >= 0; --t) {
          float sum = other[t * kWidth + thread];
          for (int s = t + 1; s < c.valid; ++s) sum -= square[s * kWidth + t] * other[s * kWidth + thread];
          other[t * kWidth + thread] = sum;
        }
      __syncthreads();
      more.clear();
      multiply<true, false>(
          more, D, k, [&](int d, int e) { return state(d, e0 + e); }, &factors[0]);
      const auto v = shifted(c.v(), e0);
      add_row_sums(
          c.valid,
          [&](int a, int d, int t, int e) { return (v(t, e) - b.rise(t) * more.value[a][d]) * other[t * kWidth + e]; },
          dbeta, [](int) { return 1.0f; });
      more.each([&](int t, int e, float& sum) {
        sum = c.beta(t) * other[t * kWidth + e];
        if (t < c.valid && e0 + e < E) Y[t * w.E + e0 + e] = other[t * kWidth + e];
      });
      store_tile<T>(c, more, p.dv, p.dv_strides, g, e0, E);
    }

    // Z = (Y Uᵀ) ⊙ Γ = -dL ⊙ Γ below the diagonal, and Z ⊙ K Kᵀ in other.
    sums.clear();
    multiply<true, true>(
        sums, E, y, [&](int e, int t) { return U(t, e); }, &factors[0]);
    more.clear();
    multiply<true, true>(more, D, k, k_deep, &factors[0]);
    sums.each([&](int t, int s, float& sum) { square[t * kWidth + s] = s < t ? sum * b.between(t, s) : 0.0f; });
    more.each([&](int t, int s, float& sum) { other[t * kWidth + s] = sum * square[t * kWidth + s]; });
    __syncthreads();
    if (thread < c.valid) {
      float of_row = 0, of_column = 0;
      for (int s = 0; s < c.valid; ++s) {
        of_row += other[thread * kWidth + s];
        of_column += c.beta(s) * other[s * kWidth + thread];
      }
      dbeta[thread] -= of_row;
      between[thread] += of_column - c.beta(thread) * of_row;
    }
    __syncthreads();

    // dk of L, of the state after the chunk and of that before it.
    for (int d0 = 0; d0 < D; d0 += kTile) {
      sums.clear();
      multiply<true, true>(
          sums, E, U, [&](int e, int d) { return dstate(d0 + d, e); }, &factors[0]);
      sums.each([&](int t, int, float& sum) { sum *= b.between(kTile - 1, t); });
      add_row_sums(
          c.valid, [&](int a, int x, int t, int d) { return sums.value[a][x] * k(t, d0 + d); }, falling,
          [](int) { return 1.0f; });
      more.clear();
      multiply<true, true>(
          more, E, y, [&](int e, int d) { return state(d0 + d, e); }, &factors[0]);
      add_row_sums(
          c.valid, [&](int a, int x, int t, int d) { return more.value[a][x] * k(t, d0 + d); }, rising,
          [&](int t) { return -b.rise(t) * c.beta(t); });
      GPU_UNROLL
      for (int a = 0; a < 4; ++a) {
        const int t = thread / 16 + 16 * a;
        GPU_UNROLL
        for (int x = 0; x < 4; ++x) sums.value[a][x] -= b.rise(t) * c.beta(t) * more.value[a][x];
      }
      multiply<true, false>(
          sums, c.valid, [&](int t, int s) { return -c.beta(t) * square[t * kWidth + s]; }, shifted(k, d0),
          &factors[0]);
      multiply<false, false>(
          sums, c.valid, [&](int t, int s) { return -c.beta(s) * square[s * kWidth + t]; }, shifted(k, d0),
          &factors[0]);
      sums.each([&](int t, int d, float& sum) {
        if (d0 + d < D) dk[t * w.D + d0 + d] = sum;
      });
    }

    // Of the queries: dq, their part of dk, and of the decays.
    for (int64_t h = 0; h < c.group(); ++h) {
      const auto q = c.q(h);
      const auto dout = rows_of<T>(c, p.dout, p.dout_strides, c.head(h), E);
      __syncthreads();
      weighed_scores(b, D, q, k, &other[0], &factors[0]);
      sums.clear();
      multiply<true, true>(
          sums, E, dout, [&](int e, int t) { return U(t, e); }, &factors[0]);
      sums.each([&](int t, int s, float& sum) {
        square[t * kWidth + s] = s <= t ? sum * b.between(t, s) : 0.0f;
        other[t * kWidth + s] *= s < t ? sum : 0.0f;
      });
      __syncthreads();
      if (thread < c.valid)
        for (int s = 0; s < c.valid; ++s) between[thread] += other[thread * kWidth + s] - other[s * kWidth + thread];
      for (int d0 = 0; d0 < D; d0 += kTile) {
        sums.clear();
        multiply<true, true>(
            sums, E, dout, [&](int e, int d) { return state(d0 + d, e); }, &factors[0]);
        sums.each([&](int t, int, float& sum) { sum *= b.rise(t); });
        add_row_sums(
            c.valid, [&](int a, int x, int t, int d) { return sums.value[a][x] * q(t, d0 + d); }, rising,
            [](int) { return 1.0f; });
        multiply<true, false>(
            sums, c.valid, [&](int row, int t) { return square[row * kWidth + t]; }, shifted(k, d0), &factors[0]);
        store_tile<T>(c, sums, p.dq, p.dq_strides, c.head(h), d0, D);
        sums.clear();
        multiply<false, false>(
            sums, c.valid, [&](int row, int t) { return square[t * kWidth + row]; }, shifted(q, d0), &factors[0]);
        sums.each([&](int t, int d, float& sum) {
          if (d0 + d < D) dk[t * w.D + d0 + d] += sum;
        });
      }
    }
    for (int d0 = 0; d0 < D; d0 += kTile) {
      sums.each([&](int t, int d, float& sum) { sum = d0 + d < D ? dk[t * w.D + d0 + d] : 0.0f; });
      store_tile<T>(c, sums, p.dk, p.dk_strides, g, d0, D);
    }

    // The gradient of the state before the chunk.
    const bool begins = gate.write != nullptr && i % gate.parts == 0;
    for (int d0 = 0; d0 < D; d0 += kTile)
      for (int e0 = 0; e0 < E; e0 += kTile) {
        sums.clear();
        multiply<false, false>(
            sums, c.valid, [&](int d, int t) { return -b.rise(t) * c.beta(t) * k(t, d0 + d); },
            [&](int t, int e) { return y(t, e0 + e); }, &factors[0]);
        for (int64_t h = 0; h < c.group(); ++h)
          multiply<false, false>(
              sums, c.valid, [&, q = c.q(h)](int d, int t) { return b.rise(t) * q(t, d0 + d); },
              shifted(rows_of<T>(c, p.dout, p.dout_strides, c.head(h), E), e0), &factors[0]);
        sums.each([&](int d, int e, float& sum) {
          if (d0 + d >= D || e0 + e >= E) return;
          const int64_t at = (d0 + d) * w.E + e0 + e;
          dS[at] = total * dS[at] + sum + (begins ? around[at] : 0.0f);
        });
      }

    __syncthreads();
    if (thread < c.valid) {
      static_cast<float*>(p.dbeta)[row_offset(c, p.dbeta_strides, g, thread)] = dbeta[thread];
      float sum = through + through_gate;
      for (int t = 0; t < thread; ++t) sum += falling[t];
      for (int t = c.valid - 1; t >= thread; --t) sum += rising[t] + between[t];
      if (p.dlog_decay != nullptr) static_cast<float*>(p.dlog_decay)[row_offset(c, p.ddecay_strides, g, thread)] = sum;
    }
  }
  if (p.dstate != nullptr)
    each_element([&](int64_t at) { static_cast<float*>(p.dstate)[blockIdx.x * size + at] = dS[at]; });
  if (p.dwrite != nullptr)
    for (int64_t column = gpu::ceil_div(chunks, gate.parts) + thread; column < gate.all; column += kThreads)
      static_cast<float*>(p.dwrite)[(n * p.shape.kv_heads + g) * gate.all + column] = 0.0f;
  if (p.shape.cu_seqlens != nullptr) return;
  const int64_t group = p.shape.heads / p.shape.kv_heads;  // steps that do not exist
  const auto clear = [&](void* x, const HeadStrides& strides, int64_t head, int64_t t, int64_t count) {
    for (int64_t d = 0; d < count; ++d)
      static_cast<T*>(x)[n * strides.batch + head * strides.head + t * strides.row + d] = gpu::narrow<T>(0.0f);
  };
  for (int64_t t = rows.count + thread; t < p.shape.steps; t += kThreads) {
    for (int64_t h = 0; h < group; ++h) clear(p.dq, p.dq_strides, g * group + h, t, D);
    clear(p.dk, p.dk_strides, g, t, D);
    clear(p.dv, p.dv_strides, g, t, E);
    static_cast<float*>(p.dbeta)[n * p.dbeta_strides.batch + g * p.dbeta_strides.head + t * p.dbeta_strides.row] = 0.0f;
    if (p.dlog_decay != nullptr)
      static_cast<float*>(
          p.dlog_decay)[n * p.ddecay_strides.batch + g * p.ddecay_strides.head + t * p.ddecay_strides.row] = 0.0f;
  }
}

}  // namespace recurrence

int64_t gated_delta_rule_backward_workspace(const RecurrenceShape& shape, DType) {
  return recurrence::delta_workspace_bytes(shape, true);
}

void gated_delta_rule_backward_cuda(const GatedDeltaBackward& parameters, void* stream) {
  GatedDeltaBackward p = parameters;
  gpu::dispatch<DType::kFloat, DType::kBFloat16, DType::kHalf>(
      "gated_delta_rule_backward: dtype", p.dtype, [&](auto type) {
        using T = gpu::TypeOf<type()>;
        const recurrence::Gate gate = recurrence::divide(p);
        recurrence::launch_forward<T>(p, gate, nullptr, {}, nullptr, stream);
        gpu::launch(recurrence::gated_delta_rule_backward_kernel<T>,
                    dim3(static_cast<unsigned>(p.shape.sequences * p.shape.kv_heads)), recurrence::kThreads, 0, stream,
                    p, gate);
      });
}

}  // namespace isentrope::kernels
