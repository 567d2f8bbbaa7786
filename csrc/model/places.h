// What stands where in rows of tokens, beside the tokens.
#pragma once
#include <ATen/core/Tensor.h>

#include <utility>

namespace isentrope::model {

// A token of a prefix may be hidden: this number in its place, which enters a decoder as the zero vector.
inline constexpr int64_t kHidden = -1;

struct Places {
  at::Tensor position;  // [B, T] int64: rows hold several sequences (csrc/model/packing.h); undefined: one each
  at::Tensor
      prefix;  // [B, T] bool: the first tokens of each sequence, which layers of kind prefix_linear read as a whole; undefined: none
  at::Tensor
      lengths;  // [B] int64, of encoders: what stands behind them is padding, which no token sees; undefined: there is none

  Places(at::Tensor position = {}, at::Tensor prefix = {},
         at::Tensor lengths = {})  // NOLINT: positions alone are places
      : position(std::move(position)), prefix(std::move(prefix)), lengths(std::move(lengths)) {}
};

}  // namespace isentrope::model
