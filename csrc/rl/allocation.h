// How many samples each prompt of a step gets: more where its answers are sometimes right, from a record of the steps before.
// Pure C++.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/field.h"

namespace isentrope::rl {

struct AllocationConfig {
  int64_t least = 2;
  int64_t most = 0;
  double decay = 0.7;

  template <class Visitor>
  void visit(Visitor& v) {
    v("least", least, "Fewest samples of a prompt.", at_least(1));
    v("most", most, "Most samples of a prompt; 0 for twice rollout.num_generations.", at_least(0));
    v("decay", decay,
      "What a prompt's earlier answers still count for when it comes again: the policy has changed since.",
      between(0, 1));
  }
};

// The share p of right answers of each prompt that was seen. A prompt's share is its right answers over all its answers, older
// ones decayed, with the record's mean counted as two answers more, so that neither one answer nor none decides.
class PassRecord {
 public:
  double share(std::string_view prompt) const;  // of a prompt not seen: the mean; ½ where none was
  void add(std::string_view prompt, int64_t right, int64_t answers, double decay);
  double mean() const;

  // All of it, for a checkpoint: prompts' hashes, right answers, answers.
  struct State {
    std::vector<int64_t> prompt;
    std::vector<double> right, answers;
  };
  State state() const;
  void restore(const State& state);

 private:
  struct Count {
    double right = 0, answers = 0;
  };
  std::map<uint64_t, Count> counts_;  // by the hash of the prompt, in an order that does not depend on the run
  Count all_;
};

// samples, Σ = total: the standard deviation √(p(1 − p)) of a right answer's indicator is what a sample of the prompt has to
// tell, and by Neyman's rule (Neyman 1934) samples in proportion to it make the sum over prompts of the groups' means least
// uncertain. Every prompt gets at least `least` and at most `most`; fractions are rounded by the largest remainder, the
// earlier prompt first. Throws std::invalid_argument where total is not between shares.size() · least and · most.
std::vector<int64_t> allocate(const std::vector<double>& shares, int64_t total, int64_t least, int64_t most);

}  // namespace isentrope::rl
