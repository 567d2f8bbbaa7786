// What is minimised: model and batch in, a loss with its statistics out.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "csrc/data/batch.h"
#include "csrc/data/contrastive_config.h"
#include "csrc/data/keep_labels.h"
#include "csrc/data/masking.h"
#include "csrc/field.h"
#include "csrc/methods/entropy_control.h"
#include "csrc/methods/objective_control.h"
#include "csrc/methods/registry.h"
#include "csrc/model/decoder.h"
#include "csrc/train/attention_entropy.h"
#include "csrc/train/attention_watch.h"
#include "csrc/train/distill_config.h"
#include "csrc/train/gradients.h"

namespace isentrope::train {

struct BatchConfig {
  int64_t sequences = 32;
  int64_t micro_tokens = 0;

  template <class Visitor>
  void visit(Visitor& v) {
    v("sequences", sequences,
      "Sequences of an update; a grpo update takes prompts · num_generations / mini_batches of them.",
      between(1, 1 << 20));
    v("micro_tokens", micro_tokens,
      "Most tokens, padding included, of one forward and backward pass; gradients add up over them. 0: all at once.",
      at_least(0));
  }
};

// The part of the vocabulary that the entropy bonus is about.
struct KeepConfig {
  std::string kind = "top_p";
  double share = 0.8;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind,
      "top_p: the fewest likeliest tokens whose probabilities reach share (SIREN, arXiv 2509.25133); without_lowest: "
      "all "
      "but that share of the vocabulary that is least likely (AEnt, arXiv 2509.03493).",
      one_of({"top_p", "without_lowest"}));
    v("share", share, "top_p: of probability; without_lowest: of the tokens of the vocabulary.", between(0, 1));
  }
};

// The model that ref_kl_coef and the reward kl measure the divergence from.
struct ReferenceConfig {
  std::string from;
  int64_t sync_every = 0;
  double mixup = 1.0;

  std::string problem() const {
    return sync_every == 0 && mixup != 1 ? "mixup: without sync_every the reference stays as it is; leave it out" : "";
  }
  template <class Visitor>
  void visit(Visitor& v) {
    v("from", from,
      "Checkpoint, run or folder of transformers with the model's tokenizer; empty: the model at the start of the "
      "phase.");
    v("sync_every", sync_every,
      "Steps after which the reference becomes mixup · model + (1 − mixup) · reference; 0: it stays (TRL: "
      "sync_ref_model, "
      "ref_model_sync_steps).",
      at_least(0));
    v("mixup", mixup, "The model's share in that; 1 takes the model (TRL: ref_model_mixup_alpha, 0.6).",
      above_to(0, 1));
  }
};

struct ObjectiveConfig {
  std::string kind = "sft";
  std::string loss = "clip";
  std::string aggregate = "token-mean";
  double clip_low = 0.2;
  std::optional<double> clip_high;
  double dual_clip = 0.0;
  std::optional<double> delta;
  double tau_pos = 1.0;
  double tau_neg = 1.05;
  double vespo_k_pos = 2.0;
  double vespo_lambda_pos = 3.0;
  double vespo_k_neg = 3.0;
  double vespo_lambda_neg = 2.0;
  double gppo_beta1 = 0.75;
  double gppo_beta2 = 1.0;
  double dro_beta = 0.05;
  std::string dpo_loss = "sigmoid";
  double dpo_beta = 0.1;
  double dpo_label_smoothing = 0.0;
  double dpo_sft_coef = 0.0;
  double cov_ratio = 2e-4;
  double cov_lower = 1.0;
  double cov_upper = 5.0;
  double kl_cov_coef = 1.0;
  int64_t norm_length = 0;
  std::string scope = "global";
  std::string ref_kl = "k3";
  double ref_kl_coef = 0.0;
  std::optional<ReferenceConfig> reference;
  std::optional<methods::KlControl> ref_kl_control;
  std::optional<double> max_kl;
  OneOrMore<methods::EntropyControl> entropy;
  std::optional<KeepConfig> entropy_keep;
  std::optional<methods::InnerPolicy> inner_policy;
  data::MaskingConfig masking;
  data::TagConfig tag;
  data::ContrastiveConfig contrastive;
  DistillConfig distill;
  AttentionEntropyConfig attention_entropy;

  std::string problem() const;
  bool of_encoders() const { return kind == "mlm" || kind == "tag"; }
  bool of_matches() const { return kind == "contrastive"; }  // of encoders and decoders alike
  // Whether the loss treats tokens apart that it selects.
  bool selects() const { return loss == "clip_cov" || loss == "kl_cov"; }
  // Whether the phase keeps a model that stays behind.
  bool has_reference() const { return kind == "dpo" || kind == "distill" || ref_kl_coef > 0; }
  // The folder of that model; empty: it is the model at the start of the phase.
  std::string reference_from() const { return kind == "distill" ? distill.teacher : reference ? reference->from : ""; }
  // Why the law of csrc/rl/entropy_law.h cannot hold here: something keeps the entropy up. "" where it may be fitted.
  std::string holds_entropy() const;

  template <class Visitor>
  void visit(Visitor& v) {
    v("kind", kind,
      "pretrain: cross-entropy of text; sft: cross-entropy of completions; dpo: a loss on pairs of completions, the "
      "better beside the worse; grpo: a policy loss on rollouts; distill: the divergence from a teacher, of text or of "
      "completions; of encoders (model.causal: false) mlm: cross-entropy "
      "of "
      "masked tokens of text; tag: of a label of each token, whether a compressed text keeps it; of encoders and "
      "decoders "
      "contrastive: which texts match a prompt.",
      one_of({"pretrain", "sft", "dpo", "grpo", "distill", "mlm", "tag", "contrastive"}));
    v("loss", loss,
      "Policy loss (formulas and papers: kernels/grpo_policy.h). verl and TRL aggregate sapo and geo_mean by "
      "seq-mean-token-mean alone, verl gspo by default; luspo needs an aggregate that sums over the tokens of a "
      "sequence.",
      one_of({"clip", "clip_higher", "clip_cov", "kl_cov", "gspo", "luspo", "geo_mean", "cispo", "reinforce", "dppo_tv",
              "dppo_kl", "sapo", "vespo", "ce_gppo", "dro", "gpg"}));
    v("aggregate", aggregate,
      "How token losses become one number. token-sum divides by nothing: gradients grow with the update (verl has it).",
      one_of({"token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm", "token-sum-norm",
              "token-sum"}));
    v("norm_length", norm_length,
      "Length L of seq-mean-token-sum-norm, Σ/(S·L) of S sequences, and of token-sum-norm, Σ/L (Dr. GRPO: the length "
      "limit); 0 for the padded length of the update.",
      at_least(0));
    v("clip_low", clip_low,
      "Ratios under 1 − clip_low are clipped; 1: none. geo_mean: log-ratios under −clip_low (the paper's 0.4; verl and "
      "TRL "
      "read the same key, 0.2 by default). dppo_tv, dppo_kl: divergences under −clip_low (verl's scripts: 0.15 and "
      "0.05).",
      between(0, 1));
    v("clip_high", clip_high,
      "Ratios over 1 + clip_high are clipped, or log-ratios or divergences over clip_high; default clip_low, 0.28 for "
      "clip_higher.",
      at_least(0));
    v("dual_clip", dual_clip,
      "Bound c of the loss at negative advantage (clip, clip_higher, ce_gppo); 0 for none, else above 1.", at_least(0));
    v("delta", delta,
      "Most of the ratio itself, above 1 + clip_high: the two-sided clip of clip, clip_higher, gspo, luspo, ce_gppo "
      "(TRL: "
      "delta; INTELLECT-2, 2505.07291: 4), none by default. Of dppo_tv and dppo_kl, default 20 (verl: clip_ratio_c, "
      "whose "
      "3 its actor's configuration has for other losses), and of reinforce, default 2 (verl: rollout_is_threshold).",
      at_least(0));
    v("tau_pos", tau_pos,
      "sapo: slope of the gate where the advantage is above 0 (2511.20347; verl: tau_pos, TRL: sapo_temperature_pos),",
      at_least(0));
    v("tau_neg", tau_neg, "and where it is not.", at_least(0));
    v("vespo_k_pos", vespo_k_pos,
      "vespo (2602.10693, as TRL has it): power of the sequence's ratio in its weight where the advantage is 0 or "
      "more,",
      at_least(0));
    v("vespo_lambda_pos", vespo_lambda_pos, "rate at which the weight falls for large ratios there,", at_least(0));
    v("vespo_k_neg", vespo_k_neg, "the power where the advantage is below 0,", at_least(0));
    v("vespo_lambda_neg", vespo_lambda_neg, "and the rate there.", at_least(0));
    v("gppo_beta1", gppo_beta1,
      "ce_gppo (2509.20712): share of the gradient that is kept under the clip, 0 for none. The paper has 0.75 for a "
      "model "
      "of 7B and 0.5 for 1.5B; the authors' configuration 0.25,",
      at_least(0));
    v("gppo_beta2", gppo_beta2, "and over the clip.", at_least(0));
    v("dro_beta", dro_beta,
      "dro: weight of half the squared log-ratio (2405.19107). verl has no default, 0.05 stands in Tinker's example.",
      at_least(0));
    v("dpo_loss", dpo_loss,
      "dpo: loss of h, the log-ratio to the reference of the better completion less that of the worse. sigmoid: "
      "−log σ(β h) (2305.18290); sigmoid_norm: the same of log-ratios a token; hinge: max(0, 1 − β h) (2305.10425); "
      "ipo: "
      "(h − 1/(2β))² of log-ratios a token (2310.12036); robust: sigmoid without the bias of flipped pairs "
      "(2403.00409). As "
      "TRL has them.",
      one_of({"sigmoid", "sigmoid_norm", "hinge", "ipo", "robust"}));
    v("dpo_beta", dpo_beta, "β: how dear it is to leave the reference.", above(0));
    v("dpo_label_smoothing", dpo_label_smoothing,
      "Share of pairs taken to be the wrong way round: sigmoid, sigmoid_norm (conservative DPO), robust.",
      between(0, 0.5));
    v("dpo_sft_coef", dpo_sft_coef,
      "Weight of the mean cross-entropy of the better completions' tokens beside the loss (RPO, 2404.19733); it keeps "
      "them likely.",
      at_least(0));
    v("cov_ratio", cov_ratio,
      "Share of tokens that clip_cov or kl_cov selects (verl: clip_cov_ratio, kl_cov_ratio); weight: [{kind: random}] "
      "draws as many at random.",
      between(0, 1));
    v("cov_lower", cov_lower, "clip_cov picks where the covariance lies above this,");
    v("cov_upper", cov_upper, "and below this.");
    v("kl_cov_coef", kl_cov_coef,
      "kl_cov: weight of |log ratio| on the selected tokens, where it is more than rounding; verl's default is 0.1. In "
      "the first update of a batch, the only one with rollout.mini_batches: 1, it is not, and kl_cov is plain -A r: "
      "take 2 "
      "updates or more.",
      at_least(0));
    v("scope", scope, "Over what covariances are centred and ranked: all of an update, or each micro-batch.",
      one_of({"global", "micro"}));
    v("ref_kl", ref_kl,
      "Estimator of the divergence from the reference model (kernels/grpo_loss.h). k3_is: k3 times the token's ratio "
      "to "
      "the policy that drew, unbiased in value and gradient (DeepSeek-V3.2; TRL: use_bias_correction_kl).",
      one_of({"k1", "k2", "k3", "k1+", "k3+", "k3_is"}));
    v("ref_kl_coef", ref_kl_coef,
      "Weight of that divergence in the loss; the reference is the model at the start of the phase. (In the reward: "
      "reward: [..., {kind: kl}].)",
      at_least(0));
    v("reference", reference,
      "Which model the divergence is measured from, in the loss and in the reward kl, and how it follows; absent: the "
      "model at the start of the phase.");
    v("ref_kl_control", ref_kl_control,
      "Steers the weight of that divergence towards a target; absent: ref_kl_coef throughout.");
    v("max_kl", max_kl,
      "The updates of a step end behind one whose mean kl/k3, nats a token from the policy that drew, is above this; "
      "absent: all are made.",
      above(0));
    v("entropy", entropy, "What keeps the policy's entropy up, or steers it; one, or a list of them, in order.");
    v("entropy_keep", entropy_keep,
      "The bonus raises the entropy of these tokens of the vocabulary alone, renormalised; absent: of all. "
      "entropy/mean "
      "and the loss that is told stay those of the whole.");
    v("inner_policy", inner_policy,
      "The ratio is that of an inner layer's policy to itself at the step's beginning, for the first steps of the "
      "phase: "
      "completions are scored by it anew.");
    v("masking", masking, "mlm: which tokens are masked, and by what.");
    v("tag", tag, "tag: which words of a text its compression keeps.");
    v("contrastive", contrastive, "contrastive: how texts are matched.");
    v("distill", distill, "distill: the teacher, and what is learnt of it.");
    v("attention_entropy", attention_entropy,
      "The entropy of attention: watched, and kept in a band where coef is above 0.");
  }
};

class Objective {
 public:
  Objective(AttentionEntropy attention, std::shared_ptr<const Ranks> ranks)
      : attention_(std::move(attention)), ranks_(std::move(ranks)) {}
  virtual ~Objective() = default;
  // Backpropagates the loss of a whole update, one micro-batch after the other, and returns its statistics: "loss",
  // "tokens", how many targets the update has and so the weight of its means, and the names that csrc/train/metrics.h
  // documents; where there is no target, no mean and no maximum. Gradient and statistics are those of the whole update,
  // however it is cut. seed fixes the draws of this update; watch, where given, is told of the attention.
  // Several ranks are given the same update, each computes its own rows of it (share_of_rank), and all return the same statistics, of
  // the whole update; gradients, which they then need, is told of each pass. Log-probabilities that a
  // selection or covariance is about go to all ranks, 4 bytes a token beside 4 bytes a weight of gradients: so every rank runs
  // the same selection on the same numbers, with the same ties and the same seed as one rank does.
  virtual std::map<std::string, double> backward(model::Decoder& model, const data::Batch& update, uint64_t seed,
                                                 AttentionWatch* watch, Gradients* gradients = nullptr) = 0;
  const AttentionEntropy& attention() const { return attention_; }

  // Before the updates of a step, whose number in the phase is step; may add to them what methods ask for.
  virtual void begin(int64_t step, model::Decoder&, std::vector<data::Batch>&) { step_ = step; }
  // What methods made each token of the last update weigh, [B, T] of the whole update: its factor, or else its weight in the entropy bonus;
  // undefined where none weighs.
  virtual torch::Tensor weighed() const { return {}; }
  // What passes from step to step in methods, by name; restore() takes what state() gave, and throws std::runtime_error for other.
  virtual std::map<std::string, torch::Tensor> state() const { return {}; }
  virtual void restore(const std::map<std::string, torch::Tensor>&) {}

 protected:
  AttentionEntropy attention_;
  std::shared_ptr<const Ranks> ranks_;
  int64_t step_ = 0;
};

// The rows of an update that a rank computes: one run of rows each, of about as many tokens without padding, at least one, and never a part of
// those that stand together (Batch::together). Of fewer rows than ranks, the last ranks get a row of which nothing counts.
data::Batch share_of_rank(const data::Batch& update, int64_t rank, int64_t ranks);

// model: whose layers, heads and device the thresholds of attention have.
// temperature: of the rollouts, so that log-probabilities speak of the policy that drew them.
// reference: the model that ref_kl_coef measures the divergence from; needed where that is above 0.
// weight: methods that say which tokens learn, and how much, in order (csrc/methods).
std::unique_ptr<Objective> make_objective(const ObjectiveConfig& config, const BatchConfig& batch,
                                          const model::Decoder& model, double temperature = 1.0,
                                          std::optional<model::Decoder> reference = std::nullopt,
                                          std::shared_ptr<const Ranks> ranks = std::make_shared<Ranks>(),
                                          std::vector<methods::Weight> weight = {});

}  // namespace isentrope::train
