#include "csrc/model/kv_cache.h"

#include <algorithm>

namespace isentrope::model {

KvCache::KvCache(int64_t slots, int64_t layers, int64_t kv_heads, int64_t head_size, int64_t context)
    : layers_(layers),
      row_(kv_heads * head_size),
      plane_((context + kKeyBlock - 1) / kKeyBlock * kKeyBlock * row_),
      memory_(slots * layers * 2 * plane_) {}

void KvCache::put(int64_t slot, int64_t layer, int64_t position, const float* key, const float* value) {
  float* to = const_cast<float*>(keys(slot, layer));
  std::copy_n(value, row_, to + plane_ + position * row_);
  to += position / kKeyBlock * kKeyBlock * row_ + position % kKeyBlock;
  for (int64_t i = 0; i < row_; ++i) to[i * kKeyBlock] = key[i];
}

void KvCache::copy(int64_t from, int64_t to, int64_t count) {
  const int64_t whole_blocks = (count + kKeyBlock - 1) / kKeyBlock * kKeyBlock * row_;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    std::copy_n(keys(from, layer), whole_blocks, const_cast<float*>(keys(to, layer)));
    std::copy_n(values(from, layer), count * row_, const_cast<float*>(values(to, layer)));
  }
}

}  // namespace isentrope::model
