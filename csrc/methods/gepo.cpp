#include "csrc/methods/gepo.h"

#include <cmath>
#include <limits>
#include <vector>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {

std::tuple<Tensor, Tensor> gepo(const Tensor& advantage, const Tensor& h, const Tensor& mask, const Tensor& group,
                                const Tensor& state, double low, double high, double spread_low, double spread_high,
                                double rate) {
  constexpr const char* kOp = "method_gepo";
  TokenArguments given(kOp, "advantage", advantage, mask);
  ScaleLoop p{given.rows()};
  p.advantage = given.first();
  const void* const hs = given.take("h", h);
  const Groups groups = given.take_groups(group);
  ops::check_dtype(kOp, "state", state, {torch::kDouble});
  OP_CHECK(kOp, state.dim() == 1 && state.numel() == 2, "state has shape ", state.sizes(), "; wanted [2]");
  check_number(kOp, "low", low, low >= 0 && low <= 1, "0 to 1");
  check_number(kOp, "high", high, high >= 0 && high <= 1, "0 to 1");
  check_number(kOp, "spread_low", spread_low, std::isfinite(spread_low), "a finite number");
  check_number(kOp, "spread_high", spread_high, std::isfinite(spread_high), "a finite number");
  check_number(kOp, "rate", rate, rate >= 0 && rate <= 1, "0 to 1");

  std::vector<double> mean(groups.size(), std::numeric_limits<double>::quiet_NaN());  // of each group
  const auto [row_sums, row_tokens] = given.sums(hs);
  double number = 0, sum = 0, squares = 0;
  for (size_t g = 0; g + 1 < groups.size(); ++g) {
    double total = 0, tokens = 0;
    for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
      if (row_tokens[b] > 0) total += row_sums[b], tokens += static_cast<double>(row_tokens[b]);
    if (tokens > 0 && std::isfinite(total)) mean[g] = total / tokens, sum += mean[g], ++number;
  }
  const Tensor before = host(state);
  double bounds[2] = {before.const_data_ptr<double>()[0], before.const_data_ptr<double>()[1]};
  double used[2] = {bounds[0], bounds[1]};
  if (number > 0) {
    const double mu = sum / number;
    for (const double x : mean)
      if (!std::isnan(x)) squares += (x - mu) * (x - mu);
    const double sigma = std::sqrt(squares / number), now[2] = {mu - spread_low * sigma, mu + spread_high * sigma};
    for (int k = 0; k < 2; ++k) {
      used[k] = std::isnan(bounds[k]) ? now[k] : bounds[k];
      bounds[k] = used[k] + rate * (now[k] - used[k]);
    }
  }
  std::vector<double> up(static_cast<size_t>(p.rows), 1), down(up);
  for (size_t g = 0; g + 1 < groups.size(); ++g)
    for (int64_t b = groups[g]; b < groups[g + 1]; ++b)
      up[b] = mean[g] < used[0] ? low : 1, down[b] = mean[g] > used[1] ? high : 1;
  p.up = up.data(), p.down = down.data();
  Tensor made = given.made(p, ISENTROPE_PICK(scale_on_cpu));
  return {std::move(made), torch::tensor({bounds[0], bounds[1]}, torch::kFloat64).to(state.device())};
}

Tensor Gepo::initial_state() const {
  return torch::full({2}, std::numeric_limits<double>::quiet_NaN(), torch::kFloat64);
}

void Gepo::apply(Completions& c, Context& context) const {
  const auto [made, state] = gepo(c.advantage, of == "entropy" ? c.entropy : -c.logprob, c.mask, c.group, context.state,
                                  low, high, spread_low, spread_high, rate);
  const double tokens = std::max(c.mask.sum().item<double>(), 1.0);
  context.stats["gepo/shaped"] = ((made != c.advantage) & c.mask).sum().item<double>() / tokens;
  c.advantage = made;
  context.state = state;
  const double* bounds = state.const_data_ptr<double>();
  if (!std::isnan(bounds[0])) context.stats["gepo/low"] = bounds[0], context.stats["gepo/high"] = bounds[1];
}

namespace {

std::tuple<Tensor, Tensor> gepo_meta(const Tensor& advantage, const Tensor&, const Tensor&, const Tensor&,
                                     const Tensor& state, double, double, double, double, double) {
  return {torch::empty_symint(advantage.sym_sizes(), advantage.options()),
          torch::empty_symint(state.sym_sizes(), state.options())};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_gepo(Tensor advantage, Tensor h, Tensor mask, Tensor group, Tensor state, *, float low=0.5, float "
         "high=0.2, float spread_low=0.2, float spread_high=0.3, float rate=0.01) -> (Tensor, Tensor)",
         gepo, gepo_meta);
}

}  // namespace isentrope::methods
