// torch's threads for the CPU backends that are compiled once an instruction set, where no torch header may be included.
#pragma once
#include <cstdint>

namespace isentrope::ops {

int64_t threads();

// body(context, i) once for every i of 0 … tasks - 1, on torch's threads. They take the next task as they become free:
// tasks need not be equal, the longest should be the first, and none may depend on which thread runs it.
void run_tasks(int64_t tasks, void (*body)(const void* context, int64_t i), const void* context);

// The same of body(i). Each lambda makes a function of its own: nothing is shared between instruction sets.
template <class Body>
void for_tasks(int64_t tasks, const Body& body) {
  run_tasks(
      tasks, [](const void* context, int64_t i) { (*static_cast<const Body*>(context))(i); }, &body);
}

}  // namespace isentrope::ops
