#include "csrc/model/mixers/state_record.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace isentrope::model {

using at::Tensor;

namespace {

constexpr int64_t kRowsAtATime = 128;

// One sequence's: q, k, e [H, T, F], sums [H, T] of log_decay; k and e of as many heads, sums and e may be undefined → [H, T]
Tensor entropy_of_sequence(const Tensor& q, const Tensor& k, const Tensor& sums, const Tensor& e) {
  const int64_t T = q.size(1);
  std::vector<Tensor> rows;
  for (int64_t first = 0; first < T; first += kRowsAtATime) {
    const int64_t end = std::min(first + kRowsAtATime, T);
    const Tensor some = q.slice(1, first, end);
    Tensor w = at::matmul(some, k.slice(1, 0, end).mT());  // [H, rows, end]
    if (sums.defined())
      w = w * (sums.slice(1, first, end).unsqueeze(2) - sums.slice(1, 0, end).unsqueeze(1)).clamp_max(0).exp();
    w = w.tril(first);
    if (e.defined()) w = at::cat({at::matmul(some, e.mT()), w}, 2);
    w = w.clamp_min(0);
    const Tensor total = w.sum(2), there = total.gt(0), whole = total.masked_fill(there.logical_not(), 1);
    rows.push_back((whole.log() - at::special_xlogy(w, w).sum(2) / whole).masked_fill(there.logical_not(), 0));
  }
  return at::cat(rows, 1).clamp_min(0);
}

}  // namespace

Tensor effective_rank(const Tensor& state) {
  const Tensor values = at::linalg_svdvals(state), total = values.sum(-1, true);
  const Tensor p = values / at::where(total > 0, total, at::ones_like(total));
  return (-at::special_xlogy(p, p).sum(-1)).exp().masked_fill(total.squeeze(-1).eq(0), 0);
}

Tensor weight_entropy(const Tensor& q, const Tensor& k, const Tensor& log_decay, const Tensor& e, int64_t T,
                      const Packing* packing) {
  const at::NoGradGuard no_grad;
  const int64_t N = q.size(0), H = q.size(1);
  // [N, heads, …] → [H, N, …], in float or double
  const auto laid = [&](const Tensor& x) {
    if (!x.defined()) return x;
    const Tensor wide = x.detach().to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).transpose(0, 1);
    return wide.size(0) == H ? wide : wide.repeat_interleave(H / wide.size(0), 0);
  };
  const Tensor queries = laid(q), keys = laid(k), early = laid(e), decay = laid(log_decay);
  std::vector<int64_t> ends;
  if (packing != nullptr) {
    const Tensor all = packing->ends.to(at::kCPU);
    ends.assign(all.const_data_ptr<int64_t>(), all.const_data_ptr<int64_t>() + all.numel());
  } else {
    for (int64_t end = 0; end <= N; end += std::max<int64_t>(T, 1)) ends.push_back(end);
  }
  std::vector<Tensor> found;
  for (size_t i = 0; i + 1 < ends.size(); ++i) {
    const auto own = [&](const Tensor& x) { return x.defined() ? x.slice(1, ends[i], ends[i + 1]) : x; };
    const Tensor sums = decay.defined() ? own(decay).cumsum(1) : Tensor();
    found.push_back(entropy_of_sequence(own(queries), own(keys), sums, own(early)));
  }
  const int64_t rows = packing != nullptr ? packing->rows : N / std::max<int64_t>(T, 1);
  return at::cat(found, 1).view({H, rows, -1}).transpose(0, 1);
}

void tell_states(AttentionRecord& record, int64_t layer, const Packing* packing, const Tensor& state, int64_t E,
                 const std::function<Tensor(const Tensor& lengths)>& up_to) {
  const at::NoGradGuard no_grad;
  Tensor last = state.detach(), there = at::ones({state.size(0)}, state.options().dtype(at::kBool));
  if (record.real.defined() && packing != nullptr) {
    there = record.real.reshape({-1}).index_select(0, packing->ends.slice(0, 0, -1));
  } else if (record.real.defined()) {
    const Tensor lengths = record.real.sum(1);
    there = lengths.gt(0);
    if (lengths.lt(record.real.size(1)).any().item<bool>()) last = up_to(lengths).detach();
  }
  record.states.push_back({layer, {}, effective_rank(last.slice(3, 0, E)), there});
}

}  // namespace isentrope::model
