#include "csrc/rl/sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>
#include <stdexcept>

#include "csrc/model/cpu_kernels.h"

namespace isentrope::rl {

Sampler::Sampler(const SamplingConfig& config, int64_t vocabulary)
    : config_(config), weight_(vocabulary), allowed_(vocabulary), ranking_(vocabulary), penalised_(vocabulary) {
  if (config_.top_k <= 0 || config_.top_k > vocabulary) config_.top_k = vocabulary;
}

Draw Sampler::draw(const float* logits, double uniform, std::span<const int64_t> forbidden,
                   std::span<const int64_t> seen) {
  const int64_t V = weight_.size();
  const float scale = config_.temperature > 0 ? static_cast<float>(1 / config_.temperature) : 1.0f;
  float maximum, total, entropy;
  model::cpu_kernels<float>().softmax(V, scale, logits, weight_.data(), &maximum, &total, &entropy);
  if (!std::isfinite(maximum) || !std::isfinite(total)) throw std::runtime_error(why_not_finite(logits));
  float sum_p2 = 0;
  if (config_.sum_p2) {
    double squares = 0;
    for (const float weight : weight_) squares += static_cast<double>(weight) * weight;
    sum_p2 = static_cast<float>(squares / (static_cast<double>(total) * total));
  }
  const bool penalises = config_.repetition_penalty != 1 && !seen.empty();
  const bool changes = penalises || !forbidden.empty();
  highest_ = maximum, mass_ = total;
  if (changes) change(logits, scale, forbidden, seen);
  int64_t token = V;
  if (config_.temperature == 0) {
    token = std::max_element(weight_.begin(), weight_.end()) - weight_.begin();
  } else if (config_.top_k < V || config_.top_p < 1) {
    token = truncated(uniform);
  } else {
    if (config_.min_p > 0) cut_unlikely();
    double passed = 0;
    const double goal = uniform * mass_;
    for (int64_t n = 0; n < V && passed <= goal; ++n)
      if (weight_[n] > 0) {
        passed += weight_[n];
        token = n;
      }
  }
  const float chosen = changes ? allowed_[token] : logits[token];  // the same bits as logprob where nothing is cut
  return {token, logits[token] * scale - maximum - std::log(total), entropy, sum_p2,
          config_.temperature > 0 ? chosen * scale - highest_ - std::log(static_cast<float>(mass_)) : 0};
}

void Sampler::change(const float* logits, float scale, std::span<const int64_t> forbidden,
                     std::span<const int64_t> seen) {
  const int64_t V = weight_.size();
  std::copy_n(logits, V, allowed_.begin());
  if (config_.repetition_penalty != 1) {
    const auto c = static_cast<float>(config_.repetition_penalty);
    for (const int64_t token : seen) {
      if (penalised_[token]) continue;
      penalised_[token] = true;
      float& x = allowed_[token];
      x = x < 0 ? x * c : x / c;
    }
    for (const int64_t token : seen) penalised_[token] = false;
  }
  for (const int64_t token : forbidden) allowed_[token] = -INFINITY;
  float left, unused;
  model::cpu_kernels<float>().softmax(V, scale, allowed_.data(), weight_.data(), &highest_, &left, &unused);
  if (highest_ == -INFINITY) throw NothingAllowed();
  if (!std::isfinite(highest_) || !std::isfinite(left)) {
    std::ostringstream text;
    text << "rollout: the logits leave the range of float32 under repetition_penalty (" << config_.repetition_penalty
         << ") and temperature (" << config_.temperature << ")";
    throw std::runtime_error(text.str());
  }
  mass_ = left;
}

void Sampler::cut_unlikely() {
  const double least = config_.min_p * *std::max_element(weight_.begin(), weight_.end());
  mass_ = 0;
  for (float& weight : weight_) {
    if (weight < least) weight = 0;
    mass_ += weight;
  }
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

int64_t Sampler::truncated(double uniform) {
  auto less_likely = [&](int32_t a, int32_t b) { return weight_[a] != weight_[b] ? weight_[a] < weight_[b] : a > b; };
  std::iota(ranking_.begin(), ranking_.end(), 0);
  std::make_heap(ranking_.begin(), ranking_.end(), less_likely);
  // The heap gives up its likeliest one after the other, to the back of the vector.
  auto rest = ranking_.end();
  int64_t kept = 0;
  double mass = 0, enough = config_.top_k < static_cast<int64_t>(weight_.size()) ? INFINITY : config_.top_p * mass_;
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
  if (config_.min_p > 0) {
    const double least = config_.min_p * weight_[rank(0)];
    const int64_t before = kept;
    mass = weight_[rank(0)];
    for (kept = 1; kept < before && weight_[rank(kept)] >= least; ++kept) mass += weight_[rank(kept)];
  }
  mass_ = mass;
  double passed = 0;
  int64_t i = 0;
  while (i + 1 < kept && (passed += weight_[rank(i)]) <= uniform * mass) ++i;
  return rank(i);
}

}  // namespace isentrope::rl
