// Distillation: nothing to learn from oneself, loss and gradient by hand however the update is cut, a student that follows its teacher, and
// what is refused.
#include <torch/optim/adam.h>

#include "csrc/model/attention_losses.h"
#include "csrc/train/distill_objective.h"
#include "tests/csrc/message.h"
#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

model::DecoderConfig shaped(const std::vector<std::string>& mixers) {
  model::DecoderConfig config = small_model()->config();
  config.num_hidden_layers = 2;
  config.mixers = mixers;
  config.estimated = {.columns = 5, .keep = 3};
  return config;
}

model::Decoder of_kind(const std::vector<std::string>& mixers, int64_t seed, double std = 0.5) {
  model::Decoder model(shaped(mixers), 3);
  torch::NoGradGuard no_grad;
  torch::manual_seed(seed);
  for (Tensor& parameter : model->parameters()) parameter.normal_(0.0, std);
  return model;
}

ObjectiveConfig distill(double layers, double temperature = 1, double targets = 0) {
  ObjectiveConfig config;
  config.kind = "distill";
  config.distill.teacher = "given";
  config.distill.layers = layers;
  config.distill.temperature = temperature;
  config.distill.targets = targets;
  return config;
}

Outcome learnt(const ObjectiveConfig& config, model::Decoder student, const model::Decoder& teacher,
               const data::Batch& update, int64_t micro_tokens = 0) {
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, student, 1.0, teacher);
  Outcome out{objective->backward(student, update, 5, nullptr), {}};
  for (const Tensor& parameter : student->parameters())
    out.gradient.push_back(parameter.grad().defined() ? parameter.grad().clone() : torch::zeros_like(parameter));
  return out;
}

TEST(Distill, ATeacherHasNothingToLearnFromItself) {
  const model::Decoder model = of_kind({"softmax"}, 4);
  for (const double layers : {0.0, 1.0}) {
    const Outcome out = learnt(distill(layers, 2), of_kind({"softmax"}, 4), model, update_of());
    EXPECT_NEAR(out.stats.at("loss"), 0, 1e-6);
    EXPECT_NEAR(out.stats.at("distill/kl"), 0, 1e-6);
    EXPECT_EQ(out.stats.at("distill/agreement"), 1);
    EXPECT_EQ(out.stats.contains("distill/attention/kl"), layers > 0);
    if (layers > 0) EXPECT_NEAR(out.stats.at("distill/attention/kl"), 0, 1e-6);
    if (layers > 0) EXPECT_NEAR(out.stats.at("distill/context/square"), 0, 1e-9);
    for (const Tensor& gradient : out.gradient) EXPECT_LE(gradient.abs().max().item<double>(), 1e-5);
  }
}

// The sum of csrc/train/distill_objective.h in ATen, all rows at once; maps of layers as the mixers tell them (estimated_test.cpp).
Outcome by_hand(const ObjectiveConfig& config, model::Decoder student, model::Decoder teacher,
                const data::Batch& update) {
  const Tensor there = update.target != data::kIgnore;
  const double N = there.sum().item<double>(), tau = config.distill.temperature;
  model::AttentionRecord taught, own;
  taught.with_maps = own.with_losses = true;
  Tensor Z;
  {
    const torch::NoGradGuard no_grad;
    Z = teacher->forward(update.tokens, &taught);
  }
  own.teacher = &taught.maps;
  const bool layers = *config.distill.layers > 0;
  const Tensor z = student->forward(update.tokens, layers ? &own : nullptr);
  const Tensor p = (Z / tau).softmax(2);
  const Tensor kl = torch::kl_div((z / tau).log_softmax(2), p, at::Reduction::None).sum(2).masked_select(there).sum();
  const Tensor ce =
      torch::nll_loss(z.log_softmax(2).flatten(0, 1), update.target.flatten(), {}, at::Reduction::Sum, data::kIgnore);
  Tensor loss = (tau * tau * kl + config.distill.targets * ce) / N;
  std::vector<double> sums(model::kLosses);
  if (layers)
    for (const Tensor& layer : own.losses)
      for (int64_t i = 0; i < model::kLosses; ++i) {
        const Tensor one = layer.select(2, i).masked_select(there).sum() / N;
        sums[i] += one.item<double>();
        const bool divergence = i == model::kEstimateKl || i == model::kAttentionKl;
        loss = loss + *config.distill.layers * (divergence ? config.distill.kl : 1) * one;
      }
  loss.backward();
  Outcome out{{{"loss", loss.item<double>()},
               {"distill/kl", kl.item<double>() / N},
               {"distill/cross_entropy", ce.item<double>() / N}},
              {}};
  if (layers) out.stats["distill/estimate/kl"] = sums[model::kEstimateKl];
  if (layers) out.stats["distill/context/square"] = sums[model::kContextSquare];
  for (const Tensor& parameter : student->parameters())
    out.gradient.push_back(parameter.grad().defined() ? parameter.grad().clone() : torch::zeros_like(parameter));
  return out;
}

TEST(Distill, LossAndGradientAreThoseByHandHoweverTheUpdateIsCut) {
  const model::Decoder teacher = of_kind({"softmax"}, 4);
  for (const auto& mixers : {std::vector<std::string>{"softmax"}, {"estimated"}, {"estimated", "linear"}})
    for (const auto& [layers, temperature, targets] : {std::tuple{0.0, 1.0, 0.0}, {0.0, 2.5, 0.3}, {0.7, 1.0, 0.3}}) {
      const ObjectiveConfig config = distill(layers, temperature, targets);
      const auto student = [&] {
        model::DecoderConfig without = shaped(mixers);
        without.estimated.self_weight = 0;  // what is learnt without a teacher's layers is no part of this sum
        model::Decoder made(without, 3);
        const model::Decoder like = of_kind(mixers, 9);
        const torch::NoGradGuard no_grad;
        for (size_t i = 0; i < like->parameters().size(); ++i) made->parameters()[i].copy_(like->parameters()[i]);
        return made;
      };
      const Outcome wanted = by_hand(config, student(), teacher, update_of());
      for (const int64_t micro_tokens : {0, 1, 25}) {
        const Outcome got = learnt(config, student(), teacher, update_of(), micro_tokens);
        const std::string what = mixers.back() + ", layers " + std::to_string(layers);
        for (const auto& [name, value] : wanted.stats)
          EXPECT_NEAR(got.stats.at(name), value, 2e-5 * (1 + std::abs(value))) << what << " " << name;
        for (size_t i = 0; i < wanted.gradient.size(); ++i) {
          const double size = wanted.gradient[i].abs().max().item<double>();
          EXPECT_LE((got.gradient[i] - wanted.gradient[i]).abs().max().item<double>(), 1e-4 * std::max(size, 0.01))
              << what << ", " << micro_tokens << " tokens, gradient " << i;
        }
      }
    }
}

// The divergence itself, of logits that are known: log-odds of two tokens.
TEST(Distill, DivergenceOfKnownRows) {
  const Tensor a = torch::tensor({{0.5, 0.25, 0.25, 0.0}}, torch::kFloat64),
               b = torch::tensor({{0.25, 0.25, 0.5, 0.0}}, torch::kFloat64);
  EXPECT_NEAR(model::divergence(a, b.log()).item<double>(), 0.25 * std::log(2.0), 1e-12);
  EXPECT_EQ(model::divergence(a, a.log()).item<double>(), 0);
  // Three tokens in two cells: the first of a row of one, two and three tokens begins at 0, the second at ⌈n / 2⌉.
  const Tensor weights = torch::tensor({{1.0, 0.0, 0.0}, {0.25, 0.75, 0.0}, {0.2, 0.3, 0.5}}, torch::kFloat64);
  const Tensor cells = model::in_cells(weights.view({1, 1, 3, 3}), 2)[0][0];
  EXPECT_TRUE(torch::allclose(cells, torch::tensor({{1.0, 0.0}, {0.25, 0.75}, {0.5, 0.5}}, torch::kFloat64)));
}

TEST(Distill, AStudentComesNearItsTeacher) {
  const model::Decoder teacher = of_kind({"softmax"}, 4);
  model::Decoder student = of_kind({"estimated"}, 9, 0.2);
  const auto objective = make_objective(distill(1), {}, student, 1.0, teacher);
  torch::optim::Adam optimizer(student->parameters(), torch::optim::AdamOptions(2e-2));
  std::map<std::string, double> first, last;
  for (int64_t step = 0; step < 60; ++step) {
    optimizer.zero_grad();
    last = objective->backward(student, update_of(), step, nullptr);
    if (step == 0) first = last;
    optimizer.step();
  }
  for (const char* name : {"loss", "distill/kl", "distill/estimate/kl", "distill/context/square"})
    EXPECT_LT(last.at(name), 0.7 * first.at(name)) << name;
}

TEST(Distill, RefusesLayersThatDiffer) {
  const model::DecoderConfig student = shaped({"estimated"});
  model::DecoderConfig teacher = shaped({"softmax"});
  EXPECT_EQ(layers_problem(student, teacher), "");
  teacher.num_hidden_layers = 3;
  EXPECT_EQ(layers_problem(student, teacher), "the teacher has 3 layers (num_hidden_layers) and the model 2");
  teacher = shaped({"linear"});
  EXPECT_EQ(layers_problem(student, teacher), "layer 0 of the teacher is of kind linear, wanted softmax");
  EXPECT_EQ(layers_problem(shaped({"linear"}), shaped({"softmax"})),
            "no layer of the model is of kind softmax or estimated");
  const model::Decoder model = of_kind({"estimated"}, 3), other = small_model();
  EXPECT_EQ(message([&] { make_objective(distill(1), {}, model, 1.0, other); }),
            "objective.distill.layers: the teacher has 1 layers (num_hidden_layers) and the model 2; "
            "leave it out, or write 0, to learn from the teacher's logits alone");
  ObjectiveConfig open = distill(1);
  open.distill.layers.reset();
  EXPECT_FALSE(learnt(open, of_kind({"estimated"}, 3), other, update_of()).stats.contains("distill/context/square"));
  ObjectiveConfig config = distill(1);
  config.distill.teacher = "";
  EXPECT_EQ(config.problem(), "distill.teacher: is empty; name the folder of the model that the student learns from");
  config.distill = {.teacher = "here", .logits = 0, .layers = 0};
  EXPECT_EQ(config.problem(),
            "distill.logits: the weights logits, targets and layers are all 0; give one of them a value above 0");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
