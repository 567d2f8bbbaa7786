// The environment search: questions about facts that a retriever finds (csrc/data/facts.h), with goals and judgements.
//
//   turn                                answer     what it means
//   [rJ]gENTITY.RELATION;qWORDS\n       FACT\n     J judges the fact before it by the goal before it: r1, it was met, or r0; then the next
//                                                  goal, and the query that the retriever is sent
//   [rJ]ANAME                           (over)     the answer
//   another                             ?\n        an error
//
// A goal is met by a fact of its entity and relation. Scores:
//   answer          1 where NAME is the example's answer, else 0
//   format          1 where every turn was of the form above, the first without a judgement and each behind a fact with one, and the last
//                   an answer; else 0
//   search_r1       both in one, as Search-R1's scripts have them: 1 and 0.8 where NAME is the answer, with and without the form; 0.2 and
//                   0.1 where it is not; 0 without an answer
//   reflect         of the facts judged, the share whose judgement is true; 0 where none was
//   reflect_balanced  the mean of that share over facts that met the goal, and over those that did not, where there are both
//   searches        facts asked for
//   goals           of the goals, the share that lies on the chain of the question (a metric: a reward for goals invites trivial ones)
//
// perturb: with that probability the engine gets another query than what the policy wrote, with a word deleted, added or replaced; the
// policy's own text stays. After RE-Searcher (arXiv 2509.26048), whose judge of reflections is a language model and here is exact.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "csrc/rl/environment.h"

namespace isentrope::rl {

struct PerturbConfig {
  std::vector<std::string> operations = {"delete", "add", "replace"};
  double probability = 0;
  int64_t search = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("operations", operations, "What may happen to a query, one drawn each time.",
      one_of({"delete", "add", "replace"}));
    v("probability", probability, "Probability that a query is perturbed.", between(0, 1));
    v("search", search, "The search of a conversation that may be, from 1; 0 for all.", at_least(0));
  }
};

struct Search : ConversationConfig {
  static constexpr const char* kKind = "search";
  static constexpr const char* kHelp =
      "Facts that a retriever finds, with goals and judgements; data.episodes of that kind.";
  static std::vector<std::string> scores() {
    return {"answer", "format", "search_r1", "reflect", "reflect_balanced", "searches", "goals"};
  }
  PerturbConfig perturb;

  std::string problem() const;
  std::shared_ptr<const Environment> make() const;

  template <class Visitor>
  void visit(Visitor& v) {
    ConversationConfig::visit(v);
    v("perturb", perturb, "What is done to queries on their way to the retriever.");
  }
};

// The query with a word deleted, added or replaced by one of the documents'; as it was where there is no word to do that to.
std::string perturbed(const std::string& query, const std::string& operation, const std::vector<std::string>& documents,
                      uint64_t seed, uint64_t search);

}  // namespace isentrope::rl
