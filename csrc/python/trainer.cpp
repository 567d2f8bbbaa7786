// isentrope._C: the trainer for Python. The ops need no binding: they are dispatcher ops.
#include "csrc/train/trainer.h"

#include <ATen/ThreadLocalState.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <thread>
#include <utility>

#include "csrc/command_line.h"
#include "csrc/message.h"
#include "csrc/python/alarm.h"
#include "csrc/python/environment.h"
#include "csrc/python/kept.h"
#include "csrc/python/tokenizer.h"
#include "csrc/train/block_cache.h"
#include "csrc/train/process.h"
#include "csrc/train/progress.h"
#include "csrc/train/summary.h"

namespace py = pybind11;
using namespace isentrope;
using python::KeptFolder, python::KeptModes, python::text;

namespace {

// ---- text ---------------------------------------------------------------------------------------------------------

py::list texts(const std::vector<std::string>& many) {
  py::list list;
  for (const std::string& one : many) list.append(text(one));
  return list;
}

// Errors in the words of the command line: pybind11's own translation takes messages for UTF-8, and keeps torch's stack traces in
// them.
void translate(std::exception_ptr exception) {
  const auto raise = [&](PyObject* type) { PyErr_SetObject(type, text(message_of(exception)).ptr()); };
  try {
    std::rethrow_exception(exception);
  } catch (const py::builtin_exception&) {
    throw;
  } catch (const std::invalid_argument&) {
    raise(PyExc_ValueError);
  } catch (const std::exception&) {
    raise(PyExc_RuntimeError);
  }
}

// ---- what a caller or a reward may have switched ------------------------------------------------------------------

// The modes that a trainer runs in, whatever its caller's are.
struct TrainingModes {
  KeptModes callers;
  c10::InferenceMode inference{false};
  at::AutoGradMode gradients{true};
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  TrainingModes() { c10::set_default_dtype(caffe2::TypeMeta::Make<float>()); }
};

// ---- rewards ------------------------------------------------------------------------------------------------------

// meta[i]: the columns of the example behind prompt i as the data have them; its answer and completion, where no column has that
// name; "split", and "finished".
py::dict meta_of(const data::Example& example, const rl::Answer& answer, const py::object& loads) {
  py::dict one = example.columns.empty() ? py::dict() : py::dict(loads(text(example.columns)));
  if (!one.contains("answer")) one["answer"] = text(example.answer);
  if (!one.contains("completion")) one["completion"] = text(example.completion);
  one["split"] = data::name_of(example.split);
  one["finished"] = answer.finished;
  return one;
}

// fn(prompts, completions, meta, timeout_s) -> list[float | None], or None where the limit has ended it. What a user's function may
// return is looked at in python/isentrope/reward_functions.py.
rl::RewardFunction from_python(py::function function) {
  // The trainer may drop its copy where the interpreter's lock is not held.
  auto shared = std::shared_ptr<py::function>(new py::function(std::move(function)), [](py::function* f) {
    py::gil_scoped_acquire lock;
    delete f;
  });
  return [shared](const std::vector<std::string>& prompts, const std::vector<rl::Answer>& completions,
                  const std::vector<data::Example>& examples, double timeout_s) -> rl::Scores {
    py::gil_scoped_acquire lock;
    const KeptModes trainers;
    const KeptFolder started;
    const train::TensorMemory users(false);
    const py::object loads = py::module_::import("json").attr("loads");
    py::list answers, meta;
    for (size_t i = 0; i < completions.size(); ++i) {
      answers.append(text(completions[i].text));
      meta.append(meta_of(examples[i], completions[i], loads));
    }
    using Of = std::vector<std::optional<double>>;
    const py::object scores = (*shared)(texts(prompts), answers, meta, timeout_s);
    if (scores.is_none()) return {Of(completions.size()), /*ended=*/true};
    return scores.cast<Of>();
  };
}

// load(name, place, function, said) gives a reward. What Python raises in it, or in the reward, comes through.
std::function<rl::RewardFunction(const train::RewardWord&)> loader(const py::function& load) {
  return [&load](const train::RewardWord& word) {
    const py::gil_scoped_acquire lock;
    const KeptModes modes;
    return from_python(
        load(py::bytes(word.name), py::bytes(word.place), py::bytes(word.function), py::bytes(word.said)));
  };
}

py::dict to_dict(const train::Record& record) {
  py::dict line;
  line["phase"] = text(record.phase);
  line["step"] = record.step;
  if (record.global_step > 0) line["global_step"] = record.global_step;
  if (!record.split.empty()) line["eval/split"] = text(record.split);
  for (const auto& [name, value] : record.values) line[text(name)] = value;
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
      sigma[text(f.layer)] = numbers;
    }
    line["sigma"] = sigma;
  }
  if (!record.warnings.empty()) line["warnings"] = record.warnings;
  return line;
}

py::dict short_names(const train::Evaluation& evaluation) {
  py::dict figures;
  for (const auto& [name, value] : train::in_order(evaluation)) figures[text(train::short_name(name))] = value;
  return figures;
}

py::list lines_of(const std::vector<std::string>& texts) {
  py::list lines;
  for (const std::string& line : texts) lines.append(text(line));
  return lines;
}

// python/isentrope/screen.py
class PythonScreen : public train::Screen {
 public:
  explicit PythonScreen(py::object screen) : screen_(std::move(screen)) {}
  bool terminal() const override { return screen_.attr("terminal")().cast<bool>(); }
  int64_t columns() const override { return screen_.attr("columns")().cast<int64_t>(); }
  int write(const std::string& written) override { return screen_.attr("write")(text(written)).cast<bool>() ? 0 : EIO; }
  void warn(const std::string& warning) override { screen_.attr("warn")(text(warning)); }

 private:
  py::object screen_;
};

// What is shown of a trainer at work.
struct Shown {
  PythonScreen screen;
  train::Console console{screen};
  train::Progress progress;
  Shown(py::object on, const train::Trainer& trainer) : screen(std::move(on)), progress(trainer, console) {}
};

// ---- the trainer --------------------------------------------------------------------------------------------------

// A trainer makes one step at a time, in the process that made it.
class Handle {
 public:
  Handle(const std::string& config, const std::vector<std::string>& overrides, bool resume,
         const std::map<std::string, py::function>& rewards, const py::function& load) {
    train::TrainConfig read = train::read_config(config, overrides);
    for (const auto& [name, function] : rewards) train::require_wanted(name, "rewards[\"" + name + "\"]", read);
    std::map<std::string, rl::RewardFunction> functions = train::load_rewards(
        {.words = {}, .load = loader(load), .load_environment = python::load_environment, .go_on = {}}, read);
    for (const auto& [name, function] : rewards) functions[name] = from_python(function);
    const TrainingModes modes;
    const train::TensorMemory own(true);
    trainer_ = std::make_unique<train::Trainer>(read, resume, functions);
    look();
  }
  ~Handle() {
    if (process_ != getpid()) {
      static_cast<void>(trainer_.release());  // its files belong to the process that opened them
      return;
    }
    trainer_.reset();
    train::BlockCache::of_process().release();
  }

  py::list advance() {
    const Turn turn(*this, "advance()");
    std::vector<train::Record> records;
    if (shown_) shown_->progress.before_step();
    {
      const py::gil_scoped_release unlocked;
      records = trainer_->advance();
    }
    if (shown_) shown_->progress.after_step(records);
    py::list lines;
    for (const auto& record : records) lines.append(to_dict(record));
    return lines;
  }

  // From now on each step is shown there; None ends that.
  void show(const py::object& screen) {
    const Turn turn(*this, "train()");
    shown_ = screen.is_none() ? nullptr : std::make_unique<Shown>(screen, *trainer_);
  }
  void show_results() {
    const Turn turn(*this, "train()");
    if (shown_) shown_->console.print(shown_->progress.results());
  }

  py::bytes save() {
    const Turn turn(*this, "save()");
    std::string folder;
    {
      const py::gil_scoped_release unlocked;
      folder = trainer_->save();
    }
    return folder;
  }

  bool out_of_time() {
    const Turn turn(*this, "advance()");
    const py::gil_scoped_release unlocked;
    // Where one rank has to leave, all do, after the same step.
    return trainer_->agree_on_stop(trainer_->out_of_time() ? train::kTryAgain : 0) != 0;
  }

  // Waits for the checkpoint that is being written. What is new of those that could not be written; in a fork nothing.
  py::list wait() {
    if (process_ != getpid()) return py::list();
    const Turn turn(*this, "wait()");
    std::vector<std::string> lost;
    {
      const py::gil_scoped_release unlocked;
      lost = trainer_->wait();
    }
    lost.erase(lost.begin(), lost.begin() + static_cast<std::ptrdiff_t>(std::exchange(waited_, lost.size())));
    return lines_of(lost);
  }

  // On the held-out data of the last phase, as `isentrope evaluate`; overrides: "prompts=64", of the section test.
  py::dict evaluate(const std::string& split, std::vector<std::string> overrides) {
    const Turn turn(*this, "evaluate()");
    train::Evaluation found;
    {
      const py::gil_scoped_release unlocked;
      for (std::string& one : overrides) one.insert(0, "test.");
      train::TrainConfig config = trainer_->config();
      config.test = train::with_overrides(config, overrides).test;
      const train::PhaseConfig& phase = config.phases.back();
      const auto part = split == "test" ? data::Split::test : data::Split::validation;
      if (!phase.data.has(part))
        throw std::runtime_error("evaluate(): the data of phase " + phase.name + " have no part for " + split +
                                 "; give it a fraction above 0 or a file of its own");
      found = train::held_out_of(config, phase, trainer_->tokenizer(), part, trainer_->rewards())
                  ->evaluate(trainer_->model(), config.test);
    }
    return short_names(found);
  }

  // These tell of the end of the last call, so that they may be asked while another thread, or this one, is in a step.
  bool finished() const { return finished_; }
  py::bytes dir() const { return trainer_->config().run.dir; }
  py::list warnings() const { return lines_of(trainer_->warnings()); }
  py::list notes() const { return lines_of(trainer_->notes()); }
  py::str header() const { return text(train::to_json(trainer_->header())); }
  py::bytes last_checkpoint() const { return last_checkpoint_; }
  py::dict results() const {
    py::dict results;
    for (const auto& [phase, evaluation] : results_) results[text(phase)] = short_names(evaluation);
    return results;
  }

 private:
  // The right to be in the trainer; refused, not waited for, since a reward that waits for its own step waits for ever.
  class Turn {
   public:
    Turn(Handle& handle, const std::string& call) : handle_(handle) {
      if (handle.process_ != getpid())
        throw std::runtime_error(
            call + ": process " + std::to_string(handle.process_) + " made this Trainer, and this is a fork of it (" +
            std::to_string(getpid()) +
            "); train in the process that made it, or make another one here, with a run.dir of its own");
      if (handle.busy_.exchange(true))
        throw std::runtime_error(
            call + (handle.thread_ == std::this_thread::get_id()
                        ? ": this Trainer is in the middle of a step; a reward may not call its own trainer"
                        : ": another thread is in a step of this Trainer; use a Trainer in one thread at a time"));
      handle.thread_ = std::this_thread::get_id();
    }
    ~Turn() {
      handle_.look();
      handle_.busy_ = false;
    }
    Turn(const Turn&) = delete;

   private:
    Handle& handle_;
    TrainingModes modes_;
    train::TensorMemory own_{true};
  };

  void look() {
    finished_ = trainer_->finished();
    results_ = trainer_->results();
    last_checkpoint_ = trainer_->last_checkpoint();
  }

  const pid_t process_ = getpid();
  std::unique_ptr<train::Trainer> trainer_;
  std::unique_ptr<Shown> shown_;
  std::atomic<bool> busy_ = false;
  std::atomic<std::thread::id> thread_;  // that is, or was last, in the trainer
  bool finished_ = false;
  size_t waited_ = 0;  // lost checkpoints that wait() has told
  std::string last_checkpoint_;
  std::vector<std::pair<std::string, train::Evaluation>> results_;
};

// ---- the command line -----------------------------------------------------------------------------------------------

// words: the program's name, then what is behind it.
int run_program(std::vector<std::string> words, const py::function& load) {
  train::begin_process();
  train::keep_tensor_memory();
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  const Host host{words.at(0), loader(load), python::load_environment};
  try {
    const py::gil_scoped_release unlocked;
    return run(static_cast<int>(argv.size()), argv.data(), host);
  } catch (const py::error_already_set&) {
    throw;
  } catch (...) {
    std::fprintf(stderr, "isentrope: %s\n", message_of().c_str());
    return 1;
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The isentrope trainer; use isentrope.Trainer.";
  py::register_local_exception_translator(translate);
  // Paths and overrides are bytes: they need not be UTF-8.
  py::class_<Handle>(m, "Trainer")
      .def(py::init<const std::string&, const std::vector<std::string>&, bool,
                    const std::map<std::string, py::function>&, const py::function&>(),
           py::arg("config"), py::arg("overrides"), py::arg("resume"), py::arg("rewards"), py::arg("load"))
      .def("advance", &Handle::advance)
      .def("save", &Handle::save)
      .def("wait", &Handle::wait)
      .def("out_of_time", &Handle::out_of_time)
      .def("show", &Handle::show, py::arg("screen"))
      .def("show_results", &Handle::show_results)
      .def("evaluate", &Handle::evaluate, py::arg("split"), py::arg("overrides"))
      .def_property_readonly("finished", &Handle::finished)
      .def_property_readonly("warnings", &Handle::warnings)
      .def_property_readonly("notes", &Handle::notes)
      .def_property_readonly("header", &Handle::header)
      .def_property_readonly("last_checkpoint", &Handle::last_checkpoint)
      .def_property_readonly("dir", &Handle::dir)
      .def_property_readonly("results", &Handle::results);
  python::bind_tokenizer(m);
  python::bind_alarm(m);
  m.def("run", &run_program, py::arg("words"), py::arg("load"));
  m.def("end_output", &train::end_output);
  m.def("print_config", [](const std::string& config, const std::vector<std::string>& overrides) {
    return text(train::print_config(train::read_config(config, overrides)));
  });
}
