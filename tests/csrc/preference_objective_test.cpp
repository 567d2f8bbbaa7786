// Loss, gradient and statistics of pairs, however the update is cut; and that no cut parts a pair.
#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

// Five pairs of different lengths.
data::Batch pairs_of() {
  const int64_t B = 10, T = 9;
  torch::manual_seed(7);
  data::Batch update;
  update.tokens = torch::randint(1, 23, {B, T}, torch::kInt64);
  update.lengths = torch::tensor({9, 3, 7, 5, 9, 9, 4, 8, 6, 5}, torch::kInt64);
  const Tensor t = torch::arange(T), counts = (t >= 1).logical_and(t < update.lengths.unsqueeze(1));
  update.target = torch::where(counts, torch::randint(1, 23, {B, T}, torch::kInt64), data::kIgnore);
  update.together = 2;
  return update;
}

Outcome run_pairs(const ObjectiveConfig& config, int64_t micro_tokens) {
  model::Decoder model = small_model();
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model, 1.0, small_model(4));
  Outcome out{objective->backward(model, pairs_of(), 5, nullptr), {}};
  for (const Tensor& parameter : model->parameters()) out.gradient.push_back(parameter.grad().clone());
  return out;
}

// Of the same update in ATen, all rows at once.
Outcome by_hand(const ObjectiveConfig& config) {
  model::Decoder model = small_model(), reference = small_model(4);
  const data::Batch update = pairs_of();
  const auto ratio = [&](model::Decoder& of) {
    return of->token_entropy(update.tokens, update.target, 1.0).logprob.sum(1).view({-1, 2});
  };
  Tensor reference_sums;
  {
    torch::NoGradGuard no_grad;
    reference_sums = ratio(reference);
  }
  const Tensor own = ratio(model);
  Tensor r = own - reference_sums;
  const Tensor in_order = r.select(1, 0) > r.select(1, 1);  // by sums, whatever the loss takes
  const Tensor counts = (update.target != data::kIgnore).sum(1).view({-1, 2}).to(torch::kFloat32);
  if (config.dpo_loss == "ipo") r = r / counts;
  const Tensor h = r.select(1, 0) - r.select(1, 1);
  Tensor loss = config.dpo_loss == "ipo" ? (h - 0.5 / config.dpo_beta).square().mean()
                                         : torch::softplus(-config.dpo_beta * h).mean();
  loss = loss - config.dpo_sft_coef * own.select(1, 0).sum() / counts.select(1, 0).sum();
  loss.backward();
  Outcome out{{{"loss", loss.item<double>()}, {"pair/accuracy", in_order.to(torch::kFloat64).mean().item<double>()}},
              {}};
  for (const Tensor& parameter : model->parameters()) out.gradient.push_back(parameter.grad().clone());
  return out;
}

TEST(Preference, LossAndGradientAreThoseByHandHoweverTheUpdateIsCut) {
  for (const auto& [loss, sft] : {std::pair{"sigmoid", 0.0}, {"ipo", 0.0}, {"sigmoid", 0.7}}) {
    ObjectiveConfig config;
    config.kind = "dpo", config.dpo_loss = loss, config.dpo_sft_coef = sft;
    const Outcome wanted = by_hand(config), whole = run_pairs(config, 0);
    for (const int64_t micro_tokens : {0, 1, 36, 60}) {
      const Outcome got = run_pairs(config, micro_tokens);
      for (const auto& [name, value] : wanted.stats)
        EXPECT_NEAR(got.stats.at(name), value, 1e-5) << loss << " " << name;
      for (const auto& [name, value] : whole.stats)
        EXPECT_NEAR(got.stats.at(name), value, 1e-5 * (1 + std::abs(value))) << loss << " " << name;
      for (size_t i = 0; i < wanted.gradient.size(); ++i) {
        const double size = wanted.gradient[i].abs().max().item<double>();
        EXPECT_LE((got.gradient[i] - wanted.gradient[i]).abs().max().item<double>(), 2e-5 * std::max(size, 0.01))
            << loss << ", " << micro_tokens << " tokens, gradient " << i;
      }
    }
  }
}

TEST(Preference, NoRankGetsHalfAPair) {
  const data::Batch update = pairs_of();
  for (const int64_t ranks : {1, 2, 3, 4, 5, 7}) {
    std::vector<Tensor> rows;
    for (int64_t rank = 0; rank < ranks; ++rank) {
      const data::Batch own = share_of_rank(update, rank, ranks);
      EXPECT_EQ(own.size() % 2, 0) << ranks;
      EXPECT_GE(own.size(), 2) << ranks;
      EXPECT_EQ(own.together, 2);
      if (rank < 5) rows.push_back(own.tokens);
      if (rank >= 5) EXPECT_TRUE((own.target == data::kIgnore).all().item<bool>());
    }
    EXPECT_TRUE(torch::equal(torch::cat(rows), update.tokens)) << ranks;
  }
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
