#include "csrc/methods/kth.h"

#include "csrc/ops/cpu_dispatch.h"

namespace isentrope::methods {

template <class T>
Kth<T> Kth<T>::largest(const T* x, const bool* mask, int64_t n, int64_t k) {
  KthSearch search{.x = x, .mask = mask, .n = n, .k = k, .wide = sizeof(T) == 8};
  ISENTROPE_PICK(kth_largest_on_cpu)(&search);
  return {static_cast<OrderedBits<T>>(search.key), search.equal};
}
template struct Kth<float>;
template struct Kth<double>;

int64_t count_marked(const bool* mask, int64_t n) { return ISENTROPE_PICK(count_marked_on_cpu)(mask, n); }

}  // namespace isentrope::methods
