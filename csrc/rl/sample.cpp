#include "csrc/rl/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "csrc/model/cpu_kernels.h"

namespace isentrope::rl {

Sampler::Sampler(const SamplingConfig& config, int64_t vocabulary)
    : config_(config), weight_(vocabulary), allowed_(vocabulary), ranking_(vocabulary) {
  if (config_.top_k <= 0 || config_.top_k > vocabulary) config_.top_k = vocabulary;
}

Draw Sampler::draw(const float* logits, double uniform, std::span<const int64_t> forbidden) {
  const int64_t V = weight_.size();
  const float scale = config_.temperature > 0 ? static_cast<float>(1 / config_.temperature) : 1.0f;
  const auto softmax = model::cpu_kernels<float>().softmax;
  float maximum, total, entropy;
  softmax(V, scale, logits, weight_.data(), &maximum, &total, &entropy);
  if (!std::isfinite(maximum) || !std::isfinite(total)) throw std::runtime_error(why_not_finite(logits));
  float left = total;  // the mass to draw from
  if (!forbidden.empty()) {
    std::copy_n(logits, V, allowed_.begin());
    for (const int64_t token : forbidden) allowed_[token] = -INFINITY;
    float highest, unused;
    softmax(V, scale, allowed_.data(), weight_.data(), &highest, &left, &unused);
    if (!std::isfinite(highest))
      throw std::runtime_error("rollout: min_new_tokens forbids every token that the logits allow");
  }
  int64_t token = V;
  if (config_.temperature == 0) {
    token = std::max_element(weight_.begin(), weight_.end()) - weight_.begin();
  } else if (config_.top_k < V || config_.top_p < 1) {
    token = truncated(uniform, left);
  } else {
    double passed = 0;
    const double goal = uniform * left;
    for (int64_t n = 0; n < V && passed <= goal; ++n)
      if (weight_[n] > 0) {
        passed += weight_[n];
        token = n;
      }
  }
  return {token, logits[token] * scale - maximum - std::log(total), entropy};
}

std::string Sampler::why_not_finite(const float* logits) const {
  const auto bad = [](float x) { return std::isnan(x) || x == INFINITY; };
  const int64_t V = weight_.size();
  if (std::any_of(logits, logits + V, bad) || *std::max_element(logits, logits + V) == -INFINITY)
    return "rollout: the logits hold NaN or +infinity, or are all −infinity; the model's weights are not finite";
  std::ostringstream temperature;
  temperature << config_.temperature;
  return "rollout: the logits divided by temperature (" + temperature.str() +
         ") leave the range of float32; raise it, or take 0 for the likeliest token";
}

int64_t Sampler::truncated(double uniform, float total) {
  auto less_likely = [&](int32_t a, int32_t b) { return weight_[a] != weight_[b] ? weight_[a] < weight_[b] : a > b; };
  std::iota(ranking_.begin(), ranking_.end(), 0);
  std::make_heap(ranking_.begin(), ranking_.end(), less_likely);
  // The heap gives up its likeliest one after the other, to the back of the vector.
  auto rest = ranking_.end();
  int64_t kept = 0;
  double mass = 0, enough = config_.top_k < static_cast<int64_t>(weight_.size()) ? INFINITY : config_.top_p * total;
  do {
    std::pop_heap(ranking_.begin(), rest, less_likely);
    mass += weight_[*--rest];
  } while (++kept < config_.top_k && mass < enough);
  auto rank = [&](int64_t i) { return ranking_[ranking_.size() - 1 - i]; };
  if (std::isinf(enough) && config_.top_p < 1) {
    enough = config_.top_p * mass;
    mass = weight_[rank(0)];
    for (kept = 1; mass < enough; ++kept) mass += weight_[rank(kept)];
  }
  double passed = 0;
  int64_t i = 0;
  while (i + 1 < kept && (passed += weight_[rank(i)]) <= uniform * mass) ++i;
  return rank(i);
}

}  // namespace isentrope::rl
