#include "csrc/data/facts.h"

#include <cmath>
#include <map>
#include <set>

namespace isentrope::data {

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) words.emplace_back(text.substr(at, end - at));
    at = end + 1;
  }
  return words;
}

size_t retrieve(const std::vector<std::string>& documents, std::string_view query) {
  std::vector<std::set<std::string>> of;  // words of each document
  std::map<std::string, double> have;
  for (const std::string& document : documents) {
    const auto words = words_of(document);
    of.emplace_back(words.begin(), words.end());
    for (const std::string& word : of.back()) ++have[word];
  }
  const auto asked = words_of(query);
  const std::set<std::string> wanted(asked.begin(), asked.end());
  size_t best = documents.size();
  double most = -1;
  for (size_t i = 0; i < documents.size(); ++i) {
    double score = 0;
    bool shares = false;
    for (const std::string& word : wanted)
      if (of[i].contains(word)) score += std::log(static_cast<double>(documents.size()) / have[word]), shares = true;
    if (shares && score > most) most = score, best = i;
  }
  return best;
}

}  // namespace isentrope::data
