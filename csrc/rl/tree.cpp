#include "csrc/rl/tree.h"

#include <algorithm>

namespace isentrope::rl {

std::vector<std::vector<Segment>> segments(std::span<const Completion> completions, std::span<const double> rewards) {
  std::vector<std::vector<Segment>> out(completions.size());
  std::vector<std::vector<size_t>> children(completions.size());
  for (size_t i = 0; i < completions.size(); ++i)
    if (completions[i].parent >= 0) children[completions[i].parent].push_back(i);
  // Values from the leaves: children stand behind their parents. Segments are found from the last to the first.
  for (size_t i = completions.size(); i-- > 0;) {
    auto& below = children[i];
    std::sort(below.begin(), below.end(),
              [&](size_t a, size_t b) { return completions[a].begin < completions[b].begin; });
    auto end = static_cast<int64_t>(completions[i].tokens.size());
    double value = rewards[i];
    for (size_t k = below.size(); k-- > 0;) {
      out[i].push_back({completions[below[k]].begin, end, value, 1});
      end = completions[below[k]].begin;
      value = (value + out[below[k]].front().value) / 2;
    }
    out[i].push_back({completions[i].begin, end, value, 1});
    std::reverse(out[i].begin(), out[i].end());
  }
  // Weights from the roots: segment k begins where child k − 1 leaves.
  for (size_t i = 0; i < completions.size(); ++i)
    for (size_t k = 1; k < out[i].size(); ++k) {
      out[i][k].weight = out[i][k - 1].weight / 2;
      for (Segment& s : out[children[i][k - 1]]) s.weight *= out[i][k].weight;
    }
  return out;
}

}  // namespace isentrope::rl
