// Tokenizers for Python: isentrope.Tokenizer.
#pragma once
#include <pybind11/pybind11.h>

namespace isentrope::python {

void bind_tokenizer(pybind11::module_& m);

}  // namespace isentrope::python
