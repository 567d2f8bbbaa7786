#include "csrc/train/distill_objective.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "csrc/train/prefix.h"
#include "csrc/train/update_pass.h"

namespace isentrope::train {
namespace {

// What is added up over the targets of an update.
enum DistillSum {
  kDistillLoss,
  kDistillDivergence,
  kDistillAgreement,
  kDistillCross,
  kDistillEntropy,
  kDistillEntropySquare,
  kDistillLayers,
  kDistillSums = kDistillLayers + model::kLosses
};

const char* const kNames[model::kLosses]{"distill/estimate/kl", "distill/estimate/square", "distill/attention/kl",
                                         "distill/attention/square", "distill/context/square"};

}  // namespace

std::string layers_problem(const model::DecoderConfig& student, const model::DecoderConfig& teacher) {
  const auto differ = [](const char* what, int64_t of_teacher, int64_t own) {
    return of_teacher == own
               ? std::string()
               : "the teacher has " + std::to_string(of_teacher) + " " + what + " and the model " + std::to_string(own);
  };
  for (const std::string& one :
       {differ("layers (num_hidden_layers)", teacher.num_hidden_layers, student.num_hidden_layers),
        differ("heads (num_attention_heads)", teacher.num_attention_heads, student.num_attention_heads),
        differ("elements a head (head_dim)", teacher.head_size(), student.head_size())})
    if (!one.empty()) return one;
  bool some = false;
  for (int64_t i = 0; i < teacher.num_hidden_layers; ++i) {
    if (teacher.mixer_of(i) != "softmax")
      return "layer " + std::to_string(i) + " of the teacher is of kind " + teacher.mixer_of(i) + ", wanted softmax";
    some = some || student.mixer_of(i) == "softmax" || student.mixer_of(i) == "estimated";
  }
  if (!some) return "no layer of the model is of kind softmax or estimated";
  for (const auto* one : {&teacher, &student})
    if (one->attention.temperature != "none")
      return std::string("attention.temperature of the ") + (one == &teacher ? "teacher" : "model") + " is " +
             one->attention.temperature + ", wanted none";
  return "";
}

DistillObjective::DistillObjective(AttentionEntropy attention, const DistillConfig& config, const BatchConfig& batch,
                                   const model::Decoder& student, std::optional<model::Decoder> teacher,
                                   std::shared_ptr<const Ranks> ranks)
    : Objective(std::move(attention), std::move(ranks)),
      config_(config),
      batch_(batch),
      teacher_(std::move(teacher).value()) {
  const std::string problem = layers_problem(student->config(), teacher_->config());
  layers_ = config_.layers.value_or(problem.empty() ? 1 : 0);
  if (layers_ > 0 && !problem.empty())
    throw std::invalid_argument("objective.distill.layers: " + problem +
                                "; leave it out, or write 0, to learn from the teacher's logits alone");
}

std::map<std::string, double> DistillObjective::backward(model::Decoder& model, const Batch& given, uint64_t,
                                                         AttentionWatch* watch, Gradients* gradients) {
  const Batch update = with_prefix(given, model->config());
  const double tokens = (update.target != data::kIgnore).sum().item<double>(), N = std::max(tokens, 1.0);
  const std::vector<Batch> micros = split(share_of_rank(update, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
  const bool together = batch_.micro_tokens == 0;
  const Sent sent{gradients};
  const double tau = config_.temperature;
  std::vector<double> sums(kDistillSums);
  for (const Batch& micro : micros) {
    const Tensor there = (micro.target != data::kIgnore).flatten().nonzero().squeeze(1);  // of the targets
    const auto wide = [&](const Tensor& x) {
      const Tensor rows = x.flatten(0, 1).index_select(0, there);
      return rows.scalar_type() == torch::kFloat64 ? rows : rows.to(torch::kFloat32);
    };
    model::AttentionRecord told;
    told.with_maps = true;
    Tensor taught;  // [targets, V]
    {
      const torch::NoGradGuard no_grad;
      taught = wide(teacher_->forward(micro.tokens, layers_ > 0 ? &told : nullptr, {micro.position, micro.prefix}));
    }
    Pass pass(attention_, watch, together ? ranks_.get() : nullptr);
    const Tensor own = wide(pass.logits(model, micro, layers_ > 0 ? &told.maps : nullptr));
    const Tensor log_p = (taught / tau).log_softmax(1), log_q = (own / tau).log_softmax(1), p = log_p.exp();
    const Tensor divergence = (p * (log_p - log_q)).sum(1);
    const Tensor log = tau == 1 ? log_q : own.log_softmax(1);
    const Tensor cross = -log.gather(1, micro.target.flatten().index_select(0, there).unsqueeze(1)).sum();
    Tensor loss = config_.logits * tau * tau / N * divergence.sum() + config_.targets / N * cross;
    const auto add = [&](int64_t sum, const Tensor& x) { sums[sum] += x.detach().sum(torch::kFloat64).item<double>(); };
    if (layers_ > 0)
      for (const Tensor& layer : pass.record().losses) {
        const Tensor each = layer.flatten(0, 1).index_select(0, there).sum(0);  // [kLosses]
        const Tensor weight = torch::tensor({config_.kl, 1.0, config_.kl, 1.0, 1.0}, each.options());
        loss = loss + layers_ / N * (each * weight).sum();
        for (int64_t i = 0; i < model::kLosses; ++i) add(kDistillLayers + i, each[i]);
      }
    sums[kDistillLoss] +=
        pass.backward(loss, together ? 1.0 : share_of(micro, update), gradients, &micro == &micros.back());
    add(kDistillDivergence, divergence);
    add(kDistillAgreement, taught.argmax(1).eq(own.argmax(1)));
    add(kDistillCross, cross);
    const Tensor entropy = -(log * log.exp()).detach().sum(1).to(torch::kFloat64);
    add(kDistillEntropy, entropy);
    add(kDistillEntropySquare, entropy.square());
  }
  ranks_->sum(sums);
  if (watch) watch->over(*ranks_);
  std::map<std::string, double> values{{"loss", sums[kDistillLoss]}, {"tokens", tokens}};
  if (tokens == 0) return values;
  const double H = sums[kDistillEntropy] / N;
  values["entropy/mean"] = H;
  values["entropy/std"] = std::sqrt(std::max(sums[kDistillEntropySquare] / N - H * H, 0.0));
  values["distill/kl"] = sums[kDistillDivergence] / N;
  values["distill/agreement"] = sums[kDistillAgreement] / N;
  values["distill/cross_entropy"] = sums[kDistillCross] / N;
  if (layers_ > 0)
    for (int64_t i = 0; i < model::kLosses; ++i) values[kNames[i]] = sums[kDistillLayers + i] / N;
  return values;
}

}  // namespace isentrope::train
