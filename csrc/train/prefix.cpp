#include "csrc/train/prefix.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "csrc/data/random.h"
#include "csrc/model/mixer_shape.h"
#include "csrc/model/places.h"

namespace isentrope::train {

using data::Batch;

int64_t prefix_tokens(const model::DecoderConfig& model, int64_t tokens) {
  const double prefix = model.prefix_linear.prefix;
  const auto count = static_cast<int64_t>(prefix < 1 ? std::floor(prefix * static_cast<double>(tokens)) : prefix);
  if (count >= tokens)
    throw std::invalid_argument("prefix_linear.prefix: " + std::to_string(count) + " tokens leave none of a text of " +
                                std::to_string(tokens) + "; wanted less, or a share below 1");
  return count;
}

Batch with_prefix(const Batch& batch, const model::DecoderConfig& model) {
  if (batch.prefix.defined() || !model::any_mixer(model, &model::MixerShape::reads_prefix)) return batch;
  Batch with = batch;
  const int64_t T = batch.tokens.size(1), count = prefix_tokens(model, T);
  with.prefix = torch::zeros_like(batch.tokens, torch::kBool);
  with.prefix.slice(1, 0, count).fill_(true);
  with.target = batch.target.clone();
  with.target.slice(1, 0, std::max<int64_t>(count - 1, 0)).fill_(data::kIgnore);
  return with;
}

Batch with_hidden(const Batch& batch, const model::DecoderConfig& model, uint64_t seed) {
  Batch with = with_prefix(batch, model);
  const auto& options = model.prefix_linear;
  if (!model::any_mixer(model, &model::MixerShape::reads_prefix) || options.mask_weight == 0) return with;
  const int64_t B = with.size(), T = with.tokens.size(1);
  const torch::Device device = with.tokens.device();
  const torch::Tensor tokens = with.tokens.to(torch::kCPU, torch::kInt64, false, /*copy=*/true),
                      target = with.target.to(torch::kCPU, torch::kInt64, false, /*copy=*/true),
                      prefix = with.prefix.to(torch::kCPU).contiguous();
  auto token = tokens.accessor<int64_t, 2>(), own = target.accessor<int64_t, 2>();
  const auto in = prefix.accessor<bool, 2>();
  for (int64_t b = 0; b < B; ++b) {
    data::Stream stream(seed, data::Purpose::prefix, static_cast<uint64_t>(b));
    for (int64_t t = 0; t + 1 < T; ++t) {  // the last of a prefix has the first target behind it
      if (!in[b][t] || own[b][t] != data::kIgnore || stream.uniform() >= options.mask_share) continue;
      own[b][t] = token[b][t];
      token[b][t] = model::kHidden;
    }
  }
  with.tokens = tokens.to(device);
  with.target = target.to(device);
  return with;
}

}  // namespace isentrope::train
