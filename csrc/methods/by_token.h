// A number of each completion on all of its tokens: the form [B, T] of an advantage, where a host wants that.
#pragma once
#include "csrc/methods/method.h"

namespace isentrope::methods {

// [B, T] of value's dtype: value [B] where mask [B, T] marks, 0 elsewhere. float32 or float64.
Tensor by_token(const Tensor& value, const Tensor& mask);

}  // namespace isentrope::methods
