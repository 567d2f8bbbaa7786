// The shaped rewards against their published values, and what a step learns from the steps before it.
#include "csrc/methods/ares.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <limits>

#include "csrc/rl/reward_list.h"

namespace isentrope::methods {
namespace ISENTROPE_UNIT {

// The tokens that bind() finds for these triggers.
std::vector<bool> trigger_tokens(const std::vector<std::string>& triggers, const data::Tokenizer& tokenizer) {
  AresConfig config;
  config.triggers = triggers;
  rl::Shaping entry = config;
  rl::bind(entry, tokenizer);
  return entry.get<AresConfig>()->trigger;
}

constexpr Difficulty kAll[] = {kEasy, kMedium, kHard};

AresConfig with_form(const std::string& form, double alpha = 0.5) {
  AresConfig config;
  config.form = form;
  config.alpha = alpha;
  return config;
}

// ---- shaping --------------------------------------------------------------------------------------------------------

// Four decimals, trailing zeros left out, as the table prints them.
std::string printed(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4f", x);
  std::string s = text;
  while (s.back() == '0') s.pop_back();
  if (s.back() == '.') s.pop_back();
  return s;
}

TEST(AresShaping, ReleasedValues) {
  const double counts[] = {0, 5, 8, 10, 14, 20, 60};
  const struct {
    Difficulty difficulty;
    bool right;
    const char* totals[7];
  } rows[] = {{kEasy, true, {"1", "1", "1", "1", "0.7857", "0.5", "0.5"}},
              {kEasy, false, {"0.15", "0.15", "0.15", "0.15", "0.2332", "0.2958", "0.3"}},
              {kMedium, true, {"0.5", "0.9053", "1", "1", "0.9659", "0.5", "0.5"}},
              {kMedium, false, {"0.2", "0.2", "0.2", "0.2", "0.2583", "0.381", "0.4"}},
              {kHard, true, {"0.82", "0.9888", "1.3735", "1.4575", "1.5545", "1.5934", "1.6"}},
              {kHard, false, {"0.3", "0.3", "0.3", "0.3", "0.3249", "0.5383", "0.6"}}};
  for (const auto& row : rows)
    for (int k = 0; k < 7; ++k)
      EXPECT_EQ(printed(row.right + ares_shaping(with_form("released"), row.difficulty, row.right, counts[k], 10)),
                row.totals[k])
          << kDifficultyNames[row.difficulty] << (row.right ? " right, " : " wrong, ") << counts[k] << " high windows";
}

// The lowest right and the highest wrong reward of a difficulty, over numbers of high windows.
struct Range {
  double right = std::numeric_limits<double>::infinity(), wrong = -std::numeric_limits<double>::infinity();
};
Range range_of(const AresConfig& config, Difficulty d, double target) {
  Range range;
  for (double high = 0; high <= 4000; high += high < 100 ? 1 : 50) {
    range.right = std::min(range.right, 1 + ares_shaping(config, d, true, high, target));
    range.wrong = std::max(range.wrong, ares_shaping(config, d, false, high, target));
  }
  return range;
}

TEST(AresShaping, StrictKeepsRightAnswersAboveWrongOnes) {
  for (const double alpha : {0.0, 0.1, 0.5, 0.7, 0.83})
    for (const Difficulty d : kAll)
      for (const double target : {0.0, 0.3, 1.0, 7.7, 10.0, 55.0, 400.0}) {
        const AresConfig strict = with_form("strict", alpha);
        ASSERT_EQ(strict.problem(), "") << alpha;
        const Range range = range_of(strict, d, target);
        EXPECT_GT(range.right, range.wrong) << kDifficultyNames[d] << ", alpha " << alpha << ", target " << target;
        EXPECT_EQ(ares_shaping(strict, d, false, 0, target), 0) << kDifficultyNames[d] << ", target " << target;
        for (double high = 0; high < 100; ++high)  // the right branch is the released one
          EXPECT_EQ(ares_shaping(strict, d, true, high, target),
                    ares_shaping(with_form("released", alpha), d, true, high, target));
      }
  const Range released = range_of(with_form("released"), kHard, 100);
  EXPECT_LT(released.right, released.wrong) << "the released form inverts no order here, so strict has nothing to mend";
}

TEST(AresShaping, PaperChargesWrongAnswersForTheirDistance) {
  const AresConfig paper = with_form("paper");
  const double above[] = {3, 3, 0}, below[] = {0, 2, 2};
  for (const Difficulty d : kAll) {
    EXPECT_EQ(ares_shaping(paper, d, true, 13, 10, 0.25), 0);
    EXPECT_EQ(ares_shaping(paper, d, false, 13, 10, 0.25), -0.25 * above[d]);
    EXPECT_EQ(ares_shaping(paper, d, false, 8, 10, 0.25), -0.25 * below[d]);
  }
}

TEST(AresConfig, ProblemsAreNamed) {
  EXPECT_EQ(AresConfig{}.problem(), "");
  const auto problem = [](auto change) {
    AresConfig config;
    change(config);
    return config.problem();
  };
  EXPECT_NE(problem([](auto& c) { c.easy = 0.2; }).find("medium: "), std::string::npos);
  EXPECT_NE(problem([](auto& c) { c.form = "strict", c.alpha = 0.84; }).find("alpha: 0.84"), std::string::npos);
  EXPECT_NE(problem([](auto& c) { c.form = "paper", c.alpha_control = AresAlphaConfig{}; }).find("alpha_control: "),
            std::string::npos);
  EXPECT_NE(problem([](auto& c) { c.form = "strict", c.alpha_control = AresAlphaConfig{}; }).find("alpha_control.most"),
            std::string::npos);
  EXPECT_NE(problem([](auto& c) { c.alpha_control = AresAlphaConfig{.least = 0.6}; }).find("alpha: does not lie"),
            std::string::npos);
  EXPECT_NE(problem([](auto& c) { c.triggers = {"so", ""}; }).find("triggers: one is empty"), std::string::npos);
}

// ---- windows --------------------------------------------------------------------------------------------------------

TEST(AresWindows, MeansAndQuantiles) {
  const std::vector<float> entropy{1, 2, 3, 6, 0};
  EXPECT_EQ(window_means(entropy, 2), (std::vector<double>{1.5, 2.5, 4.5, 3}));
  EXPECT_EQ(window_means(entropy, 5), (std::vector<double>{2.4}));
  EXPECT_TRUE(window_means(entropy, 6).empty()) << "shorter than a window";
  EXPECT_TRUE(window_means({}, 1).empty());
  EXPECT_EQ(quantile({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_EQ(quantile({4, 1, 3, 2}, 0), 1);
  EXPECT_EQ(quantile({4, 1, 3, 2}, 1), 4);
  EXPECT_DOUBLE_EQ(quantile({0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 0.95), 8.55);
  EXPECT_EQ(quantile({7}, 0.95), 7);
}

TEST(AresWindows, FollowTheirTrigger) {
  const std::vector<double> means{5, 1, 5, 5, 4.99};  // 6 tokens, windows of 2
  EXPECT_EQ(counted_windows(means, 5, {}), (std::vector<int64_t>{0, 2, 3}))
      << "without triggers every high window counts";
  EXPECT_EQ(counted_windows(means, 5, {true, true, false, true, true, true}), (std::vector<int64_t>{2}))
      << "the window behind trigger 1; that behind 0 and behind 3 are low, none is behind 4 and 5";
  EXPECT_TRUE(counted_windows(means, 5, std::vector<bool>(6, false)).empty()) << "no trigger was drawn";
  EXPECT_TRUE(counted_windows({}, 0, {true}).empty());
}

TEST(AresWindows, TriggersAreTokens) {
  const data::Tokenizer characters({.characters = "ab=A:."}), bytes({.kind = "bytes"});
  const std::vector<bool> found = trigger_tokens({":", "a"}, characters);
  EXPECT_EQ(found, (std::vector<bool>{false, true, false, false, true, true, false})) << "a stands for A as well";
  const std::vector<bool> in_bytes = trigger_tokens({"z"}, bytes);
  EXPECT_TRUE(in_bytes['z' + 1] && in_bytes['Z' + 1] && std::count(in_bytes.begin(), in_bytes.end(), true) == 2);
  try {
    trigger_tokens({"=", "wait"}, characters);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("triggers: \"wait\" is no token"), std::string::npos) << e.what();
  }
}

TEST(AresWindows, DifficultyOfAGroup) {
  const AresConfig config;
  const auto of = [&](double right, double count) { return difficulty(right / count, config); };
  EXPECT_EQ(of(2, 3), kEasy);
  EXPECT_EQ(of(4, 6), kEasy);
  EXPECT_EQ(of(1, 3), kMedium);
  EXPECT_EQ(of(5, 8), kMedium);
  EXPECT_EQ(of(2, 8), kHard);
  EXPECT_EQ(of(0, 1), kHard);
}

// ---- steps ----------------------------------------------------------------------------------------------------------

// Completions of given entropies, with token ids of 0, 1 (the trigger), 0, 1, …
struct Texts {
  std::vector<std::vector<float>> entropy;
  std::vector<std::vector<int64_t>> tokens;
  std::vector<AresCompletion> completions;

  Texts(std::vector<std::vector<float>> entropies, const std::vector<bool>& right) : entropy(std::move(entropies)) {
    for (const auto& row : entropy) {
      tokens.emplace_back();
      for (size_t t = 0; t < row.size(); ++t) tokens.back().push_back(t % 2);
    }
    for (size_t i = 0; i < entropy.size(); ++i) completions.push_back({tokens[i], entropy[i], right[i]});
  }
};

AresConfig small(const std::string& form = "released") {
  AresConfig config = with_form(form);
  config.window = 2;
  config.threshold_decay = 0.5;
  config.target_decay = 0.5;
  return config;
}

TEST(Ares, ThresholdAndTargetsComeFromTheStepsBefore) {
  AresConfig config = small();
  config.quantile = 1;
  Ares ares(config);
  // One easy group; the largest windows are 3, 1 and 2, their median 2.
  const Texts first({{3, 3, 0, 0}, {1, 1, 1}, {2, 2, 2}}, {true, true, true});
  const AresStep a = ares.step(first.completions, {0, 3});
  EXPECT_EQ(a.stats.at("ares/threshold"), 2);
  EXPECT_EQ(a.stats.at("ares/high/easy"), 1) << "one window in the first, two in the third";
  EXPECT_EQ(a.stats.at("ares/target/easy"), 1);
  EXPECT_EQ(a.stats.at("ares/groups/easy"), 1);
  EXPECT_EQ(a.stats.count("ares/target/hard"), 0u);
  EXPECT_EQ(a.difficulty, (std::vector<Difficulty>{kEasy, kEasy, kEasy}));

  const Texts second({{6, 6, 6, 6}, {9, 9}}, {true, false});  // median 7.5, counts 3 and 1
  const AresStep b = ares.step(second.completions, {0, 1, 2});
  EXPECT_EQ(b.stats.at("ares/threshold"), 2) << "of the step before";
  EXPECT_EQ(b.stats.at("ares/target/easy"), 1);
  EXPECT_EQ(b.stats.at("ares/target/hard"), 1) << "the first hard group is its own target";
  EXPECT_EQ(b.stats.at("ares/high/easy"), 3);
  EXPECT_EQ(b.shaping[0], ares_shaping(config, kEasy, true, 3, 1));
  EXPECT_EQ(b.shaping[1], ares_shaping(config, kHard, false, 1, 1));
  EXPECT_EQ(b.stats.at("ares/shaping"), (b.shaping[0] + b.shaping[1]) / 2);

  const AresStep c = ares.step(first.completions, {0, 3});
  EXPECT_EQ(c.stats.at("ares/threshold"), 0.5 * 2 + 0.5 * 7.5);
  EXPECT_EQ(c.stats.at("ares/target/easy"), 0.5 * 1 + 0.5 * 3);
}

TEST(Ares, EdgesOfAStep) {
  AresConfig config = small();
  config.triggers = {"b"};
  config.trigger = {false, true};
  Ares ares(config);
  // Every completion shorter than a window: nothing counts, and no threshold is learnt.
  const AresStep none = ares.step(Texts({{5}, {}}, {true, false}).completions, {0, 1, 2});
  EXPECT_EQ(none.stats.at("ares/high/easy"), 0);
  EXPECT_TRUE(std::isinf(none.stats.at("ares/threshold")));
  const Texts text({{0, 0, 4, 4, 0, 0}}, {true});  // triggers at 1, 3, 5; the window behind 1 is the highest
  EXPECT_EQ(ares.step(text.completions, {0, 1}).stats.at("ares/high/easy"), 1);
  // Tokens without a trigger.
  Texts quiet({{0, 0, 4, 4, 0, 0}}, {true});
  std::fill(quiet.tokens[0].begin(), quiet.tokens[0].end(), 0);
  EXPECT_EQ(ares.step(quiet.completions, {0, 1}).stats.at("ares/high/easy"), 0);
  // No group, as where a filter left none; a difficulty without groups. Both leave targets alone.
  const std::vector<double> before = ares.state();
  const AresStep empty = ares.step({}, {0});
  EXPECT_TRUE(empty.shaping.empty() && empty.difficulty.empty() && empty.stats.empty());
  const auto same = [](const std::vector<double>& a, const std::vector<double>& b, size_t k) {
    return a[k] == b[k] || (std::isnan(a[k]) && std::isnan(b[k]));
  };
  for (size_t k = 0; k < before.size(); ++k) EXPECT_TRUE(same(before, ares.state(), k)) << k;
  ares.step(Texts({{0, 0, 4, 4}}, {false}).completions, {0, 1});
  EXPECT_TRUE(same(before, ares.state(), 1)) << "the target of easy groups";
  for (const auto& groups : std::vector<std::vector<int64_t>>{{}, {0}, {1, 1}, {0, 2}, {0, 0, 1}})
    EXPECT_THROW(ares.step(text.completions, groups), std::invalid_argument);
}

TEST(Ares, LambdaOfThePaperNeedsATargetFromBefore) {
  Ares ares(small("paper"));
  const Texts wrong({{1, 1, 1, 1}, {0, 0, 0, 0}, {0, 0, 9, 9}}, {false, false, true});  // a group of difficulty medium
  const AresStep first = ares.step(wrong.completions, {0, 3});
  EXPECT_EQ(first.shaping, (std::vector<double>{0, 0, 0})) << "the target is the mean of this very step";
  const Texts more({{9, 9, 9, 9}, {9, 9, 9}, {0, 0, 9, 9}}, {false, false, true});
  const AresStep second = ares.step(more.completions, {0, 3});
  const double target = second.stats.at("ares/target/medium"), mean = second.stats.at("ares/high/medium");
  ASSERT_GT(mean, target);
  EXPECT_LT(second.shaping[0], 0);
  EXPECT_EQ(second.shaping[2], 0) << "a right answer";
}

TEST(Ares, ControllerHoldsTheDivergence) {
  AresConfig config = small();
  config.kl = {.target = 0.01, .every = 2, .decay = 0.5, .error_decay = 0, .dead_zone = 0.02};
  Ares ares(config);
  const auto beta = [&](Difficulty d) { return ares.state()[2 + 4 * d]; };
  ares.measured(kHard, 0.05);
  EXPECT_EQ(beta(kHard), 1) << "one of two measurements";
  ares.measured(kHard, 0.05);
  EXPECT_DOUBLE_EQ(beta(kHard), std::exp(0.05 * 0.2)) << "error 4, clipped to 0.2";
  EXPECT_EQ(beta(kEasy), 1);
  for (int i = 0; i < 2; ++i) ares.measured(kEasy, 0.0101);
  EXPECT_EQ(beta(kEasy), 1) << "error 0.01, inside the dead zone";
  for (int i = 0; i < 2; ++i) ares.measured(kMedium, 0.009);
  EXPECT_DOUBLE_EQ(beta(kMedium), std::exp(0.05 * -0.1));
  for (int i = 0; i < 4000; ++i) ares.measured(kMedium, 0), ares.measured(kHard, 1);
  EXPECT_EQ(beta(kMedium), 1e-4);
  EXPECT_EQ(beta(kHard), 1e2);
}

// β after 100, 1000 and 3000 updates at a divergence that stays: of the published code, run on the same numbers, and of the
// controller without the mean of the error.
TEST(Ares, ControllerIsThePublishedOne) {
  struct Row {
    double kl;
    double published[3], plain[3];
  };
  const Row rows[] = {{0.011, {1.0002, 1.0076, 1.0546}, {1.0050, 1.0513, 1.1618}},
                      {0.02, {1.0015, 1.0721, 1.3094}, {1.0101, 1.1052, 1.3499}},
                      {0.005, {0.9993, 0.9630, 0.7960}, {0.9901, 0.9048, 0.7408}},
                      {0.1, {1.0101, 1.1052, 1.3499}, {1.0101, 1.1052, 1.3499}}};
  for (const Row& row : rows)
    for (const bool plain : {false, true}) {
      AresConfig config = small();
      config.kl = AresKlConfig{};
      if (plain) config.kl->error_decay = 0;
      Ares ares(config);
      const int ends[] = {100, 1000, 3000};
      int updates = 0;
      for (int k = 0; k < 3; ++k) {
        for (; updates < ends[k]; ++updates) ares.measured(kHard, row.kl);
        // The table has four decimals.
        EXPECT_NEAR(ares.state()[2 + 4 * kHard], (plain ? row.plain : row.published)[k], 0.51e-4)
            << "divergence " << row.kl << ", " << updates << " updates" << (plain ? ", error_decay 0" : "");
      }
    }
}

TEST(Ares, AStateWithoutErrorsIsTakenWhereTheyDoNotMatter) {
  AresConfig config = small();
  config.kl = AresKlConfig{.every = 1, .error_decay = 0};
  Ares plain(config);
  plain.measured(kHard, 0.05);
  std::vector<double> old = plain.state();
  old.resize(13);
  Ares resumed(config);
  resumed.restore(old);
  plain.measured(kHard, 0.05), resumed.measured(kHard, 0.05);
  EXPECT_EQ(resumed.state()[2 + 4 * kHard], plain.state()[2 + 4 * kHard]);
  Ares(small()).restore(old);
  config.kl->error_decay = 0.97;
  try {
    Ares(config).restore(old);
    ADD_FAILURE() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("ares.kl.error_decay=0"), std::string::npos) << error.what();
  }
}

// Two tokens are a window; the first step makes the targets. By hand: more windows than the target by 2 move alpha by 2 · rate, up of
// an easy prompt, down of a hard one, whose alpha stays above the least.
TEST(Ares, AlphaFollowsHowMuchIsExplored) {
  AresConfig config = small();
  config.window = 1, config.quantile = 0, config.threshold_decay = 1;
  config.alpha = 0.3;
  config.alpha_control = AresAlphaConfig{.rate = 0.1, .least = 0.15, .most = 2};
  Ares ares(config);
  const auto alpha = [&](Difficulty d) { return ares.state()[16 + d]; };
  const std::vector<float> none{1, 1}, more{1, 1, 1, 1};  // as many windows as tokens
  ares.step(Texts({none, none}, {true, false}).completions, {0, 1, 2});
  EXPECT_EQ(alpha(kEasy), 0.3) << "the first step is the target";
  EXPECT_EQ(alpha(kHard), 0.3);
  const AresStep step = ares.step(Texts({more, more}, {true, false}).completions, {0, 1, 2});
  EXPECT_EQ(step.stats.at("ares/alpha/easy"), 0.3) << "of this step, before it moves";
  EXPECT_DOUBLE_EQ(alpha(kEasy), 0.5);
  EXPECT_DOUBLE_EQ(alpha(kHard), 0.15);
  EXPECT_EQ(alpha(kMedium), 0.3) << "no such prompt";
  Ares resumed(config);
  resumed.restore(ares.state());
  EXPECT_EQ(resumed.state()[16], 0.5);
  EXPECT_EQ(resumed.state()[18], 0.15);
  const AresStep a = ares.step(Texts({none, more}, {true, true}).completions, {0, 1, 2}),
                 b = resumed.step(Texts({none, more}, {true, true}).completions, {0, 1, 2});
  EXPECT_EQ(a.shaping, b.shaping);
  EXPECT_THROW(resumed.restore(Ares(small()).state()), std::runtime_error);
  EXPECT_EQ(Ares(small()).state().size(), 16u) << "without it nothing more is kept";
}

TEST(Ares, WeightsOfTokens) {
  AresConfig config = small();
  config.kl = {.every = 1, .error_decay = 0, .inside = 0.25};
  config.quantile = 1;
  Ares ares(config);
  EXPECT_TRUE(Ares(small()).step(Texts({{1}}, {true}).completions, {0, 1}).kl_weight.empty()) << "no kl, no weights";
  const Texts text({{0, 5, 5, 0}, {1, 1, 1}}, {true, false});
  EXPECT_EQ(ares.step(text.completions, {0, 1, 2}).kl_weight,
            (std::vector<std::vector<float>>{{1, 0.25, 0.25, 1}, {1, 1, 1}}));
  ares.measured(kHard, 1);
  const float beta = static_cast<float>(std::exp(0.05 * 0.2));
  EXPECT_EQ(ares.step(text.completions, {0, 1, 2}).kl_weight[1], (std::vector<float>{beta, beta, beta}));
}

TEST(Ares, GoesOnFromItsState) {
  AresConfig config = small();
  config.kl = {.every = 3};
  Ares whole(config);
  const auto step = [](Ares& ares, int s) {
    std::vector<std::vector<float>> entropy;
    std::vector<bool> right;
    for (int i = 0; i < 6; ++i) {
      entropy.emplace_back();
      for (int t = 0; t < 9; ++t) entropy.back().push_back(static_cast<float>(std::abs(std::sin(s * 54 + i * 9 + t))));
      right.push_back((s + i) % 3 == 0 || i > 3);
    }
    const AresStep out = ares.step(Texts(entropy, right).completions, {0, 2, 4, 6});
    ares.measured(kHard, 0.003 * s);
    ares.measured(kEasy, 0.02);
    return out;
  };
  for (int s = 0; s < 4; ++s) step(whole, s);
  Ares resumed(config);
  resumed.restore(whole.state());
  for (int s = 4; s < 9; ++s) {
    const AresStep a = step(whole, s), b = step(resumed, s);
    EXPECT_EQ(a.shaping, b.shaping);
    EXPECT_EQ(a.kl_weight, b.kl_weight);
    EXPECT_EQ(a.stats, b.stats);
  }
  EXPECT_THROW(resumed.restore({1, 2}), std::runtime_error);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::methods
