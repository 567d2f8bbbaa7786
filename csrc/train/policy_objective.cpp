#include "csrc/train/policy_objective.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/methods/registry.h"
#include "csrc/train/update_pass.h"

namespace isentrope::train {
namespace {

// For each of the parts that the batch tells [parts, 2]: the sum of k3 (kernels/grpo_loss.h) over its tokens, and how many these are.
Tensor divergence_by_part(const Tensor& logprob, const Tensor& reference, const Batch& batch) {
  const Tensor counts = (batch.target != data::kIgnore).to(torch::kFloat64);
  const Tensor delta = (logprob.detach() - reference).to(torch::kFloat64).clamp(-20, 20);
  const Tensor k3 = ((-delta).exp() + delta - 1).clamp_max(10);
  const Tensor rows = torch::stack({(k3 * counts).sum(1), counts.sum(1)}, 1);  // [B, 2]
  return torch::one_hot(batch.ref_kl_part, std::ssize(batch.ref_kl_parts)).to(torch::kFloat64).t().matmul(rows);
}

// About the means of the whole update, however it was cut: what clip_cov and kl_cov with scope global choose by.
std::map<std::string, double> covariances(const Tensor& logprob, const Batch& update) {
  const Tensor mask = update.target != data::kIgnore;
  const Tensor l = logprob.masked_select(mask).to(torch::kFloat64);
  const Tensor a = update.advantage.masked_select(mask).to(torch::kFloat64);
  const Tensor c = (a - a.mean()) * (l - l.mean());
  return {{"cov/mean", c.mean().item<double>()}, {"cov/max", c.max().item<double>()}};
}

std::vector<methods::ObjectiveControl> controls_of(const ObjectiveConfig& config) {
  std::vector<methods::ObjectiveControl> all;
  if (config.ref_kl_control)
    all.emplace_back(methods::RefKlControl{.coef = config.ref_kl_coef, .control = *config.ref_kl_control});
  if (config.inner_policy) all.emplace_back(*config.inner_policy);
  return all;
}

// The entropy that the bonus is about, as a constant.
Tensor kept_of(const ops::TokenEntropy& policy) {
  return (policy.kept_entropy.defined() ? policy.kept_entropy : policy.entropy).detach();
}

// What the ratio is taken to: the policy at the step's beginning where completions were scored anew, else the one that drew them.
const Tensor& old_of(const Batch& batch) { return batch.rescored.defined() ? batch.rescored : batch.old_logprob; }

// How far the policy that learns is from what drew, before anything is learnt: rounding, or another precision, top-k, top-p.
std::map<std::string, double> mismatch_of(const Tensor& logprob, const Batch& update) {
  const Tensor& drawn_by = update.sampling_logprob.defined() ? update.sampling_logprob : update.old_logprob;
  const Tensor found = methods::mismatch(logprob, drawn_by, update.target != data::kIgnore, std::nullopt);
  const double* x = found.const_data_ptr<double>();
  return {{"mismatch/max", x[0]},
          {"mismatch/mean", x[1]},
          {"mismatch/k3", x[3]},
          {"mismatch/chi2", x[4]},
          {"mismatch/ess", x[7]}};
}

// What was measured is an inner layer's; the policy's own entropy is that of the completions, as they were drawn.
void tell_inner(const Batch& update, std::map<std::string, double>& values) {
  values["inner/entropy"] = values.at("entropy/mean");
  values["entropy/mean"] =
      update.old_entropy.masked_select(update.target != data::kIgnore).mean(torch::kFloat64).item<double>();
  values.erase("entropy/std");
}

}  // namespace

PolicyObjective::PolicyObjective(AttentionEntropy attention, const ObjectiveConfig& config, const BatchConfig& batch,
                                 double temperature, std::optional<model::Decoder> reference,
                                 std::shared_ptr<const Ranks> ranks, std::vector<methods::Weight> weight)
    : Objective(std::move(attention), std::move(ranks)),
      config_(config),
      batch_(batch),
      temperature_(temperature),
      reference_(std::move(reference)),
      weight_(std::move(weight)),
      entropy_(config.entropy),
      others_(controls_of(config)) {
  weighs_ = weight_.any([]<class M>(const M&) {
    return requires(const M& method, const methods::Update& seen, methods::Context& context) {
      method.apply(seen, context);
    };
  });
  rescores_ = weight_.any([]<class M>(const M&) {
    return requires { M::kNeedsRescored; };
  });
  moments_ = weight_.any([]<class M>(const M&) {
    return requires { M::kNeedsMoments; };
  });
  for (const methods::Weight& one : weight_.entries())
    if (const auto* attention = one.get<methods::AttentionEntropy>()) attention_layer_ = attention->layer;
}

void PolicyObjective::begin(int64_t step, model::Decoder& model, std::vector<Batch>& updates) {
  Objective::begin(step, model, updates);
  first_ = true;
  control_.layer = set().layer;
  if (!rescores_ && !control_.layer) return;
  for (Batch& update : updates) {
    const Batch here = update.to(model->embedding().device());
    const std::vector<Batch> micros = split(share_of_rank(here, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
    update.rescored = of_update(*ranks_, look(model, micros).logprob, here).to(update.tokens.device());
  }
}

std::map<std::string, Tensor> PolicyObjective::state() const {
  std::map<std::string, Tensor> state;
  weight_.save("weight", state);
  entropy_.save("objective.entropy", state);
  others_.save("objective", state);
  return state;
}

void PolicyObjective::restore(const std::map<std::string, Tensor>& state) {
  weight_.restore("weight", state);
  entropy_.restore("objective.entropy", state);
  others_.restore("objective", state);
}

std::map<std::string, double> PolicyObjective::backward(model::Decoder& model, const Batch& update, uint64_t seed,
                                                        AttentionWatch* watch, Gradients* gradients) {
  Found found;
  std::map<std::string, double> decided;
  control_ = set();
  passes(model, update, seed, watch, gradients, found, decided);
  if (watch) watch->over(*ranks_);
  auto values = values_of(ranks_->sum(found.loss), ranks_->rows(torch::stack(found.stats)));
  const Tensor logprob = of_update(*ranks_, torch::cat(found.logprobs), update);
  const bool learns = values.at("tokens") > 0;
  if (learns) values.merge(covariances(logprob, update));
  tell(found, update, values);
  if (!learns) return values;
  values.merge(decided);
  if (std::exchange(first_, false) && !control_.layer) values.merge(mismatch_of(logprob, update));
  if (control_.layer) tell_inner(update, values);
  if (!entropy_.empty()) control_.tell(values);
  auto told = entropy_.observe(values);
  told.merge(others_.observe(values));
  values.merge(told);
  return values;
}

void PolicyObjective::tell(const Found& found, const Batch& update, std::map<std::string, double>& values) const {
  const auto over_ranks = [&](const Tensor& x) {
    Tensor sums = x.to(torch::kCPU).contiguous();
    ranks_->sum(sums);
    return sums;
  };
  if (found.kept.defined()) {
    const Tensor sums = over_ranks(found.kept);
    if (const double tokens = sums[1].item<double>(); tokens > 0)
      values["entropy/kept"] = sums[0].item<double>() / tokens;
  }
  if (found.divergence.defined()) {
    const Tensor sums = over_ranks(found.divergence);
    for (int64_t part = 0; part < std::ssize(update.ref_kl_parts); ++part)
      if (const double tokens = sums[part][1].item<double>(); tokens > 0)
        values["ref_kl/" + update.ref_kl_parts[part]] = sums[part][0].item<double>() / tokens;
  }
}

void PolicyObjective::passes(model::Decoder& model, const Batch& update, uint64_t seed, AttentionWatch* watch,
                             Gradients* gradients, Found& found, std::map<std::string, double>& values) {
  const std::vector<Batch> micros = split(share_of_rank(update, ranks_->rank(), ranks_->size()), batch_.micro_tokens);
  const bool together = batch_.micro_tokens == 0;
  const bool one_pass = ranks_->alone() ? micros.size() == 1 : together;
  const Sent sent{gradients};

  if (update.second) found.loss += reinforce(model, *update.second);  // no pass is the last yet

  // Of own rows. Where the update is cut, what its policy says of it takes passes of their own.
  const bool by_policy = decides_by_policy();
  Decided decided;
  if (!by_policy || !one_pass)
    decided = own(decide(update, by_policy ? look(model, micros) : Seen(), seed, values), update);

  int64_t row = 0;
  for (size_t m = 0; m < micros.size(); ++m) {
    const Batch& micro = micros[m];
    Pass pass(attention_, watch, together ? ranks_.get() : nullptr, attention_layer_.has_value());
    const auto policy =
        pass.tokens(model, micro, temperature_, keep(), moments_ && by_policy && one_pass, control_.layer);
    const Tensor logprob = policy.logprob.detach();
    if (by_policy && one_pass)
      decided = own(decide(update,
                           {logprob, policy.entropy.detach(), attention_in(pass.record()), policy.sum_p2,
                            policy.sum_p2_logp, kept_of(policy)},
                           seed, values),
                    update);
    Decided here = decided.each([&](const Tensor& x) { return x.slice(0, row, row + micro.size()); });
    if (config_.selects() && config_.scope == "micro") here.selected = select(logprob, micro, here.counts, seed + m);
    const auto out = loss_of(policy, micro, here, found);
    found.loss += pass.backward(out.loss, together ? 1.0 : share_of(micro, update), gradients, m + 1 == micros.size());
    found.stats.push_back(out.stats);
    found.logprobs.push_back(logprob);
    row += micro.size();
  }
}

bool PolicyObjective::decides_by_policy() const {
  return (config_.selects() && config_.scope == "global") || weighs_ || control_.weighs;
}

PolicyObjective::Decided PolicyObjective::Decided::each(const std::function<Tensor(const Tensor&)>& function) const {
  const auto of = [&](const Tensor& x) { return x.defined() ? function(x) : x; };
  return {of(selected), of(factor), of(counts), normalizer, of(bonus)};
}

PolicyObjective::Seen PolicyObjective::look(model::Decoder& model, const std::vector<Batch>& micros) const {
  const torch::NoGradGuard no_grad;
  std::vector<Tensor> logprobs, entropies, attentions, squares, logs, kept;
  for (const Batch& micro : micros) {
    model::AttentionRecord record;
    const auto out = model->token_entropy(micro.tokens, micro.target, temperature_,
                                          attention_layer_ ? &record : nullptr, {micro.position, micro.prefix},
                                          control_.weighs ? keep() : std::nullopt, moments_, control_.layer);
    logprobs.push_back(out.logprob);
    entropies.push_back(out.entropy);
    if (attention_layer_) attentions.push_back(attention_in(record));
    if (moments_) squares.push_back(out.sum_p2), logs.push_back(out.sum_p2_logp);
    if (control_.weighs) kept.push_back(kept_of(out));
  }
  const auto joined = [](const std::vector<Tensor>& x) { return x.empty() ? Tensor() : torch::cat(x); };
  return {torch::cat(logprobs), torch::cat(entropies), joined(attentions), joined(squares), joined(logs), joined(kept)};
}

// [B, T]: of each row's entropy its share of the most that its n keys allow, log n, mean over heads; 0 where there is one key.
Tensor PolicyObjective::attention_in(const model::AttentionRecord& record) const {
  if (!attention_layer_) return {};
  const auto& layers = record.layer;
  const size_t layer = *attention_layer_ < 0
                           ? layers.size() - 1
                           : std::find(layers.begin(), layers.end(), *attention_layer_) - layers.begin();
  const Tensor entropy = record.entropy.at(layer).detach().to(torch::kFloat32).mean(1);
  Tensor keys = (record.position.defined() ? record.position : torch::arange(entropy.size(1), entropy.device())) + 1;
  if (record.window.at(layer) > 0) keys = keys.clamp_max(record.window[layer]);
  return torch::where(keys > 1, entropy / keys.clamp_min(2).to(torch::kFloat32).log(), 0.0).to(torch::kFloat32);
}

// What methods and the selection make of the whole update. own: of the rows of this rank; empty where nothing is decided by it.
PolicyObjective::Decided PolicyObjective::decide(const Batch& update, const Seen& own, uint64_t seed,
                                                 std::map<std::string, double>& values) {
  Decided decided;
  decided.counts = update.target != data::kIgnore;
  const auto all_of = [&](const Tensor& x) { return x.defined() ? of_update(*ranks_, x, update) : x; };
  const Tensor all = all_of(own.logprob);
  if (weighs_ || control_.weighs) {
    methods::Update seen{.mask = decided.counts,
                         .advantage = update.advantage,
                         .logprob = all,
                         .old_logprob = update.old_logprob,
                         .entropy = all_of(own.entropy),
                         .old_entropy = update.old_entropy,
                         .rescored = update.rescored,
                         .attention_entropy = all_of(own.attention),
                         .sum_p2 = all_of(own.sum_p2),
                         .sum_p2_logp = all_of(own.sum_p2_logp),
                         .old_sum_p2 = update.old_sum_p2,
                         .sampling_logprob = update.sampling_logprob,
                         .kept = all_of(own.kept),
                         .hard = update.hard};
    if (weighs_) decided.factor = weigh(weight_, seen, update, batch_.micro_tokens, values);
    decided.counts = seen.mask;
    if (control_.weighs) {
      std::vector<methods::Bonus> bonuses;
      entropy_.each(values, [&](const auto& method, methods::Context context) {
        if constexpr (requires { method.bonus(seen, step_, context); })
          bonuses.push_back(method.bonus(seen, step_, context));
      });
      const methods::Bonus all = methods::together(control_.entropy_coef, bonuses);
      control_.entropy_coef = all.coef;
      decided.bonus = all.weight;
    }
  }
  weighed_ = decided.factor.defined() ? decided.factor : decided.bonus;
  decided.normalizer = normalizer_of(decided.counts);
  if (config_.selects() && config_.scope == "global") decided.selected = select(all, update, decided.counts, seed);
  return decided;
}

PolicyObjective::Decided PolicyObjective::own(const Decided& decided, const Batch& update) const {
  return decided.each([&](const Tensor& x) { return of_rank(*ranks_, x, update); });
}

// What the sums of token losses are divided by, counted over the whole update.
Tensor PolicyObjective::normalizer_of(const Tensor& mask) const {
  const auto count = [](const Tensor& x) { return x.sum().to(torch::kFloat64).clamp_min(1); };
  const int64_t length = config_.norm_length > 0 ? config_.norm_length : mask.size(1);
  if (config_.aggregate == "token-mean") return count(mask);
  if (config_.aggregate == "token-sum-norm" || config_.aggregate == "token-sum")
    return torch::full({}, config_.aggregate == "token-sum" ? 1 : length,
                       torch::TensorOptions().dtype(torch::kFloat64).device(mask.device()));
  return config_.aggregate == "seq-mean-token-sum-norm" ? count(mask.any(1)) * length : count(mask.any(1));
}

Tensor PolicyObjective::select(const Tensor& logprob, const Batch& batch, const Tensor& counts, uint64_t seed) const {
  Tensor selected = ops::grpo_select(logprob, old_of(batch), batch.advantage, counts,
                                     {.mode = config_.loss,
                                      .seed = static_cast<int64_t>(seed),
                                      .cov_ratio = config_.cov_ratio,
                                      .cov_lower = config_.cov_lower,
                                      .cov_upper = config_.cov_upper,
                                      .clip_low = config_.clip_low,
                                      .clip_high = clip_high(),
                                      .minimum = 1});
  for (const methods::Weight& one : weight_.entries())
    std::visit(
        [&](const auto& method) {
          if constexpr (requires { method.choose(selected, counts, seed); })
            selected = method.choose(selected, counts, seed);
        },
        one.value);
  return selected;
}

// Backpropagates − Σ advantage · ℓ of own rows, aggregated as the loss is.
double PolicyObjective::reinforce(model::Decoder& model, const Batch& second) const {
  ops::GrpoLossOptions options;
  options.mode = "gpg";
  options.aggregate = config_.aggregate;
  options.statistics = false;
  options.normalizer = normalizer_of(second.target != data::kIgnore);
  double sum = 0;
  for (const Batch& micro : split(share_of_rank(second, ranks_->rank(), ranks_->size()), batch_.micro_tokens)) {
    const Tensor logprob = model
                               ->token_entropy(micro.tokens, micro.target, temperature_, nullptr, {{}, micro.prefix},
                                               {}, false, control_.layer)
                               .logprob;
    const Tensor loss =
        ops::grpo_loss(logprob, logprob.detach(), micro.advantage, micro.target != data::kIgnore, options).loss;
    loss.backward();
    sum += loss.item<double>();
  }
  return sum;
}

ops::GrpoLoss PolicyObjective::loss_of(const ops::TokenEntropy& policy, const Batch& batch, const Decided& decided,
                                       Found& found) const {
  std::optional<Tensor> reference;
  if (reference_ && batch.ref_logprob.defined() && !control_.layer) {
    reference = batch.ref_logprob;
  } else if (reference_) {
    torch::NoGradGuard no_grad;
    model::Decoder model = *reference_;
    reference = model
                    ->token_entropy(batch.tokens, batch.target, temperature_, nullptr, {{}, batch.prefix}, {}, false,
                                    control_.layer)
                    .logprob;
  }
  if (reference && batch.ref_kl_part.defined()) {
    const Tensor own = divergence_by_part(policy.logprob, *reference, batch);
    found.divergence = found.divergence.defined() ? found.divergence + own : own;
  }
  ops::GrpoLossOptions options;
  options.mode = config_.loss;
  options.aggregate = config_.aggregate;
  options.clip_low = config_.clip_low;
  options.clip_high = clip_high();
  if (config_.dual_clip > 0) options.dual_clip = config_.dual_clip;
  options.delta = config_.delta;
  options.tau_pos = config_.tau_pos;
  options.tau_neg = config_.tau_neg;
  options.vespo_k_pos = config_.vespo_k_pos;
  options.vespo_lambda_pos = config_.vespo_lambda_pos;
  options.vespo_k_neg = config_.vespo_k_neg;
  options.vespo_lambda_neg = config_.vespo_lambda_neg;
  options.gppo_beta1 = config_.gppo_beta1;
  options.gppo_beta2 = config_.gppo_beta2;
  options.dro_beta = config_.dro_beta;
  options.kl_cov_coef = config_.kl_cov_coef;
  options.ref_kl = config_.ref_kl;
  options.ref_kl_coef = control_.ref_kl_coef.value_or(config_.ref_kl_coef);
  options.entropy_coef = control_.entropy_coef;
  if (decided.selected.defined()) options.selected = decided.selected;
  options.ref_logprob = reference;
  if (batch.ref_kl_weight.defined()) options.ref_kl_weight = batch.ref_kl_weight;
  // Entropy that only statistics want carries no gradient memory.
  options.entropy = control_.entropy_coef != 0 ? policy.entropy : policy.entropy.detach();
  const auto valued = [&](const Tensor& x) { return x + (policy.entropy - x).detach(); };
  if (policy.kept_entropy.defined()) {  // the value of the whole, the gradient of what is kept
    options.entropy = valued(policy.kept_entropy);
    const Tensor own = torch::stack({policy.kept_entropy.detach().masked_select(decided.counts).sum(torch::kFloat64),
                                     decided.counts.sum().to(torch::kFloat64)});
    found.kept = found.kept.defined() ? found.kept + own : own;
  }
  if (decided.bonus.defined())
    options.entropy = valued(decided.bonus * (policy.kept_entropy.defined() ? policy.kept_entropy : policy.entropy));
  options.normalizer = decided.normalizer;
  return ops::grpo_loss(policy.logprob, old_of(batch), advantage_of(batch, decided.factor), decided.counts, options);
}

// Every policy term is proportional to the advantage where its sign stays, so that a factor ≥ 0 of the term is one of the advantage.
// The penalties of kl_cov and dro, which know no advantage, stay as they are.
Tensor PolicyObjective::advantage_of(const Batch& batch, const Tensor& factor) const {
  Tensor advantage = batch.advantage;
  if (control_.positive != 1 || control_.negative != 1)
    advantage = advantage * torch::where(advantage > 0, control_.positive, control_.negative).to(torch::kFloat32);
  return factor.defined() ? advantage * factor : advantage;
}

std::map<std::string, double> PolicyObjective::values_of(double loss, const Tensor& micro_stats) const {
  const Tensor stats = ops::grpo_combine_stats(micro_stats).to(torch::kCPU);
  const auto names = ops::grpo_stat_names();
  std::map<std::string, double> all, values = {{"loss", loss}};
  for (size_t i = 0; i < names.size(); ++i) all[names[i]] = stats.const_data_ptr<float>()[i];
  // The others are means and maxima over tokens, and there are none of no token.
  for (const auto& [name, value] : all)
    if (name == "tokens" || name == "sequences" ||
        (all.at("tokens") > 0 && !name.starts_with("cov/") && (reference_ || !name.starts_with("ref_kl/"))))
      values[name] = value;
  return values;
}

std::optional<ops::Keep> PolicyObjective::keep() const {
  if (!config_.entropy_keep || (control_.entropy_coef == 0 && !control_.weighs)) return std::nullopt;
  return ops::Keep{.kind = config_.entropy_keep->kind, .share = config_.entropy_keep->share};
}

methods::Control PolicyObjective::set() {
  methods::Control control;
  methods::set(entropy_, step_, control);
  methods::set(others_, step_, control);
  return control;
}

double PolicyObjective::clip_high() const {
  return config_.clip_high.value_or(config_.loss == "clip_higher" ? 0.28 : config_.clip_low);
}

}  // namespace isentrope::train
