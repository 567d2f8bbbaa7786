// A signal at a time limit, for functions in Python that take too long (python/isentrope/reward_functions.py).
#pragma once
#include <pybind11/pybind11.h>

namespace isentrope::python {

// _C.Alarm(seconds, again, number): sends the calling thread the signal after so many seconds, and then every `again` seconds, until
// stop(). Takes no lock of the interpreter, which the thread may hold all the while, as regular expressions do.
void bind_alarm(pybind11::module_& m);

}  // namespace isentrope::python
