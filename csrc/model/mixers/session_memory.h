// The memory of a decoding session beside the pages of its table: states of sequences, and copies of either.
#pragma once
#include <ATen/ATen.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csrc/model/mixer_decode.h"

namespace isentrope::model {

// Of each plane the rows of one unit (a page, a sequence), size a unit, as another unit's; planes that are undefined are passed over.
inline void copy_unit(at::TensorList planes, int64_t from, int64_t to, int64_t size) {
  for (const Tensor& x : planes)
    if (x.defined()) x.slice(0, to * size, (to + 1) * size).copy_(x.slice(0, from * size, (from + 1) * size));
}

// States of `size` floats. Of each sequence there are the last `history` ones: behind position p stands number (p + 1) % history.
class SequenceStates {
 public:
  SequenceStates(int64_t history, int64_t size) : history_(history), size_(size) {}

  struct Step {
    float *from, *to;  // the state before a row and behind it, the same where history is 1
  };
  // Before the first position a state is 0, but for its first `kept` floats.
  Step step(const DecodeRow& row, int64_t kept = 0) {
    float *states = of(row.sequence), *from = states + row.position % history_ * size_;
    if (row.position == 0) std::fill(from + kept, from + size_, 0.0f);
    return {from, states + (row.position + 1) % history_ * size_};
  }

  float* of(int64_t sequence) {  // [history, size]
    if (static_cast<int64_t>(states_.size()) <= sequence) states_.resize(sequence + 1);
    std::vector<float>& states = states_[sequence];
    if (states.empty()) states.resize(history_ * size_);
    return states.data();
  }

  void copy(int64_t from, int64_t to) {
    of(std::max(from, to));
    states_[to] = states_[from];
  }

 private:
  int64_t history_, size_;
  std::vector<std::vector<float>> states_;
};

}  // namespace isentrope::model
