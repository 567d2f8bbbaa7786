// What is kept as it was around code of a user, and texts for it.
#pragma once
#include <ATen/ThreadLocalState.h>
#include <c10/core/DefaultDtype.h>
#include <fcntl.h>
#include <pybind11/pybind11.h>
#include <unistd.h>

#include <string>

namespace isentrope::python {

// Bytes of a model, a file or a user as str: U+FFFD where they are no UTF-8.
inline pybind11::str text(const std::string& bytes) {
  PyObject* str = PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "replace");
  if (!str) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::str>(str);
}

// Leaves gradient and inference mode, autocast and the default dtype as it found them.
struct KeptModes {
  at::ThreadLocalStateGuard state{at::ThreadLocalState()};
  caffe2::TypeMeta dtype = c10::get_default_dtype();
  ~KeptModes() { c10::set_default_dtype(dtype); }
};

// Goes back to the working folder that it was made in: the paths of the phases to come are relative to that.
struct KeptFolder {
  int folder = ::open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  KeptFolder() = default;
  KeptFolder(const KeptFolder&) = delete;
  ~KeptFolder() {
    if (folder < 0) return;
    (void)!::fchdir(folder);
    ::close(folder);
  }
};

}  // namespace isentrope::python
