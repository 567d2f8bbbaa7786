#include "csrc/ops/vmap.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/functorch/BatchedFallback.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/PlumbingHelper.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "csrc/ops/attention_entries.h"
#include "csrc/ops/entries.h"

namespace isentrope::ops {
namespace {

using at::Tensor;
using torch::jit::Stack;

// ---- what an op takes ------------------------------------------------------------------------------------------------

// What a tensor of a rule is where the op runs once for M elements.
enum class Role {
  kShared,       // one for all; where it is mapped, the op runs for each
  kFold,         // [B, …] → [M B, …]
  kLead,         // […, C] → [M, …, C]
  kTemperature,  // of attention: [H], [H, T] or [B, H, T] → [M B, H, T]; its gradient is summed back
};

struct Rule {
  std::string_view op;
  std::vector<std::pair<std::string_view, Role>> roles;  // of arguments and returns; who is not named is shared
};

const std::vector<Rule>& rules() {
  constexpr Role fold = Role::kFold, lead = Role::kLead, temperature = Role::kTemperature;
  static const std::vector<Rule> all = {
      // Packed sequences (cu_seqlens) have no batch, and sinks sum their gradient over it: for each.
      {"isentrope::entropy_attention",
       {{"q", fold},
        {"k", fold},
        {"v", fold},
        {"temperature", temperature},
        {"key_lengths", fold},
        {"query_start", fold},
        {"block_mask", fold},
        {"gates", fold},
        {"out", fold},
        {"lse", fold},
        {"entropy", fold},
        {"max_logit", fold},
        {"anchor", fold},
        {"log_sum", fold}}},
      {"isentrope::entropy_attention_backward",
       {{"q", fold},
        {"k", fold},
        {"v", fold},
        {"temperature", temperature},
        {"key_lengths", fold},
        {"query_start", fold},
        {"block_mask", fold},
        {"gates", fold},
        {"out", fold},
        {"entropy", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"dout", fold},
        {"dlse", fold},
        {"dentropy", fold},
        {"dq", fold},
        {"dk", fold},
        {"dv", fold},
        {"dtemperature", temperature},
        {"dgates", fold}}},
      // Another weight, bias or gradient of them for each element: for each.
      {"isentrope::sigma_linear", {{"x", lead}, {"y", lead}}},
      {"isentrope::sigma_linear_backward", {{"x", lead}, {"dy", lead}, {"dx", lead}}},
      {"isentrope::token_entropy",
       {{"logits", fold},
        {"target", fold},
        {"logprob", fold},
        {"entropy", fold},
        {"lse", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"sum_p2", fold},
        {"sum_p2_logp", fold}}},
      {"isentrope::token_entropy_kept",
       {{"logits", fold},
        {"target", fold},
        {"logprob", fold},
        {"entropy", fold},
        {"lse", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"sum_p2", fold},
        {"sum_p2_logp", fold},
        {"kept_entropy", fold},
        {"kept", fold}}},
      {"isentrope::token_entropy_backward",
       {{"logits", fold},
        {"target", fold},
        {"entropy", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"dlogprob", fold},
        {"dentropy", fold},
        {"dlse", fold},
        {"dkept_entropy", fold},
        {"kept", fold},
        {"", fold}}},
      {"isentrope::linear_token_entropy",
       {{"hidden", fold},
        {"target", fold},
        {"logprob", fold},
        {"entropy", fold},
        {"lse", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"sum_p2", fold},
        {"sum_p2_logp", fold}}},
      {"isentrope::linear_token_entropy_kept",
       {{"hidden", fold},
        {"target", fold},
        {"logprob", fold},
        {"entropy", fold},
        {"lse", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"sum_p2", fold},
        {"sum_p2_logp", fold},
        {"kept_entropy", fold},
        {"kept", fold}}},
      {"isentrope::linear_token_entropy_backward",
       {{"hidden", fold},
        {"target", fold},
        {"entropy", fold},
        {"anchor", fold},
        {"log_sum", fold},
        {"dlogprob", fold},
        {"dentropy", fold},
        {"dlse", fold},
        {"dkept_entropy", fold},
        {"kept", fold},
        {"dhidden", fold}}},
      {"isentrope::window_entropy", {{"entropy", fold}, {"mask", fold}, {"at", fold}, {"mean", fold}, {"count", fold}}},
      {"isentrope::window_entropy_backward", {{"dmean", fold}, {"count", fold}, {"mask", fold}, {"", fold}}},
      // scope is batch or global: for each.
      {"isentrope::window_select", {{"mean", fold}, {"count", fold}, {"high", fold}, {"threshold", fold}}},
      // Packed sequences: for each.
      {"isentrope::linear_attention",
       {{"q", fold},
        {"k", fold},
        {"v", fold},
        {"log_decay", fold},
        {"state", fold},
        {"key_lengths", fold},
        {"out", fold},
        {"last_state", fold},
        {"weight", fold}}},
      {"isentrope::linear_attention_backward",
       {{"q", fold},
        {"k", fold},
        {"v", fold},
        {"out", fold},
        {"weight", fold},
        {"dout", fold},
        {"dlast_state", fold},
        {"log_decay", fold},
        {"state", fold},
        {"key_lengths", fold},
        {"dq", fold},
        {"dk", fold},
        {"dv", fold},
        {"dlog_decay", fold},
        {"dstate", fold}}},
      {"isentrope::gated_delta_rule",
       {{"q", fold},
        {"k", fold},
        {"v", fold},
        {"beta", fold},
        {"log_decay", fold},
        {"write", fold},
        {"state", fold},
        {"key_lengths", fold},
        {"out", fold},
        {"last_state", fold}}},
      {"isentrope::gated_delta_rule_backward",
       {{"q", fold},
        {"k", fold},
        {"v", fold},
        {"beta", fold},
        {"dout", fold},
        {"dlast_state", fold},
        {"log_decay", fold},
        {"write", fold},
        {"state", fold},
        {"key_lengths", fold},
        {"dq", fold},
        {"dk", fold},
        {"dv", fold},
        {"dbeta", fold},
        {"dlog_decay", fold},
        {"dwrite", fold},
        {"dstate", fold}}},
      // Sums over the batch: always for each.
      {"isentrope::grpo_select", {}},
      {"isentrope::grpo_loss", {}},
      {"isentrope::grpo_loss_backward", {}},
      {"isentrope::grpo_combine_stats", {}},
      {"isentrope::crrelu", {}},
      {"isentrope::crrelu_backward", {}},
  };
  return all;
}

const Rule& rule_of(const c10::OperatorHandle& op) {
  const auto& all = rules();
  return *std::find_if(all.begin(), all.end(), [&](const Rule& rule) { return rule.op == op.schema().name(); });
}

Role role_of(const Rule& rule, std::string_view name) {
  for (const auto& [named, role] : rule.roles)
    if (named == name) return role;
  return Role::kShared;
}

// ---- one call --------------------------------------------------------------------------------------------------------

// A call inside vmap: arguments as the op was given them, and the tensors of them without their mapped dimension.
struct Call {
  const c10::OperatorHandle& op;
  const Rule& rule;
  std::vector<c10::IValue> arguments;
  std::vector<std::optional<int64_t>> mapped;  // the mapped dimension of each argument
  c10::SymInt size;                            // of the mapped dimension, M
  int64_t level;

  std::string_view name(size_t i) const { return op.schema().arguments()[i].name(); }
  bool given(size_t i) const { return arguments[i].isTensor() && arguments[i].toTensor().defined(); }
  const c10::IValue& operator[](std::string_view wanted) const {
    size_t i = 0;
    while (name(i) != wanted) ++i;
    return arguments[i];
  }
  int64_t dims(size_t i) const { return arguments[i].toTensor().dim() - (mapped[i] ? 1 : 0); }
  // [M, …]: the mapped dimension first; one element for all is repeated, without memory.
  Tensor stacked(size_t i) const {
    const Tensor& x = arguments[i].toTensor();
    if (mapped[i]) return x.movedim(*mapped[i], 0);
    c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
    sizes.insert(sizes.begin(), size);
    return x.expand_symint(sizes);
  }
};

bool folds(const Call& call) {
  if (call.rule.roles.empty()) return false;
  const std::string_view op = call.rule.op;
  if (op == "isentrope::window_select" && call["scope"].toStringRef() != "row") return false;
  const bool attention = op.starts_with("isentrope::entropy_attention"),
             recurrence =
                 op.starts_with("isentrope::linear_attention") || op.starts_with("isentrope::gated_delta_rule");
  if ((attention || recurrence) && !call["cu_seqlens"].isNone()) return false;
  if (op == "isentrope::entropy_attention_backward" && call["of_sinks"].toBool()) return false;
  if (op == "isentrope::sigma_linear_backward" || op == "isentrope::linear_token_entropy_backward") {
    const auto wanted = call["wanted"].toBoolList();
    for (size_t i = 1; i < wanted.size(); ++i)
      if (wanted[i]) return false;
  }
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    if (!call.given(i)) continue;
    const Role role = role_of(call.rule, call.name(i));
    // What has no dimension to fold into is a mistake: the op says so, of one element.
    if (role == Role::kShared ? call.mapped[i].has_value() : call.dims(i) < 1) return false;
  }
  return !(attention || recurrence) || call["q"].toTensor().dim() >= 3;
}

// ---- once for all ----------------------------------------------------------------------------------------------------

Tensor folded(const Tensor& x) { return x.flatten(0, 1); }
Tensor unfolded(const Tensor& x, const c10::SymInt& size) {
  return x.unflatten_symint(0, {size, x.sym_size(0) / size});
}

struct Temperature {
  bool expanded = false;
  int64_t dims = 0;  // of one element's
  at::ScalarType type = at::kFloat;

  // q [M B, H, T, D]. The type is that of the op's sums, so that the gradient is rounded once.
  Tensor of(const Call& call, size_t i, const Tensor& q) {
    dims = call.dims(i);
    Tensor t = call.arguments[i].toTensor();
    type = t.scalar_type();
    expanded = call.mapped[i] || dims == 3 || (call.rule.op.ends_with("backward") && call["of_temperature"].toBool());
    if (!expanded) return t;
    t = call.stacked(i).to(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);  // [M, …]
    if (dims == 1) t = t.unsqueeze(-1);                                                 // [M, …, H, 1 or T]
    if (dims < 3) t = t.unsqueeze(1);                                                   // [M, 1 or B, H, 1 or T]
    return folded(t.expand_symint({call.size, dims == 3 ? t.sym_size(1) : q.sym_size(0) / call.size, t.sym_size(2),
                                   dims == 1 ? q.sym_size(2) : t.sym_size(3)}));
  }
  // The gradient of what `of` gave, as one of each element's.
  Tensor gradient(const Tensor& d, const c10::SymInt& size) const {
    if (!expanded || d.dim() != 3) return d;  // not wanted
    const Tensor each = unfolded(d, size);    // [M, B, H, T]
    return (dims == 3 ? each : dims == 2 ? each.sum(1) : each.sum(at::IntArrayRef({1, 3}))).to(type);
  }
};

void run_once(const Call& call, Stack* stack) {
  Temperature temperature;
  Tensor first;
  for (size_t i = 0; i < call.arguments.size(); ++i) {
    c10::IValue argument = call.arguments[i];
    if (call.given(i)) {
      const Role role = role_of(call.rule, call.name(i));
      if (role == Role::kFold) argument = folded(call.stacked(i));
      if (role == Role::kLead) argument = call.stacked(i);
      if (role == Role::kTemperature) argument = temperature.of(call, i, first);
      if (i == 0) first = argument.toTensor();
    }
    stack->push_back(std::move(argument));
  }
  call.op.callBoxed(stack);
  const auto& returns = call.op.schema().returns();
  for (size_t i = 0; i < returns.size(); ++i) {
    c10::IValue& value = torch::jit::peek(*stack, i, returns.size());
    Tensor x = value.toTensor();
    const Role role = role_of(call.rule, returns[i].name());
    if (role == Role::kFold) x = unfolded(x, call.size);
    if (role == Role::kTemperature) x = temperature.gradient(x, call.size);
    const bool mapped =
        role == Role::kTemperature ? temperature.expanded && x.dim() > temperature.dims : role != Role::kShared;
    value = mapped ? at::functorch::makeBatched(x, 0, call.level) : x;
  }
}

// ---- for each --------------------------------------------------------------------------------------------------------

void run_each(const Call& call, Stack* stack) {
  if (at::functorch::isVmapFallbackWarningEnabled()) {
    TORCH_WARN("There is a performance drop: torch.func.vmap calls ", call.op.schema().name(),
               " for each element; which arguments are mapped in one call: docs/python.md");
  }
  const size_t returns = call.op.schema().returns().size();
  std::vector<std::vector<Tensor>> each(returns);
  const int64_t size = call.size.guard_int(__FILE__, __LINE__);
  for (int64_t m = 0; m < size; ++m) {
    for (size_t i = 0; i < call.arguments.size(); ++i)
      stack->push_back(call.mapped[i] ? c10::IValue(call.arguments[i].toTensor().select(*call.mapped[i], m))
                                      : call.arguments[i]);
    call.op.callBoxed(stack);
    for (size_t k = 0; k < returns; ++k) each[k].push_back(torch::jit::peek(*stack, k, returns).toTensor());
    torch::jit::drop(*stack, returns);
  }
  for (const std::vector<Tensor>& tensors : each)
    stack->emplace_back(at::functorch::makeBatched(at::stack(tensors), 0, call.level));
}

void run(const c10::OperatorHandle& op, Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  const auto layer = at::functorch::maybeCurrentDynamicLayer();
  TORCH_CHECK(layer, op.schema().name(), ": a tensor of torch.func.vmap was used outside of the function it maps");
  const size_t count = op.schema().arguments().size();
  Call call{op, rule_of(op), {}, std::vector<std::optional<int64_t>>(count), 0, layer->layerId()};
  bool any = false;
  for (size_t i = 0; i < count; ++i) {
    call.arguments.push_back(std::move(torch::jit::peek(*stack, i, count)));
    if (!call.given(i)) continue;
    auto [x, dim] = at::functorch::unwrapTensorAtLevel(call.arguments[i].toTensor(), call.level);
    if (dim) call.size = x.sym_size(*dim);
    any = any || dim;
    call.arguments[i] = x;
    call.mapped[i] = dim;
  }
  torch::jit::drop(*stack, count);
  if (!any) {
    for (c10::IValue& x : call.arguments) stack->push_back(std::move(x));
    return op.callBoxed(stack);
  }
  TORCH_CHECK_VALUE(call.size != 0, op.schema().name(),
                    ": torch.func.vmap maps a dimension of size 0; wanted at least one element");
  folds(call) ? run_once(call, stack) : run_each(call, stack);
}

// An op that writes into its arguments: each element would be one of them.
void refuse(const c10::OperatorHandle& op, Stack*) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      false, op.schema().name(),
      ": called inside torch.func.vmap, and it writes into its arguments; wanted a call outside");
}

}  // namespace

void vmap_rules(torch::Library& m) {
  for (const Rule& rule : rules()) m.impl(rule.op.data(), torch::CppFunction::makeFromBoxedFunction<&run>());
  // torch's own operators, and ours, have rules
  m.impl("isentrope::merge_attention_states", merge_attention_states_composite);
  m.impl("isentrope::gathered_attention", gathered_attention_composite);
  m.impl("isentrope::scatter_mean", scatter_mean_composite);
  m.impl("isentrope::hierarchical_attention", hierarchical_attention_composite);
  for (const char* op : {"isentrope::power_step", "isentrope::token_entropy_backward_"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&refuse>());
}

}  // namespace isentrope::ops
