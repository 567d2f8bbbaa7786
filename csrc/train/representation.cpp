#include "csrc/train/representation.h"

#include <ATen/ops/linalg_eigvalsh.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "csrc/train/finite.h"

namespace isentrope::train {

using torch::Tensor;

// ---- of spectra ------------------------------------------------------------------------------------------------------

std::vector<double> squared_singular_values(const Tensor& Z) {
  const torch::NoGradGuard no_grad;
  const Tensor X = Z.to(torch::kFloat64);
  const Tensor gram = X.size(0) < X.size(1) ? X.matmul(X.t()) : X.t().matmul(X);
  const Tensor rising = at::linalg_eigvalsh(gram).clamp_min(0).to(torch::kCPU).contiguous();
  const double* x = rising.const_data_ptr<double>();
  return {std::make_reverse_iterator(x + rising.numel()), std::make_reverse_iterator(x)};
}

double rankme(const std::vector<double>& values) {
  const double total = std::accumulate(values.begin(), values.end(), 0.0);
  if (total <= 0) return 1;
  double entropy = 0;
  for (const double value : values) {
    const double p = value / total + 1e-7;
    entropy -= p * std::log(p);
  }
  return std::exp(entropy);
}

std::optional<PowerLaw> power_law(const std::vector<double>& eigenvalues, int64_t first, int64_t last) {
  struct Point {
    double x, y, w;
  };
  std::vector<Point> points;
  const int64_t end = std::min(last, static_cast<int64_t>(eigenvalues.size()));
  for (int64_t i = first; i <= end; ++i)
    if (const double value = eigenvalues[i - 1]; value > 0)
      points.push_back({std::log(static_cast<double>(i)), std::log(value), 1 / static_cast<double>(i)});
  if (points.size() < 3) return std::nullopt;
  const auto sum = [&](auto term) {
    return std::accumulate(points.begin(), points.end(), 0.0,
                           [&](double s, const Point& p) { return s + p.w * term(p); });
  };
  const double W = sum([](const Point&) { return 1.0; });
  const double x = sum([](const Point&p) { return p.x; }) / W, y = sum([](const Point&p) { return p.y; }) / W;
  const double slope = sum([&](const Point& p) { return (p.x - x) * (p.y - y); }) /
                       sum([&](const Point& p) { return (p.x - x) * (p.x - x); });
  const auto square = [](double v) { return v * v; };
  const double rest = sum([&](const Point&p) { return square(p.y - y - slope * (p.x - x)); }),
               whole = sum([&](const Point&p) { return square(p.y - y); });
  return PowerLaw{.alpha = -slope, .r2 = whole > 0 ? 1 - rest / whole : NAN};
}

namespace {

std::vector<double> roots(std::vector<double> values) {
  for (double& value : values) value = std::sqrt(value);
  return values;
}

}  // namespace

Figures figures_of_states(const Tensor& Z, int64_t first, int64_t last) {
  const torch::NoGradGuard no_grad;
  const int64_t M = Z.size(0), least = std::min(M, Z.size(1));
  Figures figures{{"tokens", static_cast<double>(M)}};
  if (M == 0 || !all_finite(Z)) return figures;
  const Tensor X = Z.to(torch::kFloat64);
  const std::vector<double> raw = squared_singular_values(X), own = squared_singular_values(X - X.mean(0));
  std::vector<double> eigenvalues = own;
  const double most = own.front();
  for (double& value : eigenvalues)  // what rounding leaves of a direction without variance is none
    value = value < most * 1e-13 ? 0 : value / static_cast<double>(std::max<int64_t>(M - 1, 1));
  figures["rankme_singular"] = rankme(roots(raw));
  figures["rankme_centred"] = rankme(roots(own));
  figures["rankme_eigenvalues"] = rankme(eigenvalues);
  if (const auto law = power_law(eigenvalues, first, last)) {
    figures["alpha"] = law->alpha;
    if (std::isfinite(law->r2)) figures["r2"] = law->r2;
  }
  const double total = std::accumulate(raw.begin(), raw.end(), 0.0);
  double entropy = 0;
  for (const double value : raw)
    if (value > 0) entropy -= value / total * std::log(value / total);
  figures["matrix_entropy"] = entropy / std::log(static_cast<double>(std::max<int64_t>(least, 2)));
  return figures;
}

Figures figures_of_weight(const Tensor& W) {
  if (W.numel() == 0 || !all_finite(W)) return {};
  const std::vector<double> squares = squared_singular_values(W);
  const double total = std::accumulate(squares.begin(), squares.end(), 0.0);
  Figures figures{{"spectral_norm", std::sqrt(squares.front())}};
  if (squares.front() > 0)
    figures.insert({{"stable_rank", total / squares.front()}, {"effective_rank", rankme(roots(squares))}});
  return figures;
}

// ---- of a model ------------------------------------------------------------------------------------------------------

Tensor last_states(model::Decoder& model, const data::Batch& update, int64_t tokens, int64_t micro_tokens) {
  const torch::NoGradGuard no_grad;
  const Tensor real = update.real();
  const Tensor counts = real.sum(1).to(torch::kCPU);  // [B]
  int64_t rows = 0;
  for (int64_t found = 0; rows < update.size() && found < tokens; ++rows)
    found += counts.const_data_ptr<int64_t>()[rows];
  const bool causal = model->config().causal;  // a row gives no more, and its tokens see none behind them
  const int64_t T = update.tokens.size(1), columns = causal ? std::min(T, tokens) : T;
  const int64_t at_once = micro_tokens > 0 ? std::max<int64_t>(micro_tokens / columns, 1) : std::max<int64_t>(rows, 1);
  std::vector<Tensor> states;
  for (int64_t begin = 0; begin < rows; begin += at_once) {
    const auto cut = [&](const Tensor& x) {
      return x.defined() ? x.slice(0, begin, std::min(begin + at_once, rows)).slice(1, 0, columns) : x;
    };
    const Tensor lengths =
        update.lengths.defined() ? update.lengths.slice(0, begin, std::min(begin + at_once, rows)) : Tensor();
    states.push_back(model->hidden(cut(update.tokens), nullptr, {cut(update.position), cut(update.prefix), lengths})
                         .index({cut(real)}));
  }
  if (states.empty()) return torch::empty({0, model->config().hidden_size});
  return torch::cat(states).slice(0, 0, tokens);
}

namespace {

// Whether text is pattern, in which * stands for any text.
bool fits(const std::string& pattern, const std::string& text) {
  size_t p = 0, t = 0, star = std::string::npos, from = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*')
      star = p++, from = t;
    else if (p < pattern.size() && pattern[p] == text[t])
      ++p, ++t;
    else if (star != std::string::npos)
      p = star + 1, t = ++from;
    else
      return false;
  }
  return pattern.find_first_not_of('*', p) == std::string::npos;
}

// "model.layers.5.mlp.…" of six layers as "model.layers.-1.mlp.…"; "" of what stands in no layer.
std::string from_the_end(const std::string& name, int64_t layers) {
  const std::string at = "model.layers.";
  if (!name.starts_with(at)) return "";
  const size_t dot = name.find('.', at.size());
  return at + std::to_string(std::stoll(name.substr(at.size(), dot - at.size())) - layers) + name.substr(dot);
}

std::vector<std::pair<std::string, Tensor>> matrices_of(const model::Decoder& model) {
  std::vector<std::pair<std::string, Tensor>> found;
  for (auto& one : model->named_weights())
    if (one.second.dim() == 2) found.push_back(one);
  return found;
}

// The rows of a projection's folded weight that a view of its stored weight has; the view itself of what is no part of one, or is
// stored as it multiplies.
Tensor as_it_multiplies(const model::Decoder& model, const Tensor& view) {
  std::vector<const model::Projection*> projections{&model->head()};
  for (const model::LayerWeights& layer : model->layers())
    for (const model::Projection* one : layer.projections()) projections.push_back(one);
  const auto at = [](const Tensor& x) { return reinterpret_cast<uintptr_t>(x.const_data_ptr()); };
  for (const model::Projection* one : projections) {
    const uintptr_t begin = at(one->weight);
    if (at(view) < begin || at(view) >= begin + one->weight.nbytes()) continue;
    const Tensor whole = model::folded(*one);
    if (whole.is_same(one->weight)) return view;
    const auto row = static_cast<int64_t>((at(view) - begin) / (one->weight.element_size() * one->weight.size(1)));
    return whole.slice(0, row, row + view.size(0));
  }
  return view;
}

}  // namespace

std::vector<std::string> matrices_that_fit(const model::Decoder& model, const std::vector<std::string>& patterns) {
  const auto matrices = matrices_of(model);
  const auto layers = static_cast<int64_t>(model->layers().size());
  const auto fit = [&](const std::string& pattern, const std::string& name) {
    return fits(pattern, name) || fits(pattern, from_the_end(name, layers));
  };
  for (const std::string& pattern : patterns)
    if (std::none_of(matrices.begin(), matrices.end(), [&](const auto& one) { return fit(pattern, one.first); })) {
      std::string names;
      for (const auto& [name, matrix] : matrices)
        if (name.find("layers.") == std::string::npos || name.starts_with("model.layers.0."))
          names += (names.empty() ? "" : ", ") + name;
      throw std::runtime_error("metrics.representation.weights: '" + pattern +
                               "' fits no matrix of the model; * stands for any text and layers.-1 for the last of " +
                               std::to_string(layers) + " layers. There are " + names +
                               ", and those of the other layers");
    }
  std::vector<std::string> names;
  for (const auto& [name, matrix] : matrices)
    if (std::any_of(patterns.begin(), patterns.end(), [&](const std::string& pattern) { return fit(pattern, name); }))
      names.push_back(name);
  return names;
}

Figures look_inside(const RepresentationConfig& config, model::Decoder& model, const data::Batch& update,
                    int64_t micro_tokens, const Ranks& ranks) {
  using nlohmann::json;
  if (!ranks.alone())
    return json::parse(
               ranks.from_first(ranks.first() ? json(look_inside(config, model, update, micro_tokens)).dump() : ""))
        .get<Figures>();
  const torch::NoGradGuard no_grad;
  Figures figures;
  const auto add = [&](const std::string& at, const Figures& found) {
    for (const auto& [name, value] : found) figures[at + name] = value;
  };
  add("representation/",
      figures_of_states(last_states(model, update, config.tokens, micro_tokens), config.first, config.last));
  if (config.weights.empty()) return figures;
  const std::vector<std::string> names = matrices_that_fit(model, config.weights);
  for (const auto& [name, matrix] : matrices_of(model))
    if (std::find(names.begin(), names.end(), name) != names.end())
      add("spectrum/" + name + "/", figures_of_weight(as_it_multiplies(model, matrix)));
  return figures;
}

std::string too_few_tokens(const Figures& figures, int64_t features) {
  const auto found = figures.find("representation/tokens");
  if (found == figures.end() || found->second > static_cast<double>(features)) return "";
  const auto tokens = static_cast<int64_t>(found->second);
  return "metrics.representation.tokens: the first update has " + std::to_string(tokens) + " of them, for " +
         std::to_string(features) + " features: a rank is " + std::to_string(std::max<int64_t>(tokens - 1, 1)) +
         " at most. Wanted more than " + std::to_string(features) +
         ": raise it, or batch.sequences; compare ranks of as many tokens alone";
}

std::string slow_look(double look, double step, int64_t every) {
  constexpr double kMost = 0.01;
  const double share = look / (look + step * static_cast<double>(every));
  if (share <= kMost) return "";
  std::array<char, 200> text{};
  std::snprintf(
      text.data(), text.size(),
      "metrics.representation.every: looking takes %.1f %% of the time with every: %lld; from every: %.0f on it "
      "is 1 %% or less",
      100 * share, static_cast<long long>(every), std::ceil(look * (1 - kMost) / (kMost * step)));
  return text.data();
}

}  // namespace isentrope::train
