#include "csrc/train/muon.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/train/sum_of_squares.h"

namespace isentrope::train {
namespace {

using torch::Tensor;

Tensor orthogonal(const MuonConfig& config, const Tensor& update) {
  constexpr double kLeastNorm = 1e-7;  // torch's eps
  const double a = config.ns_coefficients[0], b = config.ns_coefficients[1], c = config.ns_coefficients[2];
  const bool tall = update.size(0) > update.size(1);
  Tensor x = update.to(torch::kBFloat16);
  if (tall) x = x.t();
  const Tensor norm = x.is_cpu() ? torch::full({}, std::sqrt(sum_of_squares(x)), x.options()) : x.norm();
  x = x / norm.clamp_min(kLeastNorm);
  for (int64_t step = 0; step < config.ns_steps; ++step) {
    const Tensor gram = x.mm(x.t());
    x = at::addmm(x, at::addmm(gram, gram, gram, b, c), x, a);
  }
  return tall ? x.t() : x;
}

double rate_share(const MuonConfig& config, const Tensor& matrix) {
  const auto A = static_cast<double>(matrix.size(0)), B = static_cast<double>(matrix.size(1));
  return config.adjust_lr_fn == "original" ? std::sqrt(std::max(1.0, A / B)) : 0.2 * std::sqrt(std::max(A, B));
}

}  // namespace

std::string MuonConfig::problem() const {
  if (momentum >= 1) return "momentum: a decay of 1 never forgets; it must be below 1";
  if (ns_coefficients.size() != 3)
    return "ns_coefficients: " + std::to_string(ns_coefficients.size()) +
           " values; wanted three, such as [3.4445, -4.775, 2.0315]";
  return "";
}

std::map<std::string, std::vector<int64_t>> muon_matrices(const model::DecoderConfig& m) {
  const int64_t M = m.intermediate_size, C = m.hidden_size;
  const std::string wide = m.swiglu() ? "gate_up" : "up";
  std::vector<int64_t> wide_rows;
  std::vector<std::pair<std::string, int64_t>> wide_parts;
  if (m.swiglu()) wide_parts = {{"gate", M}};
  if (!m.merged_mlp()) wide_parts.emplace_back("up", M);
  for (const auto& part : wide_parts) wide_rows.push_back(part.second);
  std::map<std::string, std::vector<int64_t>> matrices;
  for (int64_t i = 0; i < m.num_hidden_layers; ++i) {
    const std::string at = "layers." + std::to_string(i) + ".";
    const auto parts = model::mixer_shape(m, i).parts;
    std::vector<int64_t> heights;
    for (const auto& part : parts) heights.push_back(part.second);
    matrices.insert({{at + "qkv", heights}, {at + "o", {C}}, {at + "down", {C}}});
    if (!wide_rows.empty()) matrices[at + wide] = wide_rows;
    if (!m.lora) continue;
    using Rows = std::vector<std::pair<std::string, int64_t>>;
    for (const auto& [name, rows_of] :
         {std::pair<std::string, Rows>{"qkv", parts}, {"o", {{"o", C}}}, {wide, wide_parts}, {"down", {{"down", C}}}})
      for (const auto& [layer, rows] : rows_of)
        if (m.lora->takes(layer)) {
          matrices[at + name + "_lora_a"].push_back(m.lora->rank);
          matrices[at + name + "_lora_b"].push_back(rows);
        }
  }
  return matrices;
}

void muon_step(const MuonConfig& config, const Tensor& weight, const Tensor& grad, const Tensor& moment,
               const std::vector<int64_t>& rows, double lr, double weight_decay) {
  moment.lerp_(grad, 1 - config.momentum);
  const Tensor update = config.nesterov ? grad.lerp(moment, config.momentum) : moment;
  weight.mul_(1 - lr * weight_decay);
  int64_t first = 0;
  for (const int64_t count : rows) {
    const Tensor part = update.slice(0, first, first + count);
    weight.slice(0, first, first + count).add_(orthogonal(config, part), -lr * rate_share(config, part));
    first += count;
  }
}

}  // namespace isentrope::train
