// One-token steps of a layer's mixer. A session has, of each layer, pages that hold positions, or states of sequences, or both;
// csrc/model/decode.h steps all layers of a decoder with them.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "csrc/model/bfloat16_linear.h"
#include "csrc/model/cpu_kernels.h"
#include "csrc/model/linear.h"
#include "csrc/model/page_table.h"

namespace isentrope::model {

using at::Tensor;

// A token to be fed, its place in its sequence, and the sequence of the page table that holds the positions before it and has
// room for this one. slot: how many it holds before it, fewer than position where tokens before it were pruned (csrc/model/prune.h).
struct DecodeRow {
  int64_t token, position, sequence;
  int64_t slot = position;
};

// ---- in ATen ---------------------------------------------------------------------------------------------------------

// n rows of a step. S positions at most.
struct AtenRows {
  std::span<const DecodeRow> rows;
  Tensor position, slot, own;  // [n]: the rows' positions and slots, and where in the planes they lie
  Tensor places;        // [n, S]: where the slots of each row's sequence lie; those after the row's own are masked
  Tensor cosine, sine;  // [n, 1, D/2]
  bool prefix = false;  // DecodeSession::step
};

class AtenMixerSession {
 public:
  virtual ~AtenMixerSession() = default;
  virtual Tensor step(const Tensor& x, const AtenRows& rows) = 0;  // [n, C] → [n, C]
  virtual void copy_page(int32_t, int32_t) {}
  virtual void copy_state(int64_t, int64_t) {}  // a sequence begins as another stands
};

// x · weightᵀ + bias of a projection whose weight is folded.
Tensor plain_product(const Tensor& x, const Projection& p);

// ---- own kernels on the CPU ------------------------------------------------------------------------------------------

// A projection in panels (CpuKernels::pack), or where the processor multiplies bfloat16 itself as that takes it.
struct PackedWeight {
  int64_t rows = 0, columns = 0;
  Tensor panels = {};
  std::shared_ptr<const Bfloat16Weight> pairs = {};
  Tensor bias = {};  // of as many numbers as it has rows, or undefined
};

inline void narrow(int64_t n, const float* from, float* to) { std::copy_n(from, n, to); }
inline void narrow(int64_t n, const float* from, uint16_t* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = c10::BFloat16(from[i]).x;
}

// Makes weights ready. Storage: float, or uint16_t for matrices and cache in bfloat16.
template <class Storage>
class Packer {
 public:
  PackedWeight weight(const Projection& projection) const;
  PackedWeight weight(const Tensor& matrix) const;
  Tensor stored(const Tensor& x) const;  // a copy in the type of Storage
  static Tensor copy(const Tensor& x) { return x.defined() ? x.detach().clone().contiguous() : Tensor(); }

  const CpuKernels<float>& kernels = cpu_kernels<float>();
  const bool pairs = std::is_same_v<Storage, uint16_t> && takes_bfloat16_weights();
};

// A session's products and the memory that its layers share, a layer at a time.
template <class Storage>
class DecodeScratch {
 public:
  // in, out: widest projections of a mixer's input and of its result.
  DecodeScratch(int64_t rows, int64_t in, int64_t out, int64_t scores, Tensor cosine, Tensor sine)
      : cosine(std::move(cosine)),
        sine(std::move(sine)),
        projected(at::empty({rows * in}, at::kFloat)),
        mixed(at::empty({rows * out}, at::kFloat)),
        scores(scores) {}

  // y [n, rows] (+)= x [n, columns] · weightᵀ + bias
  void multiply(int64_t n, const float* x, const PackedWeight& weight, float* y, bool add);

  const CpuKernels<float>& kernels = cpu_kernels<float>();
  const DecodeKernels<Storage>& decode = decode_kernels<Storage>();
  Tensor cosine, sine;      // [context, D/2] float
  Tensor projected, mixed;  // [rows · in], [rows · out]
  bool prefix = false;      // DecodeSession::step
  std::vector<float> scores;

 private:
  std::vector<uint16_t> operands_;
  std::vector<float> staging_;
};

template <class Storage>
class PackedMixerSession {
 public:
  virtual ~PackedMixerSession() = default;
  // stream [n, C] += the layer's mixer of x [n, C]. A row's bits do not depend on the rows beside it.
  virtual void step(std::span<const DecodeRow> rows, const PageTable& pages, const float* x, float* stream,
                    DecodeScratch<Storage>& scratch) = 0;
  virtual void copy_page(int32_t, int32_t) {}
  virtual void copy_state(int64_t, int64_t) {}
};

// A layer's weights, shared by sessions.
template <class Storage>
class PackedMixer {
 public:
  virtual ~PackedMixer() = default;
  // history: DecodeModel::session.
  virtual std::unique_ptr<PackedMixerSession<Storage>> session(int64_t pages, int64_t history) const = 0;
};

}  // namespace isentrope::model
