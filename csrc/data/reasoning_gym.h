// Problems of the Python package reasoning-gym, as files that are read as data.jsonl is. They are made by
// `python -m isentrope.tasks` (csrc/train/task_files.h) before they are read.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "csrc/data/jsonl.h"
#include "csrc/field.h"

namespace isentrope::data {

// The last key of a configuration that takes keys of another program: these, with their values as JSON.
using Settings = std::map<std::string, std::string>;

struct ReasoningGymConfig {
  std::string task = "";
  int64_t size = 2000;
  int64_t validation_size = 256;  // as many as evaluations ask for by default
  int64_t test_size = 256;
  int64_t seed = 1;
  std::string cache = "runs/tasks";
  Settings settings = {};

  template <class Visitor>
  void visit(Visitor& v) {
    v("task", task, "Name of a task of reasoning-gym; isentrope tasks lists them.");
    v("size", size, "Problems to learn from.", at_least(1));
    v("validation_size", validation_size, "Problems for validation, none of which is learnt from; 0 for none.",
      at_least(0));
    v("test_size", test_size, "The same for test.", at_least(0));
    v("seed", seed, "Fixes the problems.", at_least(0));
    v("cache", cache,
      "Folder for the files of the problems, which are made once for the same keys and used again by later runs.");
    v("KEY", settings, "Any setting of the task, such as min_terms: 2.");
  }
  std::string problem() const;
  bool has(Split split) const {
    return split == Split::train || (split == Split::validation ? validation_size : test_size) > 0;
  }
  // Of the files, in the cache; another one for each other value of a key that the problems depend on.
  std::string folder() const;
  JsonlConfig files() const;
};

}  // namespace isentrope::data
