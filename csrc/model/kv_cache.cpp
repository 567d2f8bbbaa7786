#include "csrc/model/kv_cache.h"

#include <algorithm>

namespace isentrope::model {

KvCache::KvCache(int64_t slots, int64_t layers, int64_t kv_heads, int64_t head_size, int64_t context)
    : layers_(layers), row_(kv_heads * head_size), plane_(context * row_), memory_(slots * layers * 2 * plane_) {}

void KvCache::put(int64_t slot, int64_t layer, int64_t position, const float* key, const float* value) {
  float* to = const_cast<float*>(keys(slot, layer)) + position * row_;
  std::copy_n(key, row_, to);
  std::copy_n(value, row_, to + plane_);
}

void KvCache::copy(int64_t from, int64_t to, int64_t count) {
  for (int64_t layer = 0; layer < layers_; ++layer) {
    std::copy_n(keys(from, layer), count * row_, const_cast<float*>(keys(to, layer)));
    std::copy_n(values(from, layer), count * row_, const_cast<float*>(values(to, layer)));
  }
}

}  // namespace isentrope::model
