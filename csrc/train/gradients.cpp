#include "csrc/train/gradients.h"

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <numeric>

#include "csrc/data/batch.h"
#include "csrc/train/sum_of_squares.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

// At 10 Gbit/s a bucket takes 6 ms, beside which the 0.1 ms that a message of any size takes are little; and the last bucket, which
// nothing is beside, is a small part of a model of 100 MB.
constexpr int64_t kBucketBytes = 8 << 20;

class Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit Hook(std::function<void()> made) : made_(std::move(made)) {}
  void operator()(const torch::autograd::Variable&) override { made_(); }

 private:
  std::function<void()> made_;
};

struct Bucket {
  std::vector<size_t> parameters;  // by owner
  std::vector<int64_t>
      counts;          // [ranks]: elements that the owner gets: its gradients, then for each whether it is there
  size_t missing = 0;  // gradients that the pass has still to make
  Tensor in, out;      // out [ranks, counts[rank]]
  std::function<void()> wait;
};

}  // namespace

double sequences_of(const Tensor& target) { return (target != data::kIgnore).any(1).sum().item<double>(); }

std::vector<int64_t> owners_of(const std::vector<int64_t>& sizes, int64_t ranks) {
  std::vector<size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sizes[a] > sizes[b]; });
  std::vector<int64_t> owner(sizes.size()), has(ranks, 0);
  for (const size_t i : order) {
    owner[i] = std::min_element(has.begin(), has.end()) - has.begin();
    has[owner[i]] += sizes[i];
  }
  return owner;
}

struct Gradients::State {
  const Ranks& ranks;
  const std::vector<Tensor> parameters;
  const std::vector<int64_t> owner;
  std::vector<Bucket> buckets;
  size_t gone = 0;
  bool armed = false;

  void send_ready() {
    while (gone < buckets.size() && buckets[gone].missing == 0) send(buckets[gone++]);
  }

  void send(Bucket& bucket) {
    const torch::NoGradGuard no_grad;
    std::vector<Tensor> parts;
    const Tensor zero = torch::zeros({1}, parameters[0].options().requires_grad(false)), one = torch::ones_like(zero);
    size_t i = 0;
    for (int64_t r = 0; r < ranks.size(); ++r) {
      std::vector<Tensor> flags;
      for (; i < bucket.parameters.size() && owner[bucket.parameters[i]] == r; ++i) {
        const Tensor &parameter = parameters[bucket.parameters[i]], &grad = parameter.grad();
        parts.push_back(grad.defined() ? grad.reshape({-1}) : zero.expand({parameter.numel()}));
        flags.push_back(grad.defined() ? one : zero);
      }
      parts.insert(parts.end(), flags.begin(), flags.end());
    }
    bucket.in = torch::cat(parts);
    bucket.out = torch::empty({ranks.size(), bucket.counts[ranks.rank()]}, bucket.in.options());
    bucket.wait = ranks.exchange(bucket.out.view({-1}), bucket.in,
                                 std::vector<int64_t>(ranks.size(), bucket.counts[ranks.rank()]), bucket.counts);
  }
};

Gradients::Gradients(std::shared_ptr<const Ranks> ranks, std::vector<Tensor> parameters)
    : ranks_(std::move(ranks)), parameters_(std::move(parameters)) {
  std::vector<int64_t> sizes;
  for (const Tensor& parameter : parameters_) sizes.push_back(parameter.numel());
  owner_ = owners_of(sizes, ranks_->size());
  if (ranks_->alone()) return;
  state_ = std::make_unique<State>(State{*ranks_, parameters_, owner_, {}});
  int64_t bytes = kBucketBytes;
  for (size_t i = parameters_.size(); i-- > 0;) {
    if (bytes >= kBucketBytes) {
      state_->buckets.push_back({.parameters = {}, .counts = std::vector<int64_t>(ranks_->size(), 0)});
      bytes = 0;
    }
    Bucket& bucket = state_->buckets.back();
    bucket.parameters.push_back(i);
    bucket.counts[owner_[i]] += sizes[i] + 1;
    bytes += static_cast<int64_t>(parameters_[i].nbytes());
  }
  for (size_t b = 0; b < state_->buckets.size(); ++b) {
    std::vector<size_t>& of = state_->buckets[b].parameters;
    std::stable_sort(of.begin(), of.end(), [&](size_t x, size_t y) { return owner_[x] < owner_[y]; });
    for (const size_t i : of)
      torch::autograd::impl::set_post_acc_grad_hooks(parameters_[i], std::make_unique<Hook>([state = state_.get(), b] {
                                                       if (!state->armed) return;
                                                       --state->buckets[b].missing;
                                                       state->send_ready();
                                                     }));
  }
}

Gradients::Gradients(Gradients&&) noexcept = default;

Gradients::~Gradients() {
  if (!state_) return;
  for (const Tensor& parameter : parameters_) torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
}

void Gradients::measure() {
  measures_ = true;
  part_.reset();
}

void Gradients::passed(const Tensor& target) {
  if (!std::exchange(measures_, false)) return;
  const torch::NoGradGuard no_grad;
  GradientNoise::Part part{.sequences = sequences_of(target)};
  for (const Tensor& parameter : parameters_)
    if (const Tensor& grad = parameter.grad(); grad.defined()) part.squares += sum_of_squares(grad);
  part_ = part;
}

void Gradients::arm() {
  if (!state_) return;
  ranks_->settle();
  for (Bucket& bucket : state_->buckets) bucket.missing = bucket.parameters.size();
  state_->gone = 0;
  state_->armed = true;
}

void Gradients::finish() {
  if (!state_ || !state_->armed) return;
  state_->armed = false;
  for (Bucket& bucket : state_->buckets) bucket.missing = 0;
  state_->send_ready();
}

void Gradients::collect() {
  if (!state_) return;
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (!owns(i)) parameters_[i].mutable_grad() = Tensor();
  for (Bucket& bucket : state_->buckets) {
    bucket.wait();
    const Tensor sum = bucket.out.sum(0);
    std::vector<size_t> own;
    for (const size_t i : bucket.parameters)
      if (owns(i)) own.push_back(i);
    int64_t first = 0, flag = sum.numel() - static_cast<int64_t>(own.size());
    for (const size_t i : own) {
      const Tensor& parameter = parameters_[i];
      const Tensor part = sum.slice(0, first, first + parameter.numel()).view(parameter.sizes());
      first += parameter.numel();
      if (sum[flag++].item<float>() == 0) continue;  // no rank has one
      Tensor& grad = parameter.mutable_grad();
      if (!grad.defined()) grad = torch::empty_like(parameter);
      grad.copy_(part);
    }
    bucket.in = bucket.out = Tensor();
    bucket.wait = {};
  }
}

void Gradients::drop() {
  for (const Tensor& parameter : parameters_) parameter.mutable_grad() = Tensor();
  measures_ = false;
  part_.reset();
  if (!state_) return;
  state_->armed = false;
  for (Bucket& bucket : state_->buckets) {
    bucket.in = bucket.out = Tensor();
    bucket.wait = {};
  }
}

void Gradients::gather_weights() {
  if (!state_) return;
  const torch::NoGradGuard no_grad;
  std::vector<Tensor> parts;
  for (int64_t r = 0; r < ranks_->size(); ++r) {
    std::vector<Tensor> own;
    int64_t count = 0;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      if (owner_[i] != r) continue;
      count += parameters_[i].numel();
      if (r == ranks_->rank()) own.push_back(parameters_[i].detach().reshape({-1}));
    }
    const auto options = parameters_[0].options().requires_grad(false);
    parts.push_back(own.empty() ? torch::empty({count}, options) : torch::cat(own));
  }
  ranks_->share(parts);
  std::vector<int64_t> first(ranks_->size(), 0);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const int64_t r = owner_[i], count = parameters_[i].numel();
    if (r != ranks_->rank())
      parameters_[i].copy_(parts[r].slice(0, first[r], first[r] + count).view(parameters_[i].sizes()));
    first[r] += count;
  }
}

}  // namespace isentrope::train
