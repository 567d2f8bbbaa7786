// Text of a hidden Markov model: the least loss that any model of it can have is known, by the exact filter.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "csrc/data/example.h"
#include "csrc/data/token_shard.h"
#include "csrc/data/tokenizer.h"
#include "csrc/field.h"

namespace isentrope::data {

// State i goes to j with probability A[i, j] and then shows symbol x with E[j, x]; the first state is drawn from the stationary
// law. A symbol is one character of 0 … 9, a … z, A … Z, in this order.
struct HmmConfig {
  int64_t states = 8;
  int64_t symbols = 16;
  double concentration = 0.3;
  std::vector<double> transition = {};
  std::vector<double> emission = {};
  int64_t tokens = 1 << 20;
  int64_t validation_tokens = 1 << 16;
  int64_t test_tokens = 1 << 16;
  int64_t seed = 1;
  std::string cache = "runs/tokens";

  template <class Visitor>
  void visit(Visitor& v) {
    v("states", states, "Hidden states S.", between(1, 256));
    v("symbols", symbols, "Characters that the states show.", between(2, 62));
    v("concentration", concentration,
      "Of the Dirichlet law that the rows of both matrices are drawn from where they are not written; below 1: few "
      "large "
      "entries a row.",
      between(1e-2, 1e3));
    v("transition", transition, "Probabilities of the next state, [S, S] row by row; empty: drawn.", between(0, 1));
    v("emission", emission, "Probabilities of the symbols, [S, symbols] row by row; empty: drawn.", between(0, 1));
    v("tokens", tokens, "Characters to learn from, of one chain; an epoch of the phase is all of them.", at_least(2));
    v("validation_tokens", validation_tokens, "Characters for validation, of a chain of its own; 0 for none.",
      at_least(0));
    v("test_tokens", test_tokens, "The same for test.", at_least(0));
    v("seed", seed, "Fixes matrices and chains.", at_least(0));
    v("cache", cache, "Folder of the token shards, as of data.corpus.");
  }
  std::string problem() const;  // of the keys; that a chain is ergodic the constructor of Hmm asks
  int64_t count(Split split) const {
    return split == Split::train ? tokens : split == Split::validation ? validation_tokens : test_tokens;
  }
  bool has(Split split) const { return count(split) > 0; }
};

class Hmm {
 public:
  // Throws std::invalid_argument for a config with a problem(), and where the chain is not ergodic: some state is not reached
  // from every other, or only after a multiple of a period; its text would depend on where it begins.
  explicit Hmm(const HmmConfig& config);

  int64_t states() const { return states_; }
  int64_t symbols() const { return symbols_; }
  const std::vector<double>& transition() const { return transition_; }  // [S, S]
  const std::vector<double>& emission() const { return emission_; }      // [S, symbols]
  const std::vector<double>& stationary() const { return stationary_; }  // [S], π = π A
  // The symbols of a split's chain: a pure function of (config, split).
  std::vector<int64_t> draw(Split split) const;

 private:
  HmmConfig config_;
  int64_t states_, symbols_;
  std::vector<double> transition_, emission_, stationary_;
};

// The exact filter: what is to be known of the next symbol from those before it. Source: Rabiner, Proc. IEEE 77 (1989), the
// scaled forward recursion.
class HmmFilter {
 public:
  explicit HmmFilter(std::shared_ptr<const Hmm> hmm) : hmm_(std::move(hmm)) { reset(); }
  void reset() { belief_ = hmm_->stationary(); }
  // −ln p(symbol | those seen since reset()). A symbol that cannot follow begins a new chain: the text is a ring (packed_source.h),
  // whose end meets its beginning.
  double nats(int64_t symbol) const;
  void see(int64_t symbol);
  const std::vector<double>& belief() const { return belief_; }  // [S], of the next state

 private:
  double chance(const std::vector<double>& belief, int64_t symbol) const;
  std::shared_ptr<const Hmm> hmm_;
  std::vector<double> belief_;
};

// The filter's loss on tokens: nats of each target of a window, the filter knowing what the model does, the window from its first
// token on.
class HmmFloor {
 public:
  // Throws std::invalid_argument where a symbol is no token of its own.
  HmmFloor(const HmmConfig& config, const Tokenizer& tokenizer);
  // Σ over the targets that are not below 0 (kIgnore). tokens, target: [count].
  double nats(const int64_t* tokens, const int64_t* target, int64_t count) const;

 private:
  std::shared_ptr<const Hmm> hmm_;
  std::vector<int64_t> symbol_of_;  // [V], −1 where a token is none
};

// As open_corpus(); throws as Hmm and HmmFloor do.
std::shared_ptr<const TokenShard> open_hmm(const HmmConfig& config, const Tokenizer& tokenizer, Split split);

}  // namespace isentrope::data
