#include "csrc/methods/ares.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace isentrope::methods {
namespace {

// The table of the header.
struct Shape {
  double margin, kappa, temperature, scale, share;
};
constexpr Shape kShapes[kDifficulties] = {{.15, 2, 2, 1, .6}, {.25, 3, 2.5, 1, .8}, {.35, 4, 3, 1.2, 1}};
constexpr double kLargestScale = 1.2;

// Of the controller of β, as published.
constexpr double kRate = 0.05, kLargestError = 0.2, kLeastBeta = 1e-4, kLargestBeta = 1e2;

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

double huber(double x, double kappa) { return x <= kappa ? x * x / (2 * kappa) : x - kappa / 2; }

// The running mean that starts with its first value.
void follow(std::optional<double>& mean, double value, double decay) {
  mean = mean ? decay * *mean + (1 - decay) * value : value;
}

struct Moments {
  double groups = 0, completions = 0, sum = 0, squares = 0;
  double mean() const { return sum / completions; }
  double variance() const { return std::max(squares / completions - mean() * mean(), 0.0); }
};

}  // namespace

std::string AresConfig::problem() const {
  if (medium > easy)
    return "medium: " + std::to_string(medium) + " is above easy (" + std::to_string(easy) +
           "); easy groups have more right completions than medium ones";
  if (form == "strict" && alpha * kLargestScale >= 1)
    return "alpha: " + std::to_string(alpha) +
           " takes all from a right answer to a hard prompt, and a wrong one cannot rank below it; form strict wants "
           "less than 1/1.2";
  if (alpha_control) {
    if (form == "paper") return "alpha_control: form paper has no alpha; leave it out";
    if (alpha < alpha_control->least || alpha > alpha_control->most)
      return "alpha: does not lie between alpha_control.least and alpha_control.most";
    if (form == "strict" && alpha_control->most * kLargestScale >= 1)
      return "alpha_control.most: " + std::to_string(alpha_control->most) + "; form strict wants less than 1/1.2";
  }
  for (const std::string& trigger : triggers)
    if (trigger.empty()) return "triggers: one is empty; leave it out (no trigger at all: every high window counts)";
  return "";
}

std::vector<int64_t> counted_windows(const std::vector<double>& means, double threshold,
                                     const std::vector<bool>& trigger) {
  std::vector<int64_t> begins;
  for (size_t t = 0; t < means.size(); ++t)
    if (means[t] >= threshold && (trigger.empty() || (t > 0 && trigger[t - 1])))
      begins.push_back(static_cast<int64_t>(t));
  return begins;
}

Difficulty difficulty(double accuracy, const AresConfig& config) {
  return accuracy >= config.easy ? kEasy : accuracy >= config.medium ? kMedium : kHard;
}

double ares_shaping(const AresConfig& config, Difficulty difficulty, bool right, double high, double target,
                    double lambda) {
  const Shape& shape = kShapes[difficulty];
  const double delta = high - target;
  if (config.form == "paper") {
    const double off = difficulty == kEasy     ? std::max(0.0, delta)
                       : difficulty == kMedium ? std::abs(delta)
                                               : std::max(0.0, -delta);
    return right ? 0.0 : -lambda * off;
  }
  const double m = std::max(1.0, shape.margin * std::max(target, 1.0)), cap = config.alpha * shape.scale;
  const auto penalty = [&](double beyond, double share) {
    return std::min(cap, share * cap * huber(std::max(beyond, 0.0), shape.kappa) / (m + shape.kappa));
  };
  if (!right) {
    const double rise = logistic(std::max(delta - m, 0.0) / shape.temperature);
    if (config.form == "released") return cap * shape.share * rise;
    return std::min(cap, (1 - cap) / 2) * shape.share * (2 * rise - 1);
  }
  if (difficulty == kEasy) return -penalty(delta - m, 1);
  if (difficulty == kMedium) return -penalty(std::abs(delta) - m, 1);
  return delta >= -m ? cap * logistic((delta + m) / shape.temperature) : -penalty(-delta - m, 0.5);
}

void AresConfig::bind(const TokensCalled& tokens_called) {
  trigger.clear();
  for (const std::string& text : triggers) {
    const std::vector<bool> found = tokens_called(text);
    if (std::find(found.begin(), found.end(), true) == found.end())
      throw std::invalid_argument(
          "triggers: \"" + text +
          "\" is no token of this tokenizer, and would never be found; take it out of the list");
    trigger.resize(found.size());
    for (size_t id = 0; id < found.size(); ++id) trigger[id] = trigger[id] || found[id];
  }
}

Tensor AresConfig::initial_state() const { return torch::tensor(Ares(*this).state(), torch::kFloat64); }

namespace {

std::vector<double> numbers_of(const Tensor& state) {
  const double* x = state.const_data_ptr<double>();
  return {x, x + state.numel()};
}

}  // namespace

AresMade ares(const Tensor& entropy, const Tensor& length, const Tensor& right, const Tensor& group,
              const Tensor& trigger, const Tensor& state, const AresConfig& config) {
  AresConfig own = config;
  own.trigger = {false, true};  // tokens are told apart by that alone
  Ares ares(own);
  ares.restore(numbers_of(state));
  const int64_t B = entropy.size(0), T = entropy.size(1);
  const Tensor H = entropy.to(torch::kFloat32).contiguous();
  const Tensor token = trigger.defined() ? trigger.to(torch::kInt64).contiguous() : torch::zeros({B, T}, torch::kInt64);
  const auto is_right = right.accessor<bool, 1>();
  const auto lengths = length.accessor<int64_t, 1>();
  std::vector<AresCompletion> completions;
  for (int64_t b = 0; b < B; ++b) {
    const auto n = static_cast<size_t>(lengths[b]);
    completions.push_back(
        {{token.const_data_ptr<int64_t>() + b * T, n}, {H.const_data_ptr<float>() + b * T, n}, is_right[b]});
  }
  const AresStep step = ares.step(completions, groups_of(group));
  AresMade made{.shaping = torch::tensor(step.shaping, torch::kFloat64),
                .difficulty = torch::empty({B}, torch::kInt64),
                .ref_kl_weight = config.kl ? torch::ones({B, T}, torch::kFloat32) : Tensor(),
                .state = torch::tensor(ares.state(), torch::kFloat64),
                .stats = step.stats};
  std::copy(step.difficulty.begin(), step.difficulty.end(), made.difficulty.mutable_data_ptr<int64_t>());
  for (size_t b = 0; b < step.kl_weight.size(); ++b)
    std::copy(step.kl_weight[b].begin(), step.kl_weight[b].end(),
              made.ref_kl_weight.mutable_data_ptr<float>() + static_cast<int64_t>(b) * T);
  return made;
}

Tensor ares_measured(const Tensor& state, const Tensor& kl, const AresConfig& config) {
  Ares ares(config);
  ares.restore(numbers_of(state));
  for (int d = 0; d < kDifficulties; ++d)
    if (const double found = kl.const_data_ptr<double>()[d]; !std::isnan(found))
      ares.measured(static_cast<Difficulty>(d), found);
  return torch::tensor(ares.state(), torch::kFloat64);
}

void AresConfig::apply(Completions& c, Context& context) const {
  Tensor triggers_of = {};
  if (!triggers.empty()) {
    Tensor called = torch::empty({std::ssize(trigger)}, torch::kBool);
    std::copy(trigger.begin(), trigger.end(), called.mutable_data_ptr<bool>());
    triggers_of = called.index({c.token});
  }
  AresMade made = ares(c.entropy, c.length, c.right, c.group, triggers_of, context.state, *this);
  context.stats.insert(made.stats.begin(), made.stats.end());
  c.add(kKind, c.unit * made.shaping);
  if (kl) {
    c.ref_kl_weight = made.ref_kl_weight;
    c.ref_kl_part = made.difficulty;
    c.ref_kl_parts.assign(kDifficultyNames, kDifficultyNames + kDifficulties);
  }
  context.state = made.state;
}

void AresConfig::observe(const std::map<std::string, double>& seen, Context& context) const {
  Tensor measured = torch::full({kDifficulties}, std::numeric_limits<double>::quiet_NaN(), torch::kFloat64);
  for (int d = 0; d < kDifficulties; ++d)
    if (const auto found = seen.find(std::string("ref_kl/") + kDifficultyNames[d]); found != seen.end())
      measured.mutable_data_ptr<double>()[d] = found->second;
  context.state = ares_measured(context.state, measured, *this);
}

Ares::Ares(const AresConfig& config) : config_(config) { alpha_.fill(config.alpha); }

AresStep Ares::step(const std::vector<AresCompletion>& completions, const std::vector<int64_t>& groups) {
  const bool rising = std::adjacent_find(groups.begin(), groups.end(), std::greater_equal<>()) == groups.end();
  if (groups.empty() || groups.front() != 0 || groups.back() != static_cast<int64_t>(completions.size()) || !rising)
    throw std::invalid_argument("ares: wanted offsets of groups that rise from 0 to the " +
                                std::to_string(completions.size()) + " completions");
  AresStep out;
  if (completions.empty()) return out;

  std::vector<std::vector<double>> means;
  std::vector<double> quantiles;
  for (const AresCompletion& completion : completions) {
    means.push_back(window_means(completion.entropy, config_.window));
    if (!means.back().empty()) quantiles.push_back(quantile(means.back(), config_.quantile));
  }
  // Without a window in this step there is none to compare.
  const double own = quantiles.empty() ? std::numeric_limits<double>::infinity() : quantile(quantiles, 0.5);
  const double threshold = threshold_.value_or(own);
  if (!quantiles.empty()) follow(threshold_, own, config_.threshold_decay);

  std::vector<std::vector<int64_t>> counted;
  std::array<Moments, kDifficulties> moments;
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    double right = 0;
    for (int64_t i = groups[g]; i < groups[g + 1]; ++i) right += completions[i].right;
    const Difficulty d = methods::difficulty(right / static_cast<double>(groups[g + 1] - groups[g]), config_);
    ++moments[d].groups;
    for (int64_t i = groups[g]; i < groups[g + 1]; ++i) {
      std::vector<bool> trigger;
      if (!config_.triggers.empty())
        for (const int64_t token : completions[i].tokens) trigger.push_back(config_.trigger.at(token));
      counted.push_back(counted_windows(means[i], threshold, trigger));
      const auto high = static_cast<double>(counted.back().size());
      out.difficulty.push_back(d);
      ++moments[d].completions;
      moments[d].sum += high;
      moments[d].squares += high * high;
    }
  }

  std::array<double, kDifficulties> target{}, lambda{};
  for (int d = 0; d < kDifficulties; ++d) {
    const std::string name = kDifficultyNames[d];
    const Moments& m = moments[d];
    out.stats["ares/groups/" + name] = m.groups;
    if (m.completions > 0) {
      target[d] = target_[d].value_or(m.mean());
      lambda[d] = std::max(0.0, (m.mean() - target[d]) / (m.variance() + 1));
      out.stats["ares/high/" + name] = m.mean();
      out.stats["ares/target/" + name] = target[d];
      follow(target_[d], m.mean(), config_.target_decay);
    }
    if (config_.alpha_control) out.stats["ares/alpha/" + name] = alpha_[d];
    if (config_.kl) out.stats["ares/beta/" + name] = controller_[d].beta;
  }

  std::array<AresConfig, kDifficulties> shaped;  // each with its alpha
  for (int d = 0; d < kDifficulties; ++d) shaped[d].form = config_.form, shaped[d].alpha = alpha_[d];
  for (size_t i = 0; i < completions.size(); ++i) {
    const Difficulty d = out.difficulty[i];
    out.shaping.push_back(
        ares_shaping(shaped[d], d, completions[i].right, static_cast<double>(counted[i].size()), target[d], lambda[d]));
    if (!config_.kl) continue;
    const double beta = controller_[d].beta;
    std::vector<float>& weight = out.kl_weight.emplace_back(completions[i].tokens.size(), static_cast<float>(beta));
    for (const int64_t begin : counted[i])
      std::fill_n(weight.begin() + begin, config_.window, static_cast<float>(beta * config_.kl->inside));
  }
  if (const auto& control = config_.alpha_control)
    for (int d = 0; d < kDifficulties; ++d)
      if (moments[d].completions > 0) {
        const double more = moments[d].mean() - target[d];
        alpha_[d] = std::clamp(alpha_[d] + control->rate * (d == kHard ? -more : more), control->least, control->most);
      }
  out.stats["ares/threshold"] = threshold;
  out.stats["ares/shaping"] =
      std::accumulate(out.shaping.begin(), out.shaping.end(), 0.0) / static_cast<double>(out.shaping.size());
  return out;
}

void Ares::measured(Difficulty difficulty, double kl) {
  if (!config_.kl) return;
  Controller& c = controller_[difficulty];
  follow(c.kl, kl, config_.kl->decay);
  if (++c.measurements % config_.kl->every != 0) return;
  const double error = *c.kl / config_.kl->target - 1, decay = config_.kl->error_decay;
  if (std::abs(error) < config_.kl->dead_zone) return;
  c.error = decay * c.error + (1 - decay) * error;
  const double move = kRate * std::clamp(c.error, -kLargestError, kLargestError);
  c.beta = std::clamp(c.beta * std::exp(move), kLeastBeta, kLargestBeta);
}

// threshold, then for each difficulty target, β, mean of the divergence, measurements; NaN for what is not known. Behind
// them the mean error of each; with alpha_control the alpha of each.
std::vector<double> Ares::state() const {
  const double unknown = std::numeric_limits<double>::quiet_NaN();
  std::vector<double> state{threshold_.value_or(unknown)};
  for (int d = 0; d < kDifficulties; ++d)
    for (const double x : {target_[d].value_or(unknown), controller_[d].beta, controller_[d].kl.value_or(unknown),
                           static_cast<double>(controller_[d].measurements)})
      state.push_back(x);
  for (const Controller& c : controller_) state.push_back(c.error);
  if (config_.alpha_control) state.insert(state.end(), alpha_.begin(), alpha_.end());
  return state;
}

void Ares::restore(const std::vector<double>& state) {
  constexpr size_t kErrors = 1 + 4 * kDifficulties, kAlphas = kErrors + kDifficulties;
  const size_t size = kAlphas + (config_.alpha_control ? kDifficulties : 0);
  if (state.size() == kErrors && config_.kl && config_.kl->error_decay != 0)
    throw std::runtime_error(
        "ares: the checkpoint is of a version that did not smooth the error of ares.kl, and holds no mean of "
        "it; "
        "resume with ares.kl.error_decay=0, which goes on as that run did");
  if ((state.size() != kErrors || config_.alpha_control) && state.size() != size)
    throw std::runtime_error("ares: a state of " + std::to_string(state.size()) + " numbers; wanted " +
                             std::to_string(size));
  const auto known = [](double x) { return std::isnan(x) ? std::nullopt : std::optional(x); };
  threshold_ = known(state[0]);
  for (int d = 0; d < kDifficulties; ++d) {
    const double* x = state.data() + 1 + 4 * d;
    target_[d] = known(x[0]);
    controller_[d] = {.beta = x[1],
                      .kl = known(x[2]),
                      .measurements = static_cast<int64_t>(x[3]),
                      .error = state.size() >= kAlphas ? state[kErrors + d] : 0};
    if (config_.alpha_control) alpha_[d] = state[kAlphas + d];
  }
}

}  // namespace isentrope::methods
