#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "csrc/ops/check.h"
#include "csrc/ops/cpu_dispatch.h"
#include "csrc/ops/entries.h"
#include "csrc/ops/grpo_arguments.h"
#include "csrc/ops/grpo_loss_cpu.h"
#include "csrc/ops/ops.h"

namespace isentrope::ops {
namespace {

using namespace kernels;

constexpr const char* kSelect = "grpo_select";
constexpr const char* kChoices[] = {"clip_cov", "kl_cov", "random_clip_cov", "random_kl_cov"};

// ---- the CPU's launcher: segments over torch's threads --------------------------------------------------------------

// Leaves the n smallest of keys, or all where there are fewer. Returns what the next key must be below to be one of them.
uint64_t keep_smallest(std::vector<uint64_t>& keys, int64_t n) {
  if (static_cast<int64_t>(keys.size()) <= n) return kNoKey;
  if (n == 0) {
    keys.clear();
    return 0;
  }
  std::nth_element(keys.begin(), keys.begin() + (n - 1), keys.end());
  keys.resize(n);
  return keys.back();
}

void select_on_cpu(const GrpoSelect& p) {
  static const auto select_keys = ISENTROPE_PICK(grpo_select_keys);
  GrpoLossForward first;
  first.dtype = p.dtype;
  first.batch = p.batch;
  first.length = p.length;
  first.logprob = p.logprob;
  first.advantage = p.advantage;
  first.mask = p.mask;
  std::vector<GrpoMoments<double>> sequences;
  const GrpoCentre centre = grpo_centre(first, true, sequences);
  const int64_t tokens = static_cast<int64_t>(centre.tokens);
  const int64_t most = selection_count(p.fraction, p.minimum, tokens, tokens);
  // No two keys are equal: the smallest are the same in whatever order the threads bring them.
  std::vector<uint64_t> keys;
  int64_t available = 0;
  std::mutex joining;
  at::parallel_for(0, p.batch * grpo_segments(p.length), grpo_segment_grain(p.length), [&](int64_t begin, int64_t end) {
    std::vector<uint64_t> found(kGrpoSegment), mine;
    uint64_t limit = kNoKey;
    int64_t available_here = 0;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t count = select_keys(p, centre, s, limit, found.data(), &available_here);
      mine.insert(mine.end(), found.begin(), found.begin() + count);
      if (static_cast<int64_t>(mine.size()) > 2 * most + kGrpoSegment) limit = keep_smallest(mine, most);
    }
    keep_smallest(mine, most);
    const std::lock_guard<std::mutex> lock(joining);
    keys.insert(keys.end(), mine.begin(), mine.end());
    available += available_here;
  });
  keep_smallest(keys, selection_count(p.fraction, p.minimum, tokens, available));
  std::fill_n(p.selected, p.batch * p.length, false);
  for (const uint64_t key : keys) p.selected[static_cast<uint32_t>(key)] = true;
}

// ---- arguments ------------------------------------------------------------------------------------------------------

void check_arguments(const GrpoSelectArguments& a) {
  check_logprob(kSelect, a.logprob);
  check_values(kSelect, "old_logprob", a.old_logprob, a.logprob);
  check_values(kSelect, "advantage", a.advantage, a.logprob);
  check_like_logprob(kSelect, "mask", a.mask, a.logprob);
}

GrpoSelect parameters_of(const GrpoSelectArguments& a) {
  GrpoSelect p;
  p.choice = static_cast<GrpoChoice>(index_of(kSelect, "mode", a.mode, kChoices));
  OP_CHECK(kSelect, a.cov_ratio > 0 && a.cov_ratio <= 1, "cov_ratio is ", a.cov_ratio,
           "; wanted above 0 and at most 1");
  OP_CHECK(kSelect, a.cov_lower < a.cov_upper, "cov_lower is ", a.cov_lower, " and cov_upper ", a.cov_upper,
           "; wanted the lower one below the upper");
  OP_CHECK(kSelect, a.minimum >= 0, "minimum is ", a.minimum, "; wanted at least 0");
  p.fraction = a.cov_ratio;
  p.cov_lower = a.cov_lower;
  p.cov_upper = a.cov_upper;
  p.lower = 1.0 - checked(kSelect, "clip_low", a.clip_low, 0.0);
  p.upper = 1.0 + checked(kSelect, "clip_high", a.clip_high.value_or(a.clip_low), 0.0);
  return p;
}

Tensor empty_selection(const Tensor& logprob) {
  return at::empty_symint(logprob.sym_sizes(),
                          logprob.options().dtype(at::kBool).memory_format(at::MemoryFormat::Contiguous));
}

}  // namespace

Tensor grpo_select_run(GrpoSelectArguments a, void (*launch)(const GrpoSelect&), bool with_workspace) {
  const at::NoGradGuard constant;
  check_arguments(a);
  read_numbers(kSelect, a.numbers,
               {&a.cov_ratio, &a.cov_lower, &a.cov_upper, &a.clip_low, optional_number(a.clip_high)});
  GrpoSelect p = parameters_of(a);
  p.seed = static_cast<uint64_t>(a.seed.guard_int(__FILE__, __LINE__));
  p.minimum = a.minimum.guard_int(__FILE__, __LINE__);
  const at::ScalarType type = compute_type(a.logprob);
  OP_CHECK(kSelect, a.logprob.numel() < int64_t{0xffffffff}, "logprob has ", a.logprob.numel(),
           " tokens; wanted fewer than 2^32 - 1");
  const Tensor logprob = as(a.logprob, type), old_logprob = as(a.old_logprob, type), advantage = as(a.advantage, type),
               mask = as(a.mask, at::kBool), selected = empty_selection(a.logprob);
  p.dtype = dtype_of(type);
  p.batch = logprob.size(0);
  p.length = logprob.size(1);
  p.logprob = data(logprob);
  p.old_logprob = data(old_logprob);
  p.advantage = data(advantage);
  p.mask = mask.const_data_ptr<bool>();
  p.selected = selected.mutable_data_ptr<bool>();
  Tensor workspace;
  if (with_workspace) {
    workspace =
        at::empty({static_cast<int64_t>(grpo_select_workspace(p.batch, p.length))}, logprob.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
  }
  if (selected.numel() > 0) launch(p);
  return selected;
}

Tensor grpo_select_cpu(const GrpoSelectArguments& a) { return grpo_select_run(a, select_on_cpu, false); }

Tensor grpo_select_meta(const GrpoSelectArguments& a) {
  check_arguments(a);
  if (!a.numbers) parameters_of(a);  // else they are looked at when the op runs
  return empty_selection(a.logprob);
}

Tensor grpo_select(const Tensor& logprob, const Tensor& old_logprob, const Tensor& advantage, const Tensor& mask,
                   const GrpoSelectOptions& o) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("isentrope::grpo_select", "").typed<GrpoSelectSchema>();
  return op.call(logprob, old_logprob, advantage, mask, o.mode, o.seed, o.cov_ratio, o.cov_lower, o.cov_upper,
                 o.clip_low, o.clip_high, o.minimum, std::nullopt);
}

}  // namespace isentrope::ops
