// isentrope._C: the trainer for Python. The ops need no binding: they are dispatcher ops.
#include "csrc/train/trainer.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>

namespace py = pybind11;
using namespace isentrope;

namespace {

// fn(prompts, completions, meta) -> list[float], meta[i] = {"answer": …, "completion": …} of the example behind prompt i.
rl::RewardFunction from_python(py::function function) {
  // The trainer may drop its copy where the interpreter's lock is not held.
  auto shared = std::shared_ptr<py::function>(new py::function(std::move(function)), [](py::function* f) {
    py::gil_scoped_acquire lock;
    delete f;
  });
  return [shared](const std::vector<std::string>& prompts, const std::vector<std::string>& completions,
                  const std::vector<data::Example>& examples) {
    py::gil_scoped_acquire lock;
    py::list meta;
    for (const data::Example& example : examples) {
      py::dict one;
      one["answer"] = example.answer;
      one["completion"] = example.completion;
      meta.append(one);
    }
    const py::object scores = (*shared)(prompts, completions, meta);
    try {
      return scores.cast<std::vector<double>>();
    } catch (const py::cast_error&) {
      throw std::runtime_error("the reward function returned " + py::repr(scores).cast<std::string>().substr(0, 200) +
                               "; wanted a list of one float for each of the " + std::to_string(completions.size()) +
                               " completions");
    }
  };
}

py::dict to_dict(const train::Record& record) {
  py::dict line;
  line["phase"] = record.phase;
  line["step"] = record.step;
  if (!record.split.empty()) line["eval/split"] = record.split;
  for (const auto& [name, value] : record.values) line[name.c_str()] = value;
  if (record.attention) {
    py::dict attention;
    attention["entropy"] = record.attention->entropy;
    attention["normalized"] = record.attention->normalized;
    attention["max_logit"] = record.attention->max_logit;
    if (!record.attention->bound.empty()) {
      attention["bound"] = record.attention->bound;
      attention["certified"] = record.attention->certified;
    }
    attention["collapsed"] = record.attention->collapsed;
    attention["overloaded"] = record.attention->overloaded;
    attention["alarms"] = record.attention->alarms;
    line["attention_entropy"] = attention;
  }
  if (!record.sigma.empty()) {
    py::dict sigma;
    for (const train::SigmaFigures& f : record.sigma) {
      py::list numbers;
      numbers.append(f.sigma);
      numbers.append(f.gamma);
      if (f.svd) numbers.append(*f.svd);
      sigma[py::str(f.layer)] = numbers;
    }
    line["sigma"] = sigma;
  }
  return line;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The isentrope trainer; use isentrope.Trainer.";
  py::class_<train::Trainer>(m, "Trainer")
      .def(py::init([](const std::string& config, const std::vector<std::string>& overrides, bool resume,
                       const std::map<std::string, py::function>& rewards) {
             std::map<std::string, rl::RewardFunction> functions;
             for (const auto& [name, function] : rewards) functions[name] = from_python(function);
             return std::make_unique<train::Trainer>(train::read_config(config, overrides), resume, functions);
           }),
           py::arg("config"), py::arg("overrides"), py::arg("resume"), py::arg("rewards"))
      .def("advance",
           [](train::Trainer& trainer) {
             std::vector<train::Record> records;
             {
               py::gil_scoped_release unlocked;
               records = trainer.advance();
             }
             py::list lines;
             for (const auto& record : records) lines.append(to_dict(record));
             return lines;
           })
      .def("save", &train::Trainer::save, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("finished", &train::Trainer::finished)
      .def_property_readonly("dir", [](const train::Trainer& t) { return t.config().run.dir; })
      .def_property_readonly("warnings",
                             [](const train::Trainer& t) {
                               std::set<std::string> functions;
                               for (const auto& [name, function] : t.rewards()) functions.insert(name);
                               return train::warnings(t.config(), functions);
                             })
      .def_property_readonly("notes", &train::Trainer::notes)
      .def_property_readonly("results", [](const train::Trainer& t) {
        py::dict results;
        for (const auto& [phase, evaluation] : t.results()) {
          py::dict one;
          for (const auto& [name, value] : evaluation) one[name.substr(name.find('/') + 1).c_str()] = value;
          results[phase.c_str()] = one;
        }
        return results;
      });
  m.def("print_config", [](const std::string& config, const std::vector<std::string>& overrides) {
    return train::print_config(train::read_config(config, overrides));
  });
}
