// TInt: integer problems with a written trace of their solution, and noise put into the traces on purpose.
// After "TInt" (arXiv 2402.04004): an integer that records what is done to it, run through ordinary programs.
//
//   task         prompt         completion (trace, then "A", the answer and ".")
//   signed_sum   a+5b+6c-9=     a+5:50b+6:11c-9:20A20.       numbers of two digits have their low digit first
//   add          57+8=          L1 s=15\nL2 d=5\nL3 c=1\nL1 s=6\n…A65.
//   sub, mul     57-8=  57*8=   as add; sub puts the larger number first
//   sort         s3,1,2=        L1 m=0\nL2 t=1\nL3 m=1\n…L4 x=1,3,2\n…A1,2,3.
//   median       m3,1,2=        the trace of sort, one line more, A2.
//   countdown    3,2,5:52=      3+2:50+5:01;3+2:50*5:52;A(3+2)*5.    tries, each ended by ";"
//   recall       a3b7c1--:ca=   c1a3A13.         keys and their values, a gap, keys that are asked for
//   path         ab,bd,ac:a>d=  ac;abd;Aabd.
//
// signed_sum: K terms, each a letter (a, b, c, …), a sign (plus with probability 0.65) and a digit 1 … 9; a
// sum below 0 or above 99 is drawn again. A step of its trace lists one or more unused terms, then ":" and
// the running total in two digits. Terms come in random order; each further one joins the step before it with
// probability `merge`; an order with a running total below 0 or above 99 is drawn again.
//
// countdown: reach the number behind ":" with all the numbers, each used once, by operations of `operations`. path: find the way from a
// node of a graph to another. Many roads are wrong, and which answers are right is checked, not compared (csrc/data/tint_search.h).
// Their traces are searches: tries until one is right, or as many as the trace has patience for, drawn from 1 … tries. A try is drawn at
// random, or with probability `insight` is a right one. Then the last try is answered, right or not, so that a model that learnt from
// them gives up too early, and can learn not to.
//
// recall: multi-query associative recall (Arora et al., arXiv 2312.04927): pairs of a key, a letter, and its value, a digit; no key
// stands twice. Behind the gap stand keys, and the trace repeats each with its value.
//
// The other tasks run a program and write one line for each state change: the fields chosen under `show`,
// separated by spaces, ended by a newline. Their programs stand in tint_programs.cpp.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/fit.h"
#include "csrc/field.h"

namespace isentrope::data {

struct TintDigits {
  int64_t min = 1;
  int64_t max = 3;

  template <class Visitor>
  void visit(Visitor& v) {
    v("min", min, "Fewest digits of a number.", between(1, 15));
    v("max", max, "Most digits of a number; at most 8 for mul.", between(1, 15));
  }
};

struct TintShow {
  bool line_no = true;
  bool code = false;
  bool vars = false;
  bool delta = true;

  template <class Visitor>
  void visit(Visitor& v) {
    v("line_no", line_no, "Number of the program line that ran: L2.");
    v("code", code, "Text of that line: d=s%10.");
    v("vars", vars, "Every variable after the line: a=57;b=8;s=15;d=5.");
    v("delta", delta, "The variable that the line changed: d=5.");
  }
};

struct TintConfig {
  std::string task = "signed_sum";
  std::vector<int64_t> terms = {5};
  std::string mix = "batch";
  double merge = 0.3;
  int64_t think = 0;
  int64_t tries = 4;
  double insight = 0;
  std::string operations = "+-*";
  int64_t branches = 1;
  int64_t queries = 1;
  int64_t gap = 0;
  int64_t vocabulary = 26;
  std::string sampling = "length";
  int64_t low = 0;
  int64_t high = 99;
  TintDigits digits;
  std::string algorithm = "selection";
  std::string even = "lower";
  bool cot = true;
  TintShow show;
  std::string noise = "none";
  double contamination = 0;
  double intensity = 0;
  std::string label = "true";
  bool noise_answer = false;
  int64_t train = 0;
  int64_t held_out = 1024;

  template <class Visitor>
  void visit(Visitor& v) {
    v("task", task, "What is computed.",
      one_of({"signed_sum", "add", "sub", "mul", "median", "sort", "countdown", "path", "recall"}));
    v("terms", terms,
      "Numbers in a problem of signed_sum, median, sort and countdown (2 to 5), steps of the right way of path, pairs "
      "of "
      "recall; the others have two numbers. Where several are given, one is drawn as mix says.",
      between(1, 26));
    v("mix", mix,
      "Whether each batch or each example has a number of terms of its own; with example, evaluations are of all.",
      one_of({"batch", "example"}));
    v("merge", merge, "signed_sum: probability that a term joins the step before it.", between(0, 1));
    v("think", think,
      "signed_sum: most lines of free thinking before the trace, the sum of two terms each; their number is drawn from "
      "0 "
      "to this. They end with \";\", and cost nothing but length.",
      between(0, 64));
    v("tries", tries, "countdown, path: most tries of a trace, right or wrong.", between(1, 64));
    v("insight", insight,
      "countdown, path: probability that a try is one that is right; the others are drawn at random, and seldom right. "
      "What a "
      "model can learn of seeing the way.",
      between(0, 1));
    v("operations", operations, "countdown: what may be done, some of + - * /, + among them.");
    v("branches", branches, "path: wrong branches at each node of the right way, each as long as what is left of that.",
      between(0, 24));
    v("queries", queries, "recall: keys that are asked for, each once.", between(1, 26));
    v("gap", gap, "recall: characters between the pairs and the question.", between(0, 4096));
    v("vocabulary", vocabulary, "recall: letters that a key may be, and digits that a value may be, 10 at most.",
      between(2, 26));
    v("sampling", sampling, "Numbers of the other tasks: uniform in low … high, or uniform in their count of digits.",
      one_of({"magnitude", "length"}));
    v("low", low, "Least number, for sampling: magnitude.", between(0, 999999999999999));
    v("high", high, "Largest number, for sampling: magnitude; below 10^8 for mul.", between(0, 999999999999999));
    v("digits", digits, "Digits of a number, for sampling: length.");
    v("algorithm", algorithm, "How sort and median sort.", one_of({"selection", "insertion"}));
    v("even", even, "Median of an even count: the lower of the middle two, or their mean where it is whole.",
      one_of({"lower", "mean"}));
    v("cot", cot, "Write the trace before the answer.");
    v("show", show, "What a line of the trace shows; signed_sum has a form of its own.");
    v("noise", noise,
      "Errors put into training traces: digits, integers or lines of a finished trace (static), or results "
      "of the running program, which goes on from the wrong value (dynamic).",
      one_of({"none", "static_char", "static_int", "static_line", "dynamic"}));
    v("contamination", contamination, "Share of the examples that get noise.", between(0, 1));
    v("intensity", intensity, "Probability of an error at each place where one can be.", between(0, 1));
    v("label", label, "Answer written after a trace with dynamic noise: the true one, or what the trace arrived at.",
      one_of({"true", "propagated"}));
    v("noise_answer", noise_answer, "Let static noise change the answer too.");
    v("train", train, "Examples of training, in a new order each epoch; 0: ever new ones. Takes mix: example.",
      at_least(0));
    v("held_out", held_out,
      "Prompts in the validation list and in the test list, at most (a task with few prompts has fewer).",
      between(1, 1 << 20));
  }
  std::string problem() const;
};

// One example and what noise did to it. Validation and test examples have no noise.
struct TintSample {
  std::string prompt = {}, completion = {};
  std::string answer_true = {};   // as written after "A" in a clean completion; of a task that searches, a right one
  std::string answer_trace = {};  // what the trace arrived at
  bool noised = false;            // drawn for noise, though no error may have come of it
  int64_t n_errors = 0;
  int64_t first_error_line = 0;  // from 1, in the clean trace (static) or the trace itself (dynamic); 0: none
};

// Whether a task's trace is a search: countdown and path.
bool searches(const TintConfig& config);

// Every character that prompts and completions of the task can hold, "." last. signed_sum with up to eight
// terms needs no more than 0123456789abcdefgh+-=:A. of the quickstart.
std::string tint_alphabet(const TintConfig& config);

// Training: an endless stream; an example is a function of (config, seed, index, number of terms). The number of terms of a
// take() is a function of (config, seed, first), or, with mix: example, an example's of (config, seed, index). With `train` the
// stream is a list of that many such examples, in a new order each epoch. Validation and test: finite lists that depend on
// neither seed nor noise; take() runs through one again and again. A hash of the prompt says which split it belongs to
// (csrc/data/split.h), so that no task, seed or phase of a run trains on a prompt that another one evaluates on.
// Example::answer is the true answer, of a task that searches a right one.
class Tint : public ExampleSource {
 public:
  // Throws std::invalid_argument for a config with a problem(), for a list that would be empty, and for examples that do not
  // fit the use: all of a list, of a stream the first 64 of each number of terms.
  Tint(const TintConfig& config, uint64_t seed, Split split, const Use* use = nullptr);

  std::vector<Example> take(int64_t first, int64_t count) const override;
  int64_t left_out() const override { return left_out_; }
  int64_t size() const override { return held_out_.empty() ? config_.train : static_cast<int64_t>(held_out_.size()); }

  // Example index of the training stream with the given number of terms, with its report.
  TintSample sample(int64_t index, int64_t terms) const;
  // Number of terms of take(first, …) in training, or with mix: example of example `first`.
  int64_t terms_of(int64_t first) const;

 private:
  TintConfig config_;
  uint64_t seed_;
  void look(const Use& use);

  std::vector<Example> held_out_;  // empty for training
  int64_t left_out_ = 0;
};

}  // namespace isentrope::data
