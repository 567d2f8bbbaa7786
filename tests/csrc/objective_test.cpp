// Gradient and statistics of an update: however it is cut, and where nothing counts.
#include "csrc/train/objective.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "csrc/data/collate.h"
#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;

// Rows of an update, and tokens a pass: rows of 11 tokens, so that the six make 2, 3 and 6 micro-batches, and five of them 5.
constexpr std::pair<int64_t, int64_t> kCuts[] = {{6, 33}, {6, 25}, {6, 11}, {5, 11}};

TEST(Objective, DoesNotDependOnHowAnUpdateIsCut) {
  const data::Batch update = update_of();
  for (const char* loss : {"clip", "clip_higher", "clip_cov", "kl_cov", "gspo", "cispo", "gpg", "geo_mean", "reinforce",
                           "dppo_tv", "dppo_kl", "sapo", "vespo", "ce_gppo", "dro"})
    for (const auto& [rows, micro_tokens] : kCuts) {
      const data::Batch part = update.rows(0, rows);
      expect_same(run(grpo(loss), 0, part), run(grpo(loss), micro_tokens, part), loss);
    }
  for (const char* aggregate :
       {"seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "token-sum-norm", "token-sum"})
    for (const int64_t norm_length : {0, 40}) {
      ObjectiveConfig config = grpo("clip", aggregate);
      config.norm_length = norm_length;
      expect_same(run(config, 0, update), run(config, 11, update), aggregate);
    }
  for (const char* kind : {"sft", "pretrain"}) {
    ObjectiveConfig config;
    config.kind = kind;
    expect_same(run(config, 0, update), run(config, 11, update), kind);
  }
}

TEST(Objective, WeightsAreOfTheWholeUpdateHoweverItIsCut) {
  const data::Batch update = update_of();
  for (const char* loss : {"clip", "kl_cov"}) {
    const std::vector<methods::Weight> weight{methods::TopEntropy{.fraction = 0.3}};
    const Outcome whole = run(grpo(loss), 0, update, weight), plain = run(grpo(loss), 0, update);
    for (const auto& [rows, micro_tokens] : kCuts) {
      const data::Batch part = update.rows(0, rows);
      expect_same(run(grpo(loss), 0, part, weight), run(grpo(loss), micro_tokens, part, weight), loss);
    }
    EXPECT_NEAR(whole.stats.at("weight/zero"), 0.7, 0.03) << loss;
    EXPECT_EQ(whole.stats.at("weight/removed"), 0) << loss;
    EXPECT_FALSE(torch::allclose(whole.gradient[0], plain.gradient[0])) << loss << ": nothing was weighted";
  }
}

// The control of a selection: as many tokens, others, and a weight/… is told of none.
TEST(Objective, RandomTokensTakeThePlaceOfThoseThatTheLossSelects) {
  const data::Batch update = update_of();
  for (const char* loss : {"clip_cov", "kl_cov"}) {
    const Outcome own = run(grpo(loss), 0, update), drawn = run(grpo(loss), 0, update, {methods::Random()});
    expect_same(drawn, run(grpo(loss), 11, update, {methods::Random()}), loss);
    EXPECT_GT(own.stats.at("select/frac"), 0) << loss;
    EXPECT_EQ(own.stats.at("select/frac"), drawn.stats.at("select/frac")) << loss;
    EXPECT_FALSE(torch::allclose(own.gradient[0], drawn.gradient[0])) << loss;
    EXPECT_FALSE(drawn.stats.contains("weight/mean")) << loss;
    ObjectiveConfig micro = grpo(loss);
    micro.scope = "micro";
    EXPECT_NEAR(run(micro, 11, update).stats.at("select/frac"),
                run(micro, 11, update, {methods::Random()}).stats.at("select/frac"), 1e-6)
        << loss;
  }
}

// With scope micro a weight of an update that is cut is that of each part by itself, and of one that is not, that of scope update.
TEST(Objective, ScopeMicroTakesStatisticsOfEachMicroBatch) {
  const data::Batch update = update_of();
  const auto of = [](const std::string& scope) {
    return std::vector<std::vector<methods::Weight>>{
        {methods::TopEntropy{.fraction = 0.5, .scope = scope}},
        {methods::Steer{.low = 0.5, .scope = scope}},
        {methods::Stare{.target = 5, .fraction = 0.3, .up = 2, .down = 0.5, .scope = scope}},
        {methods::AttentionEntropy{.coef = -3, .scope = scope}}};
  };
  for (size_t i = 0; i < of("micro").size(); ++i) {
    const std::vector<methods::Weight> whole = of("update")[i], micro = of("micro")[i];
    const std::string kind = micro[0].kind();
    expect_same(run(grpo("clip"), 0, update, whole), run(grpo("clip"), 0, update, micro), kind);
    const Outcome cut = run(grpo("clip"), 11, update, micro);
    EXPECT_FALSE(torch::allclose(run(grpo("clip"), 11, update, whole).gradient[0], cut.gradient[0], 1e-4, 1e-6))
        << kind << ": the same of single rows as of the whole";
    // token-sum divides by nothing: the gradient of the whole is the sum of those of its parts.
    const ObjectiveConfig sum = grpo("clip", "token-sum");
    const Outcome both = run(sum, 33, update, micro), first = run(sum, 0, update.rows(0, 3), micro),
                  second = run(sum, 0, update.rows(3, 6), micro);
    for (size_t p = 0; p < both.gradient.size(); ++p)
      EXPECT_TRUE(torch::allclose(both.gradient[p], first.gradient[p] + second.gradient[p], 1e-4, 1e-5))
          << kind << " parameter " << p;
  }
}

// What is taken out leaves denominators: the gradient is that of an update whose targets are not there.
TEST(Objective, WhatDiscriminatorsTakeOutIsNotThereHoweverTheUpdateIsCut) {
  data::Batch update = update_of();
  methods::ClipB batch;
  methods::ClipV vocabulary;
  batch.mu_low = vocabulary.mu_low = 0.5;
  batch.signs = vocabulary.signs = "both";
  vocabulary.max_frac = 1;
  for (const methods::Weight& one : {methods::Weight(batch), methods::Weight(vocabulary)}) {
    const Outcome whole = run(grpo("clip"), 0, update, {one}), plain = run(grpo("clip"), 0, update);
    for (const int64_t micro_tokens : {11, 25})
      expect_same(whole, run(grpo("clip"), micro_tokens, update, {one}), one.kind());
    const double removed = whole.stats.at("weight/removed");
    EXPECT_GT(removed, 0.1) << one.kind();
    EXPECT_LT(removed, 0.9) << one.kind();
    EXPECT_NEAR(removed, whole.stats.at(one.kind() + "/removed"), 1e-12);
    EXPECT_NEAR(whole.stats.at("tokens"), (1 - removed) * plain.stats.at("tokens"), 1e-9);
    EXPECT_FALSE(torch::allclose(whole.gradient[0], plain.gradient[0])) << one.kind();
  }
  model::Decoder model = small_model();
  const auto seen = model->token_entropy(update.tokens, update.target, 1.0, nullptr, {}, {}, true);
  const Tensor mask = update.target != data::kIgnore;
  const Tensor gone = methods::clip_v(seen.logprob.detach(), seen.entropy.detach(), seen.sum_p2, seen.sum_p2_logp,
                                      update.advantage, mask, 0.5, std::nullopt, "both", 1.0);
  const Outcome taken = run(grpo("clip"), 0, update, {methods::Weight(vocabulary)});
  update.target = update.target.masked_fill(gone, data::kIgnore);
  const Outcome absent = run(grpo("clip"), 0, update);
  for (size_t i = 0; i < taken.gradient.size(); ++i)
    EXPECT_TRUE(torch::allclose(taken.gradient[i], absent.gradient[i], 1e-5, 1e-7)) << i;
}

TEST(Objective, TheDivergenceMaskSeesBothPoliciesHoweverTheUpdateIsCut) {
  data::Batch update = update_of();
  update.old_sum_p2 = torch::rand({6, 11});
  methods::DivergenceMask mask;
  mask.delta = 0.01;
  const Outcome whole = run(grpo("clip"), 0, update, {mask});
  expect_same(whole, run(grpo("clip"), 11, update, {mask}), "cut");
  EXPECT_GT(whole.stats.at("weight/zero"), 0.1);
  EXPECT_LT(whole.stats.at("weight/zero"), 0.9);
  EXPECT_EQ(whole.stats.at("weight/removed"), 0);
}

// What cut the draws is measured and weighed; ratios, entropies and all else stay those of the policy.
TEST(Objective, CorrectionIsToTheDistributionThatDrew) {
  data::Batch update = update_of();
  model::Decoder model = small_model();
  const Tensor mask = update.target != data::kIgnore;
  update.old_logprob = model->token_entropy(update.tokens, update.target).logprob.detach().masked_fill(~mask, 0);
  update.rescored = update.old_logprob;
  const Outcome own = run(grpo("clip"), 0, update), same = run(grpo("clip"), 0, update, {methods::Correction()});
  EXPECT_NEAR(own.stats.at("mismatch/k3"), 0, 1e-9);
  EXPECT_NEAR(own.stats.at("mismatch/ess"), 1, 1e-9);
  EXPECT_NEAR(same.stats.at("weight/mean"), 1, 1e-6);

  // The kept mass is a half in the even columns and 0.8 in the others: such are the weights.
  const Tensor mass = torch::where(torch::arange(11) % 2 == 0, 0.5, 0.8).expand({6, 11}).to(torch::kFloat32);
  update.sampling_logprob = (update.old_logprob - mass.log()).masked_fill(~mask, 0);
  const Outcome plain = run(grpo("clip"), 0, update), whole = run(grpo("clip"), 0, update, {methods::Correction()});
  for (const int64_t micro_tokens : {11, 25})
    expect_same(whole, run(grpo("clip"), micro_tokens, update, {methods::Correction()}), "cut");
  for (size_t p = 0; p < plain.gradient.size(); ++p) EXPECT_TRUE(torch::equal(plain.gradient[p], own.gradient[p])) << p;
  for (const auto& [name, value] : own.stats) {
    if (name.starts_with("mismatch/")) continue;
    EXPECT_EQ(plain.stats.at(name), value) << name;
  }
  const Tensor w = mass.masked_select(mask).to(torch::kFloat64);
  EXPECT_NEAR(plain.stats.at("mismatch/k3"), (w - 1 - w.log()).mean().item<double>(), 1e-6);
  EXPECT_NEAR(plain.stats.at("mismatch/ess"), (w.sum().square() / (w.numel() * w.square().sum())).item<double>(), 1e-6);
  EXPECT_NEAR(whole.stats.at("weight/mean"), w.mean().item<double>(), 1e-6);
  data::Batch weighed = update;
  weighed.advantage = update.advantage * mass;
  const Outcome wanted = run(grpo("clip"), 0, weighed);
  for (size_t p = 0; p < wanted.gradient.size(); ++p)
    EXPECT_TRUE(torch::allclose(whole.gradient[p], wanted.gradient[p], 1e-5, 1e-7)) << p;
}

// The controller follows the entropy that the bonus is about.
TEST(Objective, AEntFollowsTheEntropyThatIsKept) {
  const data::Batch update = update_of();
  ObjectiveConfig config = grpo("clip");
  methods::AEnt aent;
  aent.low = aent.high = 0, aent.rate = 1, aent.coef = aent.most = 10, aent.least = 1e-5;
  config.entropy = aent;
  config.entropy_keep = KeepConfig{.kind = "without_lowest", .share = 0.5};
  const Outcome whole = run(config, 0, update);
  EXPECT_LT(whole.stats.at("entropy/kept"), whole.stats.at("entropy/mean"));
  EXPECT_GT(whole.stats.at("entropy/kept"), 0);
  expect_same(whole, run(config, 11, update), "cut");
  model::Decoder model = small_model();
  const auto objective = make_objective(config, {}, model, 1.0, std::nullopt, std::make_shared<Ranks>(), {});
  objective->backward(model, update, 5, nullptr);
  const Tensor state = objective->state().at("objective.entropy/0/aent");
  EXPECT_NEAR(state[0].item<double>(), 10 - whole.stats.at("entropy/kept"), 1e-12);
  EXPECT_EQ(state[1].item<double>(), 1);
}

// SIREN's term by autograd on the same model: (m − anchor)² of the tokens of highest entropy.
TEST(Objective, SirenHoldsTheTokensOfHighestEntropyHoweverTheUpdateIsCut) {
  const data::Batch update = update_of();
  ObjectiveConfig plain = grpo("clip"), held = plain, off = plain;
  plain.entropy = {};
  held.entropy = methods::Siren{.coef = 3, .share = 0.3, .anchor = 0.5};
  held.entropy_keep = KeepConfig{.share = 0.9};
  off.entropy = methods::Siren{.coef = 0};
  const Outcome with = run(held, 0, update), without = run(plain, 0, update);
  expect_same(with, run(held, 11, update), "cut");
  Outcome nothing = run(off, 0, update);
  EXPECT_EQ(nothing.stats.at("entropy_coef"), 0);
  nothing.stats.erase("entropy_coef");
  expect_same(without, nothing, "coef 0");

  model::Decoder model = small_model();
  const auto seen = model->token_entropy(update.tokens, update.target, 1.0, nullptr, {}, ops::Keep{"top_p", 0.9});
  const Tensor mask = update.target != data::kIgnore;
  const Tensor top = methods::top_entropy(seen.entropy.detach(), mask, 0.3) > 0;
  const Tensor mean = seen.kept_entropy.masked_select(top).mean();
  EXPECT_NEAR(with.stats.at("entropy/peak"), mean.item<double>(), 1e-6);
  EXPECT_NEAR(with.stats.at("entropy_coef"), -6 * (mean.item<double>() - 0.5), 1e-5);
  (3 * (mean - 0.5).square()).backward();
  for (size_t i = 0; i < with.gradient.size(); ++i)
    EXPECT_TRUE(torch::allclose(with.gradient[i] - without.gradient[i], model->parameters()[i].grad(), 1e-3, 1e-5))
        << i;

  // Without an anchor the first update sets it, and is not changed.
  held.entropy = methods::Siren{.coef = 3, .share = 0.3};
  const auto objective = make_objective(held, {}, small_model(), 1.0, std::nullopt, std::make_shared<Ranks>(), {});
  model::Decoder first = small_model();
  const auto stats = objective->backward(first, update, 5, nullptr);
  EXPECT_EQ(stats.at("entropy_coef"), 0);
  EXPECT_EQ(objective->state().at("objective.entropy/0/siren").item<double>(), stats.at("entropy/peak"));
}

// The bonus of the whole, of a part, and of what is the whole again, whose gradient is the same but for rounding.
TEST(Objective, TheBonusIsOfTheVocabularyThatIsKept) {
  const data::Batch update = update_of();
  ObjectiveConfig plain = grpo("clip"), part = plain, whole = plain;
  part.entropy_keep = KeepConfig{.share = 0.5};
  whole.entropy_keep = KeepConfig{.share = 1};
  const Outcome all = run(plain, 0, update), some = run(part, 0, update);
  Outcome of_all = run(whole, 0, update);
  EXPECT_NEAR(of_all.stats.at("entropy/kept"), all.stats.at("entropy/mean"), 1e-6);
  of_all.stats.erase("entropy/kept");
  expect_same(all, of_all, "share 1");
  EXPECT_FALSE(torch::allclose(all.gradient[0], some.gradient[0], 1e-3, 1e-6));
  EXPECT_NEAR(all.stats.at("entropy/mean"), some.stats.at("entropy/mean"), 1e-5);
  expect_same(some, run(part, 11, update), "cut");
}

TEST(Objective, AFactorOfOneIsTheIdentity) {
  const data::Batch update = update_of();
  const Outcome plain = run(grpo("clip"), 11, update),
                all = run(grpo("clip"), 11, update, {methods::TopEntropy{.fraction = 1}});
  for (size_t i = 0; i < plain.gradient.size(); ++i) EXPECT_TRUE(torch::equal(plain.gradient[i], all.gradient[i])) << i;
  EXPECT_EQ(plain.stats.at("loss"), all.stats.at("loss"));
  EXPECT_EQ(all.stats.at("weight/mean"), 1);
}

TEST(Objective, NormOfDrGrpoIsSequencesTimesLength) {
  const data::Batch update = update_of();
  ObjectiveConfig sum = grpo("clip", "token-sum-norm"), mean = grpo("clip", "seq-mean-token-sum-norm");
  sum.norm_length = mean.norm_length = 40;
  // Five of the six sequences have a token.
  EXPECT_NEAR(run(mean, 0, update).stats.at("loss") * 5, run(sum, 0, update).stats.at("loss"), 1e-6);
}

TEST(Objective, LuspoIsGspoSummedOverTheTokens) {
  const data::Batch update = update_of();
  for (const int64_t micro_tokens : {0, 11})
    expect_same(run(grpo("gspo", "seq-mean-token-sum"), 0, update),
                run(grpo("luspo", "seq-mean-token-sum"), micro_tokens, update), "luspo");
}

// Every coefficient of the configuration reaches the loss.
TEST(Objective, CoefficientsReachTheLoss) {
  data::Batch update = update_of();  // with ratios far above 1 and far below
  const Tensor shift = torch::where(torch::arange(11) % 2 == 0, -4.0f, 2.0f);
  update.old_logprob = torch::where(update.target != data::kIgnore, update.old_logprob + shift, 0.0f);
  const std::vector<std::pair<const char*, std::function<void(ObjectiveConfig&)>>> changes{
      {"clip", [](ObjectiveConfig& c) { c.delta = 1.25; }},
      {"gspo", [](ObjectiveConfig& c) { c.delta = 1.25; }},
      {"ce_gppo", [](ObjectiveConfig& c) { c.dual_clip = 1.05; }},
      {"reinforce", [](ObjectiveConfig& c) { c.delta = 0.1; }},
      {"dppo_tv", [](ObjectiveConfig& c) { c.delta = 0.1; }},
      {"dppo_kl", [](ObjectiveConfig& c) { c.clip_low = c.clip_high.emplace(1e-4); }},
      {"sapo", [](ObjectiveConfig& c) { c.tau_pos = 2; }},
      {"sapo", [](ObjectiveConfig& c) { c.tau_neg = 2; }},
      {"vespo", [](ObjectiveConfig& c) { c.vespo_k_pos = 0.1; }},
      {"vespo", [](ObjectiveConfig& c) { c.vespo_lambda_pos = 2; }},
      {"vespo", [](ObjectiveConfig& c) { c.vespo_k_neg = 0.1; }},
      {"vespo", [](ObjectiveConfig& c) { c.vespo_lambda_neg = 1; }},
      {"ce_gppo", [](ObjectiveConfig& c) { c.gppo_beta1 = 0.1; }},
      {"ce_gppo", [](ObjectiveConfig& c) { c.gppo_beta2 = 0.1; }},
      {"dro", [](ObjectiveConfig& c) { c.dro_beta = 1; }}};
  for (size_t i = 0; i < changes.size(); ++i) {
    const auto& [loss, change] = changes[i];
    ObjectiveConfig changed = grpo(loss);
    change(changed);
    EXPECT_NE(run(grpo(loss), 0, update).stats.at("loss"), run(changed, 0, update).stats.at("loss"))
        << loss << ", change " << i;
  }
}

TEST(Objective, CovariancesAreAboutTheWholeUpdate) {
  const data::Batch update = update_of();
  model::Decoder model = small_model();
  const Tensor mask = update.target != data::kIgnore;
  const Tensor l = model->token_entropy(update.tokens, update.target).logprob.masked_select(mask).to(torch::kFloat64);
  const Tensor a = update.advantage.masked_select(mask).to(torch::kFloat64);
  const Tensor c = (a - a.mean()) * (l - l.mean());
  for (const int64_t micro_tokens : {0, 11}) {
    const auto stats = run(grpo("clip"), micro_tokens, update).stats;
    EXPECT_NEAR(stats.at("cov/max"), c.max().item<double>(), 1e-5) << micro_tokens;
    EXPECT_NEAR(stats.at("cov/mean"), c.mean().item<double>(), 1e-5) << micro_tokens;
  }
}

TEST(Objective, AMeanOverNoTokenIsNotThere) {
  for (const int64_t micro_tokens : {0, 11}) {
    using Stats = std::map<std::string, double>;
    for (const char* loss : {"clip", "kl_cov", "clip_cov"})
      EXPECT_EQ(run(grpo(loss), micro_tokens, update_of(false)).stats,
                (Stats{{"loss", 0}, {"sequences", 0}, {"tokens", 0}}))
          << loss;
    EXPECT_EQ(run({}, micro_tokens, update_of(false)).stats, (Stats{{"loss", 0}, {"tokens", 0}}));
  }
  const double tokens = (update_of().target != data::kIgnore).sum().item<double>();
  for (const int64_t micro_tokens : {0, 11}) {
    EXPECT_EQ(run(grpo("clip"), micro_tokens, update_of()).stats.at("tokens"), tokens);
    EXPECT_EQ(run({}, micro_tokens, update_of()).stats.at("tokens"), tokens);
  }
}

// Entropies of log 23 less some hundred thousandths: their spread is in the last digits of a float32 sum of squares.
TEST(Objective, SpreadOfAlmostEqualEntropies) {
  model::Decoder model = small_model();
  {
    torch::NoGradGuard no_grad;
    for (Tensor& parameter : model->parameters())
      if (parameter.dim() == 2 && parameter.size(0) == 23) parameter.mul_(0.01);
  }
  const data::Batch update = update_of();
  const auto entropy = model->token_entropy(update.tokens, update.target)
                           .entropy.masked_select(update.target != data::kIgnore)
                           .to(torch::kFloat64);
  const double wanted = entropy.std(/*unbiased=*/false).item<double>();
  ASSERT_LT(wanted, 3e-3);
  ASSERT_GT(wanted, 1e-5);
  const auto stats = make_objective({}, {}, model)->backward(model, update, 5, nullptr);
  EXPECT_NEAR(stats.at("entropy/std"), wanted, 1e-3 * wanted);
}

// ---- padding is told by lengths alone -------------------------------------------------------------------------------

struct Watched {
  Outcome outcome;
  AttentionStatistics attention;
};

// A pass with the regulariser and the statistics of attention, which look at every row that is no padding. other: the token
// that changes places with token 0, in the weights as in the batch.
Watched watched(const std::string& kind, int64_t micro_tokens, data::Batch update, int64_t other = 0) {
  model::Decoder model = small_model();
  {
    torch::NoGradGuard no_grad;
    std::vector<int64_t> order(23);
    for (int64_t id = 0; id < 23; ++id) order[id] = id == 0 ? other : id == other ? 0 : id;
    const Tensor place = torch::tensor(order, torch::kInt64);
    for (Tensor& parameter : model->parameters())
      if (parameter.dim() == 2 && parameter.size(0) == 23) parameter.copy_(parameter.index_select(0, place));
    update.tokens = place.index_select(0, update.tokens.flatten()).view_as(update.tokens);
    const Tensor counts = update.target != data::kIgnore;
    update.target = torch::where(
        counts, place.index_select(0, update.target.clamp_min(0).flatten()).view_as(update.target), data::kIgnore);
  }
  ObjectiveConfig config = kind == "grpo" ? grpo("clip") : ObjectiveConfig{.kind = kind};
  config.attention_entropy.coef = 0.3;
  AttentionWatch watch(/*with_bound=*/true);
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model);
  Watched out{{objective->backward(model, update, 5, &watch), {}}, watch.statistics()};
  for (const Tensor& parameter : model->parameters()) out.outcome.gradient.push_back(parameter.grad().clone());
  return out;
}

// Texts of which every third token is token 0, as in a vocabulary that has no place for padding.
data::Batch update_of_zeros(int64_t padding) {
  data::Batch update = update_of();
  update.lengths = torch::tensor({11, 4, 7, 2, 9, 5}, torch::kInt64);
  const Tensor t = torch::arange(update.tokens.size(1));
  update.tokens.masked_fill_((t % 3 == 1).expand_as(update.tokens), 0);
  update.target.masked_fill_((update.target != data::kIgnore).logical_and(t % 3 == 0), 0);
  update.tokens.masked_fill_(update.real().logical_not(), padding);
  return update;
}

TEST(Objective, WhatStandsInPaddingChangesNoBit) {
  for (const char* kind : {"sft", "pretrain", "grpo"})
    for (const int64_t micro_tokens : {0, 25}) {
      const Watched zeros = watched(kind, micro_tokens, update_of_zeros(0));
      const Watched fives = watched(kind, micro_tokens, update_of_zeros(5));
      EXPECT_EQ(zeros.outcome.stats, fives.outcome.stats) << kind;
      EXPECT_EQ(zeros.attention.normalized, fives.attention.normalized) << kind;
      EXPECT_EQ(zeros.attention.max_logit, fives.attention.max_logit) << kind;
      for (size_t i = 0; i < zeros.outcome.gradient.size(); ++i)
        EXPECT_TRUE(torch::equal(zeros.outcome.gradient[i], fives.outcome.gradient[i])) << kind << " parameter " << i;
    }
}

TEST(Objective, TokenZeroIsATokenLikeAnyOther) {
  for (const char* kind : {"sft", "pretrain", "grpo"}) {
    const Watched zeros = watched(kind, 25, update_of_zeros(0)), named = watched(kind, 25, update_of_zeros(0), 17);
    // Attention sees the same rows of the same embeddings; sums over the vocabulary add up in another order.
    EXPECT_EQ(zeros.attention.normalized, named.attention.normalized) << kind;
    EXPECT_EQ(zeros.attention.max_logit, named.attention.max_logit) << kind;
    ASSERT_EQ(zeros.outcome.stats.size(), named.outcome.stats.size());
    for (const auto& [name, value] : zeros.outcome.stats)
      EXPECT_NEAR(named.outcome.stats.at(name), value, 1e-5 * std::max(1.0, std::abs(value))) << kind << " " << name;
  }
}

// ---- packed rows -----------------------------------------------------------------------------------------------------

const data::Tokenizer& letters() {
  static const data::Tokenizer tokenizer(
      {.characters = "abcdefghijklmnopqrstu."});  // as many tokens as the small model
  return tokenizer;
}

std::vector<data::Example> examples() {
  std::vector<data::Example> examples;
  for (const char* text :
       {"ab|cde", "f|ghijklmnopqrstua", "bcd|e", "a|b", "tsrqponmlk|jihgfedcba", "u|ut", "cab|cabcabc"}) {
    const std::string whole = text;
    const size_t at = whole.find('|');
    examples.push_back({whole.substr(0, at), whole.substr(at + 1), ""});
  }
  return examples;
}

struct Learnt {
  std::map<std::string, double> stats;
  std::vector<Tensor> gradient;
  AttentionStatistics attention;
};

Learnt learn(const data::Batch& update, const std::function<void(model::DecoderConfig&)>& changed, int64_t micro = 0,
             bool penalty = false) {
  model::DecoderConfig decoder = small_model()->config();
  decoder.vocabulary = letters().size();
  changed(decoder);
  model::Decoder model(decoder, 3);
  {
    torch::NoGradGuard no_grad;
    torch::manual_seed(3);
    for (Tensor& parameter : model->parameters()) parameter.normal_(0.0, 0.3);
  }
  ObjectiveConfig config;
  config.attention_entropy.coef = penalty ? 0.1 : 0;
  const auto objective = make_objective(config, {.micro_tokens = micro}, model);
  AttentionWatch watch(/*with_bound=*/true);
  Learnt out{objective->backward(model, update, 5, &watch), {}, {}};
  for (const Tensor& parameter : model->parameters()) out.gradient.push_back(parameter.grad().clone());
  out.attention = watch.statistics();
  return out;
}

void expect_same(const Learnt& packed, const Learnt& plain, const std::string& what) {
  for (const auto& [name, value] : plain.stats) EXPECT_NEAR(packed.stats.at(name), value, 2e-6) << what << " " << name;
  for (size_t i = 0; i < plain.gradient.size(); ++i) {
    const double size = plain.gradient[i].abs().max().item<double>();
    EXPECT_LE((packed.gradient[i] - plain.gradient[i]).abs().max().item<double>(), 1e-5 * std::max(size, 0.01))
        << what << ", gradient " << i;
  }
  for (const auto& [of_packed, of_plain] : {std::pair{packed.attention.entropy, plain.attention.entropy},
                                            {packed.attention.normalized, plain.attention.normalized},
                                            {packed.attention.max_logit, plain.attention.max_logit},
                                            {packed.attention.bound, plain.attention.bound}})
    for (size_t layer = 0; layer < of_plain.size(); ++layer)
      for (size_t head = 0; head < of_plain[layer].size(); ++head)
        EXPECT_NEAR(of_packed[layer][head], of_plain[layer][head], 1e-5) << what;
}

TEST(Packing, LossGradientAndAttentionAreThoseOfSeparateRows) {
  const data::Batch plain = data::collate(examples(), letters(), 32),
                    packed = data::collate(examples(), letters(), 32, "error", 32);
  ASSERT_EQ(plain.size(), 7);
  ASSERT_EQ(packed.size(), 2);
  const std::vector<std::pair<std::string, std::function<void(model::DecoderConfig&)>>> models{
      {"plain", [](auto&) {}},
      {"window", [](auto& c) { c.attention.window = 4; }},
      {"row temperature", [](auto& c) { c.attention.temperature = "row"; }},
      {"head temperature, qk_norm, softcap",
       [](auto& c) {
         c.attention.temperature = "head";
         c.attention.qk_norm = true;
         c.attention.softcap = 5;
       }},
      {"logits", [](auto& c) { c.fused_head = false; }}};
  for (const auto& [what, changed] : models) {
    expect_same(learn(packed, changed), learn(plain, changed), what);
    expect_same(learn(packed, changed, 32), learn(plain, changed), what + ", a row at a time");
  }
  expect_same(learn(packed, models[0].second, 0, true), learn(plain, models[0].second, 0, true), "penalty");
}

TEST(Packing, ARowHoldsWhatFitsAndPositionsBeginAgain) {
  const data::Batch packed =
      data::collate(examples(), letters(), 32, "error", 8);  // the longest has 21 tokens but its last
  EXPECT_EQ(packed.tokens.size(1), 20);
  int64_t begun = 0, tokens = 0;
  for (int64_t row = 0; row < packed.size(); ++row)
    for (int64_t t = 0; t < packed.tokens.size(1); ++t) {
      const auto position = packed.position[row][t].item<int64_t>();
      const bool pad = t >= packed.lengths[row].item<int64_t>();
      begun += position == 0 && !pad;
      tokens += !pad;
      if (t > 0 && position != 0) EXPECT_EQ(position, packed.position[row][t - 1].item<int64_t>() + 1);
      if (pad) EXPECT_EQ(packed.target[row][t].item<int64_t>(), data::kIgnore);
    }
  EXPECT_EQ(begun, 7);
  const data::Batch plain = data::collate(examples(), letters(), 32);
  EXPECT_EQ(tokens, plain.lengths.sum().item<int64_t>());
  EXPECT_EQ((packed.target != data::kIgnore).sum().item<int64_t>(),
            (plain.target != data::kIgnore).sum().item<int64_t>());
  EXPECT_TRUE(torch::equal(packed.tokens, data::collate(examples(), letters(), 32, "error", 8).tokens));
  EXPECT_FALSE(plain.position.defined());
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
