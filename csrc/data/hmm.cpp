#include "csrc/data/hmm.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <numeric>
#include <stdexcept>
#include <string_view>

#include "csrc/data/random.h"
#include "csrc/data/token_cache.h"

namespace isentrope::data {
namespace {

constexpr std::string_view kSymbols = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

// ln of a draw from Gamma(a, 1). Marsaglia and Tsang, ACM TOMS 26 (2000); of a below 1 that of a + 1 times U^(1/a), whose logarithm
// does not vanish where the draw itself would.
double log_gamma_draw(Stream& stream, double a) {
  if (a < 1) return log_gamma_draw(stream, a + 1) + std::log(stream.uniform()) / a;
  const double d = a - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double radius = std::sqrt(-2 * std::log(stream.uniform()));
    const double x = radius * std::cos(2 * std::numbers::pi * stream.uniform()), v = 1 + c * x;
    if (v <= 0) continue;
    const double cube = v * v * v;
    if (std::log(stream.uniform()) < x * x / 2 + d - d * cube + d * std::log(cube)) return std::log(d * cube);
  }
}

// Rows of a Dirichlet law.
std::vector<double> drawn_rows(int64_t rows, int64_t columns, double concentration, Stream& stream) {
  std::vector<double> all;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<double> x;
    for (int64_t i = 0; i < columns; ++i) x.push_back(log_gamma_draw(stream, concentration));
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double& value : x) sum += value = std::exp(value - most);
    for (const double value : x) all.push_back(value / sum);
  }
  return all;
}

std::string rows_problem(const char* name, const std::vector<double>& x, int64_t rows, int64_t columns) {
  if (x.empty()) return "";
  if (static_cast<int64_t>(x.size()) != rows * columns)
    return std::string(name) + " has " + std::to_string(x.size()) + " numbers; wanted " + std::to_string(rows) + " · " +
           std::to_string(columns) + ", row by row";
  for (int64_t row = 0; row < rows; ++row) {
    const double sum = std::accumulate(x.begin() + row * columns, x.begin() + (row + 1) * columns, 0.0);
    if (std::abs(sum - 1) > 1e-6)  // as a person writes thirds
      return std::string(name) + ": row " + std::to_string(row) + " sums to " + std::to_string(sum) + "; wanted 1";
  }
  return "";
}

// Whether some power of A has no zero; where one has not, the (S − 1)² + 1-st has not (Wielandt 1950), nor any after it.
bool ergodic(const std::vector<double>& A, int64_t S) {
  const auto n = static_cast<size_t>(S);
  std::vector<bool> reached(n * n);
  for (size_t i = 0; i < n * n; ++i) reached[i] = A[i] > 0;
  for (int64_t power = 1; power < (S - 1) * (S - 1) + 1; power *= 2) {
    std::vector<bool> next(n * n);
    for (size_t i = 0; i < n; ++i)
      for (size_t k = 0; k < n; ++k)
        for (size_t j = 0; reached[i * n + k] && j < n; ++j)
          if (reached[k * n + j]) next[i * n + j] = true;
    reached = std::move(next);
  }
  return std::all_of(reached.begin(), reached.end(), [](bool x) { return x; });
}

// π = π A, Σ π = 1, by elimination of (A − 1)ᵀ with its last equation put in place by the sum.
std::vector<double> stationary_law(const std::vector<double>& A, int64_t S) {
  const auto n = static_cast<size_t>(S);
  std::vector<double> M(n * (n + 1), 0.0);  // [S, S + 1]
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) M[i * (n + 1) + j] = i + 1 == n ? 1 : A[j * n + i] - (i == j ? 1 : 0);
  M[n * (n + 1) - 1] = 1;
  for (size_t k = 0; k < n; ++k) {
    size_t pivot = k;
    for (size_t i = k + 1; i < n; ++i)
      if (std::abs(M[i * (n + 1) + k]) > std::abs(M[pivot * (n + 1) + k])) pivot = i;
    for (size_t j = 0; j <= n; ++j) std::swap(M[k * (n + 1) + j], M[pivot * (n + 1) + j]);
    for (size_t i = 0; i < n; ++i) {
      const double factor = i == k ? 0 : M[i * (n + 1) + k] / M[k * (n + 1) + k];
      for (size_t j = k; factor != 0 && j <= n; ++j) M[i * (n + 1) + j] -= factor * M[k * (n + 1) + j];
    }
  }
  std::vector<double> law;
  for (size_t i = 0; i < n; ++i) law.push_back(std::max(0.0, M[i * (n + 1) + n] / M[i * (n + 1) + i]));
  return law;
}

int64_t choose(const double* law, int64_t count, double u) {
  int64_t last = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (law[i] <= 0) continue;
    last = i;
    if ((u -= law[i]) < 0) break;
  }
  return last;
}

std::vector<int64_t> tokens_of(int64_t symbols, const Tokenizer& tokenizer) {
  std::vector<int64_t> tokens;
  for (const char c : kSymbols.substr(0, static_cast<size_t>(symbols))) {
    std::vector<int64_t> ids;
    std::string reason;
    try {
      ids = tokenizer.encode(std::string_view(&c, 1));
    } catch (const std::invalid_argument& error) {
      reason = std::string(": ") + error.what();
    }
    if (ids.size() != 1)
      throw std::invalid_argument(std::string("hmm: symbol \"") + c + "\" is no token of the tokenizer" + reason +
                                  "; write tokenizer: {kind: characters, characters: \"" +
                                  std::string(kSymbols.substr(0, static_cast<size_t>(symbols))) + "\"}");
    tokens.push_back(ids.front());
  }
  return tokens;
}

}  // namespace

std::string HmmConfig::problem() const {
  if (const std::string wrong = rows_problem("transition", transition, states, states); !wrong.empty()) return wrong;
  return rows_problem("emission", emission, states, symbols);
}

Hmm::Hmm(const HmmConfig& config) : config_(config), states_(config.states), symbols_(config.symbols) {
  if (const std::string wrong = config.problem(); !wrong.empty()) throw std::invalid_argument("hmm: " + wrong);
  Stream stream(static_cast<uint64_t>(config.seed), Purpose::initialisation);
  const auto own = [&](const std::vector<double>& written, int64_t columns) {
    return written.empty() ? drawn_rows(states_, columns, config.concentration, stream) : written;
  };
  transition_ = own(config.transition, states_);
  emission_ = own(config.emission, symbols_);
  if (!ergodic(transition_, states_))
    throw std::invalid_argument(
        "hmm: the chain of transition is not ergodic: a state is not reached from every other, or only every n-th "
        "step, so "
        "that the text would depend on the state it begins with; wanted a way from each state to each, and one that "
        "stays");
  stationary_ = stationary_law(transition_, states_);
}

std::vector<int64_t> Hmm::draw(Split split) const {
  Stream stream(static_cast<uint64_t>(config_.seed), Purpose::example, static_cast<uint64_t>(split));
  std::vector<int64_t> symbols;
  const double* law = stationary_.data();
  for (int64_t i = 0; i < config_.count(split); ++i) {
    const int64_t state = choose(law, states_, stream.uniform());
    symbols.push_back(choose(emission_.data() + state * symbols_, symbols_, stream.uniform()));
    law = transition_.data() + state * states_;
  }
  return symbols;
}

double HmmFilter::chance(const std::vector<double>& belief, int64_t symbol) const {
  const double* const E = hmm_->emission().data() + symbol;
  double sum = 0;
  for (size_t s = 0; s < belief.size(); ++s) sum += belief[s] * E[static_cast<int64_t>(s) * hmm_->symbols()];
  return sum;
}

double HmmFilter::nats(int64_t symbol) const {
  const double p = chance(belief_, symbol);
  return -std::log(p > 0 ? p : chance(hmm_->stationary(), symbol));
}

void HmmFilter::see(int64_t symbol) {
  if (chance(belief_, symbol) <= 0) reset();
  const int64_t S = hmm_->states(), V = hmm_->symbols();
  const double* const A = hmm_->transition().data();
  const double p = chance(belief_, symbol);
  std::vector<double> next(static_cast<size_t>(S), 0.0);
  for (int64_t s = 0; s < S; ++s) {
    const double here = belief_[static_cast<size_t>(s)] * hmm_->emission()[static_cast<size_t>(s * V + symbol)] / p;
    for (int64_t j = 0; here > 0 && j < S; ++j) next[static_cast<size_t>(j)] += here * A[s * S + j];
  }
  belief_ = std::move(next);
}

HmmFloor::HmmFloor(const HmmConfig& config, const Tokenizer& tokenizer)
    : hmm_(std::make_shared<const Hmm>(config)), symbol_of_(static_cast<size_t>(tokenizer.size()), -1) {
  const std::vector<int64_t> tokens = tokens_of(config.symbols, tokenizer);
  for (size_t x = 0; x < tokens.size(); ++x) symbol_of_[static_cast<size_t>(tokens[x])] = static_cast<int64_t>(x);
}

double HmmFloor::nats(const int64_t* tokens, const int64_t* target, int64_t count) const {
  HmmFilter filter(hmm_);
  double sum = 0;
  for (int64_t t = 0; t < count; ++t) {
    filter.see(symbol_of_.at(static_cast<size_t>(tokens[t])));
    if (target[t] >= 0) sum += filter.nats(symbol_of_.at(static_cast<size_t>(target[t])));
  }
  return sum;
}

std::shared_ptr<const TokenShard> open_hmm(const HmmConfig& config, const Tokenizer& tokenizer, Split split) {
  const Hmm hmm(config);
  const std::vector<int64_t> tokens = tokens_of(config.symbols, tokenizer);
  Hash hash;
  for (const auto* matrix : {&hmm.transition(), &hmm.emission()})
    for (const double p : *matrix) hash.add(std::bit_cast<uint64_t>(p));
  for (const int64_t id : tokens) hash.add(static_cast<uint64_t>(id));
  for (const int64_t key : {config.states, config.seed, config.count(split), tokenizer.size()})
    hash.add(static_cast<uint64_t>(key));
  return cached_tokens({"hmm", config.cache}, hash, split, hash.value, tokenizer, [&](const std::string& shard) {
    TokenShardWriter writer(shard, hash.value, config.count(split) * token_bytes(tokenizer.size()), tokenizer.size());
    std::vector<int64_t> ids;
    for (const int64_t symbol : hmm.draw(split)) ids.push_back(tokens[static_cast<size_t>(symbol)]);
    writer.write(ids);
    writer.commit();
  });
}

}  // namespace isentrope::data
