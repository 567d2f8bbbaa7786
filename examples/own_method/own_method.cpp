// A weight of one's own in C++, in one file: a token counts by how surprising it was, (-logprob)^power over its mean.
//
//   g++ -std=c++20 -O2 -shared -fPIC examples/own_method/own_method.cpp -o own_method.so $(python examples/own_method/flags.py)
//   isentrope train examples/own_method/own_method.yaml run.libraries=[own_method.so] 'phases.grpo.weight=[{kind: op, op: mylib::surprise, power: 0.5}]'
#include <ATen/ATen.h>
#include <torch/library.h>

namespace {

// The arguments are found by name: tensors of csrc/methods/method.h, and the other keys of the entry.
at::Tensor surprise(const at::Tensor& logprob, const at::Tensor& mask, double power) {
  const at::Tensor weight = logprob.neg().clamp_min(0).pow(power).masked_fill(mask.logical_not(), 0);
  return weight * (mask.sum() / weight.sum().clamp_min(1e-6));
}

}  // namespace

TORCH_LIBRARY(mylib, m) { m.def("surprise(Tensor logprob, Tensor mask, float power=1.0) -> Tensor", surprise); }
