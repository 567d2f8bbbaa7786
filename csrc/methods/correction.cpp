#include "csrc/methods/correction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "csrc/methods/token_arguments.h"

namespace isentrope::methods {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kMostLogRatio = 20;  // SAFETY_BOUND of verl

double weight_of(double log_ratio) { return std::exp(std::clamp(log_ratio, -kMostLogRatio, kMostLogRatio)); }

std::vector<GapSums> gaps(const TokenRows& rows, const void* logprob, const void* old_logprob, double high, bool all) {
  std::vector<GapSums> found(static_cast<size_t>(rows.rows));
  GapLoop p{rows};
  p.logprob = logprob, p.old_logprob = old_logprob, p.clamp = high, p.all = all, p.gap = found.data();
  ISENTROPE_PICK(gap_on_cpu)(p);
  return found;
}

double mean_gap(const GapSums& gap) { return gap.tokens == 0 ? 0 : gap.sum / static_cast<double>(gap.tokens); }

}  // namespace

std::tuple<Tensor, Tensor> correction(const Tensor& rescored, const Tensor& old_logprob, const Tensor& mask,
                                      const std::optional<Tensor>& advantage, const std::optional<Tensor>& logprob,
                                      c10::string_view level, c10::string_view mode, double low, double high,
                                      std::optional<double> delta) {
  constexpr const char* kOp = "method_correction";
  OP_CHECK(kOp, rescored.defined(),
           "there are no rescored log-probs; wanted [B, T], of the trained policy before the update");
  TokenArguments given(kOp, "rescored", rescored, mask);
  const void* const old = given.take("old_logprob", old_logprob);
  const void* const A = advantage ? given.take("advantage", *advantage) : nullptr;
  const void* const current = logprob ? given.take("logprob", *logprob) : given.first();
  const bool token = level == "token", sequence = level == "sequence";
  const bool truncate = mode == "truncate", reject = mode == "reject";
  OP_CHECK(kOp, token || sequence || level == "geometric", "level is \"", level,
           "\"; wanted \"token\", \"sequence\" or \"geometric\"");
  OP_CHECK(kOp, truncate || reject || mode == "mask", "mode is \"", mode,
           "\"; wanted \"truncate\", \"mask\" or \"reject\"");
  check_number(kOp, "low", low, low >= 0, "at least 0");
  check_number(kOp, "high", high, high >= low && high > 0, "at least low, and above 0");
  if (delta) {
    check_number(kOp, "delta", *delta, *delta >= 0, "at least 0");
    OP_CHECK(kOp, A != nullptr, "delta is ", *delta,
             " without advantage; wanted the advantage [B, T], whose sign it looks at");
  }

  const TokenRows rows = given.rows();
  const Tensor factor = given.make();
  const Tensor removed = reject ? given.make_flags() : torch::empty({0}, torch::kBool);
  void* const out = factor.mutable_data_ptr();
  bool* const out_removed = removed.mutable_data_ptr<bool>();
  SequenceRatioLoop p{{rows}};
  p.logprob = given.first(), p.old_logprob = old, p.low = low, p.high = high, p.geometric = !sequence;
  p.outside = truncate ? Outside::kTruncate : reject ? Outside::kReject : Outside::kMask;
  p.factor = out, p.removed = out_removed;
  if (token)
    ISENTROPE_PICK(ratio_on_cpu)(p);
  else
    ISENTROPE_PICK(sequence_ratio_on_cpu)(p);
  if (delta) {
    const std::vector<GapSums> found = gaps(rows, current, old, kInfinity, false);
    std::vector<double> sums(found.size());
    std::vector<int64_t> counts(found.size());
    SumLoop sum{rows};
    sum.x = A, sum.sum = sums.data(), sum.count = counts.data();
    ISENTROPE_PICK(sum_on_cpu)(sum);
    const std::unique_ptr<bool[]> drop(new bool[found.size()]);
    for (size_t b = 0; b < found.size(); ++b) drop[b] = sums[b] < 0 && -mean_gap(found[b]) > *delta;
    DropLoop dropped{rows};
    dropped.drop = drop.get(), dropped.factor = out;
    ISENTROPE_PICK(drop_on_cpu)(dropped);
  }
  return {given.give(factor), given.give(removed)};
}

Tensor mismatch(const Tensor& logprob, const Tensor& old_logprob, const Tensor& mask, std::optional<double> high) {
  constexpr const char* kOp = "method_mismatch";
  TokenArguments given(kOp, "logprob", logprob, mask);
  const void* const old = given.take("old_logprob", old_logprob);
  if (high) check_number(kOp, "high", *high, *high > 0, "above 0");
  GapSums all;
  double rows = 0, square_of_rows = 0;
  for (const GapSums& row : gaps(given.rows(), given.first(), old, high.value_or(kInfinity), true)) {
    all.tokens += row.tokens, all.sum += row.sum, all.absolute += row.absolute, all.most = std::max(all.most, row.most);
    all.k3 += row.k3, all.square += row.square, all.weight += row.weight, all.weight_square += row.weight_square;
    if (row.tokens == 0) continue;
    const double w = weight_of(row.sum);
    rows += 1, square_of_rows += w * w;
  }
  Tensor result = torch::zeros({8}, torch::kDouble);
  double* x = result.mutable_data_ptr<double>();
  x[7] = 1;
  if (all.tokens > 0) {
    const auto n = static_cast<double>(all.tokens);
    x[0] = all.most, x[1] = all.absolute / n, x[2] = -all.sum / n, x[3] = all.k3 / n;
    x[4] = all.square / n - 1, x[5] = square_of_rows / rows - 1;
    x[6] = all.weight / n, x[7] = all.weight * all.weight / (n * all.weight_square);
  }
  return given.give(result);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(
      m,
      "method_correction(Tensor rescored, Tensor old_logprob, Tensor mask, *, Tensor? advantage=None, Tensor? "
      "logprob=None, str level=\"token\", str mode=\"truncate\", float low=0.0, float high=2.0, float? delta=None) "
      "-> (Tensor, Tensor)",
      correction,
      +[](const Tensor& rescored, const Tensor&, const Tensor&, const std::optional<Tensor>&,
          const std::optional<Tensor>&, c10::string_view, c10::string_view mode, double, double,
          std::optional<double>) {
        const auto sizes = rescored.sym_sizes();
        const auto flags = rescored.options().dtype(torch::kBool);
        return std::tuple<Tensor, Tensor>(
            torch::empty_symint(sizes, rescored.options()),
            mode == "reject" ? torch::empty_symint(sizes, flags) : torch::empty({0}, flags));
      });
  define(
      m, "method_mismatch(Tensor logprob, Tensor old_logprob, Tensor mask, *, float? high=None) -> Tensor", mismatch,
      +[](const Tensor& logprob, const Tensor&, const Tensor&, std::optional<double>) {
        return torch::empty({8}, logprob.options().dtype(torch::kDouble));
      });
}

}  // namespace isentrope::methods
