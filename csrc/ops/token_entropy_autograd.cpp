// The derivatives of token_entropy and of token_entropy_kept: one node, which may write the gradient over the logits.
#include <ATen/ATen.h>
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "csrc/ops/check.h"
#include "csrc/ops/derivatives.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

constexpr const char* kOp = "token_entropy";

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Without keep the op's seven outputs, with it the nine of token_entropy_kept.
variable_list call_forward(const Tensor& logits, const Tensor& target, double temperature, c10::SymInt ignore_index,
                           bool moments, bool inplace_backward, const std::optional<Keep>& keep,
                           const Numbers& numbers) {
  const auto list = [](auto&& outputs) {
    return std::apply([](auto&... x) { return variable_list{std::move(x)...}; }, outputs);
  };
  if (keep) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("isentrope::token_entropy_kept", "")
                               .typed<decltype(token_entropy_kept_meta)>();
    return list(op.call(logits, target, temperature, std::move(ignore_index), moments, inplace_backward, keep->kind,
                        keep->share, numbers));
  }
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("isentrope::token_entropy", "")
                             .typed<decltype(token_entropy_meta)>();
  return list(op.call(logits, target, temperature, std::move(ignore_index), moments, inplace_backward, numbers));
}

// Whether two elements of x may be one in memory.
bool rows_overlap(const Tensor& x) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size), innermost first
  for (int64_t d = 0; d < x.dim(); ++d)
    if (x.size(d) > 1) dims.emplace_back(x.stride(d), x.size(d));
  std::sort(dims.begin(), dims.end());
  int64_t extent = 1;
  for (const auto& [stride, size] : dims) {
    if (stride < extent) return true;
    extent += stride * (size - 1);
  }
  return false;
}

// While a graph is being traced (torch.compile, fake tensors) the functional op is recorded.
bool traced(const Tensor& x) {
  return at::functionalization::impl::isFunctionalTensor(x) || x.key_set().has(c10::DispatchKey::Python);
}

struct TokenEntropyFunction : torch::autograd::Function<TokenEntropyFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& logits, const Tensor& target, double temperature,
                               const c10::SymInt& ignore_index, bool moments, bool inplace_backward,
                               const std::optional<Keep>& keep, const Numbers& numbers) {
    const variable_list out =
        call_forward(logits, target, temperature, ignore_index, moments, inplace_backward, keep, numbers);
    ctx->set_materialize_grads(false);
    variable_list saved{logits, target, out[1], out[3], out[4]};  // entropy, anchor, log_sum
    variable_list constant(out.begin() + 3, out.begin() + 7);
    if (keep) constant.push_back(out[8]);
    saved.push_back(keep ? out[8] : Tensor());
    if (numbers) saved.push_back(numbers->get(0));
    ctx->save_for_backward(saved);
    ctx->mark_non_differentiable(constant);
    ctx->saved_data["temperature"] = temperature;
    ctx->saved_data["ignore_index"] = ignore_index;
    ctx->saved_data["inplace"] = inplace_backward && !traced(logits) && !numbers;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list d) {
    static const auto functional = c10::Dispatcher::singleton()
                                       .findSchemaOrThrow("isentrope::token_entropy_backward", "")
                                       .typed<decltype(token_entropy_backward_meta)>();
    static const auto inplace = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("isentrope::token_entropy_backward_", "")
                                    .typed<decltype(token_entropy_backward_inplace_cpu)>();
    variable_list dlogits(8);
    const Tensor dkept = d.size() > 7 ? d[7] : Tensor();
    if (!d[0].defined() && !d[1].defined() && !d[2].defined() && !dkept.defined()) return dlogits;
    const auto saved = ctx->get_saved_variables();
    const double temperature = ctx->saved_data["temperature"].toDouble();
    const c10::SymInt ignore_index = ctx->saved_data["ignore_index"].toSymInt();
    auto optional = [](const Tensor& x) { return x.defined() ? OptionalTensor(x) : std::nullopt; };
    const OptionalTensor kept = dkept.defined() ? optional(saved[5]) : std::nullopt;
    auto call = [&](const auto& op, const Tensor& logits, const auto& ignored, const auto&... numbers) {
      return op.call(logits, saved[1], saved[2], saved[3], saved[4], optional(d[0]), optional(d[1]), optional(d[2]),
                     temperature, ignored, optional(dkept), kept, numbers...);
    };
    if (!ctx->saved_data["inplace"].toBool() || at::GradMode::is_enabled()) {  // a graph keeps what it read
      dlogits[0] = call(functional, saved[0], ignore_index,
                        saved.size() > 6 ? Numbers(c10::List<Tensor>({saved[6]})) : std::nullopt);
    } else {
      // detach() shares memory and version counter: the write is counted, and a second use is refused.
      dlogits[0] = saved[0].detach();
      call(inplace, dlogits[0], ignore_index.guard_int(__FILE__, __LINE__));
      dlogits[0].unsafeGetTensorImpl()->bump_version();
    }
    return dlogits;
  }
};

// What the Autograd entries of both ops do.
variable_list differentiable(const char* op, const Tensor& logits, const Tensor& target, double temperature,
                             c10::SymInt ignore_index, bool moments, bool inplace_backward,
                             const std::optional<Keep>& keep, const Numbers& numbers) {
  check_differentiation(op, {{"logits", logits}, {"target", target}});
  if (inplace_backward && !traced(logits) && logits.requires_grad() && at::GradMode::is_enabled()) {
    OP_CHECK(op, !logits.is_leaf(),
             "inplace_backward overwrites logits, which is a leaf; wanted the result of a computation, or "
             "inplace_backward=false");
    OP_CHECK(op, !rows_overlap(logits), "inplace_backward overwrites logits, whose rows share memory (strides ",
             logits.strides(), "); wanted logits.contiguous(), or inplace_backward=false");
  }
  return record<TokenEntropyFunction>(logits, target, temperature, ignore_index, moments, inplace_backward, keep,
                                      numbers);
}

}  // namespace

TokenEntropyOutputs token_entropy_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                           c10::SymInt ignore_index, bool moments, bool inplace_backward,
                                           const Numbers& numbers) {
  const auto out = differentiable(kOp, logits, target, temperature, std::move(ignore_index), moments, inplace_backward,
                                  std::nullopt, numbers);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

KeptTokenEntropyOutputs token_entropy_kept_autograd(const Tensor& logits, const Tensor& target, double temperature,
                                                    c10::SymInt ignore_index, bool moments, bool inplace_backward,
                                                    c10::string_view keep, double share, const Numbers& numbers) {
  const auto out = differentiable(kOp, logits, target, temperature, std::move(ignore_index), moments, inplace_backward,
                                  Keep{std::string(keep), share}, numbers);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6], out[7], out[8]};
}

TokenEntropy token_entropy(const Tensor& logits, const Tensor& target, double temperature, int64_t ignore_index,
                           bool moments, bool inplace_backward, const std::optional<Keep>& keep) {
  const auto out =
      call_forward(logits, target, temperature, ignore_index, moments, inplace_backward, keep, std::nullopt);
  return {out[0], out[1], out[2], moments ? out[5] : Tensor(), moments ? out[6] : Tensor(), keep ? out[7] : Tensor()};
}

}  // namespace isentrope::ops
