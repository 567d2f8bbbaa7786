// The environment interpreter: expressions of Python, worked out in a process that may do nothing else.
//
//   turn             answer       what it means
//   …>EXPRESSION\n   VALUE\n      what stands behind the last > is worked out
//   …>another\n      ?\n          an error: no expression, one that is refused, that raises, or that a limit ended; with named_errors
//                                 ?syntax, ?refused, ?raised, ?time, ?memory or ?output
//   …, without a call  (over)     the answer is what stands behind the last A
//
// Scores: answer, 1 where the last turn ends in A and the example's answer, else 0; calls, calls made; errors, those without a value;
// ended, those that a limit of time, memory or output ended.
//
// A process of Python (csrc/rl/interpreter_program.h) forks for each call. What the fork may do is limited three times: by an allow-list of
// the nodes of an expression, in which no attribute, import, lambda or keyword is, and of 20 functions; by resource limits of time,
// memory, files and processes; and, where the kernel and the processor are known, by a seccomp filter that lets it compute, write its answer
// and end. Values do not depend on the machine, but which call a limit of time ends does.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct Interpreter : ConversationConfig {
  static constexpr const char* kKind = "interpreter";
  static constexpr const char* kHelp = "Expressions of Python are worked out in a process that may do nothing else.";
  static std::vector<std::string> scores() { return {"answer", "calls", "errors", "ended"}; }
  std::string python = "python3";
  double time_s = 1;
  int64_t memory_mib = 64;
  int64_t output = 64;
  std::string alphabet = "-.0123456789";
  bool named_errors = false;

  std::shared_ptr<const Environment> make() const;

  template <class Visitor>
  void visit(Visitor& v) {
    ConversationConfig::visit(v);
    v("python", python, "Program that works them out, Python 3.8 or later; nothing but its standard library is used.");
    v("time_s", time_s, "Seconds that an expression may take.", between(0.01, 600));
    v("memory_mib", memory_mib, "MiB that an expression may take.", between(1, 1 << 20));
    v("output", output, "Most characters of a value.", between(1, 1 << 16));
    v("alphabet", alphabet,
      "Characters that a value may have, which the tokenizer has to be able to write; a value with another is the "
      "error of output.");
    v("named_errors", named_errors, "Whether the answer to an error says which it was, as ?time.");
  }
};

// What a call came to: the value, or the name of the error.
struct Outcome {
  std::string value, error;
};

// Processes of Python that work out expressions; one a thread that asks at the time. They end with it.
class Interpreters {
 public:
  explicit Interpreters(const Interpreter& config);
  ~Interpreters();
  // Throws std::runtime_error where there is no such Python, or it does not answer.
  Outcome work_out(const std::string& expression) const;

 private:
  struct Pool;
  std::unique_ptr<Pool> pool_;
};

}  // namespace isentrope::rl
