// TInt's path: a tree of nodes with letters, written as its edges, and walks on it.
#include <algorithm>
#include <numeric>
#include <utility>

#include "csrc/data/tint_search.h"
#include "csrc/data/tint_trace.h"

namespace isentrope::data {
namespace {

constexpr size_t kNames = 26;

template <class T>
void shuffle(std::vector<T>& items, Stream& stream) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[stream.below(static_cast<uint32_t>(i))]);
}

}  // namespace

TintProblem draw_path(const TintConfig& config, int64_t steps, Stream& stream) {
  std::vector<int64_t> names(kNames);
  std::iota(names.begin(), names.end(), int64_t{0});
  shuffle(names, stream);
  size_t used = 0;
  std::vector<std::pair<int64_t, int64_t>> edges;
  const auto grow = [&](int64_t from) { return edges.emplace_back(from, names.at(used++)).second; };
  TintProblem problem;
  const int64_t start = names.at(used++);
  int64_t node = start;
  std::string way(1, letter(node));
  for (int64_t left = steps; left > 0; --left) {
    // A branch is as long as the way that is left: how far a walk goes says nothing of where it leads.
    for (int64_t branch = 0; branch < config.branches; ++branch)
      for (int64_t i = 0, end = node; i < left; ++i) end = grow(end);
    node = grow(node);
    way += letter(node);
  }
  problem.right = {way, way, true};
  shuffle(edges, stream);
  for (const auto& [from, to] : edges) {
    problem.prompt += {letter(from), letter(to), ','};
    problem.values.insert(problem.values.end(), {from, to});
  }
  problem.prompt.back() = ':';
  problem.prompt += {letter(start), '>', letter(node), '='};
  problem.values.insert(problem.values.end(), {start, node});
  return problem;
}

Try try_path(const TintProblem& problem, Stream& stream) {
  const auto& values = problem.values;
  const int64_t goal = values.back();
  int64_t node = values[values.size() - 2];
  Try made{std::string(1, letter(node)), "", false};
  for (;;) {
    std::vector<int64_t> next;
    for (size_t i = 0; i + 2 < values.size(); i += 2)
      if (values[i] == node) next.push_back(values[i + 1]);
    if (node == goal || next.empty()) break;
    node = next[stream.below(static_cast<uint32_t>(next.size()))];
    made.text += letter(node);
  }
  made.answer = made.text;
  made.right = node == goal;
  return made;
}

std::optional<PathPrompt> PathPrompt::read(std::string_view prompt) {
  const auto node = [&](size_t i) { return i < prompt.size() && prompt[i] >= 'a' && prompt[i] <= 'z'; };
  PathPrompt found;
  size_t at = 0;
  do {
    if (!node(at) || !node(at + 1)) return std::nullopt;
    found.edges.insert({prompt[at], prompt[at + 1]});
    at += 3;
  } while (at <= prompt.size() && prompt[at - 1] == ',');
  if (prompt.size() != at + 4 || prompt[at - 1] != ':' || !node(at) || prompt[at + 1] != '>' || !node(at + 2) ||
      prompt[at + 3] != '=')
    return std::nullopt;
  found.start = prompt[at], found.goal = prompt[at + 2];
  return found;
}

bool PathPrompt::solved_by(std::string_view answer) const {
  if (answer.size() < 2 || answer.front() != start || answer.back() != goal) return false;
  for (size_t i = 0; i + 1 < answer.size(); ++i)
    if (!edges.contains({answer[i], answer[i + 1]})) return false;
  return true;
}

}  // namespace isentrope::data
