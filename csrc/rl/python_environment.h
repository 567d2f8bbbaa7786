// Environments that are classes in Python. What calls Python is given from outside: this room knows none.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct PythonEnvironment : ConversationConfig {
  static constexpr const char* kKind = "python";
  static constexpr const char* kHelp = "A class in Python with reset and step (docs/environments.md).";
  static std::vector<std::string> scores() { return {}; }
  std::string name = "";
  double timeout_s = 10;
  std::shared_ptr<const Environment> given = {};  // what name names; no key

  // Where nothing was given, in a process that does not run Python, one whose reset throws std::runtime_error.
  std::shared_ptr<const Environment> make() const;
  std::string problem() const {
    const size_t colon = name.rfind(':');
    return colon == std::string::npos || colon == 0 || colon + 1 == name.size()
               ? "class: is \"" + name + "\"; wanted FILE.py:NAME or MODULE:NAME"
               : "";
  }

  template <class Visitor>
  void visit(Visitor& v) {
    ConversationConfig::visit(v);
    v("class", name, "FILE.py:NAME, of the configuration's folder, or MODULE:NAME.");
    v("timeout_s", timeout_s,
      "Seconds that reset, step or step_many may take; then their conversations end. 0 for any.", at_least(0));
  }
};

}  // namespace isentrope::rl
