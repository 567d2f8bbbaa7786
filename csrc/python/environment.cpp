#include "csrc/python/environment.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <utility>

#include "csrc/python/kept.h"

namespace py = pybind11;

namespace isentrope::python {
namespace {

// An object of Python that may be let go of where the interpreter's lock is not held.
using Shared = std::shared_ptr<py::object>;
Shared share(py::object object) {
  return {new py::object(std::move(object)), [](py::object* o) {
            const py::gil_scoped_acquire lock;
            delete o;
          }};
}

struct Side : rl::Episode {
  Shared side;
  rl::Reply step(const std::string&) override {
    throw std::logic_error("an environment in Python answers many at once");
  }
};

class Hosted : public rl::Environment {
 public:
  explicit Hosted(py::object host) : host_(share(std::move(host))) {}

  std::unique_ptr<rl::Episode> reset(const data::Example& example, uint64_t seed, std::string* prompt) const override {
    const py::gil_scoped_acquire lock;
    const KeptModes modes;
    const KeptFolder folder;
    const py::tuple begun = host_->attr("reset")(text(example.columns), text(example.prompt), text(example.answer),
                                                 text(data::name_of(example.split)), seed);
    if (prompt && !begun[1].is_none()) *prompt = begun[1].cast<std::string>();
    auto episode = std::make_unique<Side>();
    episode->side = share(begun[0]);
    return episode;
  }

  std::vector<rl::Reply> step(std::span<rl::Episode* const> episodes,
                              std::span<const std::string> said) const override {
    const py::gil_scoped_acquire lock;
    const KeptModes modes;
    const KeptFolder folder;
    py::list sides, turns;
    for (size_t i = 0; i < episodes.size(); ++i) {
      sides.append(*static_cast<Side*>(episodes[i])->side);
      turns.append(text(said[i]));
    }
    std::vector<rl::Reply> replies;
    for (const py::handle& answer : py::list(host_->attr("step")(sides, turns))) {
      const auto [given, scores, done, error] =
          answer.cast<std::tuple<std::string, std::map<std::string, double>, bool, bool>>();
      rl::Episode& episode = *episodes[replies.size()];
      for (const auto& [name, score] : scores) episode.scores[name] += score;
      replies.push_back({.text = given, .done = done, .error = error});
    }
    return replies;
  }

 private:
  Shared host_;
};

}  // namespace

std::shared_ptr<const rl::Environment> load_environment(const train::RewardWord& word, double timeout_s) {
  const py::gil_scoped_acquire lock;
  const KeptModes modes;
  return std::make_shared<Hosted>(
      py::module_::import("isentrope.environment_classes")
          .attr("load")(py::bytes(word.place), py::bytes(word.function), py::bytes(word.said), timeout_s));
}

}  // namespace isentrope::python
