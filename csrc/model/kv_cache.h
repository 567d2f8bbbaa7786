// Keys and values of every position that a sequence has passed, in slots of fixed size.
//
// L layers, G key/value heads, D head size, S positions of a slot.
#pragma once
#include <cstdint>
#include <vector>

namespace isentrope::model {

class KvCache {
 public:
  KvCache(int64_t slots, int64_t layers, int64_t kv_heads, int64_t head_size, int64_t context);

  // Writes one position of one layer. key, value [G, D].
  void put(int64_t slot, int64_t layer, int64_t position, const float* key, const float* value);
  // Copies positions 0 … count − 1 of all layers.
  void copy(int64_t from, int64_t to, int64_t count);

  // [S, G, D]
  const float* keys(int64_t slot, int64_t layer) const { return memory_.data() + (slot * layers_ + layer) * 2 * plane_; }
  const float* values(int64_t slot, int64_t layer) const { return keys(slot, layer) + plane_; }

 private:
  int64_t layers_, row_, plane_;  // row_ = G·D, plane_ = S·G·D
  std::vector<float> memory_;
};

}  // namespace isentrope::model
