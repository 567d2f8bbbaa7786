// What weighs the tokens of an update: controllers the entropy bonus, the choice of an sft phase, a second set of completions. Against
// autograd on the same model, however the update is cut.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "csrc/train/objective.h"
#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;

// A weighted bonus by autograd on the same model: the gradient of −coef · mean of weight · entropy.
TEST(WeightedObjective, WeightedBonusesHaveTheirGradientHoweverTheUpdateIsCut) {
  data::Batch update = update_of();
  update.hard = torch::tensor({true, false, true, false, false, true});
  const Tensor mask = update.target != data::kIgnore;
  ObjectiveConfig plain = grpo("clip");
  plain.entropy = {};
  const Outcome without = run(plain, 0, update);
  const auto weights = [&](const ops::TokenEntropy& seen) {
    return std::vector<Tensor>{methods::tea(seen.logprob.detach(), update.advantage, mask, 4, 2),
                               methods::ceeh_entropy(update.hard, mask, 5)};
  };
  const std::vector<std::pair<methods::EntropyControl, methods::EntropyControl>> controls{
      {methods::Tea{.coef = 0.5, .alpha = 4, .most = 2}, methods::Tea{.coef = 0}},
      {methods::CeehEntropy{.coef = 0.5}, methods::CeehEntropy{.coef = 0}}};
  for (size_t i = 0; i < controls.size(); ++i) {
    const auto& [control, off] = controls[i];
    ObjectiveConfig held = plain, nothing = plain;
    held.entropy = control, nothing.entropy = off;
    const Outcome with = run(held, 0, update);
    for (const int64_t micro_tokens : {11, 25}) expect_same(with, run(held, micro_tokens, update), control.kind());
    EXPECT_EQ(with.stats.at("entropy_coef"), 0.5);
    const Outcome none = run(nothing, 0, update);
    for (size_t p = 0; p < none.gradient.size(); ++p)
      EXPECT_TRUE(torch::equal(none.gradient[p], without.gradient[p])) << control.kind() << " coef 0, parameter " << p;

    model::Decoder model = small_model();
    const auto seen = model->token_entropy(update.tokens, update.target);
    (-0.5 * (weights(seen)[i] * seen.entropy).sum() / mask.sum()).backward();
    for (size_t p = 0; p < with.gradient.size(); ++p)
      EXPECT_TRUE(torch::allclose(with.gradient[p] - without.gradient[p], model->parameters()[p].grad(), 1e-3, 1e-5))
          << control.kind() << " parameter " << p;
  }
}

// Tokens a pass: rows of 11 tokens, so that the six make 2 micro-batches, and five of them 5.
constexpr std::pair<int64_t, int64_t> kCuts[] = {{6, 33}, {5, 11}};

TEST(WeightedObjective, EveryWeightIsOfTheWholeUpdateHoweverItIsCut) {
  data::Batch update = update_of();
  const Tensor mask = update.target != data::kIgnore;
  model::Decoder model = small_model();
  const auto seen = model->token_entropy(update.tokens, update.target);
  torch::manual_seed(11);
  update.old_entropy = (seen.entropy.detach() * (0.8 + 0.4 * torch::rand({6, 11}))).masked_fill(~mask, 0);
  update.rescored = (update.old_logprob + 0.5 * torch::randn({6, 11})).masked_fill(~mask, 0);
  for (const methods::Weight& one : std::vector<methods::Weight>{
           methods::Steer{.low = 0.5}, methods::Stare{.target = 5, .fraction = 0.3, .up = 2, .down = 0.5},
           methods::AttentionEntropy{.coef = -3}, methods::RandomTokens{.fraction = 0.4},
           methods::SoftWindow{.window = 3}, methods::SurprisalBand{.low = 0.5, .high = 1.2},
           methods::EntropyRatioBand{.low = 0.9, .high = 1.1}, methods::Correction{.high = 1.2},
           methods::Correction{.level = "geometric", .mode = "reject", .low = 0.9, .high = 1.1}}) {
    for (const auto& [rows, micro_tokens] : kCuts) {
      const data::Batch part = update.rows(0, rows);
      expect_same(run(grpo("clip"), 0, part, {one}), run(grpo("clip"), micro_tokens, part, {one}), one.kind());
    }
    EXPECT_FALSE(torch::allclose(run(grpo("clip"), 0, update, {one}).gradient[0],
                                 run(grpo("clip"), 0, update).gradient[0], 1e-4, 1e-6))
        << one.kind() << ": nothing was weighted";
  }
}

// The second of two updates, by what a controller has seen of the first.
TEST(WeightedObjective, ControllersSeeTheWholeUpdateHoweverItIsCut) {
  const data::Batch all = update_of();
  const auto second = [](const ObjectiveConfig& config, int64_t micro_tokens, const data::Batch& update) {
    model::Decoder model = small_model();
    const auto objective =
        make_objective(config, {.micro_tokens = micro_tokens}, model, 1.0, std::nullopt, std::make_shared<Ranks>(), {});
    objective->backward(model, update, 5, nullptr);
    for (const Tensor& parameter : model->parameters()) parameter.mutable_grad() = Tensor();
    Outcome out{objective->backward(model, update, 6, nullptr), {}};
    for (const Tensor& parameter : model->parameters()) out.gradient.push_back(parameter.grad().clone());
    return out;
  };
  ObjectiveConfig plain = grpo("clip");
  plain.entropy = {};
  for (const methods::EntropyControl& one : std::vector<methods::EntropyControl>{
           methods::EntroPic{.target = 0.3, .proportional = 0.1}, methods::EntropyBand{.from = {9, 10}, .to = {9, 10}},
           methods::AdaptiveEntropy{.target = 9, .coef = 0.1, .delta = 0.3}, methods::ConstantEntropy{.coef = 0.3},
           methods::ScheduledEntropy{.from = 0.3}, methods::TableOfEntropy{.coefs = {0.3}}}) {
    ObjectiveConfig held = plain;
    held.entropy = one;
    for (const auto& [rows, micro_tokens] : kCuts) {
      const data::Batch part = all.rows(0, rows);
      expect_same(second(held, 0, part), second(held, micro_tokens, part), one.kind());
    }
    EXPECT_FALSE(torch::allclose(second(held, 0, all).gradient[0], second(plain, 0, all).gradient[0], 1e-4, 1e-6))
        << one.kind() << ": its coefficient moves no gradient";
  }
  // Coefficients at which nothing changes, bit for bit.
  for (const methods::EntropyControl& one : std::vector<methods::EntropyControl>{
           methods::EntroPic{.target = 0.3, .proportional = 0, .integral = 0},
           methods::EntropyBand{.from = {0, 99}, .to = {0, 99}}, methods::AdaptiveEntropy{.target = 1e-9, .coef = 0.1},
           methods::ConstantEntropy{.coef = 0}, methods::ScheduledEntropy{.from = 0},
           methods::TableOfEntropy{.coefs = {0}}}) {
    ObjectiveConfig held = plain;
    held.entropy = one;
    const Outcome with = second(held, 0, all), without = second(plain, 0, all);
    for (size_t p = 0; p < with.gradient.size(); ++p)
      EXPECT_TRUE(torch::equal(with.gradient[p], without.gradient[p])) << one.kind() << " parameter " << p;
  }
}

// A list: its bonuses add up and its factors of advantages multiply, whatever the cut; alone an entry is what it was.
TEST(WeightedObjective, ControllersOfAListAddUpHoweverTheUpdateIsCut) {
  const data::Batch update = update_of();
  const Tensor mask = update.target != data::kIgnore;
  ObjectiveConfig plain = grpo("clip"), several = plain, one = plain;
  plain.entropy = {};
  one.entropy = methods::Tea{.coef = 0.5, .alpha = 4, .most = 2};
  several.entropy = {methods::ConstantEntropy{.coef = 0.1}, methods::Tea{.coef = 0.5, .alpha = 4, .most = 2},
                     methods::TableOfEntropy{.coefs = {0.2}}};
  const Outcome without = run(plain, 0, update), with = run(several, 0, update);
  for (const int64_t micro_tokens : {11, 25}) expect_same(with, run(several, micro_tokens, update), "list");
  EXPECT_NEAR(with.stats.at("entropy_coef"), 0.8, 1e-12);
  model::Decoder model = small_model();
  const auto seen = model->token_entropy(update.tokens, update.target);
  const Tensor weight = 0.3 + 0.5 * methods::tea(seen.logprob.detach(), update.advantage, mask, 4, 2);
  (-(weight * seen.entropy).masked_select(mask).sum() / mask.sum()).backward();
  for (size_t p = 0; p < with.gradient.size(); ++p)
    EXPECT_TRUE(torch::allclose(with.gradient[p] - without.gradient[p], model->parameters()[p].grad(), 1e-3, 1e-5))
        << "parameter " << p;
  ObjectiveConfig alone = one;
  alone.entropy = {methods::Tea{.coef = 0.5, .alpha = 4, .most = 2}, methods::ConstantEntropy{.coef = 0}};
  const Outcome a = run(one, 0, update), b = run(alone, 0, update);
  for (size_t p = 0; p < a.gradient.size(); ++p)
    EXPECT_TRUE(torch::equal(a.gradient[p], b.gradient[p])) << "beside a coefficient of 0, parameter " << p;

  const auto coefficients = [](const std::vector<methods::EntropyControl>& list) {
    methods::Chain<methods::EntropyControl> chain(list);
    chain.observe({{"entropy/mean", 0.5}});
    methods::Control control;
    methods::set(chain, 3, control);
    return std::vector<double>{control.entropy_coef, control.positive, control.negative};
  };
  const methods::EntroPic pi{.target = 0.3, .proportional = 1, .integral = 0};
  EXPECT_EQ(coefficients({pi, methods::ConstantEntropy{.coef = 0.2}, pi}),
            (std::vector<double>{0.2, (1 + 0.2) * (1 + 0.2), (1 - 0.2) * (1 - 0.2)}));
}

// The keys of an objective that set something from step to step keep their names in checkpoints.
TEST(WeightedObjective, AKeyAloneHasItsStateUnderItsName) {
  using Chain = methods::Chain<methods::ObjectiveControl>;
  Chain chain({methods::RefKlControl{.coef = 0.1, .control = {.target = 0.01, .horizon = 2}},
               methods::InnerPolicy{.layer = 1, .steps = 3}});
  EXPECT_EQ(chain.observe({{"ref_kl/k3", 0.02}}), (std::map<std::string, double>{{"ref_kl_coef", 0.1}}));
  EXPECT_TRUE(chain.observe({}).empty());
  std::map<std::string, Tensor> state;
  chain.save("objective", state);
  ASSERT_EQ(state.size(), 1u);
  EXPECT_EQ(state.begin()->first, "objective.ref_kl_control");
  EXPECT_NEAR(state.begin()->second.item<double>(), 0.11, 1e-12);
  const auto set = [](Chain& of, int64_t step) {
    methods::Control control;
    methods::set(of, step, control);
    return control;
  };
  Chain resumed(chain.entries()), anew(chain.entries());
  resumed.restore("objective", state);
  anew.restore("objective", {});  // of a phase that had no such key
  EXPECT_NEAR(*set(resumed, 2).ref_kl_coef, 0.11, 1e-12);
  EXPECT_EQ(*set(anew, 2).ref_kl_coef, 0.1);
  EXPECT_EQ(set(anew, 2).layer, 1);
  EXPECT_EQ(set(anew, 3).layer, std::nullopt);
}

// Entropy-SFT: the mean cross-entropy of the tokens that are kept, as of an update without the others.
TEST(WeightedObjective, TheChoiceOfAnSftPhaseIsNotThereHoweverTheUpdateIsCut) {
  data::Batch update = update_of();
  const Tensor mask = update.target != data::kIgnore;
  const methods::EntropySft choice{.fraction = 0.5, .lambda_entropy = 0.7};
  const Outcome chosen = run({}, 0, update, {choice}), plain = run({}, 0, update);
  for (const int64_t micro_tokens : {11, 25}) expect_same(chosen, run({}, micro_tokens, update, {choice}), "cut");
  const double tokens = plain.stats.at("tokens");
  EXPECT_EQ(chosen.stats.at("tokens"), tokens);
  EXPECT_NEAR(chosen.stats.at("weight/removed"), 1 - std::floor(0.5 * tokens) / tokens, 1e-12);
  EXPECT_NEAR(chosen.stats.at("loss/all"), plain.stats.at("loss"), 1e-5);
  EXPECT_EQ(chosen.stats.at("entropy/mean"), plain.stats.at("entropy/mean"));
  EXPECT_GT(chosen.stats.at("loss"), plain.stats.at("loss"));

  model::Decoder model = small_model();
  const auto seen = model->token_entropy(update.tokens, update.target);
  const Tensor gone = methods::entropy_sft(seen.logprob.detach(), seen.entropy.detach(), mask, 0.5, 0.7);
  EXPECT_NEAR(chosen.stats.at("weight/entropy"),
              seen.entropy.masked_select(mask.logical_and(gone.logical_not())).mean().item<double>(), 1e-5);
  data::Batch rest = update;
  rest.target = update.target.masked_fill(gone, data::kIgnore);
  const Outcome absent = run({}, 0, rest);
  EXPECT_NEAR(absent.stats.at("loss"), chosen.stats.at("loss"), 1e-5);
  for (size_t i = 0; i < chosen.gradient.size(); ++i)
    EXPECT_TRUE(torch::allclose(chosen.gradient[i], absent.gradient[i], 1e-4, 1e-6)) << i;

  const Outcome all = run({}, 0, update, {methods::EntropySft{.fraction = 1}});
  EXPECT_EQ(all.stats.at("loss"), plain.stats.at("loss"));
  for (size_t i = 0; i < all.gradient.size(); ++i) EXPECT_TRUE(torch::equal(all.gradient[i], plain.gradient[i])) << i;
  const Outcome soft = run({}, 0, update, {methods::TopEntropy{.fraction = 0.5}});  // keeps its place in denominators
  EXPECT_LT(soft.stats.at("loss"), plain.stats.at("loss"));
}

// A second set (rollout.tempered) adds − mean over its tokens of advantage · log-probability, and nothing else of it is told.
TEST(WeightedObjective, ASecondSetTeachesByItsLogProbabilityHoweverTheUpdateIsCut) {
  data::Batch update = update_of(), second = update_of().rows(0, 5);
  second.advantage = torch::where(second.target != data::kIgnore, 0.3f, 0.0f);
  const Outcome without = run(grpo("clip"), 0, update);
  update.second = std::make_shared<const data::Batch>(second);
  const Outcome with = run(grpo("clip"), 0, update);
  for (const int64_t micro_tokens : {11, 25}) expect_same(with, run(grpo("clip"), micro_tokens, update), "cut");
  model::Decoder model = small_model();
  const Tensor logprob = model->token_entropy(second.tokens, second.target).logprob;
  const Tensor term = -(second.advantage * logprob).sum() / (second.target != data::kIgnore).sum();
  term.backward();
  EXPECT_NEAR(with.stats.at("loss"), without.stats.at("loss") + term.item<double>(), 1e-5);
  for (const auto& [name, value] : without.stats)
    if (name != "loss") EXPECT_EQ(with.stats.at(name), value) << name;
  for (size_t i = 0; i < with.gradient.size(); ++i)
    EXPECT_TRUE(torch::allclose(with.gradient[i] - without.gradient[i], model->parameters()[i].grad(), 1e-3, 1e-5))
        << i;
  EXPECT_FALSE(update.rows(0, 2).second);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
