#include "csrc/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace isentrope::model {
namespace {

constexpr double kBetaFast = 32, kBetaSlow = 1, kLowFreqFactor = 1, kHighFreqFactor = 4;

// The place i, no integer, of the pair that turns `turns` times within `length` positions.
double place_of(double turns, double theta, double D, double length) {
  return D * std::log(length / (turns * 2 * std::numbers::pi)) / (2 * std::log(theta));
}

double yarn(const RopeScalingConfig& c, double f, double i, double theta, double D, double length) {
  double low = place_of(c.beta_fast.value_or(kBetaFast), theta, D, length);
  double high = place_of(c.beta_slow.value_or(kBetaSlow), theta, D, length);
  if (c.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, D - 1);
  if (low == high) high += 0.001;
  const double stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
  return f / *c.factor * stretched + f * (1 - stretched);
}

double llama3(const RopeScalingConfig& c, double f, double length) {
  const double wave = 2 * std::numbers::pi / f, low = c.low_freq_factor.value_or(kLowFreqFactor),
               high = c.high_freq_factor.value_or(kHighFreqFactor);
  if (wave < length / high) return f;
  if (wave > length / low) return f / *c.factor;
  const double smooth = (length / wave - low) / (high - low);
  return (1 - smooth) * f / *c.factor + smooth * f;
}

}  // namespace

std::string RopeScalingConfig::problem() const {
  const bool plain = rope_type == "default", of_yarn = rope_type == "yarn", of_llama3 = rope_type == "llama3";
  const auto foreign = [&](const char* key, const char* types) {
    return std::string(key) + ": belongs to " + types + ", and rope_type is " + rope_type + "; leave it out";
  };
  if (plain && factor) return foreign("factor", "linear, dynamic, yarn and llama3");
  if (!plain && !factor) return "factor: is left out, and rope_type " + rope_type + " stretches by it; give a number";
  if (original_max_position_embeddings && !of_yarn && !of_llama3)
    return foreign("original_max_position_embeddings", "yarn and llama3");
  const std::pair<const char*, bool> yarns[]{{"attention_factor", attention_factor.has_value()},
                                             {"beta_fast", beta_fast.has_value()},
                                             {"beta_slow", beta_slow.has_value()},
                                             {"mscale", mscale.has_value()},
                                             {"mscale_all_dim", mscale_all_dim.has_value()},
                                             {"truncate", !truncate}};
  for (const auto& [key, given] : yarns)
    if (given && !of_yarn) return foreign(key, "yarn");
  if (low_freq_factor && !of_llama3) return foreign("low_freq_factor", "llama3");
  if (high_freq_factor && !of_llama3) return foreign("high_freq_factor", "llama3");
  if (of_yarn && beta_fast.value_or(kBetaFast) < beta_slow.value_or(kBetaSlow))
    return "beta_fast: is below beta_slow; the two ends of the ramp have changed places";
  if (of_llama3 && high_freq_factor.value_or(kHighFreqFactor) <= low_freq_factor.value_or(kLowFreqFactor))
    return "high_freq_factor: is not above low_freq_factor; the two ends of the ramp have changed places";
  return "";
}

torch::Tensor inverse_frequencies(const RopeScalingConfig& c, double theta, int64_t D, int64_t positions) {
  torch::Tensor out = torch::empty({D / 2}, torch::kFloat64);
  const auto length = static_cast<double>(c.original_max_position_embeddings.value_or(positions));
  const auto size = static_cast<double>(D);
  for (int64_t i = 0; i < D / 2; ++i) {
    double f = std::pow(theta, -2 * static_cast<double>(i) / size);
    if (c.rope_type == "linear") f /= *c.factor;
    if (c.rope_type == "yarn") f = yarn(c, f, static_cast<double>(i), theta, size, length);
    if (c.rope_type == "llama3") f = llama3(c, f, length);
    out.data_ptr<double>()[i] = f;
  }
  return out;
}

double rope_attention_factor(const RopeScalingConfig& c) {
  if (c.rope_type != "yarn") return 1;
  if (c.attention_factor) return *c.attention_factor;
  const auto scale = [&](double m) { return *c.factor <= 1 ? 1 : 0.1 * m * std::log(*c.factor) + 1; };
  return c.mscale && c.mscale_all_dim ? scale(*c.mscale) / scale(*c.mscale_all_dim) : scale(1);
}

}  // namespace isentrope::model
