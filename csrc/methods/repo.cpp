#include "csrc/methods/repo.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "csrc/methods/shaping_cpu.h"
#include "csrc/methods/token_arguments.h"
#include "csrc/methods/token_table.h"

namespace isentrope::methods {
namespace {

// Of the tokens that count and whose x is finite; 0 of none.
double finite_mean(const TokenArguments& arguments, const void* taken, const Tensor& x, const Tensor& mask) {
  const auto [sums, counts] = arguments.sums(taken);
  const double all = std::accumulate(sums.begin(), sums.end(), 0.0);
  if (std::isfinite(all)) {
    const auto n = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    return n > 0 ? all / static_cast<double>(n) : 0;
  }
  TokenTable given("method_repo", "logprob", x, mask);
  double sum = 0, tokens = 0;
  for (int64_t i = 0; i < given.size(); ++i)
    if (given.mask()[i] && std::isfinite(given.first()[i])) sum += given.first()[i], ++tokens;
  return tokens > 0 ? sum / tokens : 0;
}

}  // namespace

Tensor repo(const Tensor& advantage, const Tensor& logprob, const Tensor& entropy, const Tensor& mask, double beta,
            c10::string_view form, c10::string_view centre) {
  constexpr const char* kOp = "method_repo";
  TokenArguments given(kOp, "advantage", advantage, mask);
  RepoLoop p{given.rows()};
  p.advantage = given.first(), p.logprob = given.take("logprob", logprob);
  const void* const H = given.take("entropy", entropy);
  check_number(kOp, "beta", beta, std::isfinite(beta), "a finite number");
  const bool rescale = form == "rescale", batch = centre == "batch";
  OP_CHECK(kOp, rescale || form == "decorrelate", "form is \"", form, "\"; wanted \"decorrelate\" or \"rescale\"");
  OP_CHECK(kOp, batch || centre == "state", "centre is \"", centre, "\"; wanted \"state\" or \"batch\"");
  p.beta = beta, p.rescale = rescale, p.entropy = batch ? nullptr : H;
  if (batch && !rescale) p.centre = finite_mean(given, p.logprob, logprob, mask);
  return given.made(p, ISENTROPE_PICK(repo_on_cpu));
}

Tensor repo_beta(const Tensor& state, double entropy, double rate, double most) {
  constexpr const char* kOp = "method_repo_beta";
  ops::check_dtype(kOp, "state", state, {torch::kDouble});
  OP_CHECK(kOp, state.dim() == 1 && state.numel() == 2, "state has shape ", state.sizes(), "; wanted [2]");
  check_number(kOp, "entropy", entropy, std::isfinite(entropy), "a finite number");
  check_number(kOp, "rate", rate, rate >= 0 && std::isfinite(rate), "at least 0, and finite");
  check_number(kOp, "most", most, most >= 0, "at least 0");
  const Tensor own = host(state);
  const double beta = own.const_data_ptr<double>()[0], known = own.const_data_ptr<double>()[1];
  const double target = std::isnan(known) ? entropy : known;
  return torch::tensor({std::clamp(beta + rate * (target - entropy), 0.0, most), target}, torch::kFloat64)
      .to(state.device());
}

std::string Repo::problem() const {
  if (rate == 0 && target) return "target: rate is 0, so that beta stays; give it a value above 0, or leave it out";
  if (rate > 0 && (beta < 0 || beta > most))
    return "beta: " + std::to_string(beta) + " does not lie between 0 and most (" + std::to_string(most) +
           "), where rate holds it";
  return "";
}

Tensor Repo::initial_state() const {
  return rate > 0 ? torch::tensor({beta, target.value_or(std::nan(""))}, torch::kFloat64) : Tensor();
}

void Repo::apply(Completions& c, Context& context) const {
  const double now = rate > 0 ? *context.state.const_data_ptr<double>() : beta;
  c.advantage = repo(c.advantage, c.logprob, c.entropy, c.mask, now, form, centre);
  if (rate == 0) return;
  context.stats["repo/beta"] = now;
  if (const Tensor own = c.entropy.masked_select(c.mask); own.numel() > 0)
    context.state = repo_beta(context.state, own.mean(torch::kFloat64).item<double>(), rate, most);
}

TORCH_LIBRARY_FRAGMENT(isentrope, m) {
  define(m, "method_repo_beta(Tensor state, float entropy, *, float rate, float most=1.0) -> Tensor", repo_beta);
  define(m,
         "method_repo(Tensor advantage, Tensor logprob, Tensor entropy, Tensor mask, *, float beta=0.01, str "
         "form=\"decorrelate\", str centre=\"state\") -> Tensor",
         repo);
}

}  // namespace isentrope::methods
