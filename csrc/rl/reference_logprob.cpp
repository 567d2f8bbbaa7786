#include "csrc/rl/reference_logprob.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace isentrope::rl {
namespace {

using torch::Tensor;

// Of completions begin … end − 1: [end − begin, T] of the positions that predict their tokens, moved to where the tokens are.
void score(const Kept& kept, const std::vector<int64_t>& group, int64_t begin, int64_t end, const Reference& reference,
           double temperature, Tensor& found) {
  int64_t T = 1;
  const auto size = [&](int64_t i) { return std::ssize(kept.prompts[group[i]]) + kept.completions[i].size(); };
  for (int64_t i = begin; i < end; ++i) T = std::max<int64_t>(T, size(i));
  Tensor tokens = torch::zeros({end - begin, T}, torch::kInt64);
  Tensor target = torch::full({end - begin, T}, data::kIgnore, torch::kInt64);
  std::vector<std::vector<int64_t>> places(end - begin);  // of the drawn tokens, behind the prompt
  Tensor prefix = torch::zeros({end - begin, T}, torch::kBool);
  for (int64_t i = begin; i < end; ++i) {
    const std::vector<int64_t>& prompt = kept.prompts[group[i]];
    const std::vector<int64_t> own = kept.completions[i].said(&places[i - begin]);
    int64_t* row = tokens.mutable_data_ptr<int64_t>() + (i - begin) * T;
    std::copy(own.begin(), own.end(), std::copy(prompt.begin(), prompt.end(), row));
    std::fill_n(prefix.mutable_data_ptr<bool>() + (i - begin) * T, std::ssize(prompt), true);
    int64_t* predicted = target.mutable_data_ptr<int64_t>() + (i - begin) * T + std::ssize(prompt) - 1;
    for (const int64_t place : places[i - begin]) predicted[place] = own[place];
  }
  model::Decoder model = reference.model;
  const torch::Device device = model->embedding().device();
  const Tensor logprob =
      model->token_entropy(tokens.to(device), target.to(device), temperature, nullptr, {{}, prefix.to(device)})
          .logprob.to(torch::kCPU)
          .contiguous();
  for (int64_t i = begin; i < end; ++i) {
    const float* row = logprob.const_data_ptr<float>() + (i - begin) * T + std::ssize(kept.prompts[group[i]]) - 1;
    float* own = found.mutable_data_ptr<float>() + i * found.size(1);
    for (const int64_t place : places[i - begin]) *own++ = row[place];
  }
}

}  // namespace

Tensor reference_logprob(const Kept& kept, const Reference& reference, double temperature, int64_t updates,
                         const Peers& peers) {
  const torch::NoGradGuard no_grad;
  const auto B = std::ssize(kept.completions);
  std::vector<int64_t> group;
  int64_t drawn = 0, longest = 1;
  for (int64_t g = 0; g < kept.size(); ++g)
    for (int64_t i = kept.groups[g]; i < kept.groups[g + 1]; ++i) {
      const int64_t n = std::ssize(kept.completions[i].tokens);
      group.push_back(g);
      drawn = std::max(drawn, n);
      longest = std::max<int64_t>(longest, std::ssize(kept.prompts[g]) + kept.completions[i].size());
    }
  Tensor found = torch::zeros({B, drawn}, torch::kFloat32);
  if (found.numel() == 0) return found;
  const auto first = [&](int64_t rank) { return B * rank / peers.size(); };
  const int64_t end = first(peers.rank() + 1);
  const int64_t rows = reference.micro_tokens > 0 ? std::max<int64_t>(reference.micro_tokens / longest, 1)
                                                  : (B + updates - 1) / std::max<int64_t>(updates, 1);
  for (int64_t b = first(peers.rank()); b < end; b += rows)
    score(kept, group, b, std::min(b + rows, end), reference, temperature, found);
  if (peers.size() == 1) return found;

  float* all = found.mutable_data_ptr<float>();
  const auto bytes = [&](int64_t rank) {
    return static_cast<size_t>((first(rank + 1) - first(rank)) * drawn) * sizeof(float);
  };
  const std::string own(reinterpret_cast<const char*>(all + first(peers.rank()) * drawn), bytes(peers.rank()));
  const std::vector<std::string> parts = peers.gather(own);
  for (int64_t rank = 0; rank < peers.size(); ++rank) {
    if (parts[rank].size() != bytes(rank))
      throw std::runtime_error("rank " + std::to_string(rank) + " scored " + std::to_string(parts[rank].size()) +
                               " bytes of log-probabilities of the reference; wanted " + std::to_string(bytes(rank)));
    std::memcpy(all + first(rank) * drawn, parts[rank].data(), parts[rank].size());
  }
  return found;
}

}  // namespace isentrope::rl
