#include "csrc/methods/filter_groups.h"

#include "csrc/methods/estimator.h"

namespace isentrope::methods {

Tensor filter_groups(const Tensor& reward, const Tensor& group) {
  constexpr const char* kOp = "method_filter_groups";
  const Rewarded r = rewarded(kOp, reward, group);
  const std::string who = std::string("isentrope::") + kOp;
  refusing([&] {
    check(who, r);
    return 0;
  });
  const std::vector<bool> kept = keep_groups(r.reward, r.groups);
  Tensor out = torch::empty({reward.size(0)}, torch::kBool);
  for (size_t g = 0; g < kept.size(); ++g)
    std::fill(out.mutable_data_ptr<bool>() + r.groups[g], out.mutable_data_ptr<bool>() + r.groups[g + 1], kept[g]);
  return out.to(reward.device());
}

Selection FilterGroups::selection() const {
  return {.kind = kKind,
          .keep = [by = by](const Judged& x) { return keep_groups(by == "right" ? x.right : x.reward, x.groups); },
          .draws = max_draws,
          .empty_steps = max_empty_steps,
          .wanted = "whose rewards differ",
          .advice = "the task is too easy or too hard for the model, or max_draws is too small"};
}

namespace {

Tensor filter_groups_meta(const Tensor& reward, const Tensor&) {
  return torch::empty_symint(reward.sym_sizes(), reward.options().dtype(torch::kBool));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_filter_groups(Tensor reward, Tensor group) -> Tensor", filter_groups, filter_groups_meta);
}

}  // namespace isentrope::methods
