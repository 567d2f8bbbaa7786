// The arguments [B, T] of a method that changes advantages, as tables of doubles on the CPU: constants, row behind row. Float32 survives
// the way there and back, so that what a method leaves as it is keeps its bits.
#pragma once
#include <deque>
#include <functional>

#include "csrc/methods/op.h"

namespace isentrope::methods {

// The first argument says shape, dtype and device of the result. Checks come first: nothing is computed while arguments are taken.
class TokenTable {
 public:
  TokenTable(const char* op, const char* name, const Tensor& first, const Tensor& mask)
      : op_(op), name_(name), like_(first.detach()) {
    check_rows(op, name, first);
    check_floating(op, name, first);
    check_like(op, "mask", mask, name, first);
    mask_ = host_mask(mask);
    kept_.push_back(host(first, torch::kFloat64));
  }

  int64_t rows() const { return mask_.size(0); }
  int64_t length() const { return mask_.size(1); }
  int64_t size() const { return mask_.numel(); }
  const bool* mask() const { return mask_.const_data_ptr<bool>(); }
  const double* first() const { return kept_.front().const_data_ptr<double>(); }
  const double* take(const char* name, const Tensor& x) {
    check_floating(op_, name, x);
    check_like(op_, name, x, name_, mask_);
    return kept_.emplace_back(host(x, torch::kFloat64)).const_data_ptr<double>();
  }
  // [B, T] of whole numbers.
  const int64_t* take_whole(const char* name, const Tensor& x) {
    ops::check_dtype(op_, name, x, {torch::kInt64, torch::kInt32});
    check_like(op_, name, x, name_, mask_);
    return kept_.emplace_back(host(x, torch::kInt64)).const_data_ptr<int64_t>();
  }
  // [B, T] of flags.
  const bool* take_flags(const char* name, const Tensor& x) {
    check_like(op_, name, x, name_, mask_);
    return kept_.emplace_back(host_mask(x)).const_data_ptr<bool>();
  }
  // [B] of flags, or of whole numbers.
  const bool* take_row_flags(const char* name, const Tensor& x) {
    check_row(name, x);
    return kept_.emplace_back(host_mask(x)).const_data_ptr<bool>();
  }
  const int64_t* take_row_whole(const char* name, const Tensor& x) {
    check_row(name, x);
    ops::check_dtype(op_, name, x, {torch::kInt64, torch::kInt32});
    return kept_.emplace_back(host(x, torch::kInt64)).const_data_ptr<int64_t>();
  }
  // [B] integer, rising.
  Groups take_groups(const Tensor& group) {
    take_row_whole("group", group);
    try {
      return groups_of(group);
    } catch (const std::invalid_argument& error) {
      TORCH_CHECK_VALUE(false, "isentrope::", op_, ": ", error.what());
    }
  }

  // The result: value(i) where the mask marks token i (row · length + position), else 0.
  template <class Function>
  Tensor give(const Function& value) const {
    Tensor out = torch::zeros(mask_.sizes(), torch::kFloat64);
    auto* const y = out.mutable_data_ptr<double>();
    for (int64_t i = 0; i < size(); ++i)
      if (mask()[i]) y[i] = value(i);
    return out.to(like_.options());
  }
  // Flags [B, T] on the CPU, where the first argument was.
  Tensor give_flags(const Tensor& flags) const { return flags.to(like_.device()); }

 private:
  void check_row(const char* name, const Tensor& x) const {
    OP_CHECK(op_, x.dim() == 1 && x.size(0) == rows(), name, " has shape ", x.sizes(), "; wanted [", rows(),
             "], one a row of ", name_);
  }

  const char* op_;
  const char* name_;
  Tensor like_;
  std::deque<Tensor> kept_;
  Tensor mask_;
};

}  // namespace isentrope::methods
