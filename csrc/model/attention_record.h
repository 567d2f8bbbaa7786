// What the layers of a forward pass that weigh keys by a softmax say of it.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace isentrope::model {

// What a layer with a state says of its weights and its state, without gradient. A state is a head's.
struct StateRecord {
  int64_t layer;  // of the decoder, from 0
  at::Tensor
      entropy;  // [B, H, T] nats: of a row's weights made to sum to 1; undefined where the kind's weights may be negative
  at::Tensor rank;  // [sequences, states]: effective rank of the states behind their last tokens, 0 of a state of zeros
  at::Tensor there;  // [sequences] bool: those that are no padding
};

// The softmax attention of a layer in full, without gradient: what a student's layer is compared with. S sequences of L tokens at most.
struct AttentionMap {
  int64_t layer;       // of the decoder, from 0
  at::Tensor weights;  // [S, H, L, L], rows and columns behind a sequence's end are anything
  at::Tensor out;      // [B · T, H · D], before the output projection
};

// What layers say of how far they are from full attention, means over heads, in the order of kLosses.
enum AttentionLoss { kEstimateKl, kEstimateSquare, kAttentionKl, kAttentionSquare, kContextSquare, kLosses };

// One tensor a layer that has such rows (csrc/model/mixer.h: attends), in their order.
struct AttentionRecord {
  std::vector<at::Tensor> entropy;    // [B, H, T] nats, differentiable
  std::vector<at::Tensor> max_logit;  // [B, H, T]
  std::vector<int64_t> layer;         // of the decoder, from 0
  std::vector<int64_t> window;        // position t sees min(t + 1, window) keys, all t + 1 where it is 0
  at::Tensor position;                // [B, T] where rows are packed; undefined: row t has position t
  bool causal = true;                 // false: a position sees all of its sequence, of lengths [B] where they are given
  at::Tensor lengths = {};
  bool with_bound = false;        // asks for:
  std::vector<at::Tensor> bound;  // [B, H, T] nats, what the entropy is at least (csrc/model/entropy_bound.h)
  bool with_states = false;       // asks for:
  std::vector<StateRecord> states = {};
  bool with_maps = false;  // asks for, of layers of kind softmax:
  std::vector<AttentionMap> maps = {};
  bool with_losses = false;  // asks for:
  // [B, T, kLosses], differentiable: of layers of kind estimated with their own full attention, where teacher is null, the first alone;
  // else of these and of those of kind softmax with the teacher's layer of the same number.
  std::vector<at::Tensor> losses = {};
  const std::vector<AttentionMap>* teacher = nullptr;  // of each layer one; until the backward pass has ended
  at::Tensor real = {};  // [B, T] bool: tokens that are no padding, which stands behind the others; undefined: all
};

// Keys that each position sees without a window, [1 or B, T] of those options.
at::Tensor keys_in_sight(const AttentionRecord& record, int64_t T, const at::TensorOptions& options);

}  // namespace isentrope::model
