#include "csrc/python/tokenizer.h"

#include <pybind11/stl.h>

#include <memory>

#include "csrc/data/text_stream.h"

namespace py = pybind11;

namespace isentrope::python {
namespace {

using data::TextStream;
using data::Tokenizer;

// A stream with the tokenizer that it reads.
struct Stream {
  std::shared_ptr<const Tokenizer> tokenizer;
  TextStream stream;
  explicit Stream(std::shared_ptr<const Tokenizer> of) : tokenizer(std::move(of)), stream(*tokenizer) {}
};

// The interpreter's lock is free while a long text is encoded.
template <auto encode>
py::list ids_of(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int64_t> ids;
  {
    const py::gil_scoped_release unlocked;
    ids = (tokenizer.*encode)(text);
  }
  py::list list(ids.size());
  for (size_t i = 0; i < ids.size(); ++i)
    PyList_SET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(ids[i]));
  return list;
}

}  // namespace

void bind_tokenizer(py::module_& m) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>>(m, "Tokenizer")
      .def(py::init([](const std::string& folder) { return std::make_shared<Tokenizer>(Tokenizer::load(folder)); }))
      .def("encode", &ids_of<&Tokenizer::encode>)
      .def("encode_prompt", &ids_of<&Tokenizer::encode_prompt>)
      .def("decode", [](const Tokenizer& of, const std::vector<int64_t>& ids) { return py::bytes(of.decode(ids)); })
      .def("bytes_of", &Tokenizer::bytes_of)
      .def("save", &Tokenizer::save)
      .def_property_readonly("size", &Tokenizer::size)
      .def_property_readonly("eos_id", &Tokenizer::eos_id)
      .def_property_readonly("end_ids", &Tokenizer::end_ids)
      .def_property_readonly("pad_id", &Tokenizer::pad_id)
      .def_property_readonly("kind", &Tokenizer::kind);
  py::class_<Stream>(m, "TextStream")
      .def(py::init([](std::shared_ptr<Tokenizer> of) { return std::make_unique<Stream>(std::move(of)); }))
      .def("push", [](Stream& of, int64_t id) { return py::bytes(of.stream.push(id)); })
      .def("flush", [](Stream& of) { return py::bytes(of.stream.flush()); });
}

}  // namespace isentrope::python
