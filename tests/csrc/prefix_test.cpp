// The prefix of text, what is hidden of it, and the loss of two parts.
#include "csrc/train/prefix.h"

#include <gtest/gtest.h>

#include "csrc/model/places.h"
#include "csrc/train/objective.h"
#include "tests/csrc/message.h"
#include "tests/csrc/mixer_kinds.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using torch::Tensor;

model::DecoderConfig reading(double prefix) {
  model::DecoderConfig config = model::small_mixers({"prefix_linear"});
  config.prefix_linear.prefix = prefix;
  config.prefix_linear.feature_map = "elu_plus_one";
  return config;
}

data::Batch text(int64_t B, int64_t T) {
  data::Batch batch;
  const Tensor all = (torch::arange(B * (T + 1)) * 7 % 29).view({B, T + 1});
  batch.tokens = all.slice(1, 0, T).contiguous();
  batch.target = all.slice(1, 1).contiguous();
  return batch;
}

TEST(Prefix, OfTextIsANumberOfTokensOrAShare) {
  EXPECT_EQ(prefix_tokens(reading(20), 64), 20);
  EXPECT_EQ(prefix_tokens(reading(0.3), 64), 19);
  EXPECT_EQ(message([] { prefix_tokens(reading(64), 64); }),
            "prefix_linear.prefix: 64 tokens leave none of a text of 64; wanted less, or a share below 1");
  const data::Batch plain = text(2, 10), with = with_prefix(plain, reading(4));
  EXPECT_TRUE(torch::equal(with.prefix, (torch::arange(10) < 4).expand({2, 10})));
  EXPECT_TRUE(torch::equal(with.target.slice(1, 3), plain.target.slice(1, 3)));
  EXPECT_TRUE((with.target.slice(1, 0, 3) == data::kIgnore).all().item<bool>());
  EXPECT_FALSE(with_prefix(plain, model::small_mixers({"linear"})).prefix.defined());
  EXPECT_TRUE(with_hidden(plain, model::small_mixers({"linear"}), 1).tokens.is_same(plain.tokens));
}

TEST(Prefix, HidesAShareOfItsTokensByASeedOfTheirOwn) {
  const data::Batch plain = text(40, 60);
  model::DecoderConfig config = reading(0.5);
  const data::Batch one = with_hidden(plain, config, 7), same = with_hidden(plain, config, 7),
                    other = with_hidden(plain, config, 8);
  EXPECT_TRUE(torch::equal(one.tokens, same.tokens));
  EXPECT_FALSE(torch::equal(one.tokens, other.tokens));
  const Tensor hidden = one.tokens == model::kHidden;
  EXPECT_NEAR(hidden.sum().item<double>() / (40 * 29), 0.15, 0.03);
  EXPECT_FALSE(hidden.slice(1, 29).any().item<bool>()) << "the last of the prefix, or what is behind it";
  EXPECT_TRUE(torch::equal(one.target.masked_select(hidden), plain.tokens.masked_select(hidden)));
  EXPECT_TRUE(torch::equal(one.tokens.masked_fill(hidden, 0), plain.tokens.masked_fill(hidden, 0)));
  config.prefix_linear.mask_weight = 0;
  EXPECT_FALSE((with_hidden(plain, config, 7).tokens < 0).any().item<bool>());
}

struct Found {
  std::map<std::string, double> stats;
  std::vector<Tensor> gradient;
};

Found learn(const model::DecoderConfig& config, const char* kind, const data::Batch& update, int64_t micro_tokens) {
  model::Decoder decoder(config, 5);
  ObjectiveConfig objective;
  objective.kind = kind;
  BatchConfig batch;
  batch.micro_tokens = micro_tokens;
  Found found;
  found.stats = make_objective(objective, batch, decoder)->backward(decoder, update, 11, nullptr, nullptr);
  for (const Tensor& weight : decoder->parameters()) found.gradient.push_back(weight.grad().clone());
  return found;
}

TEST(Prefix, TheLossIsThatOfWhatIsBehindItAndAShareOfWhatIsHidden) {
  model::DecoderConfig config = reading(0.5);
  config.prefix_linear.mask_weight = 0.7;
  const data::Batch update = text(6, 40), hidden = with_hidden(update, config, 11);
  const Found whole = learn(config, "pretrain", update, 0);
  model::Decoder decoder(config, 5);
  const Tensor logprob =
      decoder->token_entropy(hidden.tokens, hidden.target, 1.0, nullptr, {{}, hidden.prefix}).logprob;
  const Tensor guessed = hidden.tokens == model::kHidden, next = (hidden.target != data::kIgnore) & ~guessed;
  const double ahead = -logprob.masked_select(next).mean().item<double>(),
               back = -logprob.masked_select(guessed).mean().item<double>();
  EXPECT_EQ(next.sum().item<int64_t>(), 6 * 21);
  EXPECT_NEAR(whole.stats.at("loss"), ahead + 0.7 * back, 1e-5);
  EXPECT_NEAR(whole.stats.at("prefix/loss"), back, 1e-5);
  EXPECT_EQ(whole.stats.at("tokens"), 6 * 21);
  for (const int64_t micro_tokens : {80, 40}) {
    const Found cut = learn(config, "pretrain", update, micro_tokens);
    for (const char* key : {"loss", "prefix/loss", "entropy/mean", "entropy/std"})
      EXPECT_NEAR(cut.stats.at(key), whole.stats.at(key), 2e-6) << key;
    for (size_t i = 0; i < whole.gradient.size(); ++i)
      EXPECT_LE((cut.gradient[i] - whole.gradient[i]).abs().max().item<double>(),
                1e-5 * (whole.gradient[i].abs().max().item<double>() + 1e-3));
  }
  // The coefficient moves the gradient, and without it nothing is hidden.
  config.prefix_linear.mask_weight = 0;
  const Found alone = learn(config, "pretrain", update, 0);
  EXPECT_FALSE(alone.stats.contains("prefix/loss"));
  EXPECT_FALSE(torch::allclose(alone.gradient[0], whole.gradient[0]));
}

TEST(Prefix, OfExamplesIsTheirPrompt) {
  data::Batch update = text(3, 12);
  update.prefix = (torch::arange(12) < 5).expand({3, 12}).contiguous();
  update.target.slice(1, 0, 4).fill_(data::kIgnore);
  const model::DecoderConfig config = reading(0.5);
  EXPECT_TRUE(torch::equal(with_prefix(update, config).prefix, update.prefix));
  const data::Batch hidden = with_hidden(update, config, 3);
  EXPECT_FALSE((hidden.tokens.slice(1, 4) < 0).any().item<bool>());
  const Found found = learn(config, "sft", update, 0);
  EXPECT_EQ(found.stats.at("tokens"), 3 * 8);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
