#include "csrc/methods/pear.h"

#include <algorithm>
#include <cmath>

#include "csrc/methods/token_table.h"

namespace isentrope::methods {

Tensor pear(const Tensor& entropy, const Tensor& mask, const Tensor& tag, const Tensor& right, double alpha,
            double coef, std::optional<double> least) {
  constexpr const char* kOp = "method_pear";
  TokenTable given(kOp, "entropy", entropy, mask);
  const double* H = given.first();
  const bool* rights = given.take_row_flags("right", right);
  ops::check_dtype(kOp, "tag", tag, {torch::kInt64, torch::kInt32});
  OP_CHECK(kOp, tag.dim() == 2 && tag.size(0) == given.rows() && tag.size(1) == 2, "tag has shape ", tag.sizes(),
           "; wanted [", given.rows(), ", 2], where it begins and one behind its end");
  check_number(kOp, "alpha", alpha, std::isfinite(alpha), "a finite number");
  check_number(kOp, "coef", coef, coef >= 0 && std::isfinite(coef), "at least 0, and finite");
  if (least) check_number(kOp, "least", *least, *least <= 1, "at most 1");
  const Tensor tags = host(tag, torch::kInt64);
  const int64_t *place = tags.const_data_ptr<int64_t>(), T = given.length();
  Tensor out = torch::zeros({given.rows()}, torch::kFloat64);
  for (int64_t b = 0; b < given.rows(); ++b) {
    if (!rights[b]) continue;
    const bool found = place[2 * b] >= 0;
    const int64_t ends[2][2] = {{0, found ? place[2 * b] : T}, {found ? place[2 * b + 1] : T, T}};
    double mean[2] = {};
    for (int phase = 0; phase < 2; ++phase) {
      double sum = 0, tokens = 0;
      for (int64_t t = ends[phase][0]; t < std::min(ends[phase][1], T); ++t)
        if (given.mask()[b * T + t]) sum += H[b * T + t], ++tokens;
      if (tokens > 0) mean[phase] = sum / tokens;
    }
    double amount = -coef * std::max(0.0, mean[0] - alpha * mean[1]);
    if (least) amount = std::max(amount, *least - 1);
    out.mutable_data_ptr<double>()[b] = amount + 0.0;  // no −0
  }
  return out.to(entropy.device());
}

void Pear::bind(const TokenText& tokens) {
  if (!tokens.writes(tag))
    throw std::invalid_argument("tag: the tokenizer cannot write \"" + tag +
                                "\", and no thinking would ever end; take a text that it can");
  text = tokens.of;
}

void Pear::apply(Completions& c, Context& context) const {
  const Tensor token = c.token.contiguous();
  const int64_t B = token.size(0), T = token.size(1);
  Tensor places = torch::empty({B, 2}, torch::kInt64);
  const auto length = c.length.accessor<int64_t, 1>();
  double found = 0;
  for (int64_t b = 0; b < B; ++b) {
    const std::span<const int64_t> own(token.const_data_ptr<int64_t>() + b * T, static_cast<size_t>(length[b]));
    const auto [first, behind] = TokenizedText(own, text).find(tag);
    places.mutable_data_ptr<int64_t>()[2 * b] = first;
    places.mutable_data_ptr<int64_t>()[2 * b + 1] = behind;
    found += first >= 0;
  }
  // What was drawn, learnt from or not.
  const Tensor drawn = torch::arange(T) < c.length.unsqueeze(1);
  const Tensor amount = pear(c.entropy, drawn, places, c.right, alpha, coef, min_reward);
  if (B > 0) {
    context.stats["pear/tagged"] = found / static_cast<double>(B);
    context.stats["pear/penalty"] = -amount.mean().item<double>();
  }
  c.add(kKind, c.unit * amount);
}

namespace {

Tensor pear_meta(const Tensor& entropy, const Tensor&, const Tensor&, const Tensor&, double, double,
                 std::optional<double>) {
  return torch::empty_symint({entropy.sym_size(0)}, entropy.options().dtype(torch::kFloat64));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m,
      "method_pear(Tensor entropy, Tensor mask, Tensor tag, Tensor right, *, float alpha=1.0, float coef=1.0, float? "
      "least=None) -> Tensor",
      pear, pear_meta);
}

}  // namespace isentrope::methods
