// Inside of the TInt generator: traces, the machine that records them while it runs a program, and noise.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "csrc/data/random.h"
#include "csrc/data/tint.h"

namespace isentrope::data {

// The name of a node or key.
inline char letter(int64_t index) { return static_cast<char>('a' + index); }

// A line is its form, which noise never touches (number and text of the program line), and its content.
struct TraceLine {
  std::string form, content;
};

struct Trace {
  std::vector<TraceLine> lines;
  std::string line_end;  // after each line
  std::string answer;
  int64_t n_errors = 0;
  int64_t first_error_line = 0;  // counted from 1; the answer counts as the line after the last; 0: no error

  void count_error(int64_t line) {
    if (n_errors++ == 0) first_error_line = line;
  }
  std::string text() const;  // of all lines, without the answer
};

// Errors of a running program. At rate 0 nothing goes wrong; the draws are the stream's alone, so the problem
// itself does not depend on them.
class Faults {
 public:
  Faults(Stream* stream, double rate) : stream_(stream), rate_(rate) {}

  // right, or with probability rate a wrong value in 0 … limit: one digit changed, or 1 … 9 added or taken
  // away.
  int64_t result(int64_t right, int64_t limit);
  // right, or with probability rate its opposite.
  bool comparison(bool right);
  bool happened_last() const { return happened_last_; }  // in the last call of either

 private:
  Stream* stream_;
  double rate_;
  bool happened_last_ = false;
};

// The variables of a running program and the trace of their changes.
class Machine {
 public:
  // source[i] is the text of program line i + 1. No more than max_lines lines are recorded: see full().
  Machine(const TintShow& show, std::vector<const char*> source, Faults* faults, size_t max_lines)
      : show_(show), source_(std::move(source)), faults_(faults), max_lines_(max_lines) {
    trace_.line_end = "\n";
  }

  int64_t compute(int line, char variable, int64_t right);  // an operation on integers: may go wrong
  bool compare(int line, char variable, bool right);        // a comparison: may go wrong
  void assign(int line, char variable, const std::string& value);
  // A change that writes no line: an input, a loop's index. Seen by show.vars alone.
  void let(char variable, const std::string& value);
  // A program that errors keep from ending stops here.
  bool full() const { return trace_.lines.size() >= max_lines_; }

  Trace finish(const std::string& answer);

 private:
  void record(int line, char variable, const std::string& value, bool wrong);

  TintShow show_;
  std::vector<const char*> source_;
  Faults* faults_;
  size_t max_lines_;
  std::vector<std::pair<char, std::string>> variables_;
  Trace trace_;
};

// A way of a search, and what it says as an answer.
struct Try {
  std::string text, answer;
  bool right = false;
};

// What is asked. values: the signed terms, the two numbers, the items of the list, the numbers of countdown and its target, or the nodes
// of path, from and to of each edge, then start and goal; none of recall. right: a try that is, of tasks that search and of recall.
struct TintProblem {
  std::string prompt;
  std::vector<int64_t> values;
  Try right = {};
};

// terms is not read by add, sub and mul.
TintProblem draw_problem(const TintConfig& config, int64_t terms, Stream& stream);

// The order of a signed sum's terms and their grouping: each step a list of indices into values.
using SignedSumSteps = std::vector<std::vector<size_t>>;
TintProblem draw_signed_sum(int64_t terms, Stream& stream);
SignedSumSteps draw_steps(const std::vector<int64_t>& values, double merge, Stream& stream);
// A wrong total is kept in two digits: the sum goes on modulo 100.
Trace run_signed_sum(const std::vector<int64_t>& values, const SignedSumSteps& steps, Faults& faults);

// Up to `think` lines of free thinking, ended by ";": each two terms, in any order, and their sum.
std::string draw_thoughts(const std::vector<int64_t>& values, int64_t think, Stream& stream);

// Tasks that search: a problem, and a try at it, drawn at random.
TintProblem draw_countdown(const TintConfig& config, int64_t numbers, Stream& stream);
Try try_countdown(const TintConfig& config, const TintProblem& problem, Stream& stream);
TintProblem draw_path(const TintConfig& config, int64_t steps, Stream& stream);
Try try_path(const TintProblem& problem, Stream& stream);
// right holds the trace and the answer.
TintProblem draw_recall(const TintConfig& config, int64_t pairs, Stream& stream);

// add, sub, mul, sort and median. A run that has errors stops after 10 times the lines of the run without
// them.
Trace run_program(const TintConfig& config, const std::vector<int64_t>& values, Faults& faults);

// static_char, static_int and static_line on a finished trace.
void add_static_noise(const TintConfig& config, Stream& stream, Trace& trace);

// "3,1,2"
std::string join(const std::vector<int64_t>& values);
// Two digits, the low one first: 26 → "62".
std::string low_first(int64_t total);
// Characters of the program text, each as often as it stands there.
std::string program_text(const TintConfig& config);

}  // namespace isentrope::data
