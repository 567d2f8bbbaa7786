// Which keys of an objective go together.
#include <algorithm>
#include <initializer_list>
#include <tuple>

#include "csrc/train/objective.h"

namespace isentrope::train {
namespace {

using Names = std::initializer_list<const char*>;

bool among(const std::string& name, Names names) { return std::find(names.begin(), names.end(), name) != names.end(); }

std::string text(double x) {
  std::string digits = std::to_string(x);
  digits.erase(digits.find_last_not_of('0') + 1);
  if (digits.back() == '.') digits.pop_back();
  return digits;
}

std::string listed(Names names) {
  std::string list;
  size_t left = names.size();
  for (const char* name : names) list += std::string(name) + (--left == 0 ? "" : left == 1 ? " and " : ", ");
  return list;
}

// A coefficient that is not its default and that this loss does not read.
std::string unread(const ObjectiveConfig& c) {
  const ObjectiveConfig d;
  using Key = std::tuple<const char*, double, double, const char*>;
  for (const auto& [name, value, standard, owner] :
       {Key{"tau_pos", c.tau_pos, d.tau_pos, "sapo"},
        {"tau_neg", c.tau_neg, d.tau_neg, "sapo"},
        {"vespo_k_pos", c.vespo_k_pos, d.vespo_k_pos, "vespo"},
        {"vespo_lambda_pos", c.vespo_lambda_pos, d.vespo_lambda_pos, "vespo"},
        {"vespo_k_neg", c.vespo_k_neg, d.vespo_k_neg, "vespo"},
        {"vespo_lambda_neg", c.vespo_lambda_neg, d.vespo_lambda_neg, "vespo"},
        {"gppo_beta1", c.gppo_beta1, d.gppo_beta1, "ce_gppo"},
        {"gppo_beta2", c.gppo_beta2, d.gppo_beta2, "ce_gppo"},
        {"dro_beta", c.dro_beta, d.dro_beta, "dro"}})
    if (value != standard && c.loss != owner)
      return std::string(name) + ": the loss " + owner + " has it, and loss is " + c.loss + "; leave it out";
  return "";
}

std::string problem_of_bounds(const ObjectiveConfig& c) {
  const Names dual{"clip", "clip_higher", "ce_gppo"}, two_sided{"clip", "clip_higher", "gspo", "luspo", "ce_gppo"},
      truncated{"dppo_tv", "dppo_kl", "reinforce"};
  if (c.dual_clip != 0 && !among(c.loss, dual))
    return "dual_clip: the losses " + listed(dual) + " have it, and loss is " + c.loss + "; leave it out";
  if (!c.delta) return "";
  if (!among(c.loss, two_sided) && !among(c.loss, truncated))
    return "delta: it bounds the ratio of " + listed(two_sided) + ", and the weight of " + listed(truncated) +
           ", and loss is " + c.loss + "; leave it out";
  if (c.dual_clip != 0)
    return "delta: dual_clip is given too, and both bound the loss where the advantage is negative; leave one of them "
           "out";
  const double upper = 1 + c.clip_high.value_or(c.loss == "clip_higher" ? 0.28 : c.clip_low);
  if (among(c.loss, two_sided) && *c.delta <= upper)
    return "delta: " + text(*c.delta) + "; wanted above 1 + clip_high, which is " + text(upper) +
           ": below it the clip holds the ratio already";
  if (*c.delta == 0) return "delta: 0 leaves no weight; wanted above 0";
  return "";
}

}  // namespace

std::string ObjectiveConfig::problem() const {
  if (dual_clip != 0 && dual_clip <= 1)
    return "dual_clip: " + std::to_string(dual_clip) + "; wanted above 1, or 0 for none";
  if (kind == "grpo" && ref_kl_coef == 0 && ref_kl_control)
    return "ref_kl_control: ref_kl_coef is 0, so that there is no divergence; give it a value above 0";
  if (cov_lower >= cov_upper) return "cov_lower: must lie below cov_upper";
  if (cov_ratio == 0) return "cov_ratio: 0 picks nothing; wanted above 0";
  for (const auto& [name, tau] : {std::pair{"tau_pos", tau_pos}, {"tau_neg", tau_neg}})
    if (tau == 0) return std::string(name) + ": 0 makes the gate flat; wanted above 0";
  if (kind == "dpo") {
    if (ref_kl_control) return "ref_kl_control: it belongs to grpo phases, and kind is dpo; leave it out";
    if (dpo_loss == "robust" && dpo_label_smoothing == 0.5)
      return "dpo_label_smoothing: 0.5 leaves the loss robust nothing to learn; wanted below";
    if (dpo_label_smoothing > 0 && !among(dpo_loss, {"sigmoid", "sigmoid_norm", "robust"}))
      return "dpo_label_smoothing: the losses sigmoid, sigmoid_norm and robust have it, and dpo_loss is " + dpo_loss +
             "; leave it out";
  }
  if (kind == "distill") {
    if (distill.teacher.empty())
      return "distill.teacher: is empty; name the folder of the model that the student learns from";
    if (reference) return "reference: the teacher of a distill phase is distill.teacher; leave it out";
    if (distill.logits == 0 && distill.targets == 0 && distill.layers.value_or(1) == 0)
      return "distill.logits: the weights logits, targets and layers are all 0; give one of them a value above 0";
  }
  if (kind != "grpo") return "";
  if (std::string bounds = problem_of_bounds(*this); !bounds.empty()) return bounds;
  if (loss == "luspo" && (aggregate == "token-mean" || aggregate == "seq-mean-token-mean"))
    return "aggregate: under " + aggregate +
           " the loss luspo is gspo; wanted one that sums over the tokens of a sequence, seq-mean-token-sum as its "
           "authors "
           "have it";
  if (loss == "dro" && dro_beta == 0) return "dro_beta: 0 makes the loss dro gpg; wanted above 0, or loss: gpg";
  if (loss == "ce_gppo" && gppo_beta1 == 0 && gppo_beta2 == 0)
    return "gppo_beta1: with gppo_beta2 0 too the loss ce_gppo has the gradient of clip; wanted one of them above 0, "
           "or "
           "loss: clip";
  if (inner_policy && attention_entropy.coef > 0)
    return "inner_policy: attention_entropy.coef is above 0, and the layers behind an inner policy have no gradient; "
           "leave one of them out";
  if (norm_length != 0 && aggregate == "token-sum") return "norm_length: token-sum divides by no length; leave it out";
  return unread(*this);
}

std::string ObjectiveConfig::holds_entropy() const {
  if (kind != "grpo") return "it is no phase of rollouts";
  if (!entropy.empty()) return "objective.entropy steers the entropy";
  if (selects() || loss == "ce_gppo") return "loss " + loss + " holds the entropy up";
  if (loss == "clip_higher" || clip_high.value_or(clip_low) > clip_low) return "clip_high is above clip_low";
  if (ref_kl_coef > 0) return "a reference holds the policy back";
  return "";
}

}  // namespace isentrope::train
