#include "csrc/methods/empg.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {
namespace {

struct Stretch {
  int64_t row = 0;
  std::vector<int64_t> tokens = {};  // row · length + position
  double h = 0;                      // mean entropy, then where it lies from the least to the greatest
};

std::vector<Stretch> stretches(const TokenTable& given, const int64_t* step, const double* entropy) {
  std::vector<Stretch> all;
  for (int64_t b = 0; b < given.rows(); ++b) {
    int64_t last = 0;
    bool begun = false;
    for (int64_t i = b * given.length(); i < (b + 1) * given.length(); ++i) {
      if (!given.mask()[i]) continue;
      OP_CHECK("method_empg", !begun || step[i] >= last, "step falls from ", last, " to ", step[i], " in row ", b,
               "; wanted numbers that rise in a row");
      if (!begun || step[i] != last) all.push_back({b});
      begun = true, last = step[i];
      all.back().tokens.push_back(i);
      all.back().h += entropy[i];
    }
  }
  for (Stretch& one : all) one.h /= static_cast<double>(one.tokens.size());
  return all;
}

}  // namespace

Tensor empg(const Tensor& advantage, const Tensor& entropy, const Tensor& mask, const Tensor& step, double k,
            double future_k, double zeta, c10::string_view centre) {
  constexpr const char* kOp = "method_empg";
  TokenTable given(kOp, "advantage", advantage, mask);
  const double *A = given.first(), *H = given.take("entropy", entropy);
  const int64_t* steps = given.take_whole("step", step);
  for (const auto& [name, x] : {std::pair{"k", k}, std::pair{"future_k", future_k}, std::pair{"zeta", zeta}})
    check_number(kOp, name, x, x >= 0 && std::isfinite(x), "at least 0, and finite");
  OP_CHECK(kOp, centre == "steps" || centre == "tokens" || centre == "none", "centre is \"", centre,
           "\"; wanted \"steps\", \"tokens\" or \"none\"");

  std::vector<Stretch> all = stretches(given, steps, H);
  std::vector<double> made(static_cast<size_t>(given.size()));
  if (!all.empty()) {
    const auto [least, most] =
        std::minmax_element(all.begin(), all.end(), [](const Stretch& a, const Stretch& b) { return a.h < b.h; });
    const double low = least->h, range = most->h - low + 1e-8;  // as published
    double sum = 0;
    for (Stretch& one : all) sum += std::exp(-k * (one.h = (one.h - low) / range));
    const double mean = sum / static_cast<double>(all.size());
    double of_steps = 0, of_tokens = 0, tokens = 0;
    for (size_t s = 0; s < all.size(); ++s) {
      const double g = std::exp(-k * all[s].h) / mean;
      const bool last = s + 1 == all.size() || all[s + 1].row != all[s].row;
      const double gain = last ? 0 : zeta * std::exp(-future_k * all[s + 1].h);
      double own = 0;
      for (const int64_t i : all[s].tokens) own += made[i] = A[i] * g + gain;
      of_steps += own / static_cast<double>(all[s].tokens.size());
      of_tokens += own, tokens += static_cast<double>(all[s].tokens.size());
    }
    if (centre != "none") {
      const double m = centre == "steps" ? of_steps / static_cast<double>(all.size()) : of_tokens / tokens;
      for (double& x : made) x -= m;
    }
  }
  return given.give([&](int64_t i) { return made[i]; });
}

void Empg::bind(const TokenText& tokens) {
  if (needs_turns()) return;
  if (!tokens.writes(marker))
    throw std::invalid_argument("marker: the tokenizer cannot write \"" + marker +
                                "\", and no step would ever end; take a text that it can");
  text = tokens.of;
}

void Empg::apply(Completions& c, Context& context) const {
  const Tensor token = c.token.contiguous();
  const int64_t B = token.size(0), T = token.size(1);
  const Tensor step = needs_turns() && c.turn.defined() ? c.turn : torch::zeros({B, T}, torch::kInt64);
  const auto length = c.length.accessor<int64_t, 1>();
  double steps = 0;
  for (int64_t b = 0; b < B; ++b) {
    if (length[b] == 0) continue;
    int64_t* row = step.mutable_data_ptr<int64_t>() + b * T;
    if (!needs_turns()) {
      const std::span<const int64_t> own(token.const_data_ptr<int64_t>() + b * T, static_cast<size_t>(length[b]));
      const std::vector<int64_t> found = steps_of(own, text, marker);
      std::copy(found.begin(), found.end(), row);
    }
    steps += static_cast<double>(row[length[b] - 1] + 1);
  }
  if (B > 0) context.stats["empg/steps"] = steps / static_cast<double>(B);
  c.advantage = empg(c.advantage, c.entropy, c.mask, step, k, future_k, zeta, centre);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m,
         "method_empg(Tensor advantage, Tensor entropy, Tensor mask, Tensor step, *, float k=1.0, float future_k=1.0, "
         "float zeta=0.1, str centre=\"steps\") -> Tensor",
         empg);
}

}  // namespace isentrope::methods
