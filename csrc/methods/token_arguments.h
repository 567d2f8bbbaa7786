// The arguments [B, T] of a weight method, as the loops of csrc/methods/weight_cpu.h take them: constants on the CPU, row behind row.
#pragma once
#include <deque>
#include <stdexcept>
#include <utility>
#include <vector>

#include "csrc/methods/op.h"
#include "csrc/methods/weight_cpu.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/result_memory.h"

namespace isentrope::methods {

// The first argument says shape, dtype and device; the others have its shape and are taken in its dtype. Checks come first: nothing
// is computed while arguments are taken.
class TokenArguments {
 public:
  TokenArguments(const char* op, const char* name, const Tensor& first, const Tensor& mask)
      : op_(op), name_(name), device_(first.device()) {
    check_rows(op, name, first);
    check_floating(op, name, first);
    check_like(op, "mask", mask, name, first);
    kept_.push_back(host(first));
    mask_ = host_mask(mask);
  }
  const void* first() const { return kept_.front().const_data_ptr(); }
  const void* take(const char* name, const Tensor& x) {
    check_floating(op_, name, x);
    check_like(op_, name, x, name_, kept_.front());
    return kept_.emplace_back(host(x, kept_.front().scalar_type())).const_data_ptr();
  }

  // [B, T] of flags.
  const bool* take_flags(const char* name, const Tensor& x) {
    check_like(op_, name, x, name_, kept_.front());
    return kept_.emplace_back(host_mask(x)).const_data_ptr<bool>();
  }
  // [B] integer, rising.
  Groups take_groups(const Tensor& group) {
    const int64_t B = kept_.front().size(0);
    OP_CHECK(op_, group.dim() == 1 && group.size(0) == B, "group has shape ", group.sizes(), "; wanted [", B,
             "], one a row of ", name_);
    ops::check_dtype(op_, "group", group, {torch::kInt64, torch::kInt32});
    try {
      return groups_of(group);
    } catch (const std::invalid_argument& error) {
      TORCH_CHECK_VALUE(false, "isentrope::", op_, ": ", error.what());
    }
  }

  TokenRows rows() const {
    const Tensor& x = kept_.front();
    return {x.size(0), x.size(1), mask_.const_data_ptr<bool>(), x.scalar_type() == torch::kDouble};
  }
  // [B, T] on the CPU, not initialised: of the first argument's dtype, or bool.
  Tensor make() const { return ops::result_like(kept_.front()); }
  Tensor make_flags() const { return ops::result_like(mask_); }
  // What `loop` makes of p, whose results stand in its factor.
  template <class Loop, class Run>
  Tensor made(Loop& p, const Run& loop) const {
    const Tensor factor = make();
    p.factor = factor.mutable_data_ptr();
    loop(p);
    return give(factor);
  }
  // Σ x of each row over the tokens that count, x of take(), and how many they are.
  std::pair<std::vector<double>, std::vector<int64_t>> sums(const void* x) const {
    SumLoop p{rows()};
    std::vector<double> sum(static_cast<size_t>(p.rows));
    std::vector<int64_t> count(sum.size());
    p.x = x, p.sum = sum.data(), p.count = count.data();
    ISENTROPE_PICK(sum_on_cpu)(p);
    return {std::move(sum), std::move(count)};
  }
  // A result, where the first argument was.
  Tensor give(const Tensor& x) const { return x.to(device_); }

 private:
  const char* op_;
  const char* name_;
  torch::Device device_;
  std::deque<Tensor> kept_;
  Tensor mask_;
};

}  // namespace isentrope::methods
