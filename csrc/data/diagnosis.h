// The task diagnosis of data.episodes (csrc/data/episodes.h): diseases, findings, and P(finding | disease).
//
//   prompt                     a conversation (given in «»)     Example::columns
//   a0592;b9710;c5050:         ?1↵«y↵»?0↵«n↵»!a                 {"diseases":{"a":{"prior":0.33,"findings":[0.05,0.92]},…}}
//
// Findings are independent given the disease (naive Bayes). Likelihoods of a generator, each drawn by itself and rounded to hundredths from
// 0.01 to 0.99, which the prompt shows as two digits:
//   uniform   P ~ U(0, 1)
//   arcsine   P = sin²(π U / 2), the Beta(½, ½) distribution: findings tell more
//   signs     with probability `present` the finding belongs to the disease, and P is the sensitivity, else 1 − specificity
// The prior is uniform, or drawn from the flat Dirichlet distribution (−ln U, scaled) and rounded likewise; a prompt that shows a table shows a
// drawn prior as two digits before the findings.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/questions.h"
#include "csrc/data/random.h"
#include "csrc/field.h"

namespace isentrope::data {

struct DiseaseRow {
  std::string name;
  double prior = 1;
  std::vector<double> findings = {};

  template <class Visitor>
  void visit(Visitor& v) {
    v("name", name, "What the policy names it by.");
    v("prior", prior, "Its share among the patients; all are scaled to add up to 1.", above_to(0, 1e9));
    v("findings", findings, "Probability of each finding given the disease.", between(0, 1));
  }
};

struct DiagnosisTask {
  static constexpr const char* kKind = "diagnosis";
  static constexpr const char* kHelp = "A disease is found by asking for findings, whose likelihoods are known.";
  int64_t diseases = 8;
  int64_t findings = 8;
  std::string generator = "arcsine";
  double present = 0.5;
  double sensitivity = 0.9;
  double specificity = 0.9;
  std::string prior = "uniform";
  std::string table = "fixed";
  std::vector<DiseaseRow> given = {};
  double confidence = 0.9;
  int64_t held_out = 256;

  std::string problem() const;
  Example draw(Stream& stream, Stream* teacher) const;             // null: no conversation
  bool few() const { return table == "fixed" || !given.empty(); }  // all splits have the same tasks

  template <class Visitor>
  void visit(Visitor& v) {
    v("diseases", diseases, "Diseases of a table, named by letters from a on.", between(2, 26));
    v("findings", findings, "Findings, asked for by numbers from 0 on.", between(1, 100));
    v("generator", generator,
      "Where likelihoods are from: uniform; arcsine, nearer to 0 and 1; signs, of two values by sensitivity and "
      "specificity.",
      one_of({"uniform", "arcsine", "signs"}));
    v("present", present, "Of signs: probability that a finding belongs to a disease.", between(0, 1));
    v("sensitivity", sensitivity, "Of signs: probability of a finding that belongs to the disease.", between(0, 1));
    v("specificity", specificity, "Of signs: probability that another finding is absent.", between(0, 1));
    v("prior", prior, "How common diseases are: all alike, or drawn.", one_of({"uniform", "drawn"}));
    v("table", table,
      "fixed: the same table for all, which the prompt does not show, so that the policy has to know it. drawn: a new "
      "one each time, shown in the prompt.",
      one_of({"fixed", "drawn"}));
    v("given", given, "The table itself, in the place of a generated one: a row a disease.");
    v("confidence", confidence,
      "The teacher asks at random until it believes one disease with this probability, or has asked all.",
      between(0, 1));
    v("held_out", held_out, "Prompts in the validation list and in the test list.", between(1, 1 << 20));
  }
};

// A given table or the fixed one. names, prior, and a question a finding.
QuestionTable table_of(const DiagnosisTask& task);
// The table of an example. Throws std::exception where its columns have none.
QuestionTable diagnosis_table(const std::string& columns);

// What a patient of the disease answers to a question: yes with its likelihood, a function of (seed, question), so that who asks again
// hears the same.
bool finding_of(const QuestionTable& table, size_t disease, size_t question, uint64_t seed);

}  // namespace isentrope::data
