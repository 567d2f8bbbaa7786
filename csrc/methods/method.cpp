#include "csrc/methods/method.h"

#include <stdexcept>

namespace isentrope::methods {

Groups groups_of(const Tensor& group) {
  const Tensor of = group.to(torch::kCPU, torch::kInt64).contiguous();
  const int64_t* g = of.const_data_ptr<int64_t>();
  Groups offsets{0};
  for (int64_t i = 0; i < of.numel(); ++i) {
    if (i > 0 && g[i] < g[i - 1])
      throw std::invalid_argument("group: completion " + std::to_string(i) + " is of group " + std::to_string(g[i]) +
                                  " behind one of group " + std::to_string(g[i - 1]) +
                                  "; wanted the completions of a prompt together, groups rising");
    if (i > 0 && g[i] != g[i - 1]) offsets.push_back(i);
  }
  if (of.numel() > 0) offsets.push_back(of.numel());
  return offsets;
}

}  // namespace isentrope::methods
