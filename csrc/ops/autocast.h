// What an op's autocast entry does to its tensors, with torch's own cache of casts.
#pragma once
#include <ATen/autocast_mode.h>

#include <optional>

namespace isentrope::ops {

// While it lives autocast is off, as in torch's own rules. Only floating point tensors on the device of `like` are cast, and
// double is not.
class Autocast {
 public:
  explicit Autocast(const at::Tensor& like)
      : device_(like.device().type()), off_(at::autocast::get_autocast_dispatch_key_from_device_type(device_)) {}

  // To autocast's dtype, as torch casts what it multiplies.
  at::Tensor lower(const at::Tensor& x) const {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device_), x, device_);
  }
  std::optional<at::Tensor> lower(const std::optional<at::Tensor>& x) const {
    return x ? std::optional<at::Tensor>(lower(*x)) : std::nullopt;
  }
  // To float, as torch casts what it sums.
  at::Tensor single(const at::Tensor& x) const { return at::autocast::cached_cast(at::kFloat, x, device_); }

 private:
  c10::DeviceType device_;
  c10::impl::ExcludeDispatchKeyGuard off_;
};

}  // namespace isentrope::ops
