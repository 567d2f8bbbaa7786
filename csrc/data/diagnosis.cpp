#include "csrc/data/diagnosis.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <numeric>
#include <set>
#include <stdexcept>

#include "csrc/data/json_object.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Rows = std::vector<DiseaseRow>;

double in_hundredths(double p) { return std::clamp(std::round(100 * p), 1.0, 99.0) / 100; }

std::string two_digits(double p) {
  const int hundredths = static_cast<int>(std::round(100 * p));
  return {static_cast<char>('0' + hundredths / 10), static_cast<char>('0' + hundredths % 10)};
}

double draw_likelihood(const DiagnosisTask& task, Stream& stream) {
  const double u = stream.uniform();
  if (task.generator == "uniform") return in_hundredths(u);
  if (task.generator == "signs") return in_hundredths(u < task.present ? task.sensitivity : 1 - task.specificity);
  const double root = std::sin(u * std::numbers::pi / 2);
  return in_hundredths(root * root);
}

Rows draw_rows(const DiagnosisTask& task, Stream& stream) {
  Rows rows(static_cast<size_t>(task.diseases));
  std::vector<double> weight(rows.size(), 1.0);
  if (task.prior == "drawn")
    for (double& w : weight) w = -std::log(stream.uniform());
  const double sum = std::accumulate(weight.begin(), weight.end(), 0.0);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].name = std::string(1, static_cast<char>('a' + i));
    rows[i].prior = task.prior == "drawn" ? in_hundredths(weight[i] / sum) : 1;
    for (int64_t f = 0; f < task.findings; ++f) rows[i].findings.push_back(draw_likelihood(task, stream));
  }
  return rows;
}

Rows rows_of(const DiagnosisTask& task) {
  if (!task.given.empty()) return task.given;
  Stream stream(/*seed=*/0, Purpose::example, /*a=*/23);
  return draw_rows(task, stream);
}

QuestionTable table_of_rows(const Rows& rows) {
  QuestionTable table;
  double sum = 0;
  for (const DiseaseRow& row : rows) sum += row.prior;
  table.questions.resize(rows.front().findings.size());
  for (const DiseaseRow& row : rows) {
    table.names.push_back(row.name);
    table.prior.push_back(row.prior / sum);
    for (size_t f = 0; f < table.questions.size(); ++f) {
      table.questions[f].yes.push_back(row.findings[f]);
      table.questions[f].no.push_back(1 - row.findings[f]);
    }
  }
  return table;
}

size_t draw_from(const std::vector<double>& p, Stream& stream) {
  double u = stream.uniform();
  for (size_t i = 0; i + 1 < p.size(); ++i)
    if ((u -= p[i]) < 0) return i;
  return p.size() - 1;
}

}  // namespace

QuestionTable table_of(const DiagnosisTask& task) { return table_of_rows(rows_of(task)); }

QuestionTable diagnosis_table(const std::string& columns) {
  const auto object = parse_json_object(columns);
  Rows rows;
  for (const auto& [name, row] : object.at("diseases").items())
    rows.push_back({name, row.at("prior").get<double>(), row.at("findings").get<std::vector<double>>()});
  if (rows.empty()) throw std::invalid_argument("the table has no disease");
  for (const DiseaseRow& row : rows)
    if (row.findings.size() != rows.front().findings.size())
      throw std::invalid_argument("the disease " + isentrope::quoted(row.name) + " has " +
                                  std::to_string(row.findings.size()) + " findings, wanted " +
                                  std::to_string(rows.front().findings.size()));
  return table_of_rows(rows);
}

bool finding_of(const QuestionTable& table, size_t disease, size_t question, uint64_t seed) {
  return Stream(seed, Purpose::noise, question, /*b=*/23).uniform() < table.questions[question].yes[disease];
}

std::string DiagnosisTask::problem() const {
  if (given.empty()) return "";
  if (given.size() < 2) return "given: has one disease; wanted two at least";
  std::set<std::string> names;
  for (const DiseaseRow& row : given) {
    if (row.name.empty() || row.name.find_first_of("\n:") != std::string::npos)
      return "given: a disease is called " + isentrope::quoted(row.name) + "; wanted a name without a line feed or :";
    if (!names.insert(row.name).second) return "given: two diseases are called " + isentrope::quoted(row.name);
    if (row.findings.empty() || row.findings.size() != given.front().findings.size())
      return "given: the disease " + isentrope::quoted(row.name) + " has " + std::to_string(row.findings.size()) +
             " findings; wanted one at least, and as many as the first has, " +
             std::to_string(given.front().findings.size());
  }
  return "";
}

Example DiagnosisTask::draw(Stream& stream, Stream* teacher) const {
  const bool shown = !few();
  const Rows rows = shown ? draw_rows(*this, stream) : rows_of(*this);
  const QuestionTable all = table_of_rows(rows);
  const size_t hidden = draw_from(all.prior, stream);
  Example example{.prompt = "", .completion = "", .answer = all.names[hidden]};
  nlohmann::ordered_json columns;
  for (size_t i = 0; i < rows.size(); ++i) {
    columns["diseases"][rows[i].name] = {{"prior", rows[i].prior}, {"findings", rows[i].findings}};
    if (!shown) continue;
    if (i > 0) example.prompt += ';';
    example.prompt += rows[i].name;
    if (prior == "drawn") example.prompt += two_digits(rows[i].prior);
    for (const double p : rows[i].findings) example.prompt += two_digits(p);
  }
  example.prompt += ":";
  example.columns = columns.dump();
  if (teacher == nullptr) return example;
  std::vector<double> belief = all.prior;
  std::vector<size_t> open(all.questions.size());
  std::iota(open.begin(), open.end(), size_t{0});
  const uint64_t patient = teacher->bits();
  while (!open.empty() && belief[likeliest(belief)] < confidence) {
    const auto at = open.begin() + teacher->below(static_cast<uint32_t>(open.size()));
    const size_t asked = *at;
    open.erase(at);
    const bool answer = finding_of(all, hidden, asked, patient);
    example.turns.push_back({"?" + std::to_string(asked) + "\n", true});
    example.turns.push_back({answer ? "y\n" : "n\n", false});
    belief = believe(belief, all.questions[asked].likelihood(answer));
  }
  example.completion = "!" + all.names[likeliest(belief)];
  return example;
}

}  // namespace isentrope::data
