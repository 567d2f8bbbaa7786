// The floats of a schema under torch.compile. To a graph a float of a schema is a constant: each new value would compile
// anew, though dynamo traces it as a symbol. A tensor is no constant. So an op whose floats change from step to step takes
// them as `numbers` too: one tensor [] of double on the CPU for each, in the order of the schema, read when the op runs.
// python/isentrope/ops/numbers.py hands them over where a graph is traced; elsewhere there are none.
#pragma once
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

#include "csrc/ops/check.h"

namespace isentrope::ops {

using Numbers = std::optional<c10::List<at::Tensor>>;

// Puts numbers, where there are any, in the place of the floats; null: the argument is none, and its number is not read.
inline void read_numbers(const char* op, const Numbers& numbers, std::initializer_list<double*> floats) {
  if (!numbers) return;
  OP_CHECK(op, numbers->size() == floats.size(), "numbers has ", numbers->size(), " tensors; wanted ", floats.size());
  size_t k = 0;
  for (double* const x : floats) {
    const at::Tensor number = numbers->get(k++);
    OP_CHECK(op, number.dim() == 0 && number.scalar_type() == at::kDouble && number.device().is_cpu(), "numbers[",
             k - 1, "] is ", number.toString(), " of shape ", number.sym_sizes(), "; wanted [] of double on the CPU");
    if (x != nullptr) *x = *number.const_data_ptr<double>();
  }
}
inline double* optional_number(std::optional<double>& x) { return x ? &*x : nullptr; }

// What a backward pass is given of them: those at places, where there are any.
inline Numbers some_numbers(const Numbers& numbers, std::initializer_list<size_t> places) {
  if (!numbers) return std::nullopt;
  c10::List<at::Tensor> some;
  for (const size_t place : places) some.push_back(numbers->get(place));
  return some;
}

}  // namespace isentrope::ops
