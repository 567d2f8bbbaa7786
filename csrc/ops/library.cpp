// Every schema of isentrope, with its CPU, Meta and Autograd entry. CUDA entries: library_cuda.cpp.
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/crrelu_entries.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/ops.h"
#include "csrc/ops/recurrence_entries.h"
#include "csrc/ops/vmap.h"

TORCH_LIBRARY(isentrope, m) {
  // ---- entropy_attention
  m.def(
      "entropy_attention(Tensor q, Tensor k, Tensor v, *, bool causal, SymInt? window=None, float? softcap=None, "
      "float? scale=None, Tensor? temperature=None, Tensor? key_lengths=None, Tensor? query_start=None, "
      "Tensor? cu_seqlens=None, SymInt? max_seqlen=None, Tensor? block_mask=None, SymInt? block_size=None, "
      "Tensor? gates=None, Tensor? sinks=None, Tensor? slopes=None, bool return_entropy=True) "
      "-> (Tensor out, Tensor lse, Tensor entropy, Tensor max_logit, Tensor anchor, Tensor log_sum)");
  m.def(
      "entropy_attention_backward(Tensor q, Tensor k, Tensor v, Tensor out, Tensor entropy, Tensor anchor, "
      "Tensor log_sum, Tensor? dout, Tensor? dlse, Tensor? dentropy, *, bool causal, SymInt? window=None, float? "
      "softcap=None, float? scale=None, "
      "Tensor? temperature=None, Tensor? key_lengths=None, Tensor? query_start=None, Tensor? cu_seqlens=None, "
      "SymInt? max_seqlen=None, Tensor? block_mask=None, SymInt? block_size=None, Tensor? gates=None, "
      "Tensor? sinks=None, Tensor? slopes=None, bool of_temperature=False, bool of_gates=False, bool of_sinks=False) "
      "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dtemperature, Tensor dgates, Tensor dsinks)");

  // ---- merge_attention_states
  m.def(
      "merge_attention_states(Tensor out, Tensor lse, Tensor entropy, Tensor max_logit) "
      "-> (Tensor out, Tensor lse, Tensor entropy, Tensor max_logit)");

  // ---- gathered_attention, scatter_mean
  m.def(
      "gathered_attention(Tensor q, Tensor k, Tensor v, Tensor index, *, Tensor? key_index=None, bool causal, "
      "float? softcap=None, float? scale=None, bool return_entropy=True) "
      "-> (Tensor out, Tensor lse, Tensor entropy, Tensor max_logit)");
  m.def("scatter_mean(Tensor x, Tensor index, SymInt length) -> Tensor");

  // ---- hierarchical_attention
  m.def(
      "hierarchical_attention(Tensor q, Tensor k, Tensor v, *, int? branching=None, Tensor[]? tree=None, "
      "Tensor? key_lengths=None, Tensor? mask=None, Tensor? position=None, float? scale=None, bool "
      "return_entropy=True) "
      "-> (Tensor out, Tensor entropy, Tensor log_partition)");

  // ---- sigma_linear
  m.def(
      "sigma_linear(Tensor x, Tensor weight, Tensor gamma, Tensor u, Tensor? bias=None, *, str sigma_grad=\"through\") "
      "-> (Tensor y, Tensor sigma, Tensor v, Tensor factors)");
  m.def(
      "sigma_linear_backward(Tensor x, Tensor weight, Tensor u, Tensor sigma, Tensor v, Tensor factors, Tensor? dy, "
      "Tensor? dsigma, *, str sigma_grad, bool[4] wanted) -> (Tensor dx, Tensor dweight, Tensor dgamma, Tensor dbias)");
  m.def(
      "power_step(Tensor[] weights, Tensor(a!)[] us, *, int steps_max=20, float tolerance=0.0001) "
      "-> (Tensor sigmas, Tensor steps)");

  // ---- token_entropy
  m.def(
      "token_entropy(Tensor logits, Tensor target, *, float temperature=1.0, SymInt ignore_index=-100, bool "
      "moments=False, "
      "bool inplace_backward=False, Tensor[]? numbers=None) -> (Tensor logprob, Tensor entropy, Tensor lse, Tensor "
      "anchor, Tensor log_sum, "
      "Tensor sum_p2, Tensor sum_p2_logp)");
  m.def(
      "token_entropy_kept(Tensor logits, Tensor target, *, float temperature=1.0, SymInt ignore_index=-100, bool "
      "moments=False, bool inplace_backward=False, str keep, float share, Tensor[]? numbers=None) -> (Tensor logprob, "
      "Tensor entropy, Tensor lse, Tensor anchor, Tensor log_sum, Tensor sum_p2, Tensor sum_p2_logp, "
      "Tensor kept_entropy, Tensor kept)");
  m.def(
      "token_entropy_backward(Tensor logits, Tensor target, Tensor entropy, Tensor anchor, Tensor log_sum, "
      "Tensor? dlogprob, Tensor? dentropy, Tensor? dlse, *, float temperature=1.0, SymInt ignore_index=-100, "
      "Tensor? dkept_entropy=None, Tensor? kept=None, Tensor[]? numbers=None) -> Tensor");
  m.def(
      "token_entropy_backward_(Tensor(a!) logits, Tensor target, Tensor entropy, Tensor anchor, Tensor log_sum, "
      "Tensor? dlogprob, Tensor? dentropy, Tensor? dlse, *, float temperature=1.0, int ignore_index=-100, "
      "Tensor? dkept_entropy=None, Tensor? kept=None) -> ()");

  // ---- linear_token_entropy
  m.def(
      "linear_token_entropy(Tensor hidden, Tensor weight, Tensor target, *, Tensor? bias=None, float? softcap=None, "
      "float temperature=1.0, SymInt ignore_index=-100, bool moments=False, Tensor[]? numbers=None) -> (Tensor "
      "logprob, Tensor entropy, Tensor "
      "lse, "
      "Tensor anchor, Tensor log_sum, Tensor sum_p2, Tensor sum_p2_logp)");
  m.def(
      "linear_token_entropy_kept(Tensor hidden, Tensor weight, Tensor target, *, Tensor? bias=None, float? "
      "softcap=None, float temperature=1.0, SymInt ignore_index=-100, bool moments=False, str keep, float share, "
      "Tensor[]? numbers=None) -> (Tensor logprob, Tensor entropy, Tensor lse, Tensor anchor, Tensor log_sum, "
      "Tensor sum_p2, Tensor sum_p2_logp, Tensor kept_entropy, Tensor kept)");
  m.def(
      "linear_token_entropy_backward(Tensor hidden, Tensor weight, Tensor target, Tensor entropy, Tensor anchor, "
      "Tensor log_sum, Tensor? dlogprob, Tensor? dentropy, Tensor? dlse, *, Tensor? bias=None, float? softcap=None, "
      "float temperature=1.0, SymInt ignore_index=-100, bool[3] wanted, Tensor? dkept_entropy=None, Tensor? kept=None, "
      "Tensor[]? numbers=None) -> (Tensor dhidden, "
      "Tensor dweight, Tensor "
      "dbias)");

  // ---- grpo_select
  m.def(
      "grpo_select(Tensor logprob, Tensor old_logprob, Tensor advantage, Tensor mask, *, str mode, SymInt seed, "
      "float cov_ratio=0.0002, float cov_lower=1.0, float cov_upper=5.0, float clip_low=0.2, "
      "float? clip_high=None, SymInt minimum=1, Tensor[]? numbers=None) -> Tensor");

  // ---- grpo_loss
  m.def(
      "grpo_loss(Tensor logprob, Tensor old_logprob, Tensor advantage, Tensor mask, *, Tensor? selected=None, "
      "Tensor? ref_logprob=None, Tensor? ref_kl_weight=None, Tensor? entropy=None, Tensor? normalizer=None, "
      "str mode=\"clip\", "
      "str aggregate=\"token-mean\", float clip_low=0.2, float? clip_high=None, float? dual_clip=None, "
      "float kl_cov_coef=1.0, str ref_kl=\"k3\", float ref_kl_coef=0.0, float entropy_coef=0.0, float? delta=None, "
      "float tau_pos=1.0, float tau_neg=1.05, float vespo_k_pos=2.0, float vespo_lambda_pos=3.0, float "
      "vespo_k_neg=3.0, "
      "float vespo_lambda_neg=2.0, float gppo_beta1=0.75, float gppo_beta2=1.0, float dro_beta=0.05, "
      "bool statistics=True, bool keep_slope=False, Tensor[]? numbers=None) "
      "-> (Tensor loss, Tensor token_loss, Tensor stats, Tensor slope, Tensor weight)");
  m.def(
      "grpo_loss_backward(Tensor? dloss, Tensor? dtoken_loss, Tensor slope, Tensor weight, Tensor mask, "
      "float entropy_coef, bool of_entropy, Tensor[]? numbers=None) -> (Tensor dlogprob, Tensor dentropy)");

  // ---- window_entropy
  m.def(
      "window_entropy(Tensor entropy, Tensor mask, Tensor? at=None, *, SymInt before, SymInt after, bool shrink=False) "
      "-> (Tensor mean, Tensor count)");
  m.def("window_entropy_backward(Tensor dmean, Tensor count, Tensor mask, *, SymInt before, SymInt after) -> Tensor");
  m.def(
      "window_select(Tensor mean, Tensor count, *, str threshold, float level, str scope=\"row\", Tensor[]? "
      "numbers=None) "
      "-> (Tensor high, Tensor threshold)");

  // ---- linear_attention
  m.def(
      "linear_attention(Tensor q, Tensor k, Tensor v, *, Tensor? log_decay=None, Tensor? state=None, "
      "Tensor? key_lengths=None, Tensor? cu_seqlens=None, bool normalizer=False, int chunk=64) "
      "-> (Tensor out, Tensor last_state, Tensor weight)");
  m.def(
      "linear_attention_backward(Tensor q, Tensor k, Tensor v, Tensor? out, Tensor? weight, Tensor? dout, "
      "Tensor? dlast_state, *, Tensor? log_decay=None, Tensor? state=None, Tensor? key_lengths=None, "
      "Tensor? cu_seqlens=None, bool normalizer=False, int chunk=64) "
      "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dlog_decay, Tensor dstate)");

  // ---- gated_delta_rule
  m.def(
      "gated_delta_rule(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? log_decay, *, Tensor? write=None, "
      "Tensor? state=None, Tensor? key_lengths=None, Tensor? cu_seqlens=None, int chunk=64) "
      "-> (Tensor out, Tensor last_state)");
  m.def(
      "gated_delta_rule_backward(Tensor q, Tensor k, Tensor v, Tensor beta, Tensor? dout, Tensor? dlast_state, *, "
      "Tensor? log_decay=None, Tensor? write=None, Tensor? state=None, Tensor? key_lengths=None, "
      "Tensor? cu_seqlens=None, int chunk=64) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbeta, Tensor dlog_decay, "
      "Tensor dwrite, Tensor dstate)");

  // ---- crrelu
  m.def("crrelu(Tensor x, Tensor epsilon) -> Tensor");
  m.def("crrelu_backward(Tensor dy, Tensor x, Tensor epsilon) -> (Tensor dx, Tensor depsilon)");

  m.def("grpo_stat_names() -> str[]", isentrope::ops::grpo_stat_names);
  m.def("grpo_combine_stats(Tensor stats) -> Tensor", isentrope::ops::grpo_combine_stats);
}

TORCH_LIBRARY_IMPL(isentrope, CPU, m) {
  using namespace isentrope::ops;
  m.impl("entropy_attention", entropy_attention_entry<entropy_attention_cpu>);
  m.impl("entropy_attention_backward", entropy_attention_backward_entry<entropy_attention_backward_cpu>);
  m.impl("sigma_linear", sigma_linear_cpu);
  m.impl("sigma_linear_backward", sigma_linear_backward_cpu);
  m.impl("power_step", power_step_cpu);
  m.impl("token_entropy", token_entropy_cpu);
  m.impl("token_entropy_kept", token_entropy_kept_cpu);
  m.impl("token_entropy_backward", token_entropy_backward_cpu);
  m.impl("token_entropy_backward_", token_entropy_backward_inplace_cpu);
  m.impl("linear_token_entropy", linear_token_entropy_cpu);
  m.impl("linear_token_entropy_kept", linear_token_entropy_kept_cpu);
  m.impl("linear_token_entropy_backward", linear_token_entropy_backward_cpu);
  m.impl("grpo_select", grpo_select_entry<grpo_select_cpu>);
  m.impl("grpo_loss", grpo_loss_entry<grpo_loss_cpu>);
  m.impl("grpo_loss_backward", grpo_loss_backward_cpu);
  m.impl("window_entropy", window_entropy_cpu);
  m.impl("window_entropy_backward", window_entropy_backward_cpu);
  m.impl("window_select", window_select_cpu);
  m.impl("linear_attention", linear_attention_entry<linear_attention_cpu>);
  m.impl("linear_attention_backward", linear_attention_backward_entry<linear_attention_backward_cpu>);
  m.impl("gated_delta_rule", gated_delta_rule_entry<gated_delta_rule_cpu>);
  m.impl("gated_delta_rule_backward", gated_delta_rule_backward_entry<gated_delta_rule_backward_cpu>);
  m.impl("crrelu", crrelu_cpu);
  m.impl("crrelu_backward", crrelu_backward_cpu);
}

TORCH_LIBRARY_IMPL(isentrope, Meta, m) {
  using namespace isentrope::ops;
  m.impl("entropy_attention", entropy_attention_entry<entropy_attention_meta>);
  m.impl("entropy_attention_backward", entropy_attention_backward_entry<entropy_attention_backward_meta>);
  m.impl("sigma_linear", sigma_linear_meta);
  m.impl("sigma_linear_backward", sigma_linear_backward_meta);
  m.impl("power_step", power_step_meta);
  m.impl("token_entropy", token_entropy_meta);
  m.impl("token_entropy_kept", token_entropy_kept_meta);
  m.impl("token_entropy_backward", token_entropy_backward_meta);
  m.impl("token_entropy_backward_", token_entropy_backward_inplace_meta);
  m.impl("linear_token_entropy", linear_token_entropy_meta);
  m.impl("linear_token_entropy_kept", linear_token_entropy_kept_meta);
  m.impl("linear_token_entropy_backward", linear_token_entropy_backward_meta);
  m.impl("grpo_select", grpo_select_entry<grpo_select_meta>);
  m.impl("grpo_loss", grpo_loss_entry<grpo_loss_meta>);
  m.impl("grpo_loss_backward", grpo_loss_backward_meta);
  m.impl("window_entropy", window_entropy_meta);
  m.impl("window_entropy_backward", window_entropy_backward_meta);
  m.impl("window_select", window_select_meta);
  m.impl("linear_attention", linear_attention_entry<linear_attention_meta>);
  m.impl("linear_attention_backward", linear_attention_backward_entry<linear_attention_backward_meta>);
  m.impl("gated_delta_rule", gated_delta_rule_entry<gated_delta_rule_meta>);
  m.impl("gated_delta_rule_backward", gated_delta_rule_backward_entry<gated_delta_rule_backward_meta>);
  m.impl("crrelu", crrelu_meta);
  m.impl("crrelu_backward", crrelu_backward_meta);
}

// The backward ops have no gradient of their own: a second derivative is refused by name.
TORCH_LIBRARY_IMPL(isentrope, Autograd, m) {
  using namespace isentrope::ops;
  m.impl("entropy_attention", entropy_attention_entry<entropy_attention_autograd>);
  m.impl("entropy_attention_backward", second_derivatives_refused());
  m.impl("sigma_linear", sigma_linear_autograd);
  m.impl("sigma_linear_backward", second_derivatives_refused());
  m.impl("power_step", power_step_autograd);
  m.impl("token_entropy", token_entropy_autograd);
  m.impl("token_entropy_kept", token_entropy_kept_autograd);
  m.impl("token_entropy_backward", second_derivatives_refused());
  m.impl("token_entropy_backward_", torch::autograd::autogradNotImplementedFallback());
  m.impl("linear_token_entropy", linear_token_entropy_autograd);
  m.impl("linear_token_entropy_kept", linear_token_entropy_kept_autograd);
  m.impl("linear_token_entropy_backward", second_derivatives_refused());
  m.impl("grpo_select", torch::CppFunction::makeFallthrough());  // a choice: no gradient
  m.impl("grpo_loss", grpo_loss_entry<grpo_loss_autograd>);
  m.impl("grpo_loss_backward", second_derivatives_refused());
  m.impl("window_entropy", window_entropy_autograd);
  m.impl("window_entropy_backward", second_derivatives_refused());
  m.impl("window_select", window_select_autograd);
  m.impl("linear_attention", linear_attention_entry<linear_attention_autograd>);
  m.impl("linear_attention_backward", second_derivatives_refused());
  m.impl("gated_delta_rule", gated_delta_rule_entry<gated_delta_rule_autograd>);
  m.impl("gated_delta_rule_backward", second_derivatives_refused());
  m.impl("crrelu", crrelu_autograd);
  m.impl("crrelu_backward", second_derivatives_refused());
}

// Counts the write, so that autograd notices who still needs what was overwritten.
TORCH_LIBRARY_IMPL(isentrope, ADInplaceOrView, m) {
  m.impl("power_step", isentrope::ops::power_step_inplace_or_view);
  m.impl("token_entropy_backward_", torch::autograd::autogradNotImplementedInplaceOrViewFallback());
}

namespace {

// What torch.autocast does to the arguments of every op; one that is not named here would be a failing test.
void autocast_rules(torch::Library& m) {
  using namespace isentrope::ops;
  // What is multiplied is taken in autocast's dtype, as torch's linear and attention take it; γ, u, temperature, β, decays and states are left.
  m.impl("entropy_attention", entropy_attention_entry<entropy_attention_autocast>);
  m.impl("gathered_attention", gathered_attention_autocast);
  m.impl("hierarchical_attention", hierarchical_attention_autocast);
  m.impl("sigma_linear", sigma_linear_autocast);
  m.impl("linear_token_entropy", linear_token_entropy_autocast);
  m.impl("linear_token_entropy_kept", linear_token_entropy_kept_autocast);
  m.impl("linear_attention", linear_attention_entry<linear_attention_autocast>);
  m.impl("gated_delta_rule", gated_delta_rule_entry<gated_delta_rule_autocast>);
  // What is summed is taken in float.
  m.impl("window_entropy", window_entropy_autocast);
  // Left as they are. They take any dtype, or a mixture, and compute in float whatever it is:
  for (const char* op : {"token_entropy", "token_entropy_kept", "merge_attention_states", "scatter_mean", "grpo_select",
                         "grpo_loss", "grpo_combine_stats", "grpo_stat_names", "crrelu"})
    m.impl(op, torch::CppFunction::makeFallthrough());
  // they read what another op gave, which chose its dtype:
  for (const char* op :
       {"window_select", "entropy_attention_backward", "sigma_linear_backward", "token_entropy_backward",
        "token_entropy_backward_", "linear_token_entropy_backward", "grpo_loss_backward", "window_entropy_backward",
        "linear_attention_backward", "gated_delta_rule_backward", "crrelu_backward"})
    m.impl(op, torch::CppFunction::makeFallthrough());
  // it writes into its arguments, and would write into a cast copy:
  m.impl("power_step", torch::CppFunction::makeFallthrough());
}

}  // namespace

TORCH_LIBRARY_IMPL(isentrope, AutocastCPU, m) { autocast_rules(m); }
TORCH_LIBRARY_IMPL(isentrope, AutocastCUDA, m) { autocast_rules(m); }

TORCH_LIBRARY_IMPL(isentrope, FuncTorchBatched, m) { isentrope::ops::vmap_rules(m); }

// Plain torch, on every device that has no entry of its own.
TORCH_LIBRARY_IMPL(isentrope, CompositeExplicitAutograd, m) {
  m.impl("window_select", isentrope::ops::window_select_composite);
}

// Plain torch, which differentiates it.
TORCH_LIBRARY_IMPL(isentrope, CompositeImplicitAutograd, m) {
  m.impl("merge_attention_states", isentrope::ops::merge_attention_states_composite);
  m.impl("gathered_attention", isentrope::ops::gathered_attention_composite);
  m.impl("scatter_mean", isentrope::ops::scatter_mean_composite);
  m.impl("hierarchical_attention", isentrope::ops::hierarchical_attention_composite);
}
