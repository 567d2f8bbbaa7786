#include "csrc/methods/overlong.h"

#include <algorithm>
#include <stdexcept>

#include "csrc/methods/op.h"

namespace isentrope::methods {

double overlong_penalty(int64_t n, int64_t longest, int64_t len, double penalty_factor) {
  if (len < 1 || len > longest)
    throw std::invalid_argument("overlong.len is " + std::to_string(len) + " tokens; wanted 1 to the length limit, " +
                                std::to_string(longest));
  return std::min(0.0, -penalty_factor * static_cast<double>(n - (longest - len)) / static_cast<double>(len));
}

Tensor overlong(const Tensor& length, int64_t longest, int64_t len, double penalty_factor) {
  constexpr const char* kOp = "method_overlong";
  ops::check_dtype(kOp, "length", length, {torch::kLong});
  OP_CHECK(kOp, length.dim() == 1, "length has ", length.dim(), " dimensions; wanted [B]");
  OP_CHECK(kOp, len >= 1 && len <= longest, "len is ", len, "; wanted 1 to longest, ", longest);
  const Tensor n = host(length);
  Tensor penalty = torch::empty({n.numel()}, torch::kFloat64);
  for (int64_t b = 0; b < n.numel(); ++b)
    penalty.mutable_data_ptr<double>()[b] =
        overlong_penalty(n.const_data_ptr<int64_t>()[b], longest, len, penalty_factor);
  return penalty.to(length.device());
}

namespace {

Tensor overlong_meta(const Tensor& length, int64_t, int64_t, double) {
  return torch::empty_symint(length.sym_sizes(), length.options().dtype(torch::kFloat64));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_overlong(Tensor length, int longest, int len, float penalty_factor=1.0) -> Tensor", overlong,
         overlong_meta);
}

}  // namespace isentrope::methods
