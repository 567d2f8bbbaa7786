#include "csrc/ops/cpu_parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

namespace isentrope::ops {

int64_t threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_tasks(int64_t tasks, void (*body)(const void* context, int64_t i), const void* context) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min(tasks, threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) body(context, i);
  });
}

}  // namespace isentrope::ops
