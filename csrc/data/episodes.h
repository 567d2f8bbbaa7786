// Generated tasks for conversations (csrc/rl/environment.h): prompts, what their environments have to know, and, for sft, the
// conversations of a teacher, in which what the teacher says is learnt and what the environment answers is not.
//
//   kind              prompt                     a conversation (given in «»)                      Example::columns
//   twenty_questions  a100;b010;c011;d001:       ?1↵«y↵»?2↵«n↵»!b                                  {"table":{"a":"100",…}}
//   calculator        37*48-5=                   [37*48-5]«1771;»A1771                             {}
//   search            ba.c.k?                    gba.c;qba c↵«ba c do↵»r1gdo.k;qdo k↵«do k ru↵»r1Aru   {"facts":["ba c do",…]}
//   diagnosis         a0592;b9710;c5050:         ?1↵«y↵»?0↵«n↵»!a                               csrc/data/diagnosis.h
//   interpreter       max(37,48)*3=              >max(37,48)*3↵«144↵»A144                       {}
//
// (↵ is a line feed; the end of sequence stands behind the last turn.)
//
// twenty_questions: an object, told by yes or no answers to questions ?ATTRIBUTE, then named by !OBJECT. Every row of the table is another.
// The teacher asks attributes at random that it has not asked, until one object is left.
// calculator: an expression of whole numbers; what stands in [ ] is worked out.
// search: who lives where (relation c), and what colour places have (relation k): the prompt asks for the colour of somebody's place, and
// a retriever finds the facts (csrc/data/facts.h). A turn judges the fact before it by its goal (r1: it is what was looked for, r0: it
// is not), then names the next goal and the query, or the answer.
// interpreter: an expression of Python, which an interpreter works out (csrc/rl/interpreter.h).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/data/diagnosis.h"
#include "csrc/data/example.h"
#include "csrc/data/fit.h"
#include "csrc/data/random.h"
#include "csrc/field.h"
#include "csrc/one_of.h"

namespace isentrope::data {

struct TwentyQuestionsTask {
  static constexpr const char* kKind = "twenty_questions";
  static constexpr const char* kHelp = "An object of a table is found by questions about its attributes.";
  int64_t objects = 8;
  int64_t attributes = 6;
  std::string table = "fixed";
  int64_t held_out = 256;

  std::string problem() const;
  Example draw(Stream& stream, Stream* teacher) const;  // null: no conversation
  bool few() const { return table == "fixed"; }         // all splits have the same tasks

  template <class Visitor>
  void visit(Visitor& v) {
    v("objects", objects, "Objects of a table, named by letters from a on.", between(2, 26));
    v("attributes", attributes, "Attributes of an object, asked for by digits from 0 on.", between(1, 10));
    v("table", table,
      "fixed: the same table for all, which the prompt does not show, so that the policy has to know it; training and "
      "evaluation then have the same objects. drawn: a new one each time, shown in the prompt.",
      one_of({"fixed", "drawn"}));
    v("held_out", held_out, "Prompts in the validation list and in the test list.", between(1, 1 << 20));
  }
};

struct CalculatorTask {
  static constexpr const char* kKind = "calculator";
  static constexpr const char* kHelp = "Expressions whose value a tool works out.";
  int64_t numbers = 3;
  int64_t digits = 2;
  std::string operations = "+-*";
  double direct = 0.2;
  double malformed = 0.1;
  int64_t held_out = 256;

  std::string problem() const;
  Example draw(Stream& stream, Stream* teacher) const;  // null: no conversation
  bool few() const { return false; }

  template <class Visitor>
  void visit(Visitor& v) {
    v("numbers", numbers, "Numbers of an expression.", between(2, 8));
    v("digits", digits, "Most digits of a number.", between(1, 6));
    v("operations", operations, "What stands between numbers, some of + - *.");
    v("direct", direct, "Probability that the teacher answers without a call, off by one digit as often as not.",
      between(0, 1));
    v("malformed", malformed,
      "Probability that the teacher's first call has no meaning, and is followed by a right one.", between(0, 1));
    v("held_out", held_out, "Prompts in the validation list and in the test list.", between(1, 1 << 20));
  }
};

struct SearchTask {
  static constexpr const char* kKind = "search";
  static constexpr const char* kHelp = "Questions about two facts that a retriever finds one by one.";
  int64_t people = 6;
  int64_t places = 4;
  int64_t distractors = 2;
  double failed = 0.3;
  int64_t held_out = 256;

  std::string problem() const;
  Example draw(Stream& stream, Stream* teacher) const;  // null: no conversation
  bool few() const { return false; }

  template <class Visitor>
  void visit(Visitor& v) {
    v("people", people, "People, each with a place.", between(1, 40));
    v("places", places, "Places, each with a colour.", between(1, 20));
    v("distractors", distractors, "Facts of another relation (f) about the same people and places.", between(0, 40));
    v("failed", failed,
      "Probability that the teacher's query leaves a word out, so that it may have to search again; twice for a fact "
      "at "
      "most.",
      between(0, 0.9));
    v("held_out", held_out, "Prompts in the validation list and in the test list.", between(1, 1 << 20));
  }
};

struct InterpreterTask {
  static constexpr const char* kKind = "interpreter";
  static constexpr const char* kHelp = "Expressions of Python whose value an interpreter works out.";
  int64_t terms = 2;
  int64_t digits = 2;
  double direct = 0.2;
  double malformed = 0.1;
  int64_t held_out = 256;

  Example draw(Stream& stream, Stream* teacher) const;  // null: no conversation
  bool few() const { return false; }

  template <class Visitor>
  void visit(Visitor& v) {
    v("terms", terms, "Terms of an expression: numbers, max(a,b), min(a,b), sum((a,b,c)) and pow(a,b,c).",
      between(1, 4));
    v("digits", digits, "Most digits of a number.", between(1, 4));
    v("direct", direct, "Probability that the teacher answers without a call, off by one digit as often as not.",
      between(0, 1));
    v("malformed", malformed,
      "Probability that the teacher's first call has no meaning, and is followed by a right one.", between(0, 1));
    v("held_out", held_out, "Prompts in the validation list and in the test list.", between(1, 1 << 20));
  }
};

using EpisodesConfig = OneOf<TwentyQuestionsTask, CalculatorTask, SearchTask, DiagnosisTask, InterpreterTask>;

// The table of a fixed TwentyQuestionsTask: a row of 0 and 1 an object.
std::vector<std::string> fixed_table(const TwentyQuestionsTask& task);

// Training: an endless stream, an example a function of (config, seed, index). Validation and test: lists that do not depend on the seed.
// A hash of prompt and columns says which split a task belongs to, but for one of few tasks, which all have.
class Episodes : public ExampleSource {
 public:
  // Throws std::invalid_argument for a config with a problem(), and for examples that do not fit the use, of a stream the first 64.
  Episodes(const EpisodesConfig& config, uint64_t seed, Split split, const Use* use = nullptr);

  std::vector<Example> take(int64_t first, int64_t count) const override;
  int64_t size() const override { return static_cast<int64_t>(held_out_.size()); }

 private:
  Example draw(int64_t index, Split split, uint64_t seed) const;

  EpisodesConfig config_;
  uint64_t seed_;
  bool taught_;                    // with the teacher's conversation
  std::vector<Example> held_out_;  // empty for training
};

}  // namespace isentrope::data
