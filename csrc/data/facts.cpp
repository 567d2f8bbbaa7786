#include "csrc/data/facts.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace isentrope::data {

std::vector<std::string> terms_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) words.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

Retriever::Retriever(const std::vector<std::string>& documents) : size_(documents.size()) {
  for (uint32_t i = 0; i < documents.size(); ++i)
    for (std::string& word : terms_of(documents[i])) {
      std::vector<uint32_t>& having = having_[std::move(word)];
      if (having.empty() || having.back() != i) having.push_back(i);  // a word that stands twice counts once
    }
}

size_t Retriever::best(std::string_view query) const {
  const auto asked = terms_of(query);
  std::vector<double> scores(size_, -1);  // of a document that shares no word
  for (const std::string& word : std::set<std::string>(asked.begin(), asked.end()))  // in one order, so that sums are
    if (const auto found = having_.find(word); found != having_.end())
      for (const double weight = std::log(static_cast<double>(size_) / static_cast<double>(found->second.size()));
           const uint32_t document : found->second)
        scores[document] = std::max(scores[document], 0.0) + weight;
  size_t best = size_;
  double most = -1;
  for (size_t i = 0; i < size_; ++i)
    if (scores[i] > most) most = scores[i], best = i;
  return best;
}

}  // namespace isentrope::data
