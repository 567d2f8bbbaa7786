// pass@k: the chance that at least one of k answers to a prompt is right, from n ≥ k answers of which c are.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace isentrope::rl {

// 1 − C(n−c, k) / C(n, k), the share of all choices of k answers that hold a right one: unbiased for k independent answers
// (arXiv 2107.03374). 0 ≤ c ≤ n, 1 ≤ k ≤ n. The quotient is the product of (n−c−j) / (n−j) over j < k, or, which is the same
// number, of (n−k−j) / (n−j) over j < c: factors within 0 … 1 of which none overflows, and 0 and 1 come out exactly.
inline double pass_at(int64_t n, int64_t c, int64_t k) {
  const int64_t factors = std::min(c, k), left = n - std::max(c, k);
  double none = 1;
  for (int64_t j = 0; j < factors; ++j)
    none *= static_cast<double>(std::max<int64_t>(left - j, 0)) / static_cast<double>(n - j);
  return 1 - none;
}

// The k that are told of n answers, rising: each up to 16 answers; of more the powers of two and n, for pass@k is read over
// log k, where these are evenly spread, and a line of metrics keeps few keys (17 of 65,536 answers).
inline std::vector<int64_t> pass_ks(int64_t n) {
  constexpr int64_t kEach = 16;
  std::vector<int64_t> ks;
  for (int64_t k = 1; k < n; k = n <= kEach ? k + 1 : 2 * k) ks.push_back(k);
  ks.push_back(n);
  return ks;
}

}  // namespace isentrope::rl
