// What both kinds of products of linear_token_entropy's CPU backend share: multiply-adds (linear_token_entropy_cpu.cpp) and the
// processor's own of bfloat16 (linear_token_entropy_pairs.h).
#pragma once
#include "csrc/ops/cpu_parallel.h"
#include "csrc/ops/cpu_rows.h"
#include "csrc/ops/linear_token_entropy_cpu.h"
#include "csrc/ops/token_entropy_keep.h"
#include "csrc/ops/token_entropy_rows.h"

namespace isentrope::ops::CPU_CAPABILITY {

constexpr int64_t kGroup = 1024;  // rows that share one packing of a block of weight
constexpr int64_t kForwardTasks = 16;

inline thread_local Scratch own_scratch, shared_scratch;  // of a task, and of the thread that hands out the tasks

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Bias and soft cap on z [n] of columns first …, which has room for whole vectors; slope [n] = d capped / d z if not null.
template <class Real>
void finish_logits(const LinearLogits& p, int64_t first, int64_t n, Real* z, Real* bias, Real* slope) {
  if (p.bias != nullptr) {
    load_row(p.dtype, p.bias, first, n, bias);
    for (int64_t i = 0; i < n; ++i) z[i] += bias[i];
  }
  if (p.softcap == 0) return;
  const Real cap = static_cast<Real>(p.softcap), factor = static_cast<Real>(1 / p.softcap);
  cap_row(z, {0, round_up(n, kWidth<Real>)}, factor, cap, slope);
  if (slope != nullptr)
    for (int64_t i = 0; i < n; ++i) slope[i] *= factor;
}

// Rows that a task of the forward pass takes: as few tasks pack a block again as there are threads' worth of them.
inline int64_t group_rows(int64_t rows, int64_t shares, int64_t chunk) {
  return smaller(round_up(parts(rows * shares, kForwardTasks), chunk), kGroup);
}

// Products: Real, Operand, kPanel columns, kChunk rows of a product, and
//   packed_size(p)               operands of a whole block of weight, its panels one after the other
//   copy_size(p)                 operands that logits_of() may copy rows to
//   pack(p, first, to)           rows first … of weight as a panel's columns, 0 beyond the last
//   logits_of(p, m, count, copy, panels, packed, z, ldz)   z [count, ldz] of rows m … of the M
//   end_task()
template <class Products, bool kMoments>
void forward_of_rows(const LinearTokenEntropyCpuForward& p) {
  using Real = typename Products::Real;
  using Operand = typename Products::Operand;
  const LinearLogits& logits = p.logits;
  constexpr int64_t P = Products::kPanel, kChunk = Products::kChunk;
  const int64_t M = logits.rows, V = logits.vocab;
  const int64_t width = vocab_block(V), blocks = parts(V, width), shares = vocab_shares(V);
  const int64_t group = group_rows(M, shares, kChunk), panel = Products::packed_size(logits) / (width / P);
  const Real c = static_cast<Real>(kLog2e / logits.temperature);
  Real* kept = static_cast<Real*>(p.kept_logits);
  for_tasks(parts(M, group) * shares, [&](int64_t task) {
    const int64_t share = task % shares, from = task / shares * group, to = smaller(M, from + group);
    const int64_t operands = Products::packed_size(logits) + Products::copy_size(logits);
    Real* z = own_scratch.get<Real>((kChunk + 1) * width + parts(operands * sizeof(Operand), sizeof(Real)));
    Real* bias = z + kChunk * width;
    Operand *packed = reinterpret_cast<Operand*>(bias + width), *copy = packed + Products::packed_size(logits);
    for (int64_t m = from; m < to; ++m) p.sums[m * shares + share] = kNoLogits;
    for (int64_t b = share * blocks / shares; b < (share + 1) * blocks / shares; ++b) {
      const int64_t first = b * width, n = smaller(width, V - first), panels = parts(n, P);
      for (int64_t i = 0; i < panels; ++i) Products::pack(logits, first + i * P, packed + i * panel);
      for (int64_t m = from; m < to; m += kChunk) {
        const int64_t count = smaller(kChunk, to - m);
        Products::logits_of(logits, m, count, copy, panels, packed, z, width);
        for (int64_t i = 0; i < count; ++i) {
          Real* row = z + i * width;
          finish_logits<Real>(logits, first, n, row, bias, nullptr);
          const int64_t y = logits.target[logits.row[m + i]] - first;
          if (y >= 0 && y < n) p.target_logit[m + i] = row[y];
          if (p.keep != nullptr) std::memcpy(kept + (m + i) * V + first, row, n * sizeof(Real));
          add_logits<Real, kMoments>(p.sums[(m + i) * shares + share], row, n, c);
        }
      }
    }
    Products::end_task();
  });
  for_tasks(parts(M, kGroup), [&](int64_t task) {
    for (int64_t m = task * kGroup; m < smaller(M, (task + 1) * kGroup); ++m)
      write_row<Real>(p, logits.row[m],
                      row_outputs(p.sums + m * shares, shares, p.target_logit[m], logits.temperature, c));
  });
}

template <class Products, bool kMoments>
void forward_of(const LinearTokenEntropyCpuForward& p) {
  using Real = typename Products::Real;
  for (int64_t m = 0; m < p.logits.rows; m += p.rows_at_once) {
    LinearTokenEntropyCpuForward part = p;
    part.logits.row += m;
    part.logits.rows = smaller(p.rows_at_once, p.logits.rows - m);
    forward_of_rows<Products, kMoments>(part);
    if (p.keep == nullptr) continue;
    for_tasks(part.logits.rows, [&](int64_t i) {
      keep_row(*p.keep, part.logits.row[i], static_cast<const Real*>(p.kept_logits) + i * p.logits.vocab);
    });
  }
}

}  // namespace isentrope::ops::CPU_CAPABILITY
