#include "csrc/train/probe.h"

#include <torch/optim/adamw.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "csrc/data/random.h"
#include "csrc/train/safetensors.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

constexpr int64_t kClasses = 3, kTexts = 32;

Tensor logits(const Tensor& h, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2) {
  return at::linear(at::linear(h, w1, b1).relu(), w2, b2);
}

// Uniform in ±1/√columns, as torch.nn.Linear begins.
Tensor drawn(std::vector<int64_t> sizes, int64_t columns, data::Stream& stream) {
  Tensor x = torch::empty(sizes, torch::kFloat32);
  const double bound = 1 / std::sqrt(static_cast<double>(columns));
  float* values = x.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) values[i] = static_cast<float>(bound * (2 * stream.uniform() - 1));
  return x.requires_grad_();
}

}  // namespace

Tensor Probe::probabilities(const Tensor& hidden) const {
  const torch::NoGradGuard no_grad;
  return logits(hidden, w1, b1, w2, b2).softmax(1);
}

std::vector<int64_t> Probe::classes(const Tensor& hidden) const {
  const auto [sure, found] = probabilities(hidden).max(1);
  const Tensor own = torch::where(sure >= least, found, kProbeNormal).contiguous();
  return {own.const_data_ptr<int64_t>(), own.const_data_ptr<int64_t>() + own.numel()};
}

Probe train_probe(const Tensor& hidden, const std::vector<int64_t>& label, const ProbeTraining& training) {
  const int64_t N = hidden.size(0), C = hidden.size(1), K = training.width;
  data::Stream stream(training.seed, data::Purpose::initialisation);
  const Tensor w1 = drawn({K, C}, C, stream), b1 = drawn({K}, C, stream), w2 = drawn({kClasses, K}, K, stream),
               b2 = drawn({kClasses}, K, stream);
  const std::vector<Tensor> parameters{w1, b1, w2, b2};
  torch::optim::AdamW optimizer(parameters, torch::optim::AdamWOptions(training.lr));
  const Tensor wanted = torch::tensor(label, torch::kInt64);
  std::vector<int64_t> order(N);
  std::iota(order.begin(), order.end(), int64_t{0});
  for (int64_t epoch = 0; epoch < training.epochs; ++epoch) {
    data::Stream shuffle(training.seed, data::Purpose::shuffle, static_cast<uint64_t>(epoch));
    for (int64_t i = N - 1; i > 0; --i) std::swap(order[i], order[shuffle.below(static_cast<uint32_t>(i + 1))]);
    for (int64_t first = 0; first < N; first += kTexts) {
      const Tensor some = torch::tensor(
          std::vector<int64_t>(order.begin() + first, order.begin() + std::min(first + kTexts, N)), torch::kInt64);
      optimizer.zero_grad();
      at::cross_entropy_loss(logits(hidden.index_select(0, some), w1, b1, w2, b2), wanted.index_select(0, some))
          .backward();
      optimizer.step();
    }
  }
  return {w1.detach(), b1.detach(), w2.detach(), b2.detach()};
}

void save_probe(const std::string& file, const Probe& probe) {
  write_safetensors(file, {{"w1", probe.w1},
                           {"b1", probe.b1},
                           {"w2", probe.w2},
                           {"b2", probe.b2},
                           {"temperature", torch::tensor(probe.temperature, torch::kFloat64)},
                           {"length", torch::tensor(probe.length, torch::kFloat64)},
                           {"least", torch::tensor({probe.least}, torch::kFloat64)}});
}

Probe load_probe(const std::string& file, int64_t width) {
  const auto tensors = read_safetensors(file);
  const auto wrong = [&](const std::string& what) {
    return std::runtime_error(file + ": " + what + "; make one with isentrope probe");
  };
  const auto take = [&](const char* name, std::vector<int64_t> sizes, torch::ScalarType type) {  // −1: any size
    const auto found = tensors.find(name);
    if (found == tensors.end()) throw wrong("is no probe, it holds no " + std::string(name));
    const Tensor& x = found->second;
    bool fits = x.scalar_type() == type && x.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; fits && i < sizes.size(); ++i)
      fits = sizes[i] < 0 || x.size(static_cast<int64_t>(i)) == sizes[i];
    if (!fits) throw wrong("is no probe, its " + std::string(name) + " has another shape or type");
    return x;
  };
  const auto numbers = [&](const char* name, int64_t size) {
    const Tensor x = take(name, {size}, torch::kFloat64).contiguous();
    return std::vector<double>(x.const_data_ptr<double>(), x.const_data_ptr<double>() + size);
  };
  Probe probe;
  probe.w1 = take("w1", {-1, -1}, torch::kFloat32);
  const int64_t K = probe.w1.size(0);
  probe.b1 = take("b1", {K}, torch::kFloat32);
  probe.w2 = take("w2", {kClasses, K}, torch::kFloat32);
  probe.b2 = take("b2", {kClasses}, torch::kFloat32);
  probe.temperature = numbers("temperature", kClasses);
  probe.length = numbers("length", kClasses);
  probe.least = numbers("least", 1)[0];
  for (int64_t c = 0; c < kClasses; ++c)
    if (!(probe.temperature[c] >= 0 && probe.temperature[c] <= 100) || !(probe.length[c] > 0 && probe.length[c] <= 1))
      throw wrong("has a temperature or length out of its range");
  if (probe.width() != width)
    throw wrong("the probe reads hidden states of width " + std::to_string(probe.width()) +
                ", and those of the model are " + std::to_string(width) + " wide: it was trained for another model");
  return probe;
}

Tensor hidden_of(const model::Decoder& model, const std::vector<std::vector<int64_t>>& prompts) {
  const torch::NoGradGuard no_grad;
  model::Decoder decoder = model;
  const torch::Device device = model->embedding().device();
  std::vector<Tensor> found;
  const auto count = static_cast<int64_t>(prompts.size());
  for (int64_t first = 0; first < count; first += kTexts) {
    const int64_t rows = std::min(kTexts, count - first);
    int64_t T = 1;
    for (int64_t i = 0; i < rows; ++i) T = std::max<int64_t>(T, std::ssize(prompts[first + i]));
    Tensor prefix = torch::zeros({rows, T}, torch::kBool);
    Tensor tokens = torch::zeros({rows, T}, torch::kInt64), last = torch::empty({rows}, torch::kInt64);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy(prompts[first + i].begin(), prompts[first + i].end(), tokens.mutable_data_ptr<int64_t>() + i * T);
      std::fill_n(prefix.mutable_data_ptr<bool>() + i * T, std::ssize(prompts[first + i]), true);
      last.mutable_data_ptr<int64_t>()[i] = i * T + std::ssize(prompts[first + i]) - 1;
    }
    const Tensor hidden = decoder->hidden(tokens.to(device), nullptr, {{}, prefix.to(device)});  // [rows, T, C]
    found.push_back(hidden.flatten(0, 1).to(torch::kCPU, torch::kFloat32).index_select(0, last));
  }
  return found.empty() ? torch::empty({0, model->config().hidden_size}) : torch::cat(found);
}

std::vector<rl::Completion> rollout_by_class(const Probe& probe, const std::vector<int64_t>& classes,
                                             const model::Decoder& model,
                                             const std::vector<std::vector<int64_t>>& prompts, int64_t samples,
                                             const rl::SamplingConfig& sampling,
                                             const std::vector<int64_t>& stop_tokens, const rl::RolloutKey& key,
                                             const rl::CacheConfig& cache, rl::RolloutCounts* counts,
                                             const rl::Peers& peers) {
  std::vector<rl::Completion> all;
  for (int64_t c = 0; c < kClasses; ++c) {
    std::vector<int64_t> place;
    std::vector<std::vector<int64_t>> own;
    int64_t longest = 0;
    for (size_t i = 0; i < prompts.size(); ++i)
      if (classes[i] == c) {
        place.push_back(static_cast<int64_t>(i));
        own.push_back(prompts[i]);
        longest = std::max<int64_t>(longest, std::ssize(prompts[i]));
      }
    if (own.empty()) continue;
    const int64_t room = model->config().max_position_embeddings - longest;
    const int64_t most = sampling.max_new_tokens > 0 ? sampling.max_new_tokens : room;
    rl::SamplingConfig preset = sampling;
    preset.temperature = probe.temperature[c];
    preset.max_new_tokens = std::max<int64_t>(std::llround(std::ceil(probe.length[c] * static_cast<double>(most))), 1);
    preset.min_new_tokens = std::min(preset.min_new_tokens, preset.max_new_tokens);
    rl::RolloutKey of_class = key;  // prompts of two classes have the same numbers in their calls
    of_class.step = 1 + c;
    rl::RolloutCounts here;
    auto some = rl::rollout(model, own, std::vector<int64_t>(own.size(), samples), preset, stop_tokens, of_class, cache,
                            {}, &here, peers);
    if (counts) *counts += here;
    for (rl::Completion& one : some) {
      one.prompt = place[one.prompt];
      all.push_back(std::move(one));
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.prompt < b.prompt; });
  return all;
}

}  // namespace isentrope::train
