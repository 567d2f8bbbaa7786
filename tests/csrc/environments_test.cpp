#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "csrc/data/episodes.h"
#include "csrc/data/facts.h"
#include "csrc/data/sequence.h"
#include "csrc/rl/environment_config.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

const double kBit = std::log(2.0);

// ant, bat, cod, dog, eel, fox, gnu, hen
const std::vector<std::string> kTable{"100010", "011000", "000101", "010000", "000111", "010010", "010100", "011100"};
const std::vector<double> kUniform(8, 1.0 / 8);

data::Example game(char object) {
  return {
      ":",
      "",
      {object},
      R"({"table":{"a":"100010","b":"011000","c":"000101","d":"010000","e":"000111","f":"010010","g":"010100","h":"011100"}})"};
}

// ---- twenty_questions -------------------------------------------------------------------------------------------------

TEST(TwentyQuestions, GainsOfTheFirstQuestion) {
  const double wanted[] = {0.543564, 0.954434, 0.811278, 1, 0.954434, 0.811278};
  for (int64_t a = 0; a < 6; ++a) EXPECT_NEAR(expected_gain(kUniform, kTable, a, 0) / kBit, wanted[a], 5e-7) << a;
  EXPECT_NEAR(entropy_of(kUniform), 3 * kBit, 1e-15);
}

// Were it a product of beliefs about single attributes, it would hold 2.07 bits that no question can take.
TEST(TwentyQuestions, TheBeliefIsJoint) {
  double marginal = 0;
  for (int64_t a = 0; a < 6; ++a) {
    double p = 0;
    for (const std::string& row : kTable) p += row[a] == '1' ? 1.0 / 8 : 0;
    marginal += entropy_of({p, 1 - p});
  }
  EXPECT_NEAR(marginal / kBit, 5.074989, 5e-7);
  const auto environment = TwentyQuestions().make();
  for (const char object : std::string("abcdefgh")) {  // all questions together take what the table holds, and no more
    const auto episode = environment->reset(game(object), 1, nullptr);
    for (char a = '0'; a < '6'; ++a) episode->step(std::string("?") + a + "\n");
    EXPECT_NEAR(episode->scores.at("information_gain"), 1, 1e-12);
  }
}

TEST(TwentyQuestions, AnUnlikelyAnswerMakesLessCertain) {
  std::vector<double> prior(8, 1.0 / 70);
  prior[0] = 0.9;
  EXPECT_NEAR(entropy_of(prior) / kBit, 0.749731, 5e-7);
  const std::vector<std::string> first{"1", "0", "0", "0", "0", "0", "0", "0"};
  const std::vector<double> after = believe(prior, first, 0, '0', 0);
  EXPECT_NEAR(entropy_of(after) / kBit, 2.807355, 5e-7);
  EXPECT_NEAR((entropy_of(prior) - entropy_of(after)) / kBit, -2.057624, 5e-7);
  EXPECT_GT(expected_gain(prior, first, 0, 0), 0);
  expect_all(message([&] { believe({1, 0}, {"1", "0"}, 0, '0', 0); }), {"no object is left"});
}

TEST(TwentyQuestions, AGame) {
  const auto environment = TwentyQuestions().make();
  const auto episode = environment->reset(game('g'), 1, nullptr);
  const std::pair<const char*, const char*> turns[] = {{"?3\n", "y\n"}, {"?1\n", "y\n"}, {"?2\n", "n\n"}};
  double gained = 0;
  for (const auto& [question, answer] : turns) {
    const Reply reply = episode->step(question);
    EXPECT_EQ(reply.text, answer);
    EXPECT_FALSE(reply.done || reply.error);
    EXPECT_NEAR(episode->scores.at("information_gain") - std::exchange(gained, episode->scores.at("information_gain")),
                1.0 / 3, 1e-12);
  }
  EXPECT_EQ(episode->step("?3\n").text, "y\n");
  EXPECT_NEAR(episode->scores.at("information_gain"), 1, 1e-12) << "a question asked again tells nothing";
  for (const char* wrong : {"?6\n", "3\n", "\n", "?33\n"}) {
    const Reply reply = episode->step(wrong);
    EXPECT_TRUE(reply.error) << wrong;
    EXPECT_EQ(reply.text, "e\n");
  }
  EXPECT_TRUE(episode->step("!g").done);
  EXPECT_EQ(
      episode->scores,
      (EnvironmentScores{{"answer", 1}, {"information_gain", episode->scores.at("information_gain")}, {"turns", 8}}));
  const auto other = environment->reset(game('g'), 1, nullptr);
  EXPECT_TRUE(other->step("!h").done);
  EXPECT_EQ(other->scores.at("answer"), 0);
  expect_all(message([&] {
               environment->reset({":", "", "z", "{}"}, 1, nullptr);
             }),
             {"twenty_questions", "data.episodes"});
}

// Most informative questions first, of equals the lowest: 3 questions, the fewest there are; drawn at random, 4.302.
TEST(TwentyQuestions, GreedyQuestionsAreTheFewest) {
  for (size_t object = 0; object < 8; ++object) {
    std::vector<double> belief = kUniform;
    int64_t turns = 0;
    while (entropy_of(belief) > 1e-9) {
      int64_t best = 0;
      double most = -1;
      for (int64_t a = 0; a < 6; ++a)
        if (const double gain = expected_gain(belief, kTable, a, 0); gain > most + 1e-9) best = a, most = gain;
      belief = believe(belief, kTable, best, kTable[object][best], 0);
      ++turns;
    }
    EXPECT_EQ(turns, 3) << object;
  }
}

TEST(TwentyQuestions, NoiseIsDrawnAndBelieved) {
  TwentyQuestions config;
  config.noise = 0.25;
  const auto environment = config.make();
  int64_t wrong = 0;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const auto episode = environment->reset(game('g'), seed, nullptr);
    const std::string heard = episode->step("?3\n").text;
    wrong += heard == "n\n";
    EXPECT_EQ(environment->reset(game('g'), seed, nullptr)->step("?3\n").text, heard);
  }
  EXPECT_GT(wrong, 60);
  EXPECT_LT(wrong, 140);
  // ½ and ½ seen through noise q: 1 − h(q) bits.
  EXPECT_NEAR(expected_gain({0.5, 0.5}, {"0", "1"}, 0, 0.25), kBit - entropy_of({0.25, 0.75}), 1e-12);
}

// ---- calculator -------------------------------------------------------------------------------------------------------

TEST(Calculator, CallsAreWorkedOut) {
  const auto environment = Calculator().make();
  const auto episode = environment->reset({"37*48-5=", "", "1771"}, 1, nullptr);
  EXPECT_EQ(episode->step("so [37*48-5]").text, "1771;");
  EXPECT_EQ(episode->step("[7/2]").text, "7/2;");
  EXPECT_EQ(episode->step("[3-5]").text, "-2;");
  for (const char* wrong : {"[37*]", "[]", "]", "[1/0]", "[99999999999*99999999999]", "[a]", "[1[2]]"}) {
    const Reply reply = episode->step(wrong);
    EXPECT_TRUE(reply.error) << wrong;
    EXPECT_FALSE(reply.done);
    EXPECT_EQ(reply.text, "?;");
  }
  EXPECT_TRUE(episode->step("A1771").done);
  EXPECT_EQ(episode->scores, (EnvironmentScores{{"answer", 1}, {"calls", 10}, {"errors", 7}}));
  const auto other = environment->reset({"1+1=", "", "2"}, 1, nullptr);
  EXPECT_TRUE(other->step("A12").done);
  EXPECT_EQ(other->scores.at("answer"), 0);
}

// ---- search -----------------------------------------------------------------------------------------------------------

const data::Example kAsked{"ba.c.k?", "", "ru", R"({"facts":["ba f do","wo k li","ba c do","do k ru","jo c wo"]})"};

TEST(Search, TheRetrieverCountsRareWords) {
  const std::vector<std::string> facts{"ba f do", "wo k li", "ba c do", "do k ru", "jo c wo"};
  EXPECT_EQ(data::Retriever(facts).best("ba c"), 2u);
  EXPECT_EQ(data::Retriever(facts).best("ba"), 0u) << "of equals the first";
  EXPECT_EQ(data::Retriever(facts).best("c c  ba"), 2u);
  EXPECT_EQ(data::Retriever(facts).best("li do"), 1u) << "one document has li, three have do";
  EXPECT_EQ(data::Retriever(facts).best("xx"), 5u);
  EXPECT_EQ(data::Retriever({}).best("xx"), 0u);
}

TEST(Search, TheIndexFindsWhatALookAtAllDocumentsFinds) {
  data::Stream stream(3, data::Purpose::example, 0);
  const auto word = [&] { return std::string(1, static_cast<char>('a' + stream.below(9))); };
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> documents;
    for (uint32_t i = stream.below(12); i > 0; --i) documents.push_back(word() + " " + word() + " " + word());
    const std::string query = word() + " " + word() + " " + word();
    std::set<std::string> asked;
    for (const std::string& one : data::terms_of(query)) asked.insert(one);
    const auto has = [](const std::string& document, const std::string& one) {
      const auto words = data::terms_of(document);
      return std::find(words.begin(), words.end(), one) != words.end();
    };
    size_t best = documents.size();
    double most = -1;
    for (size_t i = 0; i < documents.size(); ++i) {
      double score = 0;
      bool shares = false;
      for (const std::string& one : asked)
        if (has(documents[i], one)) {
          const auto having =
              std::count_if(documents.begin(), documents.end(), [&](const auto& d) { return has(d, one); });
          score += std::log(static_cast<double>(documents.size()) / static_cast<double>(having));
          shares = true;
        }
      if (shares && score > most) most = score, best = i;
    }
    EXPECT_EQ(data::Retriever(documents).best(query), best) << query;
  }
}

TEST(Search, AConversation) {
  const auto environment = Search().make();
  const auto episode = environment->reset(kAsked, 1, nullptr);
  EXPECT_EQ(episode->step("gba.c;qba\n").text, "ba f do\n");
  EXPECT_EQ(episode->step("r0gba.c;qba c\n").text, "ba c do\n");
  EXPECT_EQ(episode->step("r1gdo.k;qdo k\n").text, "do k ru\n");
  EXPECT_TRUE(episode->step("r1Aru").done);
  EXPECT_EQ(episode->scores, (EnvironmentScores{{"answer", 1},
                                                {"format", 1},
                                                {"goals", 1},
                                                {"reflect", 1},
                                                {"reflect_balanced", 1},
                                                {"search_r1", 1},
                                                {"searches", 3}}));
}

// Of three judgements two are true; weight 0.2 of the reflection beside Search-R1's scores.
TEST(Search, GoldenRewards) {
  const auto reward = [](std::initializer_list<const char*> last) {
    const auto episode = Search().make()->reset(kAsked, 1, nullptr);
    for (const char* turn : {"gba.c;qba\n", "r1gba.c;qba c\n", "r1gdo.k;qdo k\n"}) episode->step(turn);
    for (const char* turn : last) episode->step(turn);
    EXPECT_NEAR(episode->scores.at("reflect"), 2.0 / 3, 1e-12);
    return episode->scores.at("search_r1") + 0.2 * episode->scores.at("reflect");
  };
  EXPECT_NEAR(reward({"r1Aru"}), 1.133333, 5e-7);
  EXPECT_NEAR(reward({"r1Ali"}), 0.333333, 5e-7);
  const auto invalid = [](const char* answer) {  // four facts, the last without a judgement
    const auto episode = Search().make()->reset(kAsked, 1, nullptr);
    for (const char* turn : {"gba.c;qba\n", "r1gba.c;qba c\n", "r1gdo.k;qdo k\n", "r1gdo.k;qdo k\n", answer})
      episode->step(turn);
    return episode->scores.at("search_r1") + 0.2 * episode->scores.at("reflect");
  };
  EXPECT_NEAR(invalid("Aru"), 0.933333, 5e-7);
  EXPECT_NEAR(invalid("Ali"), 0.233333, 5e-7);
}

// Who always says True has the base rate, and half of the balanced one.
TEST(Search, AConstantJudgementIsBalancedAway) {
  const auto episode = Search().make()->reset(kAsked, 1, nullptr);
  for (const char* turn : {"gba.c;qba\n", "r1gba.c;qba c\n", "r1gdo.k;qdo k\n", "r1gjo.c;qjo c\n", "r1Aru"})
    episode->step(turn);
  EXPECT_EQ(episode->scores.at("reflect"), 0.75);
  EXPECT_EQ(episode->scores.at("reflect_balanced"), 0.5);
  EXPECT_EQ(episode->scores.at("goals"), 0.75) << "jo.c is not on the chain of the question";
}

TEST(Search, ErrorsAndEmptyResults) {
  const auto episode = Search().make()->reset(kAsked, 1, nullptr);
  for (const char* wrong : {"hello\n", "g.c;qba\n", "gba;qba\n", "\n"})
    EXPECT_TRUE(episode->step(wrong).error) << wrong;
  EXPECT_EQ(episode->step("gba.c;qnothing\n").text, "-\n");
  EXPECT_TRUE(episode->step("r0Aru").done);
  EXPECT_EQ(episode->scores.at("answer"), 1);
  EXPECT_EQ(episode->scores.at("format"), 0);
  EXPECT_EQ(episode->scores.at("search_r1"), 0.8);
  expect_all(message([] {
               Search().make()->reset({"ba.c?", "", "x", "[]"}, 1, nullptr);
             }),
             {"search", "data.episodes"});
}

TEST(Search, PerturbsWhatTheEngineGets) {
  const std::vector<std::string> facts{"ba c do", "do k ru"};
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(data::terms_of(perturbed("ba c", "delete", facts, seed, 1)).size(), 1u);
    EXPECT_EQ(data::terms_of(perturbed("ba c", "add", facts, seed, 1)).size(), 3u);
    EXPECT_EQ(data::terms_of(perturbed("ba c", "replace", facts, seed, 1)).size(), 2u);
    EXPECT_EQ(perturbed("ba c", "add", facts, seed, 1), perturbed("ba c", "add", facts, seed, 1));
  }
  EXPECT_EQ(perturbed("", "delete", facts, 1, 1), "");
  Search config;
  config.perturb = {.operations = {"delete"}, .probability = 1, .search = 2};
  const auto environment = config.make();
  int64_t lost = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto episode = environment->reset(kAsked, seed, nullptr);
    EXPECT_EQ(episode->step("gba.c;qba c\n").text, "ba c do\n") << "the first is left alone";
    lost += episode->step("r1gdo.k;qdo k\n").text != "do k ru\n";
  }
  EXPECT_EQ(lost, 50) << "one word of the two is not enough in these facts";
}

// ---- data.episodes ----------------------------------------------------------------------------------------------------

std::vector<data::EpisodesConfig> all_tasks() {
  data::TwentyQuestionsTask drawn;
  drawn.table = "drawn";
  data::DiagnosisTask shown;
  shown.table = "drawn";
  return {data::TwentyQuestionsTask(), drawn, data::CalculatorTask(), data::SearchTask(),
          data::DiagnosisTask(),       shown, data::InterpreterTask()};
}

EnvironmentConfig environment_of(const data::EpisodesConfig& task) {
  EnvironmentConfig config;
  EXPECT_TRUE(config.choose(task.kind())) << task.kind();
  return config;
}

// What the teacher hears is what the environment says, and it is taught what it says alone.
TEST(Episodes, TheTeacherTalksWithTheEnvironment) {
  const data::Tokenizer tokenizer(
      data::TokenizerConfig{.characters = "\n0123456789abcdefghijklmnopqrstuvwxyzA.:;?![]*+-= (),>$"});
  for (const auto& task : all_tasks()) {
    const auto environment = std::visit([](const auto& kind) { return kind.make(); }, environment_of(task).value);
    const data::Use learnt{.tokenizer = &tokenizer, .context = 1024, .learnt = true};
    const data::Episodes taught(task, 7, data::Split::train, &learnt), asked(task, 7, data::Split::train);
    const auto with = taught.take(0, 200), without = asked.take(0, 200);
    double right = 0, turns = 0;
    for (size_t i = 0; i < with.size(); ++i) {
      const data::Example& example = with[i];
      EXPECT_EQ(example.columns, without[i].columns);
      EXPECT_TRUE(without[i].turns.empty() && without[i].completion.empty());
      const auto episode = environment->reset(example, 1, nullptr);
      std::string said;
      for (size_t t = 1; t + 1 < example.turns.size(); t += 2) {
        ASSERT_TRUE(example.turns[t].learnt && !example.turns[t + 1].learnt);
        const std::string heard = episode->step(example.turns[t].text).text;
        if (task.kind() != "diagnosis")  // its patients are the environment's own (diagnosis_test.cpp)
          EXPECT_EQ(heard, example.turns[t + 1].text) << task.kind();
        said += example.turns[t].text;
        ++turns;
      }
      EXPECT_TRUE(episode->step(example.completion).done);
      right += episode->scores.at("answer");
      const data::Sequence sequence = data::sequence_of(example, tokenizer);
      std::vector<int64_t> own;
      for (size_t t = 0; t < sequence.ids.size(); ++t)
        if (sequence.learnt[t]) own.push_back(sequence.ids[t]);
      EXPECT_EQ(tokenizer.decode(own), said + example.completion + "$");
    }
    if (task.kind() == "calculator" || task.kind() == "interpreter")
      EXPECT_GT(right, 150);  // a share of those that answer without a call is wrong
    else if (task.kind() == "diagnosis")
      EXPECT_GT(right, 120);  // who is 90 % sure is wrong now and then
    else
      EXPECT_EQ(right, 200) << task.kind();
    EXPECT_GT(turns, 100);
  }
}

// An endless stream is looked at in its beginning alone, so that its conversations must not grow by chance: those of
// configs/environments/search.yaml stay below its context of 160.
TEST(Episodes, ConversationsOfASearchAreBounded) {
  const data::Tokenizer tokenizer(data::TokenizerConfig{.characters = "\n abcdefghijklmnopqrstuvwxyzA01.;?-$"});
  const data::Use learnt{.tokenizer = &tokenizer, .context = 160, .learnt = true};
  const data::Episodes taught(data::SearchTask{.distractors = 4, .failed = 0.9}, 1, data::Split::train, &learnt);
  size_t longest = 0;
  for (const data::Example& example : taught.take(0, 3000))
    longest = std::max(longest, data::sequence_of(example, tokenizer).ids.size());
  EXPECT_LE(longest, 150u);
  EXPECT_GT(longest, 130u) << "some queries fail twice for both facts";
}

TEST(Episodes, SplitsAreApartAndFixed) {
  for (const auto& task : all_tasks()) {
    std::map<std::string, std::set<data::Split>> where;
    for (const data::Split split : {data::Split::train, data::Split::validation, data::Split::test}) {
      const data::Episodes source(task, 3, split), other(task, 4, split);
      EXPECT_EQ(source.size(), split == data::Split::train ? 0 : 256);
      const auto all = source.take(0, 300), more = source.take(100, 3), seeded = other.take(0, 300);
      for (size_t i = 0; i < 3; ++i) EXPECT_EQ(all[100 + i].columns, more[i].columns);
      bool same = true;
      for (size_t i = 0; i < all.size(); ++i) {
        where[all[i].prompt + all[i].columns].insert(split);
        same = same && all[i].columns == seeded[i].columns && all[i].answer == seeded[i].answer &&
               all[i].prompt == seeded[i].prompt;
      }
      EXPECT_EQ(same, split != data::Split::train) << task.kind();
    }
    const bool few = std::visit([](const auto& kind) { return kind.few(); }, task.value);
    for (const auto& [prompt, splits] : where) EXPECT_EQ(splits.size(), few ? 3u : 1u) << prompt;
  }
  expect_all(
      message([] { data::Episodes(data::TwentyQuestionsTask{.objects = 9, .attributes = 3}, 1, data::Split::train); }),
      {"twenty_questions", "attributes", "9"});
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl
