// What entropy_attention asks of its arguments, and the arguments as its kernels take them.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>

#include "csrc/ops/attention_entries.h"

namespace isentrope::ops::attention {

inline bool given(const OptionalTensor& x) { return x && x->defined(); }

// Where there is data there are numbers.
inline std::optional<int64_t> number(const std::optional<c10::SymInt>& x) {
  return x ? std::optional<int64_t>(x->guard_int(__FILE__, __LINE__)) : std::nullopt;
}

// What can be said without data.
void check_arguments(const EntropyAttentionArguments& a);

// Contiguous head dimension, lengths as int64, a block mask as bool, all else in the statistics' type.
struct Prepared {
  Tensor q, k, v, temperature, key_lengths, query_start, cu_seqlens, block_mask, gates, sinks, slopes;
  kernels::AttentionShape shape;
  kernels::HeadStrides temperature_strides, gate_strides;
};
Prepared prepare(const EntropyAttentionArguments& a);

// x with rows as the kernels of its device read them.
Tensor with_whole_rows(const Tensor& x);

}  // namespace isentrope::ops::attention
