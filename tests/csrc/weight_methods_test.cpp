// The weight methods as configuration: what every kind does with its defaults, and keys that contradict each other. Their values are
// tested in tests/python/test_methods_weight.py.
#include <gtest/gtest.h>

#include <set>

#include "csrc/methods/registry.h"

namespace isentrope::methods {
namespace ISENTROPE_UNIT {

Update update() {
  const auto of = [](std::vector<float> x) { return torch::tensor(x).view({2, 3}); };
  Update u;
  u.mask = torch::tensor({1, 1, 1, 1, 1, 0}).view({2, 3}) != 0;
  u.advantage = of({1, 1, 1, -.5, -.5, NAN});
  u.logprob = of({-.5, -2, -.1f, -1, -3, NAN});
  u.old_logprob = of({-.6f, -1.8f, -.1f, -1.1f, -2.5, NAN});
  u.entropy = of({.8f, 1.5, .3f, 1.1f, 2, NAN});
  u.old_entropy = of({.8f, 1.6f, .2f, 1.15f, 2.2f, NAN});
  u.attention_entropy = of({.5, .25, .75, .5, 1, NAN});
  u.sum_p2 = of({.5, .3f, .8f, .4f, .2f, NAN});
  u.sum_p2_logp = of({-.4f, -.5, -.1f, -.5, -.4f, NAN});
  u.old_sum_p2 = of({.4f, .3f, .7f, .5, .3f, NAN});
  return u;
}

TEST(WeightMethods, EveryKindAppliesWithItsDefaults) {
  const Update u = update();
  Tensor state;
  std::map<std::string, double> stats;
  Context context{state, stats};
  int kinds = 0;
  Weight::each([&]<class Method>(const Method& method) {
    SCOPED_TRACE(Method::kKind);
    ++kinds;
    if constexpr (std::is_base_of_v<OwnMethod, Method>) return;  // there is no operator without a name
    EXPECT_EQ(Weight(method).problem(), "");
    if constexpr (std::is_same_v<Method, Random>) {
      EXPECT_TRUE(method.choose(u.mask, u.mask, 7).equal(u.mask));  // all that count
    } else if constexpr (std::is_same_v<Method, Correction>) {
      EXPECT_THROW(method.apply(u, context), std::exception);  // nobody has rescored
    } else {
      if constexpr (requires { method.initial_state(); }) state = method.initial_state();
      const Weighted weighted = method.apply(u, context);
      EXPECT_EQ(weighted.factor.sizes(), u.mask.sizes());
      EXPECT_EQ(weighted.factor.scalar_type(), torch::kFloat);
      EXPECT_TRUE(weighted.factor.ge(0).all().template item<bool>());
      EXPECT_EQ(weighted.factor[1][2].template item<float>(), 0);
      if constexpr (std::is_base_of_v<DiscriminatorKeys, Method> ||
                    std::is_same_v<Method, EntropySft>)  // what it takes out is what has factor 0
        EXPECT_TRUE(weighted.removed.equal(u.mask & (weighted.factor == 0)));
      else
        EXPECT_FALSE(weighted.removed.defined());
    }
  });
  EXPECT_EQ(kinds, static_cast<int>(Weight::names().size()));
}

TEST(WeightMethods, AttentionEntropyThatIsNotThereIsAskedFor) {
  Update u = update();
  u.attention_entropy = Tensor();
  Tensor state;
  std::map<std::string, double> stats;
  Context context{state, stats};
  EXPECT_THROW(AttentionEntropy().apply(u, context), c10::ValueError);
}

TEST(WeightMethods, MomentsThatAreNotThereAreAskedFor) {
  Update u = update();
  u.sum_p2 = u.old_sum_p2 = Tensor();
  Tensor state;
  std::map<std::string, double> stats;
  Context context{state, stats};
  EXPECT_THROW(ClipV().apply(u, context), std::invalid_argument);
  EXPECT_THROW(DivergenceMask().apply(u, context), std::invalid_argument);
}

TEST(WeightMethods, DiscriminatorsTellWhatTheyTakeOut) {
  Update u = update();
  ClipB clip;
  clip.mu_low = 0.5;  // S = .182, −.068, .181; .037, −.050 of mean .056 and standard deviation .107
  Tensor state;
  std::map<std::string, double> stats;
  Context context{state, stats};
  const Weighted weighted = clip.apply(u, context);
  EXPECT_EQ(weighted.removed.sum().item<int64_t>(), 1);  // of the two tokens of negative advantage the rarer one
  EXPECT_TRUE(weighted.removed[1][1].item<bool>());
  EXPECT_DOUBLE_EQ(stats.at("clip_b/removed"), 0.2);
  EXPECT_GT(stats.at("clip_b/std"), 0);
}

struct Keys {
  std::set<std::string> names = {};
  template <class T>
  void operator()(const char* name, T&, const char* help, const Allowed& = {}) {
    EXPECT_TRUE(names.insert(name).second) << name;
    EXPECT_GT(std::string(help).size(), 10u) << name;
  }
};

TEST(WeightMethods, EveryKeyHasItsHelp) {
  Weight::each([&]<class Method>(Method method) {
    SCOPED_TRACE(Method::kKind);
    Keys keys;
    method.visit(keys);
    EXPECT_EQ(keys.names.empty(), (std::is_same_v<Method, Random>));
    EXPECT_GT(std::string(Method::kHelp).size(), 40u);
  });
}

TEST(WeightMethods, KeysThatContradictAreNamed) {
  SurprisalBand surprisal;
  surprisal.low = 4;
  EXPECT_EQ(surprisal.problem(), "low: 4.000000 is above high (3.000000)");
  EntropyRatioBand ratio;
  ratio.low = ratio.high;
  EXPECT_EQ(ratio.problem(), "low: 1.050000 is not below high (1.050000)");
  Steer steer;
  steer.low = 1.5;
  EXPECT_EQ(steer.problem(), "low: 1.500000 is above high (1.200000)");
  steer.form = "exponential";
  EXPECT_EQ(steer.problem(), "low: 1.500000 with form exponential; wanted 0.000001 to 1");
  Correction correction;
  correction.low = 3;
  EXPECT_EQ(correction.problem(), "low: 3.000000 is above high (2.000000)");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::methods
