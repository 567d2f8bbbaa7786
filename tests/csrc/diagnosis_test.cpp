#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <set>

#include "csrc/data/episodes.h"
#include "csrc/rl/environment_config.h"
#include "csrc/rl/question_game.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

// Three diseases, four findings; the two last depend on each other as diseases do.
data::DiagnosisTask clinic() {
  data::DiagnosisTask task;
  task.given = {{"a", 2, {0.9, 0.2, 0.8, 0.7}}, {"b", 1, {0.1, 0.5, 0.8, 0.75}}, {"c", 1, {0.5, 0.95, 0.1, 0.05}}};
  return task;
}

data::Example patient(const std::string& disease) {
  data::Stream stream(1, data::Purpose::example);
  data::Example example = clinic().draw(stream, nullptr);
  example.answer = disease;
  return example;
}

// P(disease, findings), [disease][pattern], each bit of the pattern a finding.
std::vector<std::vector<double>> joint_of(const data::QuestionTable& table) {
  std::vector<std::vector<double>> joint(table.names.size());
  for (size_t d = 0; d < joint.size(); ++d)
    for (size_t pattern = 0; pattern < size_t{1} << table.questions.size(); ++pattern) {
      double p = table.prior[d];
      for (size_t f = 0; f < table.questions.size(); ++f) p *= table.questions[f].likelihood(pattern >> f & 1)[d];
      joint[d].push_back(p);
    }
  return joint;
}

TEST(Diagnosis, TheBeliefIsBayes) {
  const data::QuestionTable table = data::table_of(clinic());
  EXPECT_EQ(table.names, (std::vector<std::string>{"a", "b", "c"}));
  const auto after = data::believe(table.prior, table.questions[0].yes);  // 0.45, 0.025, 0.125 of 0.6
  EXPECT_NEAR(after[0], 0.75, 1e-15);
  EXPECT_NEAR(after[1], 1.0 / 24, 1e-15);
  EXPECT_NEAR(after[2], 5.0 / 24, 1e-15);
  const auto episode = Diagnosis().make()->reset(patient("a"), 3, nullptr);
  const std::string heard = episode->step("?0\n").text;
  const double H = data::entropy_of(table.prior);
  EXPECT_NEAR(episode->scores.at("information_gain"),
              (H - data::entropy_of(data::believe(table.prior, table.questions[0].likelihood(heard == "y\n")))) / H,
              1e-14);
}

// Over all patients the gains of all questions add up to the mutual information of disease and findings, as the joint table has it; were the
// findings independent of each other, it would be the sum of their single informations, which is more.
TEST(Diagnosis, GainsAddUpToTheJointInformation) {
  const data::QuestionTable table = data::table_of(clinic());
  const auto joint = joint_of(table);
  double information = data::entropy_of(table.prior), realised = 0, expected = 0, single = 0;
  for (size_t pattern = 0; pattern < joint[0].size(); ++pattern) {
    double p = 0;
    std::vector<double> belief = table.prior, posterior;
    for (const auto& row : joint) p += row[pattern];
    for (const auto& row : joint) posterior.push_back(row[pattern] / p);
    information -= p * data::entropy_of(posterior);
    for (size_t f = 0; f < table.questions.size(); ++f) {
      expected += p * data::expected_gain(belief, table.questions[f]);
      const auto after = data::believe(belief, table.questions[f].likelihood(pattern >> f & 1));
      realised += p * (data::entropy_of(belief) - data::entropy_of(after));
      belief = after;
    }
    for (size_t d = 0; d < joint.size(); ++d) EXPECT_NEAR(belief[d], posterior[d], 1e-14);
  }
  for (const data::Question& question : table.questions) single += data::expected_gain(table.prior, question);
  EXPECT_NEAR(realised, information, 1e-14);
  EXPECT_NEAR(expected, information, 1e-14);
  EXPECT_GT(single, information + 0.1) << "findings that depend on each other tell less together";
}

TEST(Diagnosis, FindingsAreThePatients) {
  const auto environment = Diagnosis().make();
  const data::QuestionTable table = data::table_of(clinic());
  constexpr int kPatients = 2000;
  std::vector<double> yes(4), pairs(1);
  double right = 0;
  for (uint64_t seed = 0; seed < kPatients; ++seed) {
    const auto episode = environment->reset(patient("a"), seed, nullptr);
    std::vector<double> belief = table.prior;
    std::string all;
    for (size_t f = 0; f < 4; ++f) {
      const std::string question = "?" + std::to_string(f) + "\n", heard = episode->step(question).text;
      const double gained = episode->scores.at("information_gain");
      EXPECT_EQ(episode->step(question).text, heard) << "who asks again hears the same";
      EXPECT_EQ(episode->scores.at("information_gain"), gained) << "and learns nothing";
      yes[f] += heard == "y\n";
      all += heard;
      belief = data::believe(belief, table.questions[f].likelihood(heard == "y\n"));
    }
    pairs[0] += all.starts_with("y\nn\n");
    EXPECT_EQ(environment->reset(patient("a"), seed, nullptr)->step("?2\n").text, all.substr(4, 2))
        << "in any order, and for all of a group";
    EXPECT_TRUE(episode->step("!" + table.names[data::likeliest(belief)]).done);
    EXPECT_EQ(episode->scores.at("likeliest"), 1);
    EXPECT_EQ(episode->scores.at("turns"), 8);
    right += episode->scores.at("answer");
  }
  const auto near = [](double count, double p) {  // 4.5 standard errors
    EXPECT_NEAR(count / kPatients, p, 4.5 * std::sqrt(p * (1 - p) / kPatients));
  };
  for (size_t f = 0; f < 4; ++f) near(yes[f], table.questions[f].yes[0]);
  near(pairs[0], 0.9 * 0.8);
  double of_a = 0;  // share of the patients with a whom the best guess finds
  const auto joint = joint_of(table);
  for (size_t pattern = 0; pattern < 16; ++pattern)
    if (joint[0][pattern] > joint[1][pattern] && joint[0][pattern] > joint[2][pattern]) of_a += joint[0][pattern] / 0.5;
  near(right, of_a);
}

TEST(Diagnosis, ErrorsAndOtherGuesses) {
  const auto environment = Diagnosis().make();
  const auto episode = environment->reset(patient("b"), 1, nullptr);
  for (const char* wrong :
       {"?4\n", "?\n", "?-1\n", "?00\n", "?01\n", "? 1\n", "?1x\n", "?99999999999\n", "hello\n", "\n"}) {
    const Reply reply = episode->step(wrong);
    EXPECT_TRUE(reply.error) << wrong;
    EXPECT_EQ(reply.text, "e\n");
  }
  EXPECT_EQ(episode->scores.at("information_gain"), 0);
  EXPECT_TRUE(episode->step("!z").done);
  EXPECT_EQ(episode->scores.at("answer"), 0);
  EXPECT_EQ(episode->scores.at("likeliest"), 0);
  const auto other = environment->reset(patient("b"), 1, nullptr);
  other->step("!a\n");
  EXPECT_EQ(other->scores.at("likeliest"), 1) << "before any answer a is the commonest";
  expect_all(message([&] { environment->reset({":", "", "z", "{}"}, 1, nullptr); }), {"diagnosis", "data.episodes"});
  expect_all(message([&] {
               data::Example example = patient("b");
               example.answer = "z";
               environment->reset(example, 1, nullptr);
             }),
             {"no disease", "z"});
}

TEST(DiagnosisTask, GeneratorsDrawWhatTheySay) {
  const auto drawn = [](const std::string& generator) {
    data::DiagnosisTask task;
    task.diseases = 20;
    task.findings = 100;
    task.generator = generator;
    std::vector<double> all;
    for (const data::Question& question : data::table_of(task).questions)
      all.insert(all.end(), question.yes.begin(), question.yes.end());
    return all;
  };
  const auto below = [](const std::vector<double>& p, double x) {
    double count = 0;
    for (const double one : p) count += one < x;
    return count / static_cast<double>(p.size());
  };
  const double error = 4.5 * 0.5 / std::sqrt(2000.0);
  for (const double x : {0.105, 0.505, 0.805}) {
    EXPECT_NEAR(below(drawn("uniform"), x), x, error);
    EXPECT_NEAR(below(drawn("arcsine"), x), 2 / std::numbers::pi * std::asin(std::sqrt(x)), error);
  }
  const auto signs = drawn("signs");
  EXPECT_EQ(std::set<double>(signs.begin(), signs.end()), (std::set<double>{0.1, 0.9}));
  EXPECT_NEAR(below(signs, 0.5), 0.5, error);
}

TEST(DiagnosisTask, APromptShowsItsTable) {
  data::DiagnosisTask task;
  task.table = "drawn";
  task.prior = "drawn";
  task.diseases = 3;
  task.findings = 2;
  EXPECT_FALSE(task.few());
  for (uint64_t seed = 0; seed < 20; ++seed) {
    data::Stream stream(seed, data::Purpose::example);
    const data::Example example = task.draw(stream, nullptr);
    const data::QuestionTable table = data::diagnosis_table(example.columns);
    ASSERT_EQ(example.prompt.size(), 3 * 7 + 2 + 1u) << example.prompt;
    double sum = 0;
    for (size_t d = 0; d < 3; ++d) sum += std::stoi(example.prompt.substr(8 * d + 1, 2));
    for (size_t d = 0; d < 3; ++d) {
      EXPECT_EQ(example.prompt[8 * d], 'a' + static_cast<char>(d));
      EXPECT_NEAR(table.prior[d], std::stoi(example.prompt.substr(8 * d + 1, 2)) / sum, 1e-14);
      for (size_t f = 0; f < 2; ++f)
        EXPECT_NEAR(table.questions[f].yes[d], std::stoi(example.prompt.substr(8 * d + 3 + 2 * f, 2)) / 100.0, 1e-14);
    }
  }
}

// The teacher hears what patients of the disease answer, asks nothing twice, and names the likeliest when it is sure, or has asked all.
TEST(DiagnosisTask, TheTeacherIsSure) {
  data::DiagnosisTask task = clinic();
  const data::QuestionTable table = data::table_of(task);
  double heard = 0, yes_to_first = 0, asked_first = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    data::Stream stream(seed, data::Purpose::example), teacher(seed, data::Purpose::noise);
    const data::Example example = task.draw(stream, &teacher);
    std::vector<double> belief = table.prior;
    std::set<std::string> asked;
    for (size_t t = 0; t + 1 < example.turns.size(); t += 2) {
      EXPECT_LT(belief[data::likeliest(belief)], task.confidence);
      ASSERT_TRUE(example.turns[t].learnt && !example.turns[t + 1].learnt);
      EXPECT_TRUE(asked.insert(example.turns[t].text).second);
      const std::string& text = example.turns[t].text;
      const int64_t question = question_of(text.substr(0, text.size() - 1), 4);
      ASSERT_GE(question, 0);
      const bool answer = example.turns[t + 1].text == "y\n";
      belief = data::believe(belief, table.questions[question].likelihood(answer));
      if (question == 0 && example.answer == "a") ++asked_first, yes_to_first += answer;
    }
    EXPECT_TRUE(belief[data::likeliest(belief)] >= task.confidence || asked.size() == 4);
    EXPECT_EQ(example.completion, "!" + table.names[data::likeliest(belief)]);
    heard += example.answer == "a";
  }
  EXPECT_NEAR(heard / 3000, 0.5, 4.5 * 0.5 / std::sqrt(3000));
  EXPECT_NEAR(yes_to_first / asked_first, 0.9, 4.5 * std::sqrt(0.09 / asked_first));
}

TEST(DiagnosisTask, WhatIsGivenIsLookedAt) {
  const auto problem = [](const std::vector<data::DiseaseRow>& rows) {
    data::DiagnosisTask task;
    task.given = rows;
    return task.problem();
  };
  EXPECT_EQ(problem({}), "");
  EXPECT_EQ(clinic().problem(), "");
  expect_all(problem({{"a", 1, {0.5}}}), {"given", "two"});
  expect_all(problem({{"a", 1, {0.5}}, {"a", 1, {0.5}}}), {"given", "\"a\""});
  expect_all(problem({{"a", 1, {0.5}}, {"b", 1, {0.5, 0.5}}}), {"\"b\"", "2", "1"});
  expect_all(problem({{"a", 1, {}}, {"b", 1, {}}}), {"\"a\"", "0 findings"});
  expect_all(problem({{"", 1, {0.5}}, {"b", 1, {0.5}}}), {"name"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
